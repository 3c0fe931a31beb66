"""The agent of a further node: starts, watches and kills the workers there, on command of the engine core."""
