"""What carries submitted records, and what became of each of them."""

import sys

from wald.client.results import LEVEL, RECEIVED
from wald.core.events import Duplicate
from wald.core.gathering import Gathered, outcome_of
from wald.core.outbox import Request
from wald.errors import RecordRefused, WaldError
from wald.model import Receipt, Refused


class Carrier(Gathered):
    """Records on their way whose answer somebody should hear."""

    __slots__ = ("asked",)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.asked = False

    @classmethod
    def of(cls, stream: str, request: Request) -> "Carrier":
        """Return one for a request that was sent by other means."""
        carrier = cls(stream)
        carrier.asked = True
        carrier.sent_as(request)
        return carrier

    def __del__(self) -> None:
        request = self.request
        if self.asked or request is None or sys.is_finalizing():
            return
        failed = request.records if request.error is not None else request.refused
        if request.done and failed:
            import logging  # noqa: PLC0415 - only where something went wrong

            why: object = request.error or f"refused: {request.refusals[0].code}"
            said = "%s submitted records of stream %r are not stored, and nobody asked: %s"
            logging.getLogger("wald").error(said, failed, self.stream, why)


def receipt_of(stream: str, request: Request) -> Receipt:
    """Return the receipt of the one record of a request that the daemon has, and did not refuse."""
    if not request.done:
        return Receipt(stream, 0, RECEIVED, 0)
    if request.duplicates:
        lsn = request.duplicates[0].lsn
        return Receipt(stream, lsn, LEVEL, request.durable_lsn, duplicate=True)
    return Receipt(stream, request.first_lsn, LEVEL, request.durable_lsn)


def answered(request: Request, stream: str, at: int) -> Receipt | WaldError:
    """Return the receipt of one record of a request, or the error that stands for it."""
    if request.error is not None:
        return request.error
    found = outcome_of(request, at)
    if isinstance(found, Refused):
        return RecordRefused(found.message or found.code, reason=found.code, index=0)
    if isinstance(found, Duplicate):
        return Receipt(stream, found.lsn, LEVEL, request.durable_lsn, duplicate=True)
    return Receipt(stream, found, LEVEL, request.durable_lsn)
