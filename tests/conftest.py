"""Settings of the whole suite."""

from hypothesis import HealthCheck, settings

# A machine that is busy with servers is slow by turns: how long an example takes proves nothing here.
settings.register_profile("holdfast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("holdfast")
