"""The areas of the tests, and what each may take: which files they are, and how long they took.

``python -m tests.areas AREA`` names the files of an area, for ``make test AREA=delivery``;
``python -m tests.areas --times`` runs each area by itself, for ``make test-times``.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from xml.etree import ElementTree

TESTS = Path(__file__).parent
SLOWEST = 10


@dataclass(frozen=True, slots=True)
class Area:
    """Test files by glob, below ``tests/``, and the wall time that they may take on two cores."""

    budget_s: int
    globs: str

    def files(self) -> set[Path]:
        return {path for glob in self.globs.split() for path in TESTS.glob(glob)}


# each test file is in exactly one of them: tests/test_tidy.py
AREAS = {
    # formats, log, recovery, settings, the three processes, commands
    "core": Area(
        240,
        """
        contract/test_file_system.py golden/test_*.py property/test_config_fuzz.py
        property/test_log_bytes.py unit/test_body.py unit/test_cli.py unit/test_cli_*.py
        unit/test_config.py unit/test_demo_verdict.py unit/test_figures.py
        unit/test_frame.py unit/test_inspect.py
        unit/test_log.py unit/test_new_route_on_a_full_disk.py unit/test_prepare.py
        unit/test_progress.py unit/test_recover*.py unit/test_segment.py unit/test_simfs.py
        unit/test_state.py unit/test_supervisor_*.py unit/test_system.py unit/test_tail.py
        unit/test_units.py integration/test_bad_input.py integration/test_commands.py
        integration/test_supervisor.py integration/test_systemd.py
        """,
    ),
    # from the producer to the log: clients, the wire, answers, quotas, access
    "ingest": Area(
        120,
        """
        contract/test_producers.py model/test_door_model.py model/test_epoch_model.py
        model/test_quota_order.py property/test_dedup_settle.py property/test_fast_path.py
        unit/test_access.py unit/test_asking.py unit/test_client_page.py unit/test_commit*.py
        unit/test_dedup.py unit/test_dialogue.py unit/test_door_lines.py unit/test_errors.py
        unit/test_fake_producer.py unit/test_fairness.py unit/test_gathering.py
        unit/test_http_answers_of_errors.py unit/test_id_files.py unit/test_lone.py
        unit/test_one_append.py unit/test_outbox.py unit/test_quota.py unit/test_retries.py
        unit/test_room.py unit/test_rules.py unit/test_sessions.py unit/test_urgent_at_the_door.py
        unit/test_values_of_types.py unit/test_wire.py integration/test_access.py
        integration/test_aio*.py integration/test_bad_frames.py integration/test_client*.py
        integration/test_epochs.py integration/test_hard_to_hurt.py integration/test_ingest.py
        integration/test_logging.py integration/test_minimal_client.py
        integration/test_pytest_plugin.py integration/test_quotas*.py
        integration/test_received.py integration/test_recipes.py
        integration/test_store_once.py integration/test_submit.py integration/test_tail*.py
        integration/test_urgent.py
        """,
    ),
    # from the log to the port of a sink: batches, lanes, outcomes, dead letters, healing, packing
    "delivery": Area(
        180,
        """
        crash/test_delivery_kills.py model/test_delivery_*.py unit/test_adaptive.py
        unit/test_batch*.py unit/test_breaker.py unit/test_dead.py unit/test_dead_cli.py
        unit/test_deadlog.py unit/test_delivery.py unit/test_faults.py
        unit/test_guarantees.py unit/test_guarded.py
        unit/test_healing_words.py unit/test_lanes.py unit/test_ledger*.py unit/test_tickets.py
        unit/test_manifests.py unit/test_open_records.py unit/test_outcomes.py
        unit/test_pacing.py unit/test_packed_*.py unit/test_packing*.py
        unit/test_policy_status.py unit/test_retention.py unit/test_row.py unit/test_scrub.py
        unit/test_shaping.py unit/test_stream_reader.py unit/test_targets.py unit/test_told.py
        unit/test_unread.py unit/test_watchdog.py unit/test_where.py unit/test_window.py
        property/test_packed_bytes.py integration/test_audit.py
        integration/test_batch_commands.py integration/test_changed_targets.py
        integration/test_dlq_*.py integration/test_drain*.py integration/test_fallback*.py
        integration/test_game_day.py integration/test_heal*.py integration/test_lanes.py
        integration/test_lost_ledger.py integration/test_neighbours.py
        integration/test_orderly_stops.py integration/test_outcomes.py
        integration/test_running_ahead.py
        integration/test_packing*.py integration/test_poison.py integration/test_policy.py
        integration/test_range_replay.py integration/test_routes.py
        integration/test_scrub_command.py integration/test_shaping.py
        integration/test_start_oldest.py integration/test_traffic.py
        integration/test_two_targets.py integration/test_where.py
        """,
    ),
    # the sinks at real servers, and the contract that all of them pass
    "targets": Area(
        240,
        """
        contract/test_dynamodb.py contract/test_files.py contract/test_http*.py
        contract/test_planted_bugs.py contract/test_postgres.py contract/test_redis.py
        contract/test_sqlite.py contract/test_toy.py property/test_postgres_quick.py
        unit/test_dead_words.py unit/test_dynamodb_items.py unit/test_files_sink.py
        unit/test_http_answers.py unit/test_http_clickhouse.py unit/test_http_encoding.py
        unit/test_http_options.py unit/test_null_sink.py unit/test_postgres_words.py
        unit/test_secrets.py unit/test_sink_reference.py unit/test_sink_settings.py
        unit/test_sqlite_sink.py
        integration/test_dynamodb_sink.py
        integration/test_http_*.py integration/test_postgres_*.py
        integration/test_receive_batches.py integration/test_redis_*.py
        integration/test_write_a_sink.py
        """,
    ),
    # every fault of disk, kernel and process; bytes from outside; what is left is salvaged
    "crash": Area(
        240,
        """
        crash/test_crash_images.py crash/test_faults.py crash/test_files_power.py
        crash/test_flips.py crash/test_long_runs.py
        crash/test_full_disk.py crash/test_kills.py crash/test_packing_kills.py
        crash/test_power_cuts.py fuzz/test_*.py model/test_dead_log_model.py
        model/test_life_model.py unit/test_sim_store.py
        model/test_every_operation.py model/test_found_bugs.py model/test_log_model.py
        model/test_packing_crashes.py model/test_planted_bugs.py
        integration/test_attacks.py integration/test_log_went_back.py
        integration/test_salvage.py integration/test_way_back.py
        integration/test_torture.py
        """,
    ),
    # source, documents, types
    "house": Area(60, "test_*.py typing/test_*.py"),
}


def slowest(report: Path) -> list[tuple[float, str]]:
    """Return the tests of a JUnit report that took longest, fixtures of their own included."""
    cases = ElementTree.parse(report).iter("testcase")
    return nlargest(
        SLOWEST,
        (
            (float(case.get("time", 0)), f"{case.get('classname')}::{case.get('name')}")
            for case in cases
        ),
    )


def is_in_budget(name: str, workers: int) -> bool:
    """Run an area by itself and print what it took; tell whether it passed within its budget."""
    area = AREAS[name]
    with tempfile.TemporaryDirectory() as place:
        report = Path(place, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}"]
        command += ["-n", str(workers), "--dist", "worksteal", *map(str, sorted(area.files()))]
        start_s, before = time.monotonic(), os.times()
        done = subprocess.run(command, check=False)
        took_s, after = time.monotonic() - start_s, os.times()
        used_s = sum(after[2:4]) - sum(before[2:4])  # what has no part in it: the load of others
        print(
            f"\n{name}: {took_s:.0f} s of {area.budget_s} s, {used_s:.0f} s of processor time, "
            f"exit code {done.returncode}"
        )
        for seconds, test in slowest(report):
            print(f"  {seconds:6.1f} s  {test}")
    return done.returncode == 0 and took_s <= area.budget_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("areas", nargs="*", help=f"some of: {', '.join(AREAS)}")
    parser.add_argument("--times", action="store_true", help="run them, one after the other")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    if unknown := set(asked.areas) - set(AREAS):
        parser.error(f"no such area: {', '.join(unknown)}; there are: {', '.join(AREAS)}")
    if asked.times:
        kept = [is_in_budget(name, asked.workers) for name in asked.areas or AREAS]
        return int(not all(kept))
    for name in asked.areas:
        print(*sorted(AREAS[name].files()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
