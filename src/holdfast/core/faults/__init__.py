"""Fault classification: what a fault is, and of which class."""
