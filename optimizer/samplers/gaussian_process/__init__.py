"""Gaussian processes on the unit cube, one concept a file: kernel, prior, posterior, fit.

Nothing of studies, trials or merges.
"""
