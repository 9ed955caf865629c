"""Typed handles: one stream, values of one type. Same words for both colours of producers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypedDict, TypeVar, Unpack

from wald.client.delivery import Ack
from wald.client.requests import Key
from wald.core.body import Headers, Text
from wald.errors import RecordRefused
from wald.model import Receipt

if TYPE_CHECKING:
    from wald.client.aio_pending import AsyncPending
    from wald.client.pending import Pending
    from wald.client.results import Results

_T = TypeVar("_T")


class SubmitOptions(TypedDict, total=False):
    """What may stand beside one value."""

    key: Text | None
    headers: Headers | None
    dedup_id: Text | None
    urgent: bool
    timeout: float | None


class AppendOptions(SubmitOptions, total=False):
    """The same, for one that is waited for."""

    ack: Ack


class ManyOptions(TypedDict, total=False):
    """What may stand beside many values."""

    key: Key
    keys: Sequence[Text | None] | None
    headers: Headers | None
    dedup_ids: Sequence[Text | None] | None
    urgent: bool
    ack: Ack
    timeout: float | None


class Appends(Protocol):
    """What a handle needs of a producer."""

    def append(self, stream: str, value: object, **options: Unpack[AppendOptions]) -> Receipt:
        """See ``Producer.append``."""

    def submit(self, stream: str, value: object, **options: Unpack[SubmitOptions]) -> "Pending":
        """See ``Producer.submit``."""

    def append_many(
        self, stream: str, values: Sequence[object], **options: Unpack[ManyOptions]
    ) -> "Results":
        """See ``Producer.append_many``."""


class AppendsInTasks(Protocol):
    """What a handle in an event loop needs of a producer."""

    async def append(self, stream: str, value: object, **options: Unpack[AppendOptions]) -> Receipt:
        """See ``Producer.append``."""

    async def submit(
        self, stream: str, value: object, **options: Unpack[SubmitOptions]
    ) -> "AsyncPending":
        """See ``Producer.submit``."""

    async def append_many(
        self, stream: str, values: Sequence[object], **options: Unpack[ManyOptions]
    ) -> "Results":
        """See ``Producer.append_many``."""


class Handle(Generic[_T]):
    """A stream's name, and the type of its values."""

    def __init__(self, name: str, kind: type[_T]) -> None:
        self.name = name
        self.type = kind

    def check(self, index: int, value: object) -> None:
        """Refuse a value of another type.

        Raises:
            RecordRefused: nothing was sent.
        """
        if not isinstance(value, self.type):
            said = f"{type(value).__name__}, not {self.type.__name__}"
            msg = f"stream {self.name!r}: a value of type {said}"
            raise RecordRefused(msg, reason="record.value", index=index)

    def check_all(self, values: Sequence[object]) -> None:
        """Refuse values of another type."""
        for index, value in enumerate(values):
            self.check(index, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} of {self.type.__name__}>"


class Stream(Handle[_T]):
    """Appends values of one type to one stream; options and errors are the producer's."""

    def __init__(self, producer: Appends, name: str, kind: type[_T]) -> None:
        super().__init__(name, kind)
        self._producer = producer

    def append(self, value: _T, **options: Unpack[AppendOptions]) -> Receipt:
        """Append one value; see ``Producer.append``."""
        self.check(0, value)
        return self._producer.append(self.name, value, **options)

    def submit(self, value: _T, **options: Unpack[SubmitOptions]) -> "Pending":
        """Submit one value; see ``Producer.submit``."""
        self.check(0, value)
        return self._producer.submit(self.name, value, **options)

    def append_many(self, values: Sequence[_T], **options: Unpack[ManyOptions]) -> "Results":
        """Append many values; see ``Producer.append_many``."""
        self.check_all(values)
        return self._producer.append_many(self.name, values, **options)


class AsyncStream(Handle[_T]):
    """Appends values of one type to one stream, in an event loop; see ``Stream``."""

    def __init__(self, producer: AppendsInTasks, name: str, kind: type[_T]) -> None:
        super().__init__(name, kind)
        self._producer = producer

    async def append(self, value: _T, **options: Unpack[AppendOptions]) -> Receipt:
        """Append one value; see ``Producer.append``."""
        self.check(0, value)
        return await self._producer.append(self.name, value, **options)

    async def submit(self, value: _T, **options: Unpack[SubmitOptions]) -> "AsyncPending":
        """Submit one value; see ``Producer.submit``."""
        self.check(0, value)
        return await self._producer.submit(self.name, value, **options)

    async def append_many(self, values: Sequence[_T], **options: Unpack[ManyOptions]) -> "Results":
        """Append many values; see ``Producer.append_many``."""
        self.check_all(values)
        return await self._producer.append_many(self.name, values, **options)
