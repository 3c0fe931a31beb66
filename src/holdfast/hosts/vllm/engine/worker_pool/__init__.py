"""The workers of an engine core, as the engine core sees them: executor, replacements, standbys."""
