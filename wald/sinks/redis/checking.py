"""What ``wald check`` says of a stream and its server: looked at, nothing written."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from wald.model import Finding, Severity, Systemic, Unknown
from wald.sinks.redis import scripts
from wald.sinks.redis.calls import CallFailed
from wald.sinks.redis.options import Options

if TYPE_CHECKING:
    from wald.sinks.redis.link import Link

_OK, _WARNING, _ERROR = Severity.OK, Severity.WARNING, Severity.ERROR
_SAFE_POLICIES: Final = ("noeviction", "volatile-")
# WAITAOF by its category: a server that has no such command would refuse the whole line
GRANTS: Final = (
    "+@connection -@admin -@dangerous +eval +xadd +xtrim +xinfo|stream +xrange +xrevrange +hmget "
    "+hset +wait +type +info +command|info +config|get"
)


def grants(options: Options) -> str:
    """Return the least that the user needs, as a command of the server."""
    user, stream = options.username or "wald", options.stream_key
    keys = (stream, f"{stream}:*", scripts.key_beside(stream), scripts.key_beside(f"{stream}:*"))
    patterns = " ".join(f'"~{key}"' for key in keys)
    return f"ACL SETUSER {user} on {patterns} {GRANTS}"


def check(options: Options, link: "Link") -> Sequence[Finding]:
    """Look at server and stream."""
    try:
        return [*_found(options, link)]
    except CallFailed as failed:
        said = failed.outcome
        if isinstance(said, Systemic):
            code = f"redis.{said.kind.value}"
            return [Finding(_ERROR, code, said.message, said.hint)]
        message = said.message if isinstance(said, Unknown) else str(said)
        return [Finding(_ERROR, "redis.unreachable", message, "")]


def _found(options: Options, link: "Link") -> Iterator[Finding]:
    beside = scripts.key_beside(options.stream_key)
    assert beside is not None
    kind = _text(link.call("TYPE", options.stream_key))
    if kind not in {"none", "stream"}:
        msg = f"key {options.stream_key!r} holds a {kind}"
        yield Finding(_ERROR, "redis.configuration", msg, "say another stream_key")
        return
    answer = link.call("EVAL", scripts.READ, 2, options.stream_key, beside, "")
    last, log, route, _, newest = map(_text, answer)
    server = f"{_server(link)}, stream {options.stream_key!r}"
    if newest == "" or (log and newest not in {scripts.OURS, log}):
        msg = f"{server} has entries of others (highest id {last}), and takes none below them"
        yield Finding(_ERROR, "redis.owned", msg, "a stream has one owner: say another stream_key")
    elif log:
        yield Finding(_OK, "redis.found", f"{server} of route {route} of log {log}")
    else:
        yield Finding(_OK, "redis.found", f"{server} will be made" if kind == "none" else server)
    yield from _of_the_disk(options, link)


def _of_the_disk(options: Options, link: "Link") -> Iterator[Finding]:
    """Say what of that which was acknowledged a crash of the server may forget."""
    settings = {name: _setting(link, name) for name in ("appendonly", "appendfsync")}
    appends, syncs = settings["appendonly"], settings["appendfsync"]
    again = "what it forgets is delivered again, as far as the log still holds it"
    if appends == "no":
        msg = f"the server keeps no append-only file: a crash forgets much; {again}"
        yield Finding(_WARNING, "redis.no-aof", msg, "set appendonly yes, appendfsync always")
    elif not _has_waitaof(link) and syncs != "always":
        msg = f"the server has no WAITAOF: a crash may forget the last second; {again}"
        hint = "Redis 7.2 and Valkey have it; or set appendfsync always"
        yield Finding(_WARNING, "redis.no-waitaof", msg, hint)
    elif options.wait_aof and syncs == "everysec":
        msg = "each batch waits for the server's disk, up to a second (appendfsync everysec)"
        hint = "appendfsync always is faster here; wait_aof = false does not wait"
        yield Finding(_WARNING, "redis.waits", msg, hint)
    facts = _facts(link, "memory")
    most, used = int(facts.get("maxmemory", 0)), int(facts.get("used_memory", 0))
    if 0 < most <= used:
        msg = f"the server is full: it uses {used:,} bytes, and maxmemory is {most:,}"
        yield Finding(_ERROR, "redis.full", msg, "raise maxmemory, or trim what is there")
    policy = _setting(link, "maxmemory-policy")
    if policy and not policy.startswith(_SAFE_POLICIES):
        msg = f"maxmemory-policy {policy}: the server may throw the stream away"
        yield Finding(_WARNING, "redis.evicts", msg, "set maxmemory-policy noeviction")


def _server(link: "Link") -> str:
    facts = _facts(link, "server")
    name = "Valkey" if "valkey_version" in facts else "Redis"
    return f"{name} {facts.get('valkey_version') or facts.get('redis_version', '')}".strip()


def _facts(link: "Link", section: str) -> dict[str, str]:
    """Return what the server tells of itself in one section."""
    lines = _text(link.call("INFO", section)).splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _has_waitaof(link: "Link") -> bool:
    try:
        (found,) = link.call("COMMAND", "INFO", "WAITAOF")
    except (CallFailed, ValueError):
        return False
    return bool(found)


def _setting(link: "Link", name: str) -> str:
    """Return a setting of the server; empty where it does not tell, as many hosted ones do."""
    try:
        answer = link.call("CONFIG", "GET", name)
    except CallFailed:
        return ""
    return _text(answer[1]) if len(answer) > 1 else ""


def _text(word: object) -> str:
    return word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word)
