"""Which sink a mode is."""

import importlib.util
from collections.abc import Mapping

from wald.errors import ConfigError
from wald.ports import Sink
from wald.sinks.dynamodb.keyed import KeyedSink
from wald.sinks.dynamodb.options import read_options
from wald.sinks.dynamodb.transaction import TransactionSink


def make(route: str, stream: str, settings: Mapping[str, object]) -> Sink:
    """Make the sink of a route; connects lazily.

    Raises:
        ConfigError: a setting is unknown, missing or wrong, or there is no driver.
    """
    options = read_options(route, stream, settings)
    if importlib.util.find_spec("boto3") is None:
        msg = f"route {route!r}: a dynamodb sink needs boto3"
        raise ConfigError(msg, hint="pip install 'wald[aws]'")
    if options.mode == "transaction":
        return TransactionSink(options)
    return KeyedSink(options)
