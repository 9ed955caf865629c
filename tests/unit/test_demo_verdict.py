"""What the demo says of a run."""

import pytest

from wald.cli import demo
from wald.cli.rehearsal import Kill, Result

ALL = ("drain", "ingest", "supervisor")


@pytest.mark.parametrize(
    ("roles", "missing", "text"),
    [
        (ALL, 0, "Every record is there once, as it was sent, in order."),
        (ALL, 1, "The books do not balance."),
        (("ingest", "supervisor"), 1, "The books do not balance."),
        (
            ("ingest", "supervisor"),
            0,
            "Every record is there once, but drain could not be killed in time: run it again.",
        ),
    ],
)
def test_a_kill_that_did_not_come_about_is_not_called_a_loss(roles, missing, text):
    route = {"accepted": 10, "delivered": 10, "pending": 0, "dead_letters": 0}
    kills = [Kill(role, 1, "") for role in roles]
    assert demo._verdict(Result(10, kills, route=route, found=10, missing=missing))[0] == text
