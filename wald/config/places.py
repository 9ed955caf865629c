"""Where wald keeps things when nobody says: root's places, a user's, and those of ``--to``."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT_DATA_DIR = "/var/lib/wald"
ROOT_SOCKET = "/run/wald/wald.sock"
CONTROL_SUFFIX = ".ctl"
ROOT_CONFIG = "/etc/wald/wald.toml"


class Places(NamedTuple):
    """A data directory and the path of the data socket."""

    data_dir: str
    socket: str


def default_places(environment: Mapping[str, str], uid: int) -> Places:
    """Return root's or the user's places; ``WALD_SOCKET`` wins for the socket."""
    if uid == 0:
        data_dir, socket = ROOT_DATA_DIR, ROOT_SOCKET
    else:
        home = environment.get("HOME") or "~"
        state = environment.get("XDG_STATE_HOME") or f"{home}/.local/state"
        runtime = environment.get("XDG_RUNTIME_DIR")
        data_dir = f"{state}/wald"
        # without a runtime directory not /tmp: a name that others can guess is not ours
        socket = f"{runtime}/wald/wald.sock" if runtime else f"{data_dir}/wald.sock"
    return Places(data_dir, environment.get("WALD_SOCKET") or socket)


def data_dir_beside(file: str) -> str:
    """Return where ``--to sqlite:FILE`` keeps the log: beside the file."""
    return str(Path(file).absolute()) + ".wald"


def data_dir_for(digest: str, places: Places) -> str:
    """Return where ``--to`` keeps the log of a target that is a URL: one directory for each."""
    return f"{places.data_dir}-{digest[:12]}"
