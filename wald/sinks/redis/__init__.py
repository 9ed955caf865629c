"""The Redis and Valkey Streams sink: ``transactional``, by a progress row beside the stream."""

from wald.sinks.redis.sink import RedisSink, make

__all__ = ["RedisSink", "make"]
