"""The table ``[access]`` with the system's ids in place of names."""

import grp
import pwd
from collections.abc import Iterable

from wald.config.settings import Settings
from wald.core.access import Access, Listed, Verb
from wald.errors import ConfigError, WrongSetting


def access_of(settings: Settings, own_uid: int | None) -> Access | None:
    """Return the rules; None without a table ``[access]``.

    Args:
        settings: of the daemon.
        own_uid: its user's id; None where that id stands for others too.

    Raises:
        ConfigError: a user or group that the system does not know, or callers cannot be told apart.
    """
    said = settings.access
    if said is None:
        return None
    if own_uid is None:
        msg = "[access] cannot be kept: in this user namespace all users have the same id"
        raise ConfigError(msg, hint="map users into it (unshare --map-users), or drop [access]")
    general = {
        Verb.APPEND: _listed("access.append", said.append),
        Verb.READ: _listed("access.read", said.read),
        Verb.OPERATE: _listed("access.operate", said.operate),
    }
    streams = {}
    for name, own in said.streams.items():
        lists = {Verb.APPEND: own.append, Verb.READ: own.read}
        streams[name] = {
            verb: _listed(f"access.streams.{name}.{verb.value}", people)
            for verb, people in lists.items()
            if people is not None
        }
    return Access(own_uid, general, streams)


def socket_manner(settings: Settings) -> tuple[int, int, int]:
    """Return mode, user and group id of the sockets; -1: those of the process.

    Raises:
        WrongSetting: a user or group that the system does not know.
    """
    owner, group = settings.socket_owner, settings.socket_group
    return (
        settings.socket_mode,
        -1 if owner is None else user_id("daemon.socket_owner", owner),
        -1 if group is None else group_id("daemon.socket_group", group),
    )


def opens(settings: Settings) -> bool:
    """Whether the sockets may be opened by others than their owner."""
    return bool(settings.socket_mode & 0o066) or settings.socket_owner is not None


def _listed(place: str, people: Iterable[str]) -> Listed:
    uids, gids = set(), set()
    for each in people:
        if each.startswith("@"):
            gids.add(group_id(place, each[1:]))
        else:
            uids.add(user_id(place, each))
    return Listed(frozenset(uids), frozenset(gids))


def user_id(place: str, name: str) -> int:
    """Return the id of a user that a setting names.

    Raises:
        WrongSetting: there is none.
    """
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        msg = f"{place}: there is no user {name!r}"
        raise WrongSetting(msg, hint="name it as 'getent passwd' does, or by its id") from None


def group_id(place: str, name: str) -> int:
    """Return the id of a group that a setting names.

    Raises:
        WrongSetting: there is none.
    """
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        msg = f"{place}: there is no group {name!r}"
        raise WrongSetting(msg, hint="name it as 'getent group' does, or by its id") from None
