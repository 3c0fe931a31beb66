"""The engine core's sentinel without I/O, threads or clock: facts in, effects out."""
