"""Every line of the contract finds a bug that was planted for it: none passes all sinks."""

import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract import toy_sink
from tests.contract.toy_bench import ToyBench
from wald.model import ReplayClass, SystemicKind
from wald.testing import SinkContract
from wald.testing.proxy import Side
from wald.testing.sink_contract import TROUBLES, Host

T, M, K, W, N = ReplayClass
STEPS_MAX = 500  # what is right takes a tenth


class Impatient(SinkContract):
    patience_s = 2.0


@dataclass(frozen=True)
class Planted:
    """A bug, the line that finds it, and the class at which it is planted."""

    bug: str
    line: str
    replay: ReplayClass = T
    given: tuple[object, ...] = ()


PLANTED = [
    Planted("forgets the row", "the_same_batch_twice_has_one_effect"),
    Planted("remembers in its own memory", "the_same_batch_twice_has_one_effect", K),
    Planted("forgets the row", "a_batch_whose_answer_was_lost_has_one_effect"),
    Planted("takes another id for each attempt", "a_batch_whose_answer_was_lost_has_one_effect", W),
    Planted("forgets the row", "an_attempt_that_arrives_late_has_no_effect"),
    Planted("forgets the row", "a_new_process_goes_on_where_the_last_one_ended"),
    Planted("keeps no log id", "two_hosts_feed_one_place"),
    Planted("keeps no log id", "two_hosts_feed_one_place", K),
    Planted("keeps no log id", "two_hosts_feed_one_place", M),
    Planted("reads no row", "a_clone_is_parked_as_diverged"),
    Planted("believes its own memory", "a_target_that_was_restored_gets_the_rest_again"),
    Planted("takes a moved row for success", "a_gap_and_a_second_writer_are_detected"),
    Planted("forgets the row", "a_gap_and_a_second_writer_are_detected"),
    Planted("commits before the seal", "nothing_takes_effect_before_its_batch_is_sealed"),
    Planted("knows one lane", "lanes_and_logs_have_rows_of_their_own"),
    Planted("forgets the row", "a_drainer_killed_around_the_commit_doubles_nothing", K),
    Planted("acks before the commit", "a_killed_target_loses_and_doubles_nothing", K),
    Planted("keeps a dead connection", "a_killed_target_loses_and_doubles_nothing"),
    Planted(
        "acks before the commit",
        "a_connection_cut_anywhere_loses_and_doubles_nothing",
        K,
        given=(Side.BEFORE,),
    ),
    Planted(
        "writes the row apart",
        "a_connection_cut_anywhere_loses_and_doubles_nothing",
        given=(Side.BEHIND,),
    ),
    Planted(
        "forgets the row",
        "a_connection_cut_anywhere_loses_and_doubles_nothing",
        given=(Side.BEHIND,),
    ),
    Planted(
        "drops bad records",
        "one_bad_record_among_a_thousand_is_found_and_the_others_land",
        given=(421,),
    ),
    Planted("names the wrong record", "several_bad_records_are_found_each"),
    *(
        Planted(
            "takes all trouble for one",
            "trouble_of_the_target_is_told_apart_and_makes_no_dead_letter",
            given=(kind,),
        )
        for kind in TROUBLES
        if kind is not SystemicKind.UNREACHABLE
    ),
    Planted(
        "takes an outage for bad records",
        "trouble_of_the_target_is_told_apart_and_makes_no_dead_letter",
        N,
        given=(SystemicKind.UNREACHABLE,),
    ),
    Planted("checks nothing", "check_finds_a_target_that_works_and_writes_nothing"),
    Planted("writes when it checks", "check_finds_a_target_that_works_and_writes_nothing"),
    Planted("waits for ever", "an_attempt_ends_in_its_time"),
    Planted("reorders", "order_is_kept"),
    Planted("promises too much", "no_batch_is_larger_than_the_target_takes"),
    Planted("does nothing of an empty batch", "an_empty_batch_is_taken"),
    Planted("chokes on a value", "odd_records_follow_the_rule_and_their_neighbours_land"),
    Planted("closes once", "closing_is_harmless_to_repeat"),
    Planted("leaves its socket open", "closing_is_harmless_to_repeat"),
]


@pytest.fixture
def cleared() -> Iterator[None]:
    yield
    for each in toy_sink.LEAKED:
        if each is not None:
            each.close()  # type: ignore[attr-defined]
    toy_sink.LEAKED.clear()


def run(planted: Planted, place: Path) -> None:
    """Run one line as pytest would."""
    contract: Any = Impatient()
    line = getattr(contract, f"test_{planted.line}")
    bench = ToyBench(place, planted.replay, planted.bug)
    hosts = [Host(place / "a", bench)]
    try:
        if "other" in inspect.signature(line).parameters:
            hosts.append(Host(place / "b", bench, name="b", owner=78))
        for host in hosts:
            host.steps_max = STEPS_MAX
        line(*hosts, *planted.given)
    finally:
        bench.close()
        for host in hosts:
            host.close()


@pytest.mark.parametrize(
    "planted", PLANTED, ids=lambda each: f"{each.line}: {each.bug}{each.given or ''}"
)
def test_a_planted_bug_is_found(
    planted: Planted, tmp_path: Path, cleared: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    with pytest.raises((AssertionError, OSError, RuntimeError)):
        run(planted, tmp_path)


def test_a_secret_that_is_told_is_found(tmp_path: Path) -> None:
    bench = ToyBench(tmp_path, T, "tells its secret")
    try:
        sink = bench.make()
        with bench.ordered(SystemicKind.FULL):
            sink.check()
        sink.close()
        with pytest.raises(AssertionError, match="a secret was told"):
            Impatient().check_no_secret(bench)
    finally:
        bench.close()


def test_every_line_has_a_bug_that_it_finds() -> None:
    lines = {name for name in dir(SinkContract) if name.startswith("test_")}
    assert {f"test_{planted.line}" for planted in PLANTED} == lines
