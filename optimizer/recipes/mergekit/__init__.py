"""mergekit's YAML: its structure, and recipes written in it and read from it."""
