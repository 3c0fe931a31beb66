"""What the host's CPU platform lacks to run many ranks as GPUs do; no effect on another platform."""
