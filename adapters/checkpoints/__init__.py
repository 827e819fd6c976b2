"""Checkpoints on disk: headers, tensors, LoRAs, whether they fit each other, writing them.

Nothing here merges.
"""
