"""Messages between the host's processes under Holdfast. Imports nothing of the sibling packages."""
