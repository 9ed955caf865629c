"""The HTTP sink against servers: what goes over the wire, time, tokens, TLS, proxies, nonsense."""

import base64
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.httptools import LOG_ID, REVISION, attempt, options, record, records
from tests.servers.raw_server import OK, TLS, raw, says, secure
from tests.servers.web_server import WebServer
from wald import limits
from wald.model import (
    Content,
    Delivered,
    Rejected,
    Revision,
    Secret,
    Severity,
    Systemic,
    SystemicKind,
    TooLarge,
    Unknown,
)
from wald.sinks.http import make
from wald.sinks.http.answers import Answer
from wald.sinks.http.sink import Factory
from wald.sinks.http.transport import Transport
from wald.testing.sink_contract import Host, Workbench

GENEROUS_S = 20.0  # a machine under load; without a bound it would be for ever
ID = f"{LOG_ID.hex()}-{REVISION.hex()}"
FAMILY = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    found = WebServer(tmp_path_factory.mktemp("web")).start()
    yield found
    found.stop()


@pytest.fixture
def server(running):
    running.clear()
    return running


def deliver(url, *sent, body=None, timeout_s=30.0, number=1, **settings):
    """One attempt by a new sink, as a lane makes it."""
    with closing(make("r", "events", {"url": url, **settings})) as sink:
        trial = attempt(*(sent or records(3)), timeout_s=timeout_s, number=number, body=body)
        if sink.capabilities.freezes and body is None:
            trial = replace(trial, body=sink.encode(trial))
        return sink.deliver(trial)


# --- what goes over the wire --------------------------------------------------------------------


def test_a_request_says_what_it_carries(server):
    assert deliver(server.url, number=3) == Delivered()
    ((method, path, headers, body),) = server.requests
    assert (method, path) == ("POST", "/in")
    assert json.loads(body) == [{"n": 1}, {"n": 2}, {"n": 3}]
    assert headers["content-type"] == "application/json"
    assert headers["idempotency-key"] == f'"{ID}"'
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    assert headers["content-digest"] == f"sha-256=:{digest}:"
    assert headers["x-wald-stream"] == "events"
    assert headers["x-wald-lsn"] == "1-3"
    assert headers["x-wald-attempt"] == "3"
    assert headers["accept-encoding"] == "identity"
    assert re.fullmatch(rf"00-{REVISION.hex()}-[0-9a-f]{{16}}-00", headers["traceparent"])


def test_the_digest_is_of_the_body_as_it_is_sent(server):
    for name in ("gzip", "zstd"):
        deliver(server.url, compression=name)
    for _, _, headers, body in server.requests:
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        assert headers["content-digest"] == f"sha-256=:{digest}:"
    assert [each[2]["content-encoding"] for each in server.requests] == ["gzip", "zstd"]


def test_where_the_id_goes_and_how_is_the_users(server):
    table = {"header": "X-Request-Id", "quoted": False, "parameter": "token"}
    deliver(server.url + "?a=1", idempotency=table, query={"b": "2 &"}, method="PUT")
    deliver(server.url, idempotency={"header": "none"}, headers={"Content-Type": "x/y"})
    (method, path, headers, _), (_, plain, without, _) = server.requests
    assert (method, path) == ("PUT", f"/in?a=1&b=2+%26&token={ID}")
    assert headers["x-request-id"] == ID
    assert "idempotency-key" not in headers
    assert plain == "/in"
    assert not [name for name, value in without.items() if ID in value]
    assert without["content-type"] == "x/y"


def test_a_trace_that_all_records_share_goes_on(server):
    shared = [record(n, n, headers={"traceparent": FAMILY.encode()}) for n in (1, 2)]
    deliver(server.url, *shared)
    deliver(server.url, *shared, record(3, 3))
    deliver(server.url, record(4, 4, headers={"traceparent": "00-\r\nX-Evil: 1"}))
    another = FAMILY.replace("4bf9", "5bf9")
    deliver(server.url, *shared, record(5, 5, headers={"traceparent": another}))
    first, second, third, fourth = (headers["traceparent"] for _, _, headers, _ in server.requests)
    assert re.fullmatch(r"00-4bf92f3577b34da6a3ce929d0e0e4736-(?!00f067aa0ba902b7)\w{16}-01", first)
    assert second.startswith(f"00-{REVISION.hex()}-")
    assert third.startswith(f"00-{REVISION.hex()}-")
    assert fourth.startswith(f"00-{REVISION.hex()}-")


def test_an_attempt_that_is_repeated_is_the_same_but_for_its_number(server):
    sent, taken = records(50), {"idempotency": {"window": "1h"}, "compression": "gzip"}
    server.next({"drop": True, "takes": True})
    assert isinstance(deliver(server.url, *sent, **taken), Unknown)
    assert deliver(server.url, *sent, number=2, **taken) == Delivered()
    (_, _, first, body), (_, _, second, again) = server.requests
    assert body == again
    changed = {name for name in first if first[name] != second[name]}
    assert changed == {"traceparent", "x-wald-attempt"}
    assert first["traceparent"][:35] == second["traceparent"][:35]
    assert len(server.values) == 50


def test_what_was_kept_is_sent_as_it_is(server):
    with closing(make("r", "events", {"url": server.url})) as sink:
        kept = sink.encode(attempt(record(1, {"n": "kept"})))
    assert deliver(server.url, record(1, {"n": "another"}), body=kept) == Delivered()
    assert server.values == [{"n": "kept"}]


def test_what_has_no_form_is_refused_and_nothing_is_sent(server):
    sent = records(3)
    bad = sent[1]._replace(value=b"\xc1")
    found = deliver(server.url, sent[0], bad, sent[2])
    assert isinstance(found, Rejected)
    assert [each.lsn for each in found.records] == [2]
    assert server.requests == []


def test_a_body_that_is_too_large_is_not_sent(server):
    found = deliver(server.url, *records(500), bytes_per_request="1KiB")
    assert isinstance(found, TooLarge)
    assert "bytes_per_request" in found.message
    assert deliver(server.url, *records(500), bytes_per_request="1KiB", compression="zstd")
    assert len(server.requests) == 1


# --- connections --------------------------------------------------------------------------------


def test_a_connection_is_kept_and_one_that_is_gone_is_made_anew(server):
    with closing(make("r", "events", {"url": server.url})) as sink:
        for _ in range(3):
            assert sink.deliver(attempt(*records(2))) == Delivered()
        server.kill()
        server.start()
        assert sink.deliver(attempt(*records(2))) == Delivered()


def test_a_connection_that_rests_too_long_is_not_used_again():
    """Servers close theirs after a while; what is sent right then may or may not have an effect."""
    now = {"s": 0.0}
    with raw(says(OK)) as server:
        transport = Transport(options(url=server.url), lambda: now["s"])
        for now["s"] in (0.0, limits.HTTP_KEEP_ALIVE_S, 3 * limits.HTTP_KEEP_ALIVE_S):
            answer = transport.send("POST", server.url, {}, b"", 30.0)
            assert isinstance(answer, Answer)
        transport.close()
        assert server.connections == 2


def test_a_connection_that_cannot_be_made_had_no_effect(server):
    with closing(socket.create_server(("127.0.0.1", 0))) as held:
        port = held.getsockname()[1]
    found = deliver(f"http://127.0.0.1:{port}/in")
    assert isinstance(found, Systemic)
    assert found.kind is SystemicKind.UNREACHABLE
    assert found.message == f"http://127.0.0.1:{port}/in: Connection refused"


def test_a_name_that_nobody_has_is_out_of_reach():
    found = deliver("http://nobody.invalid/in")
    assert isinstance(found, Systemic)
    assert found.kind is SystemicKind.UNREACHABLE


@pytest.mark.parametrize("takes", [True, False])
def test_a_connection_that_is_lost_behind_the_request_may_have_had_an_effect(server, takes):
    server.next({"drop": True, "takes": takes})
    assert isinstance(deliver(server.url), Unknown)
    assert len(server.values) == (3 if takes else 0)


def test_an_answer_that_drips_ends_in_time(server):
    server.next({"drip_s": 0.05, "body": json.dumps("x" * 2_000)})
    began = time.monotonic()
    assert isinstance(deliver(server.url, timeout_s=0.5), Unknown)
    assert 0.4 < time.monotonic() - began < GENEROUS_S


def test_headers_that_drip_end_in_time():
    def drip(connection, _):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    with raw(drip) as server:
        began = time.monotonic()
        assert isinstance(deliver(server.url, timeout_s=0.5), Unknown)
        assert 0.4 < time.monotonic() - began < GENEROUS_S


def test_a_server_that_reads_nothing_ends_in_time():
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}/in"
        sent = [record(n, "x" * 100_000) for n in range(80)]
        began = time.monotonic()
        assert isinstance(deliver(url, *sent, timeout_s=0.5), Unknown)
        assert 0.4 < time.monotonic() - began < GENEROUS_S


def test_an_answer_without_end_is_not_read_to_the_end():
    told = 0

    def flood(connection, _):
        nonlocal told
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n")
        while True:
            told += connection.send(b"x" * 1_000_000)

    with raw(flood) as server:
        found = deliver(server.url)
    assert isinstance(found, Unknown)
    assert told < 2 * limits.HTTP_ANSWER_MAX_BYTES


NONSENSE = {
    "no HTTP": b"hello there\r\n\r\n",
    "no status": b"HTTP/1.1 abc OK\r\n\r\n",
    "a status of another world": b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    "a thousand headers": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1_000 + b"\r\n",
    "a chunk of nonsense": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
}


@pytest.mark.parametrize("answer", NONSENSE.values(), ids=NONSENSE)
def test_an_answer_that_is_none_is_unknown(answer):
    with raw(says(answer)) as server:
        assert isinstance(deliver(server.url), Unknown)


def test_an_answer_cut_short_is_unknown_and_a_failure_cut_short_a_failure():
    head = b"HTTP/1.1 %d X\r\nContent-Length: 100\r\n\r\nshort"

    def cut(status):
        def talk(connection, _):
            connection.sendall(head % status)
            connection.shutdown(socket.SHUT_RDWR)

        return talk

    with raw(cut(200)) as server:
        assert isinstance(deliver(server.url), Unknown)
    with raw(cut(503)) as server:
        found = deliver(server.url)
        assert isinstance(found, Systemic)
        assert found.message.endswith("answered 503: short")


# --- redirects, proxies -------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(server, status):
    server.next({"status": status, "headers": {"Location": server.url}})
    found = deliver(server.url)
    assert isinstance(found, Systemic)
    assert found.kind is SystemicKind.CONFIGURATION
    assert len(server.requests) == 1


def test_no_proxy_is_taken_from_the_environment_unless_told(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert deliver(server.url) == Delivered()
    found = deliver(server.url, proxy="environment")
    assert isinstance(found, Systemic)
    assert found.kind is SystemicKind.UNREACHABLE
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert deliver(server.url, proxy="environment") == Delivered()


def test_a_proxy_that_is_told_is_used():
    with raw(says(OK)) as proxy:
        assert deliver("http://nobody.invalid/in", proxy=f"http://127.0.0.1:{proxy.port}") == (
            Delivered()
        )
    (request,) = proxy.requests
    assert request.startswith(b"POST http://nobody.invalid/in HTTP/1.1\r\n")


# --- TLS ----------------------------------------------------------------------------------------


def test_the_servers_certificate_is_verified():
    with raw(says(OK), secure()) as server:
        assert deliver(server.url, ca_file=str(TLS / "ca.pem")) == Delivered()
        for settings in ({}, {"ca_file": str(TLS / "client.pem")}):
            found = deliver(server.url, **settings)
            assert isinstance(found, Systemic)
            assert found.kind is SystemicKind.CONFIGURATION
            assert "ca_file" in found.hint
        by_number = server.url.replace("localhost", "127.0.0.1")
        found = deliver(by_number, ca_file=str(TLS / "ca.pem"))
        assert isinstance(found, Systemic)
        assert found.kind is SystemicKind.CONFIGURATION
    assert len(server.requests) == 1


def test_a_server_may_ask_for_our_certificate():
    settings = {"ca_file": str(TLS / "ca.pem")}
    with raw(says(OK), secure(asks_client=True)) as server:
        assert not isinstance(deliver(server.url, **settings), Delivered)
        assert deliver(server.url, client_cert=str(TLS / "client.pem"), **settings) == Delivered()


def test_a_file_of_certificates_that_is_not_there_is_a_matter_of_configuration():
    with raw(says(OK), secure()) as server:
        found = deliver(server.url, ca_file="/nowhere.pem")
    assert isinstance(found, Systemic)
    assert found.kind is SystemicKind.CONFIGURATION
    assert "/nowhere.pem" in found.message


def test_an_answer_over_tls_that_drips_ends_in_time():
    def drip(connection, _):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    with raw(drip, secure()) as server:
        began = time.monotonic()
        found = deliver(server.url, ca_file=str(TLS / "ca.pem"), timeout_s=0.5)
        assert isinstance(found, Unknown)
        assert 0.4 < time.monotonic() - began < GENEROUS_S


# --- tokens -------------------------------------------------------------------------------------


def token_file(tmp_path: Path, text: str) -> Secret:
    path = tmp_path / "token"
    path.write_text(text + "\n")
    return Secret(text, str(path))


def test_a_token_that_is_refused_is_read_anew_and_sent_once_more(server, tmp_path):
    secret = token_file(tmp_path, "old-canary")
    server.rule(token="new-canary")
    with closing(make("r", "events", {"url": server.url, "token": secret})) as sink:
        found = sink.deliver(attempt(*records(2)))
        assert isinstance(found, Systemic)
        assert found.kind is SystemicKind.AUTHENTICATION
        assert "canary" not in found.message + found.hint
        (tmp_path / "token").write_text("new-canary\n")
        assert sink.deliver(attempt(*records(2))) == Delivered()
        assert sink.deliver(attempt(*records(2))) == Delivered()
    assert [each[2]["authorization"] for each in server.requests] == [
        *("Bearer old-canary", "Bearer old-canary"),
        *("Bearer new-canary", "Bearer new-canary"),
    ]


def test_a_second_request_with_a_newer_token_ends_in_time(server, tmp_path):
    secret = token_file(tmp_path, "old")
    (tmp_path / "token").write_text("new")
    server.next({"status": 401, "wait_s": 0.2}, {"wait_s": 30, "takes": False})
    began = time.monotonic()
    assert isinstance(deliver(server.url, token=secret, timeout_s=2.0), Unknown)
    assert time.monotonic() - began < GENEROUS_S
    assert [each[2]["authorization"] for each in server.requests] == ["Bearer old", "Bearer new"]
    assert time.monotonic() - began > 1.9


@pytest.mark.parametrize("text", ["", "two\nlines", "\x00", "ä\u2026", "new\r\nX-Evil: 1"])
def test_a_token_that_is_none_is_not_sent(server, tmp_path, text):
    secret = token_file(tmp_path, "old")
    (tmp_path / "token").write_bytes(text.encode())
    server.rule(token="new")
    found = deliver(server.url, token=secret)
    assert isinstance(found, Systemic)
    assert found.kind is SystemicKind.AUTHENTICATION
    assert len(server.requests) == 1


def test_one_lane_reads_a_token_anew_and_the_others_take_it(server, tmp_path):
    secret = token_file(tmp_path, "old")
    (tmp_path / "token").write_text("new")
    server.rule(token="new")
    factory = Factory()
    sinks = [factory("r", "events", {"url": server.url, "token": secret}) for _ in range(8)]
    found: list[object] = []
    lanes = [
        threading.Thread(target=lambda sink=sink: found.append(sink.deliver(attempt(*records(1)))))
        for sink in sinks
    ]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    assert found == [Delivered()] * 8
    assert {sink.token for sink in sinks} == {sinks[0].token}
    assert sinks[0].token is not None
    assert sinks[0].token.now == (1, "new")
    for sink in sinks:
        sink.close()


def test_where_the_token_goes_is_the_users(server):
    settings = {"token_header": "X-Key", "token_scheme": "none"}
    deliver(server.url, token=Secret("canary"), **settings)
    assert server.requests[0][2]["x-key"] == "canary"


# --- a lane ---------------------------------------------------------------------------------------


@pytest.fixture
def hosts(server, tmp_path):
    """Hosts whose lanes deliver to the server, under settings of their own."""
    made: list[Host] = []

    def host(**settings):
        bench = Workbench()
        bench.factory = "wald.sinks.http:make"
        bench.settings = {"url": server.url, **settings}
        made.append(Host(tmp_path / f"host-{len(made)}", bench))
        return made[-1]

    yield host
    for each in made:
        each.close()


def open_batch(host):
    manifest = host.ledger.lane(host.key).manifest
    return manifest.current if manifest is not None else Revision(b"", 0)


@pytest.mark.parametrize("dies", [False, True])
def test_a_batch_that_is_too_large_is_split_and_the_split_is_kept(server, hosts, dies):
    """Halved again and again, each part under an id of its own that is durable before it goes."""
    server.rule(max_bytes=1_000)
    host = hosts(idempotency={"window": "1d"})
    host.append(200)
    if dies:
        host.run(lambda: open_batch(host).hi == 100)
        host.restart()
        assert open_batch(host).hi == 100
    host.through()
    server.next({"drop": True, "takes": True})
    host.append(10)
    host.through()
    assert [each["n"] for each in server.values] == list(range(210))
    assert host.dead == {}
    named: dict[str, set[bytes]] = {}
    for _, _, headers, body in server.requests:
        named.setdefault(headers["idempotency-key"], set()).add(body)
    assert all(len(bodies) == 1 for bodies in named.values())
    assert max(len(body) for _, _, _, body in server.requests if len(body) <= 1_000) > 400


def test_a_record_that_is_too_large_alone_is_a_dead_letter_and_its_neighbours_land(server, hosts):
    server.rule(max_bytes=1_000)
    host = hosts()
    host.append(10)
    (lsn,) = host.append_raw([host.packed({"host": "a", "n": 10, "text": "x" * 5_000})])
    host.append(10)
    host.through()
    assert {each.lsn: each.code for each in host.dead.values()} == {lsn: "too-large"}
    assert len(server.values) == 20


def test_a_server_that_takes_one_record_a_request_gets_each_under_an_id_of_its_own(server, hosts):
    host = hosts(format="object", idempotency={"window": "1d"})
    server.next({}, {"drop": True, "takes": True}, {"status": 503})
    host.append(20)
    host.through()
    sent = [json.loads(body)["n"] for _, _, _, body in server.requests]
    assert sent == [0, 1, 1, 1, *range(2, 20)]
    assert len({headers["idempotency-key"] for _, _, headers, _ in server.requests}) == 20
    assert [each["n"] for each in server.values] == list(range(20))


def test_a_rate_of_requests_is_kept_and_makes_no_batch_smaller(server, hosts):
    host = hosts(rate_requests="60/min")
    host.settings = host.with_batches_of(10)
    host.restart()
    host.append(100)
    began_ns = host.clock.monotonic_ns()
    host.through()
    assert [len(each.records) for each in host.attempts] == [10] * 10
    assert host.clock.monotonic_ns() - began_ns >= 8e9


def test_a_rate_of_records_is_kept(server, hosts):
    host = hosts(rate_records="10/s")
    host.settings = host.with_batches_of(10)
    host.restart()
    host.append(100)
    began_ns = host.clock.monotonic_ns()
    host.through()
    assert host.clock.monotonic_ns() - began_ns >= 8e9


def test_a_pause_that_the_server_asks_for_is_kept(server, hosts):
    host = hosts()
    for status in (429, 503, 502):
        server.next({"status": status, "headers": {"Retry-After": "20"}})
        host.append(5)
        began_ns = host.clock.monotonic_ns()
        host.through()
        assert host.clock.monotonic_ns() - began_ns >= 20e9


BAD: dict[str, tuple[Content, bytes]] = {
    "JSON that is none": (Content.JSON, b'{"n":'),
    "two JSON values": (Content.JSON, b'{"n":1},{"n":2}'),
    "NaN in JSON": (Content.JSON, b'{"n":NaN}'),
    "half of a surrogate pair in JSON": (Content.JSON, b'{"n":"\\udc00"}'),
    "JSON that is not UTF-8": (Content.JSON, b'{"n":"\xff"}'),
    "JSON nested too deeply": (Content.JSON, b'{"n":' + b"[" * 9_000 + b"]" * 9_000 + b"}"),
    "half of a surrogate pair": (Content.MSGPACK, b"\x81\xa1n\xa3\xed\xa0\x80"),
    "a list as a key": (Content.MSGPACK, b"\x81\x91\x01\x01"),
    "no map, where fields are wanted": (Content.MSGPACK, b"\x93\x01\x02\x03"),
    "bytes, where fields are wanted": (Content.BYTES, b"raw"),
    "a value that the server refuses": (Content.JSON, b'{"host":"poison"}'),
    "a value that is too large for it": (Content.JSON, b'{"n":"%b"}' % (b"x" * 70_000)),
}
GOOD: dict[str, tuple[Content, bytes]] = {
    "NaN": (Content.MSGPACK, b"\x81\xa1n\xcb\x7f\xf8" + bytes(6)),
    "NUL in a text": (Content.MSGPACK, b"\x81\xa1n\xa1\x00"),
    "a number beyond 64 bits in JSON": (Content.JSON, b'{"n":%d}' % 10**30),
    "duplicate keys": (Content.JSON, b'{"n":1,"n":2}'),
    "a lack of fields": (Content.MSGPACK, b"\x80"),
    "more fields": (Content.MSGPACK, b"\x82\xa1n\x01\xa1z\x02"),
    "a line between two tokens": (Content.JSON, b'{"n":\n1}'),
}
KINDS = {
    "window": {"preset": "webhook", "idempotency": {"window": "1d"}},
    "keyed": {"preset": "elasticsearch", "index": "in"},
    "none": {"format": "ndjson", "idempotency": {"header": "none"}},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_bad_input_is_set_aside_and_its_neighbours_land(server, hosts, settings):
    """A thousand records: each bad one a dead letter with words of its own, the others in order."""
    server.rule(poison='"host":"poison"', max_bytes=60_000)
    if settings.get("preset") == "elasticsearch":
        settings = {**settings, "url": server.url.removesuffix("/in")}
    host = hosts(**{"fields": ["n", "host"], **settings})
    host.append(300)
    bad = {}
    for name, (content, value) in {**BAD, **GOOD}.items():
        key = f'{name}\r\n"]}}\x00'
        (lsn,) = host.append_raw([value], content=content, keys=[key])
        if name in BAD:
            bad[lsn] = name
        host.append(20)
    host.append(300)
    host.through()
    assert {lsn: bad.get(lsn) for lsn in host.dead} == bad
    assert all(each.message and each.code for each in host.dead.values())
    taken = [each for each in server.values if "host" in each]
    assert taken == [each.value for each in host.sent]
    others = [each for each in server.values if "host" not in each]
    expected = [{"n": None}, {"n": "\x00"}, {"n": 10**30}, {"n": 2}, {}, {"n": 1}, {"n": 1}]
    assert others == expected


# --- check --------------------------------------------------------------------------------------


def test_check_says_whether_the_server_answers(server):
    with closing(make("r", "events", {"url": server.url})) as sink:
        (found,) = sink.check()
    assert found.severity is Severity.OK
    assert server.requests == []
    with closing(make("r", "events", {"url": "http://127.0.0.1:9/in"})) as sink:
        (found,) = sink.check()
    assert found.severity is Severity.ERROR
    assert "Connection refused" in found.message


def test_check_warns_of_a_token_that_anybody_can_read():
    settings = {"url": "http://nobody.invalid/in", "token": Secret("canary")}
    with closing(make("r", "events", settings)) as sink:
        found = [each.code for each in sink.check()]
    assert found == ["http.plain-token", "http.unreachable"]


def test_the_address_of_a_secret_is_not_told():
    url = Secret("http://127.0.0.1:9/canary?key=canary")
    found = deliver(url)
    assert isinstance(found, Systemic)
    assert "canary" not in found.message
    assert options(url=url).shown_url == "http://127.0.0.1:9"


TABLE = [["MergeTree", "MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100"]]
OF_SERVER = [["non_replicated_deduplication_window", "0"], ["deduplicate_insert", "enable"]]


@pytest.mark.parametrize(
    ("table", "status", "codes"),
    [
        ({"data": TABLE}, 200, ["clickhouse.table", "clickhouse.window"]),
        ({"data": []}, 200, ["clickhouse.table"]),
        ({"data": 1}, 200, ["clickhouse.question"]),
        ("Code: 497", 403, ["http.not-let-in"]),
        ("Code: 62", 400, ["clickhouse.question"]),
    ],
)
def test_check_asks_clickhouse_what_its_table_remembers(table, status, codes):
    """By questions that change nothing; the engine itself is asked in test_http_clickhouse."""

    def answer(connection, request):
        said, code = ({"data": OF_SERVER}, 200) if b"merge_tree" in request else (table, status)
        body = json.dumps(said).encode()
        head = f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)

    with raw(answer) as server:
        settings = {"url": server.url, "preset": "clickhouse", "table": "a'b", "token": Secret("c")}
        window = {"idempotency": {"window_batches": 100}}
        with closing(make("r", "events", {**settings, **window})) as sink:
            found = sink.check()
    assert [each.code for each in found] == codes
    assert all(request.startswith(b"GET ") for request in server.requests)
    assert b"X-ClickHouse-Key: c\r\n" in server.requests[0]
    assert b"name+%3D+%27a%5C%27b%27" in server.requests[0]
    assert (found[-1].severity is Severity.OK) is (len(codes) == 2)
