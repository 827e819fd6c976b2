"""Trials and the front of a search, written to an experiment tracker as they come."""
