"""The search loop: claim a slot, ask, evaluate, tell; and what it shares with samplers and storage.

Neither weights nor HTTP nor SQL.
"""
