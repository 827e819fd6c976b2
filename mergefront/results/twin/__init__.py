"""A merge with what it lost of each expert beside it, and a router that says whose prompt one is (Twin-Merging)."""
