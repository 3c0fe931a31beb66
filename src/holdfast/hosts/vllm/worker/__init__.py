"""The worker process: fence, runner state, restore, replacement."""
