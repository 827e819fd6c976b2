"""Fewer experts inside one mixture: which ones are alike, how they become one, and the model that comes of it."""
