"""What every sink shares: its settings, read with suggestions and bounds; fields into columns."""

import json
import subprocess
import sys
from importlib import import_module

import msgpack
import pytest

from tests.servers import need
from wald.errors import ConfigError, UnknownSetting, WrongSetting
from wald.model import Content, Record, Secret
from wald.sinks.fields import DEFAULT, ByField, FieldRules, read_fields
from wald.sinks.quick import QuickRows
from wald.sinks.reading import OptionReader
from wald.sinks.values import BAD_VALUE, describe, json_text

KNOWN = ("path", "size", "wait", "rows", "share", "loud", "mode", "keys", "columns", "auth", "in")


def reader(**settings):
    return OptionReader("test", "r", settings, KNOWN)


# --- settings -----------------------------------------------------------------------------------


def test_an_unknown_setting_is_refused_with_the_nearest_known_one():
    with pytest.raises(UnknownSetting, match="route 'r': unknown setting 'colums' of a test sink"):
        reader(colums={})
    for name, hint in (("colums", "did you mean 'columns'?"), ("xyz", "known: path, size")):
        with pytest.raises(UnknownSetting) as caught:
            reader(**{name: 1})
        assert caught.value.hint.startswith(hint)


def test_a_setting_that_is_absent_has_its_default():
    options = reader()
    assert options.text("path", "x") == "x"
    assert options.choice("mode", ("a", "b"), "b") == "b"
    assert options.names("keys", ("a",)) == ("a",)
    assert options.mapping("columns") == {}
    assert options.count("rows", 5, high=9) == 5
    assert options.number("share", 0.5, high=1) == 0.5
    assert options.duration_s("wait", "5s") == 5.0
    assert options.size_bytes("size", "1KiB") == 1024
    assert options.switch("loud", default=True) is True
    assert options.secret("auth") is None
    assert "path" not in options


def test_a_setting_that_must_be_said_says_how():
    with pytest.raises(ConfigError) as caught:
        reader().text("path", such_as='"/x"')
    assert (caught.value.message, caught.value.hint) == (
        "route 'r': a test sink needs a 'path'",
        'path = "/x"',
    )


@pytest.mark.parametrize(
    ("name", "value", "read", "wanted"),
    [
        ("path", "", lambda o: o.text("path"), "a text"),
        ("path", "a\0b", lambda o: o.text("path"), "a text"),
        ("path", 5, lambda o: o.text("path"), "a text"),
        ("mode", "c", lambda o: o.choice("mode", ("a", "b"), "a"), "'a' or 'b'"),
        ("keys", "abc", lambda o: o.names("keys"), "a list of names"),
        ("keys", ["a", ""], lambda o: o.names("keys"), "a list of names"),
        ("keys", ["a", "a"], lambda o: o.names("keys"), "each once"),
        ("columns", ["a"], lambda o: o.mapping("columns"), "column = field"),
        ("columns", {"a": 1}, lambda o: o.mapping("columns"), "column = field"),
        ("rows", True, lambda o: o.count("rows", 1, high=9), "a whole number"),
        ("rows", 10, lambda o: o.count("rows", 1, high=9), "within 0 to 9"),
        ("rows", 0, lambda o: o.count("rows", 1, low=1, high=9), "within 1 to 9"),
        ("share", "x", lambda o: o.number("share", 0.5, high=1), "a number"),
        ("share", 1.5, lambda o: o.number("share", 0.5, high=1), "within 0 to 1"),
        ("share", float("nan"), lambda o: o.number("share", 0.5, high=1), "within 0 to 1"),
        ("wait", 5, lambda o: o.duration_s("wait", "5s"), "a duration"),
        ("wait", "5", lambda o: o.duration_s("wait", "5s"), "a duration"),
        ("wait", "2d", lambda o: o.duration_s("wait", "5s"), "within 0 s to 86400 s"),
        ("size", "1", lambda o: o.size_bytes("size", "1B"), "a size"),
        ("size", "2KiB", lambda o: o.size_bytes("size", "1B", high=10), "within 1 to 10 bytes"),
        ("loud", 1, lambda o: o.switch("loud", default=True), "true or false"),
        ("in", 1, lambda o: o.table("in", ("x",)), "a table of x"),
        ("auth", 5, lambda o: o.secret("auth"), "a secret"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_wanted(name, value, read, wanted):
    with pytest.raises(WrongSetting, match="route 'r'") as caught:
        read(reader(**{name: value}))
    assert wanted in caught.value.message
    assert name in caught.value.message


def test_a_secret_is_never_shown_and_never_taken_from_the_configuration_itself():
    secret = Secret("canary")
    assert reader(auth=secret).secret("auth") is secret
    assert reader(path=secret).text("path") == "canary"
    with pytest.raises(WrongSetting) as caught:
        reader(auth="canary").secret("auth")
    assert "canary" not in str(caught.value)
    with pytest.raises(WrongSetting) as caught:
        reader(rows=secret).count("rows", 1, high=9)
    assert "canary" not in str(caught.value)


def test_the_settings_of_a_table_inside_are_named_with_it():
    inner = reader(**{"in": {"x": 1}}).table("in", ("x",))
    assert inner.count("x", 0, high=5) == 1
    with pytest.raises(WrongSetting, match=r"route 'r': in\.x is 1"):
        inner.text("x")
    with pytest.raises(UnknownSetting, match=r"'in\.y'"):
        reader(**{"in": {"y": 1}}).table("in", ("x",))


# --- fields into columns ------------------------------------------------------------------------


def rows(rules, *values, careful=True):
    records = [Record(lsn, 0, 1, msgpack.packb(value)) for lsn, value in enumerate(values, 1)]
    quick = None if careful else QuickRows(rules).batch(records)
    return quick or ByField(rules, lambda value: value).rows(records)


@pytest.mark.parametrize("careful", [True, False])
def test_fields_fill_columns_by_their_rules(careful):
    columns = {"a": "x", "b": "y"}
    full, less, more = {"x": 1, "y": 2}, {"x": 1}, {"x": 1, "y": 2, "z": 3, "w": 4}

    def made(*values, **rules):
        found = rows(FieldRules(columns, **rules), *values, careful=careful)
        refused = [(each.lsn, each.code, each.message) for each in found.refused]
        return found.rows or refused, found.extra_fields

    assert made(full) == ([(1, 2)], 0)
    assert made(full, less, more) == ([(1, 2), (1, None), (1, 2)], 2)
    assert made(less, on_missing="default") == ([(1, DEFAULT)], 0)
    assert made(full, less, {}, on_missing="reject")[0] == [
        (2, "field.missing", "field 'y' is missing"),
        (3, "field.missing", "field 'x' (and 1 others) is missing"),
    ]
    assert made(full, more, on_extra="reject")[0] == [
        (2, "field.extra", "no column takes field 'w' (and 1 others)")
    ]


def test_a_column_of_everything_else_takes_what_no_other_does():
    rules = FieldRules({"a": "x", "rest": "*"}, on_extra="reject")
    found = rows(rules, {"x": 1, "y": 2, "z": 3}, {"x": 1})
    assert found.rows == [(1, {"y": 2, "z": 3}), (1, {})]
    assert found.extra_fields == 0


def test_one_column_alone_may_take_the_rest():
    with pytest.raises(WrongSetting, match="one column at most"):
        read_fields(reader(columns={"a": "*", "b": "*"}))
    known = ("columns", "on_missing_field", "on_extra_field")
    settings = {"columns": {"a": "*"}, "on_missing_field": "reject", "on_extra_field": "ignore"}
    assert read_fields(OptionReader("test", "r", settings, known)).on_missing == "reject"


def test_two_columns_may_be_filled_from_one_field():
    found = rows(FieldRules({"a": "x", "b": "x"}), {"x": 1, "y": 2})
    assert (found.rows, found.extra_fields) == ([(1, 1)], 1)


def test_the_last_of_a_key_that_stands_twice_counts():
    doubled = b"\x82\xa1x\x01\xa1x\x02"
    shape = ByField(FieldRules({"a": "x"}), lambda value: value)
    assert shape.rows([Record(1, 0, 1, doubled)]).rows == [(2,)]
    assert QuickRows(FieldRules({"a": "x"})).batch([Record(1, 0, 1, doubled)]) == ([(2,)], (), 0)
    assert shape.rows([Record(1, 0, 2, b'{"x":1,"x":2}')]).rows == [(2,)]


def test_json_text_stays_as_it_came_and_is_json():
    assert json_text(Record(1, 0, int(Content.JSON), b'{ "a":1.50 }')) == '{ "a":1.50 }'
    assert json.loads(json_text(Record(1, 0, 1, msgpack.packb([float("nan"), b"\1"])))) == [
        None,
        "AQ==",
    ]
    with pytest.raises(BAD_VALUE) as caught:
        json_text(Record(1, 0, 2, b"NaN"))
    assert describe(caught.value) == "NaN is not JSON"


# --- servers that are absent ----------------------------------------------------------------------


def test_what_is_absent_is_skipped_at_a_desk_and_fails_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-server is not on this machine: get"):
        need.need_binary("no-such-server", "get one")
    with pytest.raises(pytest.skip.Exception, match="pip install it"):
        need.need_module("no_such_module", "pip install it")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI skips nothing"):
        need.need_binary("no-such-server", "get one")
    assert need.need_binary("sh", "").endswith("/sh")
    assert need.need_module("json", "") is json


# --- the quick way --------------------------------------------------------------------------------

ODD_VALUES = [
    {"x": msgpack.ExtType(3, b"1.50"), "y": [1, {"z": b"\xd6\xff"}]},
    {"x": float("nan"), "y": 1 << 63},
    {"x": {"y": 1}, "y": None, "z": 1},
    {"x": 1},
    {},
]


@pytest.mark.parametrize("value", ODD_VALUES, ids=repr)
@pytest.mark.parametrize("rules", [{}, {"on_missing": "default"}, {"on_extra": "reject"}], ids=repr)
def test_the_quick_way_makes_the_same_rows_as_the_careful_one_or_none(value, rules):
    rules = FieldRules({"a": "x", "b": "y"}, **rules)
    records = [Record(lsn, 0, 1, msgpack.packb(each)) for lsn, each in enumerate([value] * 2)]
    quick = QuickRows(rules).batch(records)
    careful = ByField(rules, lambda each: each).rows(records)
    assert quick is None or repr(quick) == repr(careful)


@pytest.mark.parametrize(
    "data", [b"\xc1", b"\x81\xa1x", b"\x81\xa1x\x01\x01", b"\x90", b"\x81\xa1x\xa1\xff"]
)
def test_what_is_no_map_of_fields_is_not_for_the_quick_way(data):
    assert QuickRows(FieldRules({"a": "x"})).batch([Record(1, 0, 1, data)]) is None


def test_other_content_and_rules_that_it_cannot_follow_are_not_for_it_either():
    json_record = Record(1, 0, 2, b'{"x":1}')
    assert QuickRows(FieldRules({"a": "x"})).batch([json_record]) is None
    good = Record(1, 0, 1, msgpack.packb({"x": 1}))
    for columns in ({"a": "*"}, {"a": "x", "b": "x"}, {"a": 'x"'}):
        assert QuickRows(FieldRules(columns)).batch([good]) is None


@pytest.mark.parametrize(
    ("kind", "settings", "drivers", "extra"),
    [
        ("redis", {"url": "redis://h"}, ("redis",), "redis"),
        ("dynamodb", {"partition_key": "id"}, ("boto3", "botocore"), "aws"),
    ],
)
def test_settings_are_read_without_the_driver_but_not_where_there_is_none(
    kind: str,
    settings: dict[str, object],
    drivers: tuple[str, ...],
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The supervisor reads them too, and delivers nothing."""
    code = (
        f"import sys; from wald.sinks.{kind} import make; make('r', 'e', {settings!r}).close();"
        f"sys.exit(bool({set(drivers)!r} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=drivers[0]) as raised:
        import_module(f"wald.sinks.{kind}").make("r", "e", settings)
    assert raised.value.hint == f"pip install 'wald[{extra}]'"
