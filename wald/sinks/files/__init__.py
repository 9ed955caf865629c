"""The files sink: ``transactional``, by a progress row beside the files, which publishes them."""

from wald.sinks.files.sink import FilesSink, make

__all__ = ["FilesSink", "make"]
