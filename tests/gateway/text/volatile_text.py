"""Hypothesis settings for tests that must pass alike on a busy machine: the same examples each time, and no clock."""

from hypothesis import HealthCheck, settings

STEADY = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
