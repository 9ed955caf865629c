"""The contract that every sink must pass, as a class of tests: subclass it, and give a workbench.

    class TestMySink(SinkContract):
        @pytest.fixture
        def bench(self, tmp_path):
            yield MyWorkbench(tmp_path)

Needs pytest. ``docs/how-to/write-a-sink.md`` walks through a sink that passes it.
"""

import pytest

# before they are imported: a failed assert shows what it compared
pytest.register_assert_rewrite(
    *(
        f"{__name__}.{part}"
        for part in ("lines", "once", "deaths", "trouble", "bounds", "bad_input", "host")
    )
)

# ruff: noqa: E402
from wald.testing.sink_contract.bad_input import InputLines
from wald.testing.sink_contract.bounds import BoundLines
from wald.testing.sink_contract.deaths import DeathLines
from wald.testing.sink_contract.host import Host
from wald.testing.sink_contract.odd import DOCUMENT_INPUT, LANDS, NO_MAP, ODD, Odd
from wald.testing.sink_contract.once import OnceLines
from wald.testing.sink_contract.promises import PROMISES, Line
from wald.testing.sink_contract.trouble import TroubleLines
from wald.testing.sink_contract.workbench import FACILITIES, TROUBLES, Held, Trouble, Workbench

__all__ = [
    "DOCUMENT_INPUT",
    "FACILITIES",
    "LANDS",
    "NO_MAP",
    "ODD",
    "PROMISES",
    "TROUBLES",
    "Held",
    "Host",
    "Line",
    "Odd",
    "SinkContract",
    "Trouble",
    "Workbench",
]


class SinkContract(OnceLines, DeathLines, TroubleLines, BoundLines, InputLines):
    """Every line of the contract; what depends on the class stands in ``PROMISES``."""
