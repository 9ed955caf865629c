"""The HTTP sink: a batch is one request with JSON; presets for Power BI, Elasticsearch and more."""

from wald.sinks.http.sink import HttpSink, make

__all__ = ["HttpSink", "make"]
