"""What the host's processes say to each other through Holdfast. Imports no other room."""
