"""What is told of a stream ends at the frontier, whatever the files hold behind it."""

from base64 import b64decode
from typing import Any

import pytest

from tests.backlog import CLOCK, FS, Backlog
from wald.drainer.tail_desk import TailDesk
from wald.drainer.where import Sources
from wald.errors import InputError
from wald.model import Frontier


class Followed:
    """A desk over a log, whose frontier is where the test says."""

    def __init__(self, backlog: Backlog) -> None:
        self.frontier: Frontier | None = backlog.log.frontier
        no_ledger: Any = None  # none is asked
        sources = Sources(
            FS,
            backlog.data_dir,
            backlog.log.log_id,
            CLOCK,
            no_ledger,
            tuple,
            lambda: {1: "one", 2: "two"},
            lambda _: self.frontier,
        )
        self.desk = TailDesk(sources)

    def tail(self, **request: object) -> dict[str, Any]:
        said = self.desk.tail({"stream": "one", **request})
        values = [b64decode(each["value_base64"]) for each in said["records"]]
        return {"values": values, "through": said["through"], "frontier": said["frontier_lsn"]}


def test_what_is_in_the_file_and_not_known_to_be_durable_is_not_told(two: Backlog):
    two.append(b"durable")
    followed = Followed(two)
    frontier = two.log.frontier
    two.append(b"in the file, above the frontier")
    told = {"values": [b"durable"], "through": frontier.lsn, "frontier": frontier.lsn}
    assert followed.tail() == told
    assert followed.tail(**{"from": "oldest"}) == told
    assert followed.tail(after=frontier.lsn)["values"] == []
    assert followed.tail(after=frontier.lsn + 1)["through"] == frontier.lsn + 1
    followed.frontier = two.log.frontier
    assert followed.tail(after=frontier.lsn)["values"] == [b"in the file, above the frontier"]
    followed.frontier = None
    assert followed.tail()["values"] == []


def test_pages_go_on_where_the_last_one_ended_also_over_what_is_not_asked_for(two: Backlog):
    for number in range(30):
        two.append(b"%d" % number, keys=["odd" if number % 2 else "even"])
        two.append(b"of another stream", stream=2)
    followed = Followed(two)
    values: list[object] = []
    after = 0
    while after < two.log.frontier.lsn:
        said = followed.tail(after=after, limit=7, key="odd")
        assert len(said["values"]) <= 7
        values += said["values"]
        after = said["through"]
    assert values == [b"%d" % number for number in range(1, 30, 2)]


@pytest.mark.parametrize(
    "request_of",
    [{"stream": 7}, {"from": "yesterday"}, {"from": 1}, {"after": -1}, {"key": 7}, {"limit": "x"}],
    ids=str,
)
def test_a_question_that_is_none_is_refused(two: Backlog, request_of):
    two.append(b"x")
    with pytest.raises(InputError):
        Followed(two).tail(**request_of)
