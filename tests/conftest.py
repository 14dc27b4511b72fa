"""How long the property tests search: briefly, always the same way; with TAPELINE_PROVE=1 longer, each time anew."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

#: The real servers.
pytest_plugins = ["brokers"]

_SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
settings.register_profile("quick", max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=_SLOW)
settings.register_profile("prove", max_examples=1_000, deadline=None, database=None, suppress_health_check=_SLOW)
settings.load_profile("prove" if os.environ.get("TAPELINE_PROVE") == "1" else "quick")
