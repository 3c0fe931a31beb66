"""Decisions: pure functions that return an action and its reason."""
