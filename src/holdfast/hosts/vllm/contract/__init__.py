"""Everything Holdfast knows of the host: the register of touchpoints, and how each is checked."""
