"""A target of each class passes the contract: what the class table says of a class is so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.toy_bench import ToyBench
from wald.model import ReplayClass
from wald.testing.sink_contract import Workbench
from wald.testing.sink_contract.bad_input import InputLines
from wald.testing.sink_contract.bounds import BoundLines
from wald.testing.sink_contract.deaths import DeathLines
from wald.testing.sink_contract.once import OnceLines
from wald.testing.sink_contract.trouble import TroubleLines


class Toy:
    @pytest.fixture
    def bench(self, tmp_path: Path, replay: ReplayClass) -> Iterator[Workbench]:
        bench = ToyBench(tmp_path, replay)
        yield bench
        bench.close()


@pytest.mark.parametrize("replay", list(ReplayClass), ids=lambda each: each.value)
class TestEachClass(Toy, OnceLines, DeathLines, TroubleLines, BoundLines): ...


@pytest.mark.parametrize("replay", [ReplayClass.TRANSACTIONAL], ids=lambda each: each.value)
class TestInput(Toy, InputLines): ...
