"""The lines of the contract about deaths: of the drainer, of the target, of a connection."""

import threading

import pytest

from wald.testing.proxy import CuttingProxy, Side
from wald.testing.sink_contract.host import Host
from wald.testing.sink_contract.lines import Lines
from wald.testing.sink_contract.promises import Line

_CUTS_MAX = 200
_KILLED = -9


class DeathLines(Lines):
    """Deaths."""

    def test_a_drainer_killed_around_the_commit_doubles_nothing(self, host: Host) -> None:
        """A process of its own, SIGKILL: before an attempt, and behind the target's commit.

        Behind the commit nobody has written our checkpoint yet.
        """
        host.settings = host.with_batches_of(10)
        host.append(35)
        assert host.in_a_process((1, "before")) == _KILLED
        assert host.in_a_process((2, "behind")) == _KILLED
        assert host.in_a_process(None) == 0
        self.check_held(host, Line.DRAINER_KILLED)

    def test_a_killed_target_loses_and_doubles_nothing(self, host: Host) -> None:
        """SIGKILL before an attempt, behind its commit, and in the middle of it."""
        bench = host.bench
        bench.need("server")
        host.append(10)
        host.through()
        for moment in ("before", "behind", "middle"):
            host.append(25)
            strike = _Strike(host, moment)
            host.run(lambda strike=strike: strike.is_over)  # type: ignore[misc]
            bench.start()
            host.through()
        bench.kill()
        host.append(5)
        bench.start()
        host.through()
        assert not host.dead
        self.check_held(host, Line.TARGET_KILLED)

    @pytest.mark.parametrize("side", list(Side), ids=["before", "behind"])
    def test_a_connection_cut_anywhere_loses_and_doubles_nothing(
        self, host: Host, side: Side
    ) -> None:
        """At the first chunk that the sink sends, the second, ... until an attempt is through.

        Each is lost before the server had it, or behind its effect, when the answer is lost.
        """
        bench = host.bench
        bench.need("connection")
        with CuttingProxy(bench.address()) as proxy:
            host.sink_settings = bench.settings_through(proxy.address)
            for at in range(_CUTS_MAX):
                host.append(5)
                proxy.cut(at, side)
                host.restart()
                host.through()
                if not proxy.was_cut:
                    break
            assert at > 0, "the sink does not go through the proxy"
            assert not proxy.was_cut
        host.sink_settings = None
        host.restart()
        host.append(5)
        host.through()
        assert not host.dead
        self.check_held(host, Line.CUT)


class _Strike:
    """Kills the target at one moment of the next attempt."""

    def __init__(self, host: Host, moment: str) -> None:
        self._host = host
        self.is_over = False
        self._thread: threading.Thread | None = None
        if moment == "before":
            host.before_attempt = self._kill
        elif moment == "behind":
            host.behind_attempt = self._kill
        else:
            host.before_attempt = self._begin
            host.behind_attempt = self._end

    def _kill(self) -> None:
        self._host.bench.kill()
        self._finish()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._host.bench.kill)
        self._thread.start()

    def _end(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._finish()

    def _finish(self) -> None:
        self.is_over = True
        self._host.before_attempt = self._host.behind_attempt = lambda: None
