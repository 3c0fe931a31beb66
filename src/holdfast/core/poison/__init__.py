"""Poison requests: the search for the request that makes every step fail."""
