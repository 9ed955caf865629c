"""The lines of the contract about trouble: bad records are found, an outage makes none."""

import pytest

from wald.model import SystemicKind
from wald.testing.sink_contract.host import Host, numbers
from wald.testing.sink_contract.lines import Lines
from wald.testing.sink_contract.workbench import TROUBLES

_MANY = 1_000


class TroubleLines(Lines):
    """Trouble."""

    @pytest.mark.parametrize("place", [0, 421, _MANY - 1])
    def test_one_bad_record_among_a_thousand_is_found_and_the_others_land(
        self, host: Host, place: int
    ) -> None:
        """Named by the target or searched for; it is a dead letter with the target's words."""
        host.bench.need("poison")
        host.append(place)
        bad = self.append_poison(host)
        host.append(_MANY - 1 - place)
        host.through()
        assert list(host.dead) == [bad]
        letter = host.dead[bad]
        assert letter.code, "a dead letter has a code"
        assert letter.message, "a dead letter has a reason"
        self.check_held(host)

    def test_several_bad_records_are_found_each(self, host: Host) -> None:
        """Some beside each other, some apart, over two batches."""
        host.bench.need("poison")
        bad = []
        for _ in range(2):
            host.append(40)
            bad += [self.append_poison(host), self.append_poison(host)]
            host.append(9)
            bad.append(self.append_poison(host))
            host.append(40)
            host.through()
        assert list(host.dead) == bad
        self.check_held(host)

    @pytest.mark.parametrize("kind", TROUBLES, ids=lambda kind: kind.value)
    def test_trouble_of_the_target_is_told_apart_and_makes_no_dead_letter(
        self, host: Host, kind: SystemicKind
    ) -> None:
        """It is named, with what to do; when it is over, everything arrives."""
        host.bench.need(f"trouble.{kind.value}")
        trouble = host.bench.troubles[kind]
        host.append(10)
        host.through()
        for behind_a_restart in (False, True):
            with trouble():
                if behind_a_restart:
                    host.restart()
                host.append(10)
                told = self.trouble_told(host)
            assert told.kind is kind, told
            assert told.message, "trouble is described"
            assert not host.dead, "an outage makes no dead letters"
            host.through()
        assert not host.dead
        self.check_held(host)

    def test_check_finds_a_target_that_works_and_writes_nothing(self, host: Host) -> None:
        """``wald check`` says what it verified, and that nothing is wrong."""
        sink = host.bench.make()
        try:
            findings = sink.check()
        finally:
            sink.close()
        assert findings, "check says what it verified"
        assert not [each for each in findings if each.severity.value == "error"], findings
        assert numbers(host.bench.held()) == []

    @staticmethod
    def append_poison(host: Host) -> int:
        """Append a value that the target refuses; returns its LSN."""
        key = f"poison-{len(host.sent)}"
        (lsn,) = host.append_raw([host.packed(host.bench.poison)], keys=[key])
        return lsn
