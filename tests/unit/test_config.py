"""Settings: parsing, merging, secrets, places, and config/wald.toml against the settings."""

import dataclasses
import json
import re
import tomllib
from pathlib import Path

import pytest

from wald import config, limits
from wald.config import (
    AccessSettings,
    BatchSettings,
    ClientLimits,
    Loaded,
    Places,
    RouteSettings,
    Secret,
    Settings,
    SinkSettings,
    StreamAccess,
    StreamSettings,
    load_file,
    load_target,
    load_text,
    schema,
)
from wald.config.places import default_places
from wald.config.settings import ROUTE_TABLES, DedupSettings
from wald.config.targets import target_digest
from wald.core import units
from wald.core.rules import CONTENTS, FIELD_TYPES
from wald.errors import ConfigError, UnknownSetting, WrongSetting
from wald.sinks.sqlite.options import KEYS as SQLITE_KEYS
from wald.sinks.sqlite.options import Options, read_options

PLACES = Places("/var/lib/wald", "/run/wald/wald.sock")
ROUTE = """\
[sinks.db]
type = "sqlite"
path = "x.db"
[routes.signups]
stream = "signups"
sink = "db"
"""
SHIPPED = Path(__file__).parents[2] / "config" / "wald.toml"


def load(text: str) -> Loaded:
    return load_text([("wald.toml", text)], PLACES, {"SECRET": "canary"})


def test_an_empty_file_gives_the_defaults() -> None:
    assert load("").settings == Settings(*PLACES)


def test_every_setting_of_a_route_is_read() -> None:
    settings = load(
        ROUTE
        + """\
start = "oldest"
mode = "columns"
batch = { max_records = 7, max_bytes = "64KiB", max_age = "250ms" }
"""
    ).settings
    assert settings.routes["signups"] == RouteSettings(
        name="signups",
        stream="signups",
        sink="db",
        start="oldest",
        batch=BatchSettings(7, 64 * 1024, 0.25),
        options={"mode": "columns"},
    )
    assert settings.sinks["db"].type == "sqlite"
    assert settings.sinks["db"].options == {"path": "x.db"}


@pytest.mark.parametrize(
    ("text", "error", "message", "hint"),
    [
        (
            "[daemon]\nsocke = 'x'\n",
            UnknownSetting,
            "wald.toml:2: daemon: unknown key 'socke'",
            "did you mean socket?",
        ),
        (
            "\n[deamon]\nsocket = 'x'\n",
            UnknownSetting,
            "wald.toml:2: unknown key 'deamon'",
            "did you mean daemon?",
        ),
        (
            "[daemon]\nretain = { after_delivery = '1min', max_byts = '1MiB' }\n",
            UnknownSetting,
            "wald.toml:2: daemon.retain: unknown key 'max_byts'",
            "did you mean max_bytes?",
        ),
        (
            ROUTE + "max_recrods = 5\n",
            UnknownSetting,
            "wald.toml:7: routes.signups: unknown key 'max_recrods'",
            "did you mean batch.max_records?",
        ),
        (
            ROUTE + "[routes.signups.batch]\nzzz = 1\n",
            UnknownSetting,
            "wald.toml:8: routes.signups.batch: unknown key 'zzz'",
            "known here: adaptive, jitter, latency_goal, max_age, max_bytes, max_records",
        ),
        (
            "[daemon]\nsocket = 1\n",
            WrongSetting,
            "wald.toml:2: daemon.socket: expected a text, got 1",
            "socket: the data socket",
        ),
        (
            "[daemon]\nstop_deliver_for = 5\n",
            WrongSetting,
            "expected a duration in quotes",
            "how long a clean stop",
        ),
        (
            "[daemon]\nstop_deliver_for = '5 parsecs'\n",
            WrongSetting,
            "is not a duration with a unit",
            "",
        ),
        ("[daemon]\nstop_deliver_for = '9999d'\n", WrongSetting, "is not between", ""),
        ("[daemon]\nsegment_bytes = 64\n", WrongSetting, "expected a size in quotes", ""),
        ("[daemon]\nsegment_bytes = '1KiB'\n", WrongSetting, "is not between", ""),
        ("[daemon]\nsegment_bytes = '16777217B'\n", WrongSetting, "is not a multiple of", ""),
        ("daemon = 1\n", WrongSetting, "'daemon' must be a table", "write [daemon]"),
        (
            "[sinks.db]\ntype = 'sqlite'\npath = 'x'\n[sinks.db.batch]\nmax_records = 5\n",
            UnknownSetting,
            "wald.toml:4: sinks.db: 'batch' is a setting of a route: [routes.NAME]",
            "put it there",
        ),
        (
            ROUTE + "cost = { per_request = 1 }\n",
            UnknownSetting,
            "wald.toml:7: routes.signups: 'cost' is a setting of the sink: [sinks.db]",
            "put it there",
        ),
        ("[sinks.db]\npath = 'x'\n", WrongSetting, "wald.toml:1: sinks: a sink needs a type", ""),
        ("[sinks.'../x']\ntype = 'sqlite'\n", WrongSetting, "expected a name of 1 to 64", ""),
        ("[routes.a]\nsink = 'x'\n", WrongSetting, "a route needs a stream", ""),
        (
            ROUTE.replace("sink = ", "sink = 'd' #"),
            ConfigError,
            "wald.toml:6: routes.signups: there is no sink 'd'",
            "did you mean db?",
        ),
        (ROUTE + "start = 'new'\n", WrongSetting, "expected 'oldest' or 'now', got 'new'", ""),
        (
            ROUTE + "fallback = 'db'\n",
            ConfigError,
            "the fallback 'db' is the sink of the route itself",
            "name another one of [sinks]",
        ),
        (
            ROUTE + "fallback = 'dbs'\n",
            ConfigError,
            "there is no sink 'dbs' to fall back to",
            "did you mean db?",
        ),
        (
            ROUTE + "workers = { min = 3, max = 2 }\n",
            WrongSetting,
            "workers.min: 3 is more than max, 2",
            "at most max",
        ),
        (
            ROUTE + "batch = { max_records = true }\n",
            WrongSetting,
            "wald.toml:7: routes.signups.batch.max_records: expected a whole number, got true",
            "",
        ),
        (ROUTE + "batch = { max_records = 0 }\n", WrongSetting, "0 is not between 1 and", ""),
        ("[sinks.db\n", ConfigError, "wald.toml: not TOML", ""),
        (
            ROUTE + "[streams.signup]\nquota_records = 5\n",
            ConfigError,
            "wald.toml:7: streams: no route takes the stream 'signup'",
            "did you mean signups?",
        ),
        (
            ROUTE + "[streams.signups]\nquota_pendin = '1GiB'\n",
            UnknownSetting,
            "wald.toml:8: streams.signups: unknown key 'quota_pendin'",
            "did you mean quota_pending?",
        ),
        (
            ROUTE + "[streams.signups]\nquota_soft = 2\n",
            WrongSetting,
            "wald.toml:8: streams.signups.quota_soft: expected a share from 0 to 1",
            "producers are asked to pause",
        ),
        ("[streams.'A b']\n", WrongSetting, "expected a name of 1 to 64", ""),
        (
            "[daemon]\nsocket_mode = 660\n",
            WrongSetting,
            "wald.toml:2: daemon.socket_mode: expected three octal digits in quotes",
            "who may open the sockets",
        ),
        (
            "[daemon]\nclients = { conections = 5 }\n",
            UnknownSetting,
            "wald.toml:2: daemon.clients: unknown key 'conections'",
            "did you mean connections?",
        ),
        (
            "[access]\nappend = 'ann'\n",
            WrongSetting,
            "wald.toml:2: access.append: expected a list of at most",
            "who may append",
        ),
        (
            "[access]\nappend = ['ann', 'b c']\n",
            WrongSetting,
            'expected a user such as "ann" or "1000", or a group such as "@web", got \'b c\'',
            "",
        ),
        (
            "[access.streams.signups]\noperate = []\n",
            UnknownSetting,
            "wald.toml:2: access.streams.signups: unknown key 'operate'",
            "known here: append, read",
        ),
        ("[access.streams.'../x']\n", WrongSetting, "expected a name of 1 to 64", ""),
        (
            "[sinks.db]\ntype = 'sqlite'\npath = { env = 'NOT_SET' }\n",
            ConfigError,
            "wald.toml:3: sinks.db: no secret in env 'NOT_SET': NOT_SET is not set",
            "set it where the daemon",
        ),
        (
            "[sinks.db]\ntype = 'sqlite'\npath = { file = '/nowhere/at/all' }\n",
            ConfigError,
            "no secret in file '/nowhere/at/all': No such file or directory",
            "write it there",
        ),
        (
            "[sinks.db]\ntype = 'sqlite'\npath = { credential = 'db' }\n",
            ConfigError,
            "no secret in credential 'db': CREDENTIALS_DIRECTORY is not set",
            "LoadCredential=",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(
    text: str, error: type[ConfigError], message: str, hint: str
) -> None:
    with pytest.raises(error) as caught:
        load(text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 78


def test_tables_of_several_files_merge_and_the_later_wins(tmp_path: Path) -> None:
    main = tmp_path / "wald.toml"
    main.write_text("[daemon]\nstop_deliver_for = '1s'\nsegment_bytes = '32MiB'\n" + ROUTE)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10.toml").write_text("[daemon]\nstop_deliver_for = '2s'\n")
    more = ROUTE.replace("signups", "orders").replace('[sinks.db]\ntype = "sqlite"\npath', "#")
    (tmp_path / "conf.d" / "20.toml").write_text(more)
    loaded = load_file(str(main), PLACES, {})
    assert loaded.settings.stop_deliver_for_s == 2.0
    assert loaded.settings.segment_bytes == 32 * limits.MIB
    assert sorted(loaded.settings.routes) == ["orders", "signups"]
    assert loaded.origin("daemon.stop_deliver_for") == f"{tmp_path}/conf.d/10.toml:2"
    assert loaded.origin("daemon.segment_bytes") == f"{main}:3"
    assert loaded.origin("daemon.socket") == "default"


def test_where_a_value_came_from_is_told() -> None:
    loaded = load(ROUTE).override("--socket", socket="/x/y.sock", data_dir=None)
    told = {name: (value, origin) for name, value, origin in loaded.describe()}
    assert told["daemon.socket"] == ("/x/y.sock", "--socket")
    assert told["daemon.data_dir"] == ("/var/lib/wald", "default")
    assert told["routes.signups"] == ("signups -> db", "wald.toml:4")


@pytest.mark.parametrize(
    "text",
    ["path = { env = 'SECRET' }", "path = { file = '@' }", "path = { credential = 'secret' }"],
)
def test_a_secret_is_found_and_not_shown(tmp_path: Path, text: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("canary\n")
    environment = {"SECRET": "canary", "CREDENTIALS_DIRECTORY": str(tmp_path)}
    text = f"[sinks.db]\ntype = 'x'\n{text.replace('@', str(secret))}\n"
    settings = load_text([("wald.toml", text)], PLACES, environment).settings
    assert settings.sinks["db"].options["path"] == "canary"
    assert "canary" not in repr(settings)


def test_settings_survive_the_pipe_to_a_child() -> None:
    settings = load(
        ROUTE.replace('"x.db"', "{ env = 'SECRET' }") + "batch = { max_age = '3s' }\n"
    ).settings
    again = Settings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings
    assert isinstance(again.sinks["db"].options["path"], Secret)
    more = ROUTE + (
        "[streams.signups]\nquota_pending = '2GiB'\nquota_age = '1h'\n"
        "[daemon]\nsocket_mode = '0660'\nclients = { connections = 7 }\n"
        "[access]\nappend = ['ann', '@web']\n[access.streams.signups]\nread = ['1000']\n"
    )
    settings = load(more).settings
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    assert settings.streams["signups"].quota_pending_bytes == 2 << 30
    assert settings.access == AccessSettings(
        append=("ann", "@web"), streams={"signups": StreamAccess(read=("1000",))}
    )
    assert "canary" not in repr(again)


def test_a_target_needs_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_target("sqlite:x.db", PLACES, None).settings
    assert settings.data_dir == f"{tmp_path}/x.db.wald"
    assert settings.auto_sink is not None
    assert settings.sinks[settings.auto_sink].options == {"path": f"{tmp_path}/x.db"}
    assert load_target("sqlite:x.db", PLACES, "d").settings.data_dir == f"{tmp_path}/d"


def test_a_url_is_a_target_with_a_data_directory_of_its_own() -> None:
    loaded = load_target("postgresql://me@db/app", PLACES, None).settings
    assert loaded.sinks["to"] == SinkSettings("to", "postgres", {"url": "postgresql://me@db/app"})
    other = load_target("postgres://me@db/other", PLACES, None).settings
    assert loaded.data_dir.startswith(f"{PLACES.data_dir}-")
    assert other.data_dir not in {loaded.data_dir, PLACES.data_dir}
    again = load_target("postgres://you@db/app?sslmode=require", PLACES, None).settings
    assert again.data_dir == loaded.data_dir
    assert load_target("https://x/y", PLACES, "/d").settings.data_dir == "/d"


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("postgres://you@db/app?application_name=x&sslmode=verify-full", True),
        ("postgresql://db/app", True),
        ("postgresql://me@db:5433/app", False),
        ("postgresql://me@db/other", False),
        ("postgresql://me@db/app?host=elsewhere", False),
        ("postgresql://[db/app", False),
    ],
)
def test_a_database_is_one_target_however_one_logs_in(url: str, same: bool) -> None:  # noqa: FBT001
    def digest(said: str) -> str:
        return target_digest(
            SinkSettings("pg", "postgres", {"url": said}), RouteSettings("r", "s", "pg")
        )

    assert (digest(url) == digest("postgresql://me@db/app")) is same


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("rediss://me@queue/1", True),
        ("redis://queue/0", False),
        ("redis://queue:6380/1", False),
        ("unix:///run/redis.sock?db=1", False),
    ],
)
def test_a_server_of_redis_is_one_target_however_one_logs_in(url: str, same: bool) -> None:  # noqa: FBT001
    def digest(said: str, **route: str) -> str:
        sink = SinkSettings("q", "redis", {"url": said})
        return target_digest(sink, RouteSettings("r", "s", "q", options=route))

    assert (digest(url) == digest("redis://queue/1")) is same
    assert digest(url, stream_key="a") != digest(url, stream_key="b")


@pytest.mark.parametrize("target", ["", "x.db", ":x.db", "sqlite:"])
def test_a_target_without_type_or_place_is_refused(target: str) -> None:
    with pytest.raises(WrongSetting, match="expected TYPE:TARGET"):
        load_target(target, PLACES, None)


@pytest.mark.parametrize(
    ("environment", "uid", "data_dir", "socket"),
    [
        ({}, 0, "/var/lib/wald", "/run/wald/wald.sock"),
        ({"WALD_SOCKET": "/x"}, 0, "/var/lib/wald", "/x"),
        ({"HOME": "/h"}, 7, "/h/.local/state/wald", "/h/.local/state/wald/wald.sock"),
        (
            {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r", "HOME": "/h"},
            7,
            "/s/wald",
            "/r/wald/wald.sock",
        ),
    ],
)
def test_places(environment: dict[str, str], uid: int, data_dir: str, socket: str) -> None:
    assert default_places(environment, uid) == (data_dir, socket)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("5s", 5.0), ("15min", 900.0), ("1.5h", 5400.0), ("2d", 172_800.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0B", 0), ("64KiB", 65_536), ("4 MiB", 4 << 20), ("1GB", 10**9), ("1.5KiB", 1536)],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert units.parse_size_bytes(text) == size_bytes
    assert units.parse_size_bytes(units.format_size(size_bytes)) == size_bytes


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5sec", "1e9s", "5 s s", "\u0665s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        units.parse_duration_s(text)


# --- config/wald.toml ---------------------------------------------------------------------------


def shipped_text() -> str:
    """The shipped file with the settings that have no default switched on."""
    return re.sub(r"^#(?=[a-z_]+ =|\[)", "", SHIPPED.read_text(), flags=re.MULTILINE)


def test_the_shipped_file_lists_every_setting_and_no_other() -> None:
    document = tomllib.loads(shipped_text())
    daemon = document["daemon"]
    route = document["routes"]["signups"]
    assert set(daemon) == {*schema.DAEMON, "retain", "repack", "clients"}
    assert set(daemon["clients"]) == set(schema.CLIENTS)
    assert set(document["streams"]["signups"]) == {*schema.STREAM, "dedup"}
    assert set(document["streams"]["signups"]["dedup"]) == set(schema.STREAM_DEDUP)
    assert set(document["access"]) == {*schema.ACCESS, "streams"}
    assert set(document["access"]["streams"]["signups"]) == set(schema.STREAM_ACCESS)
    assert set(daemon["retain"]) == set(schema.RETAIN)
    assert set(daemon["repack"]) == set(schema.REPACK)
    assert set(route) == {*schema.ROUTE, *schema.ROUTE_TABLES}
    for name, known in schema.ROUTE_TABLES.items():
        assert set(route[name]) == set(known)
    assert set(document["trace"]) == set(schema.TRACE)


def test_what_a_field_and_a_content_may_be_is_what_the_rules_know() -> None:
    assert schema.FIELD_TYPES == FIELD_TYPES
    assert set(schema.CONTENT_NAMES) == set(CONTENTS)


def test_the_settings_of_a_stream_are_read_and_go_to_a_child_whole() -> None:
    settings = load(
        ROUTE
        + """\
[streams.signups]
max_record_bytes = "64KiB"
content = "json"
key = "required"
fields = { user = "text", age = "integer" }
dedup = { window = "1d", max_ids = 7 }
"""
    ).settings
    assert settings.streams["signups"] == StreamSettings(
        "signups",
        max_record_bytes=65_536,
        content=("json",),
        key="required",
        fields={"user": "text", "age": "integer"},
        dedup=DedupSettings(86_400.0, 7),
    )
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('content = "xml"', "expected one or some of 'bytes', 'msgpack', 'json', got 'xml'"),
        ("content = []", "expected one or some of"),
        ('fields = { user = "string" }', "expected a type: any, text"),
        ('key = "yes"', "expected 'optional' or 'required', got 'yes'"),
        ('max_record_bytes = "2MiB"', "is not between 1 and 1,048,576 bytes"),
        ('dedup = { window = "0s" }', "is not between 1 s and"),
        ('dedup = { windo = "1s" }', "unknown key 'windo'"),
        ("dedup = { max_ids = 0 }", "0 is not between 1 and 10,000,000"),
    ],
)
def test_a_wrong_setting_of_a_stream_is_told(line: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(ROUTE + "[streams.signups]\n" + line + "\n")
    assert message in caught.value.message
    assert caught.value.hint


def test_the_shipped_file_lists_every_setting_of_the_sqlite_sink() -> None:
    table = tomllib.loads(shipped_text())["sinks"]["events"]
    assert table.keys() - {"type", "cost"} == set(SQLITE_KEYS)
    assert set(table["cost"]) == set(schema.COST)
    shipped = {
        key: said
        for key, said in table.items()
        if key not in {"type", "cost", "columns", "conflict"}
    }
    options = read_options("signups", "signups", shipped)
    assert options == Options(path=table["path"], table="signups")
    mapped = read_options(
        "signups", "signups", {**shipped, "mode": "columns", "columns": table["columns"]}
    )
    assert mapped.fields.columns
    said = {"mode": "upsert", "columns": table["columns"], "conflict": table["conflict"]}
    assert read_options("signups", "signups", {**shipped, **said}).conflict


def test_every_field_of_the_settings_can_be_set() -> None:
    tables = (schema.DAEMON, schema.RETAIN, schema.REPACK, schema.TRACE)
    reached = {setting.field for table in tables for setting in table.values()}
    fields = {field.name for field in dataclasses.fields(Settings)}
    assert fields - reached == {"sinks", "routes", "auto_sink", "clients", "access", "streams"}
    for kind, table, named in (
        (ClientLimits, schema.CLIENTS, set()),
        (SinkSettings, schema.COST, {"name", "type", "options"}),
        (StreamSettings, schema.STREAM, {"name", "dedup"}),
        (DedupSettings, schema.STREAM_DEDUP, set()),
        (AccessSettings, schema.ACCESS, {"streams"}),
        (StreamAccess, schema.STREAM_ACCESS, set()),
    ):
        inner = {field.name for field in dataclasses.fields(kind)}
        assert inner == {setting.field for setting in table.values()} | named
    route = {setting.field for setting in schema.ROUTE.values()}
    assert {f.name for f in dataclasses.fields(RouteSettings)} - route == {
        "name",
        "options",
        *schema.ROUTE_TABLES,
    }
    for name, known in schema.ROUTE_TABLES.items():
        inner = {field.name for field in dataclasses.fields(ROUTE_TABLES[name])}
        assert inner == {setting.field for setting in known.values()}


def test_the_shipped_values_are_the_defaults() -> None:
    loaded = load_text([("wald.toml", SHIPPED.read_text())], default_places({}, 0), {})
    defaults = Settings(*default_places({}, 0))
    plain = dataclasses.replace(loaded.settings, sinks={}, routes={}, streams={})
    assert plain == defaults
    assert loaded.settings.streams == {"signups": StreamSettings("signups")}
    route = loaded.settings.routes["signups"]
    assert route == RouteSettings("signups", "signups", "events")


def test_every_shipped_setting_says_what_it_is() -> None:
    tables = (*schema.DAEMON, *schema.RETAIN, *schema.BATCH, *schema.ROUTE)
    for line in shipped_text().splitlines():
        key = line.partition(" =")[0]
        if key in tables:
            assert "#" in line, line


def test_the_front_names_what_it_exports() -> None:
    assert set(config.__all__) <= set(dir(config))


_TWO_ROUTES = """
[sinks.one]
type = "sqlite"
path = "/var/x.db"
[sinks.two]
type = "sqlite"
path = "/var/./x.db"
[routes.a]
stream = "{0}"
sink = "one"
{1}
[routes.b]
stream = "s"
sink = "two"
{2}
"""


@pytest.mark.parametrize(
    ("stream", "a", "b", "shared"),
    [
        ("s", "", "", True),
        ("s", 'table = "s"', "", True),
        ("s", 'table = "t"', 'table = "t"', True),
        ("s", 'table = "t"', "", False),
        ("other", "", "", False),
    ],
)
def test_two_routes_of_a_stream_to_one_table_are_refused(
    stream: str, a: str, b: str, *, shared: bool
) -> None:
    texts = [("wald.toml", _TWO_ROUTES.format(stream, a, b))]
    places = default_places({}, 0)
    if not shared:
        load_text(texts, places, {})
        return
    with pytest.raises(ConfigError, match="same table") as caught:
        load_text(texts, places, {})
    assert "routes.b" in caught.value.hint
    assert "wald.toml" in caught.value.message


def test_two_logins_to_one_database_are_one_table() -> None:
    text = _TWO_ROUTES.format("s", "", "").replace('"sqlite"', '"postgres"')
    text = re.sub(r"path = .*", 'url = "postgresql://me@db/app"', text, count=1)
    text = re.sub(r"path = .*", 'url = "postgres://you@db/app?sslmode=require"', text, count=1)
    assert text.count("url =") == 2
    with pytest.raises(ConfigError, match="same table"):
        load_text([("wald.toml", text)], default_places({}, 0), {})


@pytest.mark.parametrize(
    ("error", "hint"),
    [(PermissionError(13, "Permission denied"), "sudo -u USER"), (OSError(2, "none"), "--config")],
    ids=["may not read it: as whom", "not there: which file"],
)
def test_a_file_that_cannot_be_read_says_what_to_do(
    error: OSError, hint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_: Path) -> bytes:
        raise error

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(ConfigError, match=r"cannot be read") as raised:
        load_file(str(tmp_path / "wald.toml"), default_places({}, 0), {})
    assert hint in raised.value.hint


def test_settings_of_another_release_are_taken_as_far_as_they_are_known() -> None:
    """As where a package is exchanged under a daemon: its next child has other code than it."""
    stream = StreamSettings("orders", content=("json",))
    ours = Settings(
        "data",
        "w.sock",
        sinks={"db": SinkSettings("db", "sqlite")},
        routes={"db": RouteSettings("db", "orders", "db", lanes=3)},
        streams={"orders": stream},
        access=AccessSettings(append=("ann",), streams={"orders": StreamAccess(read=("bob",))}),
    )
    newer = ours.to_json()
    tables = (newer["sinks"]["db"], newer["routes"]["db"], newer["routes"]["db"]["batch"])
    for table in (newer, newer["clients"], newer["streams"]["orders"], newer["access"], *tables):
        table["of_the_next_release"] = 1
    assert Settings.from_json(newer) == ours
    older = ours.to_json()
    for table, name in ((older, "clients"), (older["routes"]["db"], "workers")):
        del table[name]
    assert Settings.from_json(older) == ours
