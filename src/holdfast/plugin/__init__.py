"""The entry points that the host loads: where the host's side and the API are put together."""
