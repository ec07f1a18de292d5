"""A connection's life over real sockets, on both kinds of loop: requests, bodies, refusals, and what is sent ahead."""

from __future__ import annotations

import asyncio
import random

import pytest

from proxy import bounds
from proxy._front import Client as Quick
from tests.front.listening import Tell, Watched, rest_of, until
from tests.front.talk import Talk
from tests.journey.calling import Client, chat, request
from tests.journey.inside import Inside

SEED = 20_261


def test_many_requests_on_one_connection(tell: Tell) -> None:
    """Calls of all kinds one after the other, refusals among them: one connection, which stays the quick front's."""

    async def story(front: Watched, weir: Inside) -> None:
        talk = Talk(weir, weir.port)
        async with Client(weir) as client:
            for number in range(60):
                answer = await client.call(chat({"tokens": number % 5, "prompt_tokens": number}))
                assert (answer.status, answer.whole) == (200, True)
                answer = await client.call(chat({"tokens": 3}, stream=True))
                assert answer.payload.endswith(b"data: [DONE]\n\n")
                assert (await client.call(None, "/v1/models")).status == 200
                assert (await client.call(b"nonsense")).code == "bad_json"
                assert (await client.call(None, "/nowhere")).code == "unknown_endpoint"
            (door,) = front.doors
            assert isinstance(door, Quick)
            assert len(front.transports) == 1
        assert front.served == 300
        rows = await talk.rows()
        assert [row.prompt_tokens for row in rows if not row.stream] == list(range(60))
        assert len(rows) == len(weir.upstream.requests) == 120
        await until("the connection to be forgotten", lambda: not front.doors)

    tell(story)


def test_bodies_in_many_pieces(tell: Tell) -> None:
    """A body of a megabyte in pieces of any size reaches the upstream as it was."""
    chance = random.Random(SEED)

    async def story(front: Watched, weir: Inside) -> None:
        async with Client(weir) as client:
            for most in (100, 5_000, 200_000):
                body = chat({"tokens": 1}, ignored="x" * (most * 200 if most < 5000 else 1_000_000))
                data = request(body, weir.key)
                at = 0
                while at < len(data):
                    size = chance.randrange(1, most)
                    client.writer.write(data[at : at + size])
                    await asyncio.sleep(0)
                    at += size
                assert (await client.answer()).status == 200
                assert weir.upstream.requests[-1].body == body
        assert len(front.transports) == 1

    tell(story)


def test_a_body_up_to_the_bound_and_one_byte_more(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    """BODY_BYTES_MAX is exact, told from the head alone, and the refusal arrives although the body is on its way."""
    monkeypatch.setattr(bounds, "BODY_BYTES_MAX", 400_000)
    fill = 400_000 - len(chat({"tokens": 1}, ignored=""))

    async def story(front: Watched, weir: Inside) -> None:
        async with Client(weir) as client:
            assert (await client.call(chat({"tokens": 1}, ignored="x" * fill))).status == 200
            above = chat({"tokens": 1}, ignored="x" * (fill + 1))
            assert len(above) == 400_001
            await client.send(above)
            answer = await client.answer()
            assert (answer.status, answer.code) == (413, "body_too_large")
            if answer.headers.get("connection") == "close":
                assert await rest_of(client.reader) == b""
            else:  # all of the body was there already
                assert (await client.call(None, "/v1/models")).status == 200
        assert len(weir.upstream.requests) == 1

    tell(story)


def test_a_refusal_reaches_a_client_that_is_still_sending(tell: Tell) -> None:
    """Whoever has begun to send megabytes gets the whole refusal, whether it reads early or only when all is sent."""

    async def story(front: Watched, weir: Inside) -> None:
        body = b"x" * 6_000_000
        for early in (True, False):
            async with Client(weir, "wk_live_wrong") as client:
                client.writer.write(request(body, client.key))
                if not early:
                    await client.writer.drain()
                answer = await client.answer()
                assert (answer.status, answer.headers["connection"], answer.whole) == (401, "close", True)
                assert await rest_of(client.reader) == b""
        await until("the connections to be forgotten", lambda: not front.doors)

    tell(story)


def test_lingering_is_bounded(tell: Tell) -> None:
    """A client that goes on sending for ever after a refusal is left when its time is over."""

    async def story(front: Watched, weir: Inside) -> None:
        async with Client(weir, "wk_live_wrong") as client:
            client.writer.write(request(b"", client.key, content_length=str(bounds.BODY_BYTES_MAX)))
            assert (await client.answer()).status == 401
            front.later(bounds.LINGER_SECONDS_MAX)
            client.writer.write(b"x" * 100_000)
            await client.writer.drain()
            assert front.doors
            front.later(1)
            assert await rest_of(client.reader) == b""
        await until("the connection to be forgotten", lambda: not front.doors)

    tell(story)


def test_requests_sent_ahead_of_a_stream_s_end(tell: Tell) -> None:
    """They are answered in their order when the stream has ended, and each is metered once."""

    async def story(front: Watched, weir: Inside) -> None:
        talk = Talk(weir, weir.port)
        async with Client(weir) as client:
            await client.send(chat({"tokens": 20, "delay_ms": 5, "prompt_tokens": 0}, stream=True))
            _, headers = await client.head()
            for number in range(1, 30):
                await client.send(chat({"tokens": 1, "prompt_tokens": number}), x_request_id=f"ahead-{number}")
            payload, whole = await client.rest(headers)
            assert whole
            assert payload.endswith(b"data: [DONE]\n\n")
            for number in range(1, 30):
                answer = await client.answer()
                assert (answer.status, answer.headers["x-request-id"]) == (200, f"ahead-{number}")
        assert [row.prompt_tokens for row in await talk.rows()] == list(range(30))

    tell(story)


def test_more_sent_ahead_than_is_kept(tell: Tell) -> None:
    """A client that sends megabytes ahead is not read meanwhile; afterwards nothing of it is lost."""

    async def story(front: Watched, weir: Inside) -> None:
        talk = Talk(weir, weir.port)
        async with Client(weir) as client:
            await client.send(chat({"stall_at": 3, "tokens": 9, "prompt_tokens": 0}, stream=True))
            _, headers = await client.head()
            (transport,) = front.transports
            assert transport.is_reading()
            for number in range(1, 41):
                body = chat({"tokens": 1, "prompt_tokens": number}, ignored="x" * 50_000)
                client.writer.write(request(body, weir.key))
            await until("reading to stop", lambda: not transport.is_reading())
            # The upstream breaks the stream off, and so must we: what was sent behind it is nobody's.
            for connection in list(weir.upstream.connections):
                connection.transport.abort()
            _, whole = await client.rest(headers)
            assert not whole
        async with Client(weir) as client:
            await client.send(chat({"tokens": 200, "delay_ms": 1, "prompt_tokens": 0}, stream=True))
            _, headers = await client.head()
            for number in range(1, 41):
                body = chat({"tokens": 1, "prompt_tokens": number}, ignored="x" * 50_000)
                client.writer.write(request(body, weir.key))
            assert (await client.rest(headers))[1]
            for _ in range(1, 41):
                assert (await client.answer()).status == 200
        rows = await talk.rows()
        assert [row.termination for row in rows] == ["upstream_error"] + ["complete"] * 41
        assert [row.prompt_tokens for row in rows[1:]] == list(range(41))

    tell(story)
