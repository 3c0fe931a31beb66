"""The engines that Holdfast can live in."""
