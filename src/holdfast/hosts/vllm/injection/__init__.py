"""Fault injection inside the host's processes."""
