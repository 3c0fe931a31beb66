"""What people serve, against what can break: rows of features, columns of faults, and a verdict for each cell."""
