"""Which processes work on a study, and whether they still live."""
