"""Methods with an arithmetic of their own, and mergekit's own arithmetic for every method."""
