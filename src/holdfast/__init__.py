"""Holdfast keeps a vLLM instance serving through faults."""

__version__ = "0.1.0"
