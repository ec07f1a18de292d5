"""Fixtures that every folder may ask for, and what holds for all of them."""

import os

from hypothesis import HealthCheck, settings

from tests.servers import own_postgres, postgres, redis_server, shared_redis

__all__ = ["own_postgres", "postgres", "redis_server", "shared_redis"]

# How long an example takes says something of the machine, and these are shared: only what it finds counts.
# And the same examples in every `make test`, so that only a change can make it fail; WEIR_TEST_SEED draws others.
settings.register_profile(
    "weir",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("WEIR_TEST_SEED"),
)
settings.load_profile("weir")
