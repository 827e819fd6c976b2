"""MAP: quadratic models of each objective, searched for the front (arXiv:2406.07529)."""
