"""Fixtures that every folder may ask for."""

from tests.servers import own_postgres, postgres, redis_server, shared_redis

__all__ = ["own_postgres", "postgres", "redis_server", "shared_redis"]
