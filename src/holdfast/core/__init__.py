"""What a fault is, which states exist, what to do next. Pure: no I/O, clock, threads or host."""
