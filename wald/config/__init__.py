"""Settings: frozen values, parsed purely, then loaded from files; says which source set a value."""

from wald.config.load import Loaded, load_file, load_target, load_text
from wald.config.places import Places, default_places
from wald.config.settings import (
    EACH_STREAM,
    AccessSettings,
    BatchSettings,
    ClientLimits,
    DeadLetterSettings,
    RouteSettings,
    Settings,
    SinkSettings,
    StreamAccess,
    StreamSettings,
)
from wald.model import Secret

__all__ = [
    "EACH_STREAM",
    "AccessSettings",
    "BatchSettings",
    "ClientLimits",
    "DeadLetterSettings",
    "Loaded",
    "Places",
    "RouteSettings",
    "Secret",
    "Settings",
    "SinkSettings",
    "StreamAccess",
    "StreamSettings",
    "default_places",
    "load_file",
    "load_target",
    "load_text",
]
