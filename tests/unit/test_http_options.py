"""The settings of the HTTP sink: what is refused and with which words, presets, no secret shown."""

import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.httptools import options
from wald.app import check_sinks
from wald.config import Settings
from wald.config.load import load_text
from wald.config.places import Places
from wald.errors import ConfigError
from wald.model import ReplayClass, Secret
from wald.sinks.http import make
from wald.sinks.http.presets import PRESETS, identifier, literal
from wald.sinks.http.settings import SETTINGS, TABLES

REFERENCE = (Path(__file__).parents[2] / "docs/reference/http.md").read_text()
KEYED, WINDOW, NONE = ReplayClass.KEYED, ReplayClass.WINDOW, ReplayClass.NONE
SEVERAL = ("headers", "query", "token_header", "token_scheme", "rate_requests", "rate_records")


def test_the_reference_has_every_setting_and_preset():
    named = set(re.findall(r"`([a-z_.]+)`", REFERENCE))
    for name in SETTINGS:
        if name not in TABLES:
            assert name in named, name
    for table, keys in TABLES.items():
        prefix = f"{table}." if table == "idempotency" else ""
        assert {f"{prefix}{key}" for key in keys} <= named, table
    assert set(PRESETS) - {"none"} <= named
    assert {place for preset in PRESETS.values() for place in preset.place} <= named


WRONG = {
    "no url": ({"url": None}, "needs a 'url'"),
    "no scheme": ({"url": "example.com"}, "not an address"),
    "another scheme": ({"url": "ftp://example.com"}, "not an address"),
    "no host": ({"url": "https:///x"}, "not an address"),
    "a port that is none": ({"url": "https://x:99999/"}, "not an address"),
    "a url with a space": ({"url": "https://x/a b"}, "not an address"),
    "a url with a line": ({"url": "https://x/a\r\nHost: y"}, "not an address"),
    "a password in the url": ({"url": "https://u:canary@x/"}, "holds a user or a password"),
    "a part behind #": ({"url": "https://x/#a"}, "behind #"),
    "an unknown setting": ({"idempotent": 1}, "unknown setting 'idempotent'"),
    "an unknown preset": ({"preset": "elastic"}, "preset is 'elastic'"),
    "a place of another preset": ({"index": "i"}, "unknown setting 'index'"),
    "another method": ({"method": "GET"}, "method is 'GET'"),
    "a token as it is": ({"token": "canary"}, "does not belong into the configuration"),
    "a header with a line": ({"headers": {"X-A": "b\r\nX-C: d"}}, "each of one line"),
    "a header's name with a line": ({"headers": {"X-A: b\r\nX-C": "d"}}, "each of one line"),
    "a header with NUL": ({"headers": {"X-A": "b\x00"}}, "each of one line"),
    "a header beyond Latin-1": ({"headers": {"X-A": "…"}}, "each of one line"),
    "a header of ours": ({"headers": {"content-length": "3"}}, "set by the sink itself"),
    "a token in a header of ours": ({"token_header": "Host"}, "the name of a header"),
    "an id in a header of ours": ({"idempotency": {"header": "X-Wald-LSN"}}, "name of a header"),
    "an id in a header with a line": ({"idempotency": {"header": "a\nb"}}, "name of a header"),
    "a window without an id": (
        {"idempotency": {"header": "none", "window": "1h"}},
        "no id is sent that the server could remember",
    ),
    "an unknown part of a table": ({"idempotency": {"key": "x"}}, "'idempotency.key'"),
    "results without a path": ({"results": {"match": "id"}}, "needs a 'results.path'"),
    "ids that are not sent": ({"results": {"path": "i", "match": "id"}}, "what is sent has none"),
    "lines in a field": ({"format": "ndjson", "wrap": "rows"}, "the format is 'ndjson'"),
    "several records in an object": (
        {"format": "object", "records_per_request": 2},
        "one record a request",
    ),
    "an object in a field": ({"format": "object", "wrap": "rows"}, "the format is 'object'"),
    "envelopes in bulk": ({"format": "bulk", "records": "envelopes"}, "sends the values"),
    "a rate without a time": ({"rate_requests": "120"}, "a rate such as"),
    "a rate of nothing": ({"rate_records": "0/s"}, "a rate such as"),
    "certificates of plain http": ({"url": "http://x/", "ca_file": "/ca"}, "is of https"),
    "a key without its certificate": (
        {"url": "https://x/", "client_key": "/key"},
        "needs a 'client_cert'",
    ),
    "a proxy without a scheme": ({"proxy": "proxy:3128"}, '"environment"'),
    "no records": ({"records_per_request": 0}, "within 1"),
    "too large a body": ({"bytes_per_request": "1GiB"}, "within"),
}


@pytest.mark.parametrize(("settings", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_refused_and_shows_no_secret(settings, words):
    given = {key: value for key, value in settings.items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        options(**given) if settings.get("url", "") is not None else _without_url()
    assert words in caught.value.message
    assert "canary" not in caught.value.message + caught.value.hint


def _without_url():
    from wald.sinks.http.settings import read_options

    read_options("r", "events", {})


@pytest.mark.parametrize(
    ("settings", "replay", "window_s", "batches"),
    [
        ({}, NONE, None, None),
        ({"idempotency": {"window": "24h"}}, WINDOW, 86_400.0, None),
        ({"idempotency": {"window_batches": 100}}, WINDOW, None, 100),
        ({"preset": "webhook"}, NONE, None, None),
        ({"preset": "webhook", "idempotency": {"window": "1h"}}, WINDOW, 3_600.0, None),
        ({"preset": "powerbi"}, NONE, None, None),
        ({"preset": "elasticsearch"}, KEYED, None, None),
        ({"preset": "clickhouse"}, NONE, None, None),
        ({"preset": "clickhouse", "idempotency": {"window_batches": 9}}, WINDOW, None, 9),
    ],
)
def test_the_class_is_what_is_stated_of_the_server(settings, replay, window_s, batches):
    found = options(**settings)
    assert found.replay is replay
    assert found.idempotency.window_s == window_s
    assert found.idempotency.window_batches == batches


def test_what_the_user_states_wins_over_the_preset_key_by_key():
    found = options(
        preset="clickhouse",
        query={"async_insert": "1", "more": "x"},
        results={"path": "items"},
        answer="any",
        table="ta`ble",
    )
    assert found.query == {
        "query": "INSERT INTO `default`.`ta\\`ble` FORMAT JSONEachRow",
        "async_insert": "1",
        "insert_deduplicate": "1",
        "wait_end_of_query": "1",
        "more": "x",
    }
    assert found.answer == "any"
    assert found.idempotency.parameter == "insert_deduplication_token"


def test_power_bi_s_limits():
    found = options(preset="powerbi", url=Secret("https://api.powerbi.com/x/rows?key=canary"))
    assert (found.records_per_request, found.requests_per_s) == (10_000, 2.0)
    assert found.records_per_s == pytest.approx(1_000_000 / 3_600)
    assert found.shape.wrap == "rows"
    assert found.shown_url == "https://api.powerbi.com"


def test_elasticsearch_s_index_is_quoted_and_by_default_the_stream():
    assert (
        options(preset="elasticsearch", url="http://es:9200/").url == "http://es:9200/events/_bulk"
    )
    found = options(preset="elasticsearch", index="a/b?c", url="http://es:9200")
    assert found.url == "http://es:9200/a%2Fb%3Fc/_bulk"


@pytest.mark.parametrize("name", ["a", "a`b", "a\\", "a\\`; DROP TABLE x --", "ä"])
def test_a_name_is_quoted_whatever_is_in_it(name):
    for made, quote in ((identifier(name), "`"), (literal(name.replace("`", "'")), "'")):
        inside = made[1:-1].replace("\\\\", "").replace(f"\\{quote}", "")
        assert made[0] == made[-1] == quote
        assert quote not in inside
        assert not inside.endswith("\\")


def test_grants_are_printed_where_the_preset_knows_them():
    def granted(**settings):
        with closing(make("r", "events", {"url": "http://x", **settings})) as sink:
            return list(sink.grants())

    assert granted(preset="webhook") == []
    assert granted(preset="clickhouse", table="a`b") == [
        "GRANT INSERT, SHOW TABLES ON `default`.`a\\`b` TO wald;",
        "GRANT SELECT ON system.merge_tree_settings TO wald;",
    ]
    (role,) = granted(preset="elasticsearch", index='a"b')
    assert json.loads(role.partition("wald ")[2])["indices"][0]["names"] == ['a"b']


def test_settings_are_checked_without_the_driver_but_not_without_having_it(monkeypatch):
    code = (
        "import sys; from wald.sinks.http import make; make('r', 'e', {'url': 'http://x'}).close();"
        "sys.exit(bool({'urllib3', 'msgspec'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs msgspec") as raised:
        make("r", "e", {"url": "http://x"})
    assert raised.value.hint == "pip install 'wald[http]'"


STORY = """
[sinks.bi]
type = "http"
preset = "powerbi"
url = { file = "%s" }
[routes.bookings-bi]
stream = "bookings"
sink = "bi"
fields = ["booking_id", "date", "status"]
batch = { max_age = "2s", jitter = "500ms" }
guarantee = "at-least-once"
"""


def test_a_secret_of_a_file_is_known_by_its_file_in_every_process(tmp_path):
    """The address of a push data set holds its key; a token is read anew from where it was."""
    file = tmp_path / "url"
    file.write_text("https://api.powerbi.com/x/rows?key=canary\n")
    loaded = load_text([("wald.toml", STORY % file)], Places("data", "socket"), {})
    said = json.loads(json.dumps(loaded.settings.to_json()))
    for settings in (loaded.settings, Settings.from_json(said)):
        check_sinks(settings)
        url = settings.sinks["bi"].options["url"]
        assert isinstance(url, Secret)
        assert (str(url), url.source) == ("https://api.powerbi.com/x/rows?key=canary", str(file))
        assert "canary" not in repr(settings)
