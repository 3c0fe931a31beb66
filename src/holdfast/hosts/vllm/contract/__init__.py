"""Everything Holdfast knows of the host: the registry of touchpoints, and how each is checked."""
