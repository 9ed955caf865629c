"""Tasks that wait for room in the window of an asynchronous producer: who is woken, and when."""

import asyncio
from collections.abc import Iterator

import pytest

import wald
from tests.doorkeeper import DEADLINE_S, short_directory
from tests.integration.test_aio_trouble import Peer, daemon, going_on, played
from wald import limits
from wald.client.requests import Outgoing
from wald.core import body as bodies
from wald.core.body import Body
from wald.core.events import Append, ErrorFlag, Failed, FrameType, OpenStream, StreamOpened

REQUEST = Outgoing(bodies.encode(Body(0, [b"1"], None, None, None)), [0])


@pytest.fixture
def path() -> Iterator[str]:
    with short_directory() as directory:
        yield str(directory / "i")


def test_a_task_finds_room_though_none_of_those_that_were_woken_first_sends_anything(path: str):
    waiting = asyncio.Event()

    async def refusing_the_window(peer: Peer) -> None:
        """Refuse all that is in flight with one frame, once others wait for its room."""
        await peer.greet()
        asked = await peer.next()
        assert isinstance(asked, OpenStream)
        peer.say(StreamOpened(asked.request, 7))
        for _ in range(limits.WINDOW_REQUESTS):
            assert isinstance(await peer.next(), Append)
        await waiting.wait()
        peer.say(Failed("disk-full", "", "", 0, ErrorFlag.NOT_STORED, FrameType.APPEND, request=1))
        await going_on(peer)

    async def main() -> None:
        async with daemon(path, refusing_the_window), wald.connect_async(path) as producer:
            session = producer._session
            session.enter()
            deadline = session.deadline(producer._clock, DEADLINE_S)
            first = await session.send("s", REQUEST, deadline)
            for _ in range(limits.WINDOW_REQUESTS - 1):
                await session.send("s", REQUEST, deadline)
            behind = [
                asyncio.ensure_future(session.send("s", REQUEST, deadline, behind=first))
                for _ in range(limits.WINDOW_REQUESTS)
            ]
            last = asyncio.ensure_future(session.send("s", REQUEST, deadline))
            await asyncio.sleep(0)
            assert len(session._for_room) == limits.WINDOW_REQUESTS + 1
            waiting.set()
            refused = await asyncio.gather(*behind, return_exceptions=True)
            assert {type(each) for each in refused} == {wald.DiskFull}
            for _ in range(3):  # turns of the loop; nothing more arrives that would wake it
                await asyncio.sleep(0)
            assert last.done()
            (await last).left = True

    played(main())
