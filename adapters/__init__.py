"""Backends and tasks: what turns a recipe into a model, and what is asked of it. Searches nothing, stores nothing."""
