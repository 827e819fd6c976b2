"""What evaluations say: objectives, constraints, dominance, differences beyond noise.

Nothing here proposes a recipe or asks a model.
"""
