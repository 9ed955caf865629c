"""The PostgreSQL sink: ``transactional``, by a progress row in the data's own transaction."""

from wald.sinks.postgres.sink import PostgresSink, make

__all__ = ["PostgresSink", "make"]
