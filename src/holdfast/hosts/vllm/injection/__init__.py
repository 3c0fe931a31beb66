"""Fault injection in the host's processes: where faults are injected, and what an injected fault does."""
