"""Methods with an arithmetic of their own."""
