"""The API server: request routing, lost engines, takeover of an engine's requests."""
