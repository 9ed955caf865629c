"""The DynamoDB sink: ``keyed`` by modes ``put`` and ``put-if-newer``, or ``transactional``."""

from wald.sinks.dynamodb.sink import make

__all__ = ["make"]
