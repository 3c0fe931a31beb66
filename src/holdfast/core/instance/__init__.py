"""One instance of the host: its lockstep groups, from the detection of a fault to its repair or defeat."""
