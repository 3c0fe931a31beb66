"""Means of every process of the instance: start, priority, shared memory, sockets, settings."""
