"""Functions that the host's CPU platform lacks to run many ranks as GPUs do. No effect on another platform."""
