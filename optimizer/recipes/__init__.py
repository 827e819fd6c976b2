"""What is merged and how: merge methods as data, coefficients, recipes, spaces, anchors.

No tensors: the arithmetic is in ``mergefront.adapters.merging``.
"""
