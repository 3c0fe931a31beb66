"""The process that owns the engine cores: it starts, watches, replaces and ends them."""
