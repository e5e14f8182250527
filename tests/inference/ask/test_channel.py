"""A connection to a peer: what is on its way outlives a new one, and ends in words."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from nmoe_flower.errors import WireError
from nmoe_flower.inference.ask import PeerChannel
from nmoe_flower.inference.ask.channel import Conversation
from nmoe_flower.inference.protocol import PeerEntry, peer_handlers, peer_pb2

SHUT = grpc.ChannelConnectivity.SHUTDOWN


@asynccontextmanager
async def connected() -> AsyncIterator[PeerChannel]:
    """To a peer that writes a token for each message, and leaves all else unanswered."""

    async def silent(data: bytes, context: Any) -> Any:
        await asyncio.Event().wait()

    async def generate(requests: Any, context: Any) -> None:
        while (data := await context.read()) is not grpc.aio.EOF:
            said = peer_pb2.GenerateRequest.FromString(data)
            if said.count:
                await context.write(peer_pb2.GenerateReply(position=said.position))

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handlers = peer_handlers(
        describe=silent, predict=silent, peers=silent, score=silent, generate=generate
    )
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = PeerChannel(PeerEntry("fox", 1, f"127.0.0.1:{port}"), None)
    try:
        yield channel
    finally:
        await channel.close()
        await server.stop(None)


async def told(conversation: Conversation, position: int) -> int:
    await conversation.say(peer_pb2.GenerateRequest(position=position, count=1))
    reply, _ = await conversation.hear(timeout=20)
    return reply.position


def test_a_text_outlives_a_new_connection() -> None:
    """The old one is closed with the last text that needs it."""

    async def scenario() -> None:
        async with connected() as channel:
            first, second = channel.converse(), channel.converse()
            assert await told(first, 1) == 1
            old = channel._channel
            await channel.renew()
            third = channel.converse()
            assert channel._channel is not old
            for conversation in (first, second, third):
                assert await told(conversation, 2) == 2
            await first.close()
            await first.close()
            assert await told(second, 3) == 3
            await second.close()
            assert old.get_state() is SHUT
            await third.close()
            assert channel._channel.get_state() is not SHUT
            assert not channel._calls

    asyncio.run(scenario())


def test_what_is_on_its_way_when_a_channel_is_closed_ends_in_words() -> None:
    async def scenario() -> None:
        async with connected() as channel:
            conversation = channel.converse()
            assert await told(conversation, 1) == 1
            waiting = [
                asyncio.create_task(conversation.hear(timeout=20)),
                asyncio.create_task(channel.score(peer_pb2.ScoreRequest(), timeout=20)),
            ]
            await asyncio.sleep(0)
            await channel.close()
            for task in waiting:
                with pytest.raises(WireError, match="closed here") as failed:
                    await task
                assert failed.value.reason == "closed"
            with pytest.raises(WireError):
                await told(conversation, 2)
            with pytest.raises(WireError, match="the channel to fox is closed"):
                channel.converse()
            await conversation.close()

    asyncio.run(scenario())


def test_a_task_that_is_cancelled_while_it_waits_for_a_token_stays_cancelled() -> None:
    async def scenario() -> None:
        async with connected() as channel:
            conversation = channel.converse()
            assert await told(conversation, 1) == 1
            waiting = asyncio.create_task(conversation.hear(timeout=20))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(scenario())
