"""Settings: frozen values, parsed purely, then loaded from files; says which source set a value."""

from wald.config.load import Loaded, load_file, load_target, load_text
from wald.config.places import Places, default_places
from wald.config.settings import (
    BatchSettings,
    DeadLetterSettings,
    RouteSettings,
    Settings,
    SinkSettings,
)
from wald.model import Secret

__all__ = [
    "BatchSettings",
    "DeadLetterSettings",
    "Loaded",
    "Places",
    "RouteSettings",
    "Secret",
    "Settings",
    "SinkSettings",
    "default_places",
    "load_file",
    "load_target",
    "load_text",
]
