"""The outbox: writes to clients wait for the end of the loop's turn, and an answer's end waits with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from proxy import _wire as wire
from proxy import bounds
from proxy._wire import Outbox, Relay
from tests.wire.answers import FRAMES
from tests.wire.rig import Answer, Bench, Transport, bench, make_relay, new_slot
from tests.wire.test_relay import HEAD, piece

END = b"0\r\n\r\n"
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


class Turn:
    """A turn of the loop that ends when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Callable[[], None]] = []
        self.outbox = Outbox(lambda flush, context: self.asked.append(flush))

    def end(self) -> None:
        asked, self.asked = self.asked, []
        for flush in asked:
            flush()


def begin(made: Bench, turn: Turn, client: Transport, **options: Any) -> tuple[Relay, asyncio.Future[None]]:
    done: asyncio.Future[None] = made.loop.create_future()
    relay = make_relay(client.write, client.get_write_buffer_size, done, outbox=turn.outbox, **options)
    made.connection.start(relay, b"x")
    return relay, done


@pytest.fixture
def clients() -> Iterator[list[Transport]]:
    made = [Transport() for _ in range(3)]
    yield made
    for client in made:
        client.close_sockets()


def test_one_turn_for_all(clients: list[Transport]) -> None:
    """Nothing is written before the turn's end, everything then, and the loop is asked once in a turn."""
    turn = Turn()
    with bench() as one, bench() as two, bench() as three:
        for number in range(2):
            for made, client in zip((one, two, three), clients, strict=True):
                begin(made, turn, client)
                made.connection.data_received(HEAD + piece(FRAMES[0]) + END)
            assert len(turn.asked) == 1
            assert [len(client.written) for client in clients] == [number] * 3
            turn.end()
            assert [Answer(client.written[-1]).body for client in clients] == [FRAMES[0]] * 3
            assert [len(client.written) for client in clients] == [number + 1] * 3


def test_who_awaits_the_end_finds_all_written(clients: list[Transport]) -> None:
    """The connection is free at once. The owner, which may close the client's transport, comes after the write."""
    client = clients[0]
    with bench() as made:
        done: asyncio.Future[None] = made.loop.create_future()
        outbox = Outbox(made.loop.call_soon)
        relay = make_relay(client.write, client.get_write_buffer_size, done, outbox=outbox)
        found: list[bytes] = []
        done.add_done_callback(lambda _: found.extend(client.written))
        made.connection.start(relay, b"x")
        made.connection.data_received(JSON)
        assert (relay.ending, made.reported, client.written) == (wire.COMPLETE, [True], [])
        made.loop.run_until_complete(done)
        assert [Answer(raw).body for raw in found] == [b"{}"]


def test_counters_do_not_wait(clients: list[Transport]) -> None:
    """What waits for the turn's end stands in the slot already."""
    turn, slot = Turn(), new_slot()
    client = clients[0]
    with bench() as made:
        begin(made, turn, client, slot=slot)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        assert client.written == []
        assert slot.counters()[:2] == (1, len(FRAMES[0]))


@pytest.mark.parametrize("end", [False, True])
def test_a_second_piece_takes_the_first_along(clients: list[Transport], end: bool) -> None:
    """Two reads in one turn become one write, in order, and the turn's end has nothing left to do."""
    turn = Turn()
    client = clients[0]
    with bench() as made:
        relay, done = begin(made, turn, client)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        made.connection.data_received(piece(FRAMES[1]) + (END if end else b""))
        assert len(client.written) == 1
        assert done.done() == end
        turn.end()
        assert len(client.written) == 1
        assert Answer(client.written[0]).body == FRAMES[0] + FRAMES[1]
        assert Answer(client.written[0]).whole == end
        assert relay.ending == (wire.COMPLETE if end else wire.RUNNING)


def test_a_long_piece_does_not_wait(clients: list[Transport]) -> None:
    """A piece above the bound is written at once."""
    turn = Turn()
    client = clients[0]
    long = b": " + b"w" * bounds.WRITE_TOGETHER_BYTES_MAX + b"\n\n"
    with bench() as made:
        begin(made, turn, client)
        made.connection.data_received(HEAD + piece(long))
        assert Answer(client.written[0]).body == long
        assert turn.asked == []


def test_client_gone_before_the_turns_end(clients: list[Transport]) -> None:
    """A write that fails then ends a running relay, and its upstream's answer; the others of the turn are written."""
    turn = Turn()
    gone, there = clients[:2]
    with bench() as one, bench() as two:
        relay, done = begin(one, turn, gone)
        begin(two, turn, there)
        one.connection.data_received(HEAD + piece(FRAMES[0]))
        two.connection.data_received(HEAD + piece(FRAMES[0]))
        gone.abort()
        turn.end()
        assert (relay.ending, done.done(), one.upstream.aborted) == (wire.CLIENT_GONE, True, True)
        assert relay.bytes == len(FRAMES[0])
        assert Answer(there.written[0]).body == FRAMES[0]


@pytest.mark.parametrize("cut", [False, True])
def test_client_gone_before_the_last_write(clients: list[Transport], cut: bool) -> None:
    """The end becomes the client's leaving: nobody got the last bytes."""
    turn = Turn()
    client = clients[0]
    with bench() as made:
        relay, _ = begin(made, turn, client)
        made.connection.data_received(HEAD + piece(FRAMES[0]) + (b"" if cut else END))
        if cut:
            turn.end()
            relay.cut(b"data: cut\n\n")
            assert relay.cut_clean
        assert relay.ending == (wire.CUT if cut else wire.COMPLETE)
        client.abort()
        turn.end()
        assert (relay.ending, relay.cut_clean) == (wire.CLIENT_GONE, False)
        assert made.reported == [not cut]


def test_cancel_drops_what_waits(clients: list[Transport]) -> None:
    """After `cancel` nothing more is written, and `done` is resolved at once."""
    turn = Turn()
    client = clients[0]
    with bench() as made:
        relay, done = begin(made, turn, client)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        relay.cancel()
        assert done.done()
        turn.end()
        assert client.written == []


def test_a_held_end_follows_what_waits(clients: list[Transport]) -> None:
    """`release_end` in the turn of the piece before it keeps the order."""
    turn = Turn()
    client = clients[0]
    with bench() as made:
        relay, _ = begin(made, turn, client, hold_end=True)
        made.connection.data_received(HEAD + piece(FRAMES[0]))
        made.connection.data_received(END)
        assert relay.ending == wire.COMPLETE
        relay.release_end()
        answer = Answer(b"".join(client.written))
        assert (answer.body, answer.whole) == (FRAMES[0], True)
        turn.end()
        assert Answer(b"".join(client.written)).body == FRAMES[0]


def test_what_waits_is_written_before_the_client_is_called_slow(clients: list[Transport]) -> None:
    """The look at the client's buffer comes after the write, so that it sees all there is, and the owner can wait."""
    turn = Turn()
    client = clients[0]
    piece_bytes = bounds.WRITE_TOGETHER_BYTES_MAX // 2
    with bench() as made:
        paused: list[int] = []
        begin(made, turn, client, on_pause=lambda _: paused.append(sum(map(len, client.written))))
        client.unread = 1 << 20
        made.connection.data_received(HEAD)
        sent = 0
        while not paused:
            made.connection.data_received(piece(b": " + b"w" * piece_bytes + b"\n\n"))
            sent += piece_bytes
            assert sent <= 2 * bounds.CLIENT_BUFFER_BYTES_MAX
            if sent <= bounds.CLIENT_BUFFER_BYTES_MAX // 2:
                turn.end()
        assert paused[0] > sent
