"""Answering fewer items: which items a candidate is asked, and what all answers together say of its scores.

No model is asked here.
"""
