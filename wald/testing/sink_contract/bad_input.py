"""The line of the contract about what producers send: odd records, and their neighbours land."""

import pytest

from wald.testing.sink_contract.host import Host
from wald.testing.sink_contract.lines import Lines
from wald.testing.sink_contract.odd import LANDS, ODD

NEIGHBOURS = 999


class InputLines(Lines):
    """Bad input."""

    def test_odd_records_follow_the_rule_and_their_neighbours_land(self, host: Host) -> None:
        """Each lands, or is a dead letter with a code and the target's words, as the bench says.

        All go at once, each among good ones before and behind it.
        """
        stated = host.bench.bad_input
        if not stated:
            pytest.skip("the workbench states nothing of bad input: see Workbench.bad_input")
        lsns: dict[str, int] = {}
        for number, odd in enumerate(ODD):
            host.append(NEIGHBOURS * (number + 1) // (len(ODD) + 1) - len(host.sent))
            (lsns[odd.name],) = host.append_raw([odd.value], content=odd.content, keys=[odd.key])
        host.append(NEIGHBOURS - len(host.sent))
        host.through()
        dead = host.dead
        found = {name: dead[lsn].code if lsn in dead else LANDS for name, lsn in lsns.items()}
        words = {name: dead[lsn].message for name, lsn in lsns.items() if lsn in dead}
        assert found == dict(stated), words
        assert all(words.values()), "a dead letter has a reason"
        assert not dead.keys() - set(lsns.values())
        self.check_held(host)
