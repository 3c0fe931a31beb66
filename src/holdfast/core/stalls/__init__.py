"""Stall detection: how long a step may take, and which rank makes no progress."""
