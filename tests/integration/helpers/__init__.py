"""Steps that several modules of integration tests share, by theme."""
