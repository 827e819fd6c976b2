"""Closed models side by side; a recipe is the weights of their votes."""
