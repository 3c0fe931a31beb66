"""The page at `/fault_tolerance/`: its files, its login, and the stream of events that keeps the page up to date."""
