"""Who may do what: the rules, what each ask needs, names to ids, ids that say nothing."""

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from wald import system
from wald.config import AccessSettings, Settings, StreamAccess, people
from wald.core.access import (
    OPERATIONS,
    Access,
    Caller,
    Listed,
    Verb,
    check_operation,
)
from wald.errors import AccessDenied, ConfigError, WrongSetting
from wald.supervisor.guard import Guard
from wald.system import caller_of

ROOT_PATH = Path(__file__).parents[2]
OWN, ROOT, ANN, BOB, EVE = 500, 0, 1001, 1002, 1003
WEB, STAFF = 33, 50


def caller(uid: int | None, *gids: int) -> Caller:
    return Caller(uid, frozenset(gids))


def listed(*uids: int, gids: tuple[int, ...] = ()) -> Listed:
    return Listed(frozenset(uids), frozenset(gids))


ACCESS = Access(
    OWN,
    {
        Verb.APPEND: listed(gids=(WEB,)),
        Verb.READ: listed(gids=(STAFF,)),
        Verb.OPERATE: listed(BOB),
    },
    {"orders": {Verb.APPEND: listed(ANN)}, "audit": {Verb.READ: listed(ANN)}},
)

ROWS: dict[str, tuple[Caller, str, str]] = {
    # who, what may be done with "orders", with any other stream
    "the daemon's own user": (caller(OWN), "append read operate", "append read operate"),
    "root": (caller(ROOT), "append read operate", "append read operate"),
    "a group that appends everywhere but where a stream has its own list": (
        caller(EVE, WEB),
        "",
        "append",
    ),
    "a user of a stream's own list": (caller(ANN), "append", ""),
    "a group that reads": (caller(EVE, STAFF), "read", "read"),
    "who operates reads too": (caller(BOB), "read operate", "read operate"),
    "nobody of them": (caller(EVE), "", ""),
    "an id that says nothing": (caller(None), "", ""),
}


@pytest.mark.parametrize("row", ROWS)
def test_rules(row: str) -> None:
    who, orders, others = ROWS[row]
    for stream, allowed in (("orders", orders), ("signups", others), ("", others)):
        may = [verb.value for verb in Verb if ACCESS.may(who, verb, stream)]
        assert may == allowed.split(), stream


def test_a_right_for_one_stream_is_a_right_somewhere() -> None:
    assert ACCESS.may_somewhere(caller(ANN), Verb.APPEND)
    assert not ACCESS.may_somewhere(caller(EVE), Verb.APPEND)
    assert ACCESS.admits_others
    assert not Access(OWN, {Verb.APPEND: listed(OWN, ROOT)}, {}).admits_others


STREAMS = {"audit-db": "audit"}
ASKS: dict[str, tuple[Mapping[str, Any], str]] = {
    # what is asked, who of ann (append orders, read audit), bob (operate), eve and staff (read) may
    "a sign of life": ({"op": "ping"}, "ann bob eve staff"),
    "status, of what one may read": ({"op": "status"}, "ann bob staff"),
    "a record, whose stream nobody knows before": ({"op": "drain.where", "lsn": 1}, "bob staff"),
    "deliveries of a stream that one appends to": (
        {"op": "drain.delivered", "stream": "orders"},
        "ann bob staff",
    ),
    "deliveries of another": ({"op": "drain.delivered", "stream": "signups"}, "bob staff"),
    "records of a stream that one only appends to": (
        {"op": "drain.tail", "stream": "orders"},
        "bob staff",
    ),
    "records of a stream that one reads": ({"op": "drain.tail", "stream": "audit"}, "ann bob"),
    "dead letters of a route whose stream one reads": (
        {"op": "drain.dlq", "route": "audit-db"},
        "ann bob",
    ),
    "an orphan with the name of a stream that one reads": (
        {"op": "drain.dlq", "route": "audit"},
        "bob staff",
    ),
    "dead letters of all routes": ({"op": "drain.dlq"}, "bob staff"),
    "a stream's name beside a route is not believed": (
        {"op": "drain.dlq", "route": "signups-db", "stream": "audit"},
        "bob staff",
    ),
    "not even a name": ({"op": "drain.dlq", "route": ["audit-db"]}, "bob staff"),
    "a purge": ({"op": "drain.dlq.purge", "route": "audit-db"}, "bob"),
    "what nobody has heard of": ({"op": "drain.new"}, "bob"),
}


@pytest.mark.parametrize("row", ASKS)
def test_what_an_ask_needs(row: str) -> None:
    request, expected = ASKS[row]
    callers = {
        "ann": caller(ANN),
        "bob": caller(BOB),
        "eve": caller(EVE),
        "staff": caller(7, STAFF),
    }
    allowed = []
    for name, who in callers.items():
        with contextlib.suppress(AccessDenied):
            check_operation(ACCESS, who, request, STREAMS)
            allowed.append(name)
    # one with a list of its own for the stream: staff may not read "audit"
    assert " ".join(allowed) == expected


def test_every_operation_that_only_reads_is_one_of_the_drainer() -> None:
    sources = (ROOT_PATH / "wald" / "drainer").glob("*.py")
    answered = set(re.findall(r'"(drain\.[a-z_.]+)":', "".join(map(Path.read_text, sources))))
    assert {name for name in OPERATIONS if name.startswith("drain.")} <= answered
    # whoever adds an operation decides whether it only reads
    assert answered - set(OPERATIONS) == {
        "drain.flush",
        "drain.pause",
        "drain.resume",
        "drain.drop",
        "drain.probe",
        "drain.fault",
        "drain.takeover",
        "drain.dlq.purge",
        "drain.dlq.redrive",
        "drain.dlq.set_aside",
        "drain.batch.resolve",
    }


def test_a_refusal_says_who_and_what() -> None:
    with pytest.raises(AccessDenied, match=r"the user 1003 may not operate"):
        check_operation(ACCESS, caller(EVE), {"op": "drain.flush"}, {})
    with pytest.raises(AccessDenied, match=r"a user of another namespace may not read"):
        check_operation(ACCESS, caller(None), {"op": "drain.where"}, {})


def test_status_shows_the_streams_that_one_may_read() -> None:
    guard = Guard(ACCESS, None, Settings("", ""))
    rows = {"audit-db": {"stream": "audit"}, "orders-db": {"stream": "orders"}}
    both: dict[str, object] = {"audit": {}, "orders": {}}
    status = {"routes": rows, "streams": both, "quotas": both, "dedup": both, "groups": 3}
    assert guard.shown(caller(BOB), status) == status
    assert guard.shown(None, status) == status
    seen = guard.shown(caller(ANN), status)
    assert (list(seen["routes"]), list(seen["streams"]), seen["groups"]) == (
        ["audit-db"],
        ["audit"],
        3,
    )
    with pytest.raises(AccessDenied):
        guard.check(caller(EVE), {"op": "status"})
    assert guard.refused == {"access-denied": 1}


# --- names to ids -------------------------------------------------------------------------------


def settings(**access: Any) -> Settings:
    return Settings("", "", access=AccessSettings(**access))


def test_names_and_ids_are_taken() -> None:
    access = people.access_of(
        settings(
            append=("root", "1234", "@root", "@4321"),
            streams={"s": StreamAccess(read=("77",))},
        ),
        OWN,
    )
    assert access is not None
    assert access.may(caller(1234), Verb.APPEND, "s")
    assert access.may(caller(9, 4321), Verb.APPEND)
    assert access.may(caller(77), Verb.READ, "s")
    assert not access.may(caller(77), Verb.READ)


def test_without_a_table_nobody_asks() -> None:
    assert people.access_of(Settings("", ""), OWN) is None
    assert people.access_of(Settings("", ""), None) is None


@pytest.mark.parametrize(
    ("access", "message"),
    [
        ({"append": ("no-such-user",)}, "access.append: there is no user 'no-such-user'"),
        ({"operate": ("@no-such-group",)}, "access.operate: there is no group 'no-such-group'"),
        (
            {"streams": {"s": StreamAccess(append=("no-such-user",))}},
            "access.streams.s.append: there is no user",
        ),
    ],
)
def test_who_the_system_does_not_know_is_named(access: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongSetting) as caught:
        people.access_of(settings(**access), OWN)
    assert message in caught.value.message
    assert "getent" in caught.value.hint


def test_where_all_users_have_one_id_rules_cannot_be_kept() -> None:
    with pytest.raises(ConfigError, match="all users have the same id"):
        people.access_of(settings(), None)


def test_owner_group_and_mode_of_the_sockets() -> None:
    plain = Settings("", "")
    assert people.socket_manner(plain) == (0o600, -1, -1)
    assert not people.opens(plain)
    wide = Settings("", "", socket_mode=0o660, socket_owner="root", socket_group="root")
    assert people.socket_manner(wide) == (0o660, 0, 0)
    assert people.opens(wide)
    with pytest.raises(WrongSetting, match=r"daemon\.socket_group"):
        people.socket_manner(Settings("", "", socket_group="no-such-group"))


# --- who connects -------------------------------------------------------------------------------


def test_the_kernel_says_who_connected() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        who = caller_of(ours)
    assert (who.uid, who.pid) == (os.geteuid(), os.getpid())
    assert who.gids >= {os.getegid()}


def test_an_overflow_id_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system, "_overflow", lambda _: os.geteuid())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert caller_of(ours).uid is None
    assert system.own_uid() is None


@pytest.mark.parametrize(
    ("id_map", "said", "expected"),
    [
        ("         0          0 4294967295", "65534", None),
        ("         0       1000          1", "65534", 65534),
        ("", "", None),
    ],
    ids=["the first namespace", "another one", "a system without namespaces"],
)
def test_which_id_says_nothing(
    monkeypatch: pytest.MonkeyPatch, id_map: str, said: str, expected: int | None
) -> None:
    lines = {"/proc/self/uid_map": id_map.strip(), "/proc/sys/kernel/overflowuid": said}
    monkeypatch.setattr(system, "_first_line", lines.__getitem__)
    system._overflow.cache_clear()
    try:
        assert system._overflow("uid") == expected
    finally:
        system._overflow.cache_clear()
