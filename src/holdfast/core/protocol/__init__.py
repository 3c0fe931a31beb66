"""Everything that travels: messages, events, effects."""
