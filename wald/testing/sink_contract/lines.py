"""What all lines of the contract share: fixtures, and what the target must hold."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from wald.model import ReplayClass, Systemic
from wald.testing.sink_contract.host import Host, numbers
from wald.testing.sink_contract.promises import AT_LEAST_ONCE, HOLDS, PROMISES, Line
from wald.testing.sink_contract.workbench import Held, Workbench


class Lines:
    """Fixtures and checks; the lines themselves stand in the subclasses."""

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Workbench]:
        """Yield a fresh place at the target; override this."""
        msg = f"override 'bench' with a fixture that yields a Workbench ({tmp_path})"
        raise NotImplementedError(msg)

    @pytest.fixture
    def host(self, bench: Workbench, tmp_path: Path) -> Iterator[Host]:
        """Yield a host with a lane to the target."""
        opened = Host(tmp_path / "host-a", bench)
        yield opened
        opened.close()

    @pytest.fixture
    def other(self, bench: Workbench, tmp_path: Path) -> Iterator[Host]:
        """Yield another host with a log of its own, and a lane to the same target."""
        opened = Host(tmp_path / "host-b", bench, name="b", owner=78)
        yield opened
        opened.close()

    @pytest.fixture(autouse=True)
    def _no_secret_in_any_message(
        self, bench: Workbench, caplog: pytest.LogCaptureFixture
    ) -> Iterator[None]:
        """Whatever a test made the sink say, the secret of its settings is not in it."""
        bench.said.clear()
        yield
        self.check_no_secret(bench, caplog.text)

    def check_no_secret(self, bench: Workbench, logged: str = "") -> None:
        """Check that no sink told the secret of its settings, by any answer, error or log line."""
        if bench.secret:
            told = [text for text in (*bench.said, logged) if bench.secret in text]
            assert not told, "a secret was told"

    def check_held(self, host: Host, line: Line | None = None) -> None:
        """Check what the target holds of a host: all, once, in order, as it was appended."""
        if "holds" in host.bench.absent:
            return
        held = [each for each in host.bench.held() if is_of(each, host.name)]
        expected = [each for each in host.sent if each.lsn not in host.dead]
        if line is not None and PROMISES[line][host.replay] != HOLDS:
            assert PROMISES[line][host.replay] == AT_LEAST_ONCE
            held = list(dict(zip(numbers(held), held, strict=True)).values())
            held.sort(key=lambda each: int(each.value["n"]))
        if "order" in host.bench.absent:
            held.sort(key=lambda each: int(each.value["n"]))
        assert numbers(held) == numbers(expected)
        for there, sent in zip(held, expected, strict=True):
            _check_record(there, sent)

    @staticmethod
    def trouble_told(host: Host) -> Systemic:
        """Step until the lane was told of trouble; return what it was told."""
        found: list[Systemic] = []

        def told() -> bool:
            outcome = host.lane._steps.memory.outcome  # noqa: SLF001
            found[:] = [outcome] if isinstance(outcome, Systemic) else []
            return bool(found)

        host.run(told)
        return found[0]

    def stated(self, replay: ReplayClass, line: Line, *, only: str) -> None:
        """Skip a line that a class does not promise, with what the table says instead."""
        promise = PROMISES[line][replay]
        if promise != only:
            pytest.skip(f"class {replay.value}: {line.value}: not so: {promise}")


def is_of(held: Held, name: str) -> bool:
    """Tell whether a record is a numbered one of a host; what else was sent is not looked at."""
    value: object = held.value
    return isinstance(value, dict) and value.get("host") == name and "n" in value


def _check_record(there: Held, sent: Held) -> None:
    assert there.value == sent.value
    for name in ("log_id", "lsn", "key"):
        found = getattr(there, name)
        assert found is None or found == getattr(sent, name), name
