"""Metrics in the host's `/metrics`: views of the event stream, and of the streams of each front end."""
