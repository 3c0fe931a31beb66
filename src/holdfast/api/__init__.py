"""HTTP routes, the PUB socket and the log: views of the event stream, and the way in for commands."""
