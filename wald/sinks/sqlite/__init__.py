"""The SQLite sink: ``transactional``, by a progress row in the data's own transaction."""

from wald.sinks.sqlite.sink import SqliteSink, make

__all__ = ["SqliteSink", "make"]
