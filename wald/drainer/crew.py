"""What the lanes of a route share: whether it is held back, and how many may be at work at a time.

A lane that would ask or send takes a place first and gives it back behind the attempt; those that
wait for one get it in the order in which they asked.
"""

import threading
from collections import deque
from collections.abc import Callable, Mapping

from wald import limits
from wald.model import Lsn


class Crew:
    """Places for lanes at work. Any thread.

    Args:
        wake: lets lanes that wait ask again.
        places: how many may be at work.

    Attributes:
        pardoned_through: up to this LSN a person lets refused records be set aside, however many.
            In memory, as the guard that it answers: after a restart both begin anew.
    """

    def __init__(
        self, wake: Callable[[], None] = lambda: None, places: int = limits.LANES_MAX
    ) -> None:
        self._wake = wake
        self._places = places
        self._lock = threading.Lock()
        self._at_work: set[object] = set()
        self._waiting: deque[object] = deque()
        self._paused_ns: int | None = None
        self._first: Mapping[str, int] = {}  # by sink: the layouts behind it wait
        self._gone_back = False
        self.pardoned_through: Lsn = 0

    @property
    def paused_ns(self) -> int | None:
        """Since when the route is held back, by the wall clock; None if it is not."""
        return self._paused_ns

    def hold(self, since_ns: int | None) -> None:
        """Hold the route back, or with None let it go on: an attempt under way ends as it does."""
        before, self._paused_ns = self._paused_ns, since_ns
        if before != since_ns:
            self._wake()

    # --- former layouts first -------------------------------------------------------------------

    def must_wait(self, layout: int, sink: str) -> bool:
        """Tell whether lanes of a layout wait for those of a former one to the same sink.

        So the order of each key is kept at a target; what goes to another one waits for nobody.
        """
        return layout > self._first.get(sink, layout)

    def go_back(self, layout: int, sink: str) -> None:
        """Take in that a lane's target went back: who knows whether to before the layout.

        The lanes of all layouts to it but the first wait, until ``let`` says which.
        """
        with self._lock:
            if layout > 0:
                self._gone_back, self._first = True, {**self._first, sink: 0}

    def take_gone_back(self) -> bool:
        """Tell whether a target went back since this was asked last."""
        with self._lock:
            gone_back, self._gone_back = self._gone_back, False
        return gone_back

    def let(self, first: Mapping[str, int]) -> None:
        """Let the layouts to each sink go on up to one, or all, unless a target went back."""
        with self._lock:
            if self._gone_back:
                return
            before, self._first = self._first, first
        if before != first:
            self._wake()

    # --- places ---------------------------------------------------------------------------------

    @property
    def places(self) -> int:
        """How many may be at work."""
        return self._places

    def resize(self, places: int) -> None:
        """Say how many may be at work; who is at work beyond that ends the attempt."""
        with self._lock:
            grown, self._places = places > self._places, places
            waiting = bool(self._waiting)
        if grown and waiting:
            self._wake()

    def enter(self, who: object) -> bool:
        """Take a place, or keep the one taken; False: it is ``who``'s turn later."""
        with self._lock:
            if who in self._at_work:
                return True
            if who not in self._waiting:
                self._waiting.append(who)
            if self._waiting.index(who) >= self._places - len(self._at_work):
                return False
            self._waiting.remove(who)
            self._at_work.add(who)
            return True

    def leave(self, who: object) -> None:
        """Give a place back, or stop waiting for one; harmless to repeat."""
        with self._lock:
            held = who in self._at_work or who in self._waiting
            self._at_work.discard(who)
            if who in self._waiting:
                self._waiting.remove(who)
            wake = held and bool(self._waiting)
        if wake:
            self._wake()
