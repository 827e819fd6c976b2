"""Backends for those who have an endpoint and no weights. No model library is imported here."""
