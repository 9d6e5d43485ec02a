"""Property tests are seeded, and never fail for a slow machine's sake."""

from hypothesis import HealthCheck, settings

settings.register_profile("headway", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("headway")
