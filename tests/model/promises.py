"""What a log has promised, as a list of requests: the model that the machine checks it against."""

from collections import Counter
from dataclasses import dataclass, field

from wald.model import Lsn


class Violation(AssertionError):
    """A promise that did not hold."""


@dataclass(slots=True)
class Request:
    """A request as its sender knows it."""

    session: int
    sequence: int
    stream: str
    body: bytes
    records: int
    lsn: Lsn = 0  # of its first record; 0 while nobody knows it
    durable: bool = False  # acknowledged, or seen in the log after a start


@dataclass(slots=True)
class Attempt:
    """The group on its way: after a start all of it is there, or nothing."""

    requests: list[Request] = field(default_factory=list)
    sessions: dict[int, str] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    streams: dict[str, int] = field(default_factory=dict)
    route: bool = False


@dataclass(slots=True)
class Model:
    """What was promised."""

    requests: dict[int, list[Request]] = field(default_factory=dict)  # durable ones, by session
    streams: dict[str, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)  # sessions that were left or evicted
    answered: Counter[int] = field(default_factory=Counter)  # answered_through, by session
    owner: dict[Lsn, tuple[int, int]] = field(default_factory=dict)  # LSN to session and sequence
    highest_lsn: Lsn = 0
    drained_lsn: Lsn = 0  # what stands below may be gone
    route: bool = False

    def all_requests(self) -> list[Request]:
        return [request for requests in self.requests.values() for request in requests]
