"""The lines of the contract about what producers send: one odd record, and its neighbours land."""

import pytest

from wald.testing.sink_contract.host import Host
from wald.testing.sink_contract.lines import Lines
from wald.testing.sink_contract.odd import LANDS, ODD, Odd


class InputLines(Lines):
    """Bad input."""

    @pytest.mark.parametrize("odd", ODD, ids=lambda odd: odd.name)
    def test_one_odd_record_follows_the_rule_and_its_neighbours_land(
        self, host: Host, odd: Odd
    ) -> None:
        """It lands, or is a dead letter with a code and the target's words, as the bench says."""
        if not host.bench.bad_input:
            pytest.skip("the workbench states nothing of bad input: see Workbench.bad_input")
        half = host.bench.neighbours // 2
        host.append(half)
        (lsn,) = host.append_raw([odd.value], content=odd.content, keys=[odd.key])
        host.append(host.bench.neighbours - half)
        host.through()
        letter = host.dead.get(lsn)
        found = LANDS if letter is None else letter.code
        stated = host.bench.bad_input[odd.name]
        why = "" if letter is None else f" ({letter.message})"
        assert found == stated, f"bad_input states {stated!r} of {odd.name!r}: {found!r}{why}"
        assert letter is None or letter.message, "a dead letter has a reason"
        assert not host.dead.keys() - {lsn}
        self.check_held(host)
