"""Plots of a front."""
