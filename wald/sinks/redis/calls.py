"""What a command comes to, without the driver: that is loaded where it delivers."""

from typing import Final

from wald.model import Outcome

ANSWER_TIMEOUT_S: Final = 10.0  # of what is not an attempt


class CallFailed(Exception):
    """A command came to something else than an answer.

    Attributes:
        outcome: what is said of it.
        is_missing: the server lacks the command, or what it works on.
    """

    def __init__(self, outcome: Outcome, *, is_missing: bool = False) -> None:
        super().__init__()
        self.outcome = outcome
        self.is_missing = is_missing
