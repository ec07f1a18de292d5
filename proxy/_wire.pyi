"""Bytes on the wire in C: the upstream's connection over llhttp, and the relay of its answer to a client."""

import asyncio
import builtins
from collections.abc import Callable
from typing import Any

from proxy import bounds
from proxy._journal import Slot
from proxy._scan import AnswerCounter

# Why a relay ended, `Relay.ending`:
RUNNING: int  # 0: not yet
COMPLETE: int  # the answer's last byte was handed to the client's transport, or is held for `release_end`
ANSWERED: int  # upstream's status is not 2xx: nothing was relayed; `status` and `error_body` say what
LOST: int  # upstream closed or reset before the answer was whole
PROTOCOL: int  # upstream's framing was wrong; `detail` says how
CODED: int  # upstream's answer has a Content-Encoding although identity was asked: nothing was relayed
FIRST_BYTE_TIMEOUT: int
IDLE_TIMEOUT: int
TOTAL_TIMEOUT: int
CLIENT_GONE: int  # the client's transport is closed
CLIENT_STALLED: int  # the client has read nothing for CLIENT_STALL_SECONDS_MAX
CANCELLED: int  # `cancel` was called, or the connection was aborted
CUT: int  # `cut` was called

class Outbox:
    """What relays write to their clients in one turn of the loop, made in one go at its end.

    A write to a client on the same host wakes its process, which costs more than the write itself. Made one after
    another, with no reads in between, most of a busy turn's writes meet a client that is awake already.

    call_soon: that of the loop of the relays' `done`: what it was given first it calls first.
    """

    def __init__(self, call_soon: Callable[..., Any]) -> None: ...
    def flush(self) -> None:
        """Writes what waits, now."""

class Relay:
    """One answer on its way from an upstream's connection to a client's transport.

    write: the client transport's `write`; buffered: its `get_write_buffer_size`; on_pause(relay): called once when more
    than CLIENT_BUFFER_BYTES_MAX stands unread (the upstream is paused by then); the owner calls `resume()` when it has
    drained. head: the client's response head lines from Weir, each "name: value" with CRLF, which follow the status
    line and the allowed upstream headers. done: a future that is resolved (with None) when the relay has ended in
    whatever way. outbox: where short pieces wait for the end of the turn; the callbacks of `done` run after it, so who
    awaits `done` finds all of the answer written, and an ending that knows of it. arrived_ns: CLOCK_BOOTTIME.

    The client's head leaves with the first byte of the body, so that everything before it can still become a refusal.
    The tokens of the text are counted before each write, and stand in the slot when it is made: exactly, but for text
    that waits (see `AnswerCounter`) or that nobody could read, where the slot says it is an estimate. The text of a
    JSON answer is counted when it is whole and has no usage.

    Deadlines need a `Sweeper` and count from `Connection.start`; first_byte_ms is for the first byte of the body. An
    answer other than 2xx whose body does not come whole is ANSWERED all the same, with as much of the body as came.
    """

    def __init__(
        self,
        write: Callable[[builtins.bytes], Any],
        buffered: Callable[[], int],
        on_pause: Callable[[Relay], None],
        done: asyncio.Future[None],
        outbox: Outbox,
        slot: Slot | None,
        arrived_ns: int,
        head: builtins.bytes,
        *,
        http10: bool,  # no chunking: where no length is known the body ends with the connection, which the owner closes
        close: bool,  # announce Connection: close
        hide_usage: bool,  # hide the usage frame, for a client that did not ask
        hold_end: bool,  # durability strict: keep the last bytes until `release_end()`
        first_byte_ms: int,
        idle_ms: int,
        total_ms: int,
        counter: AnswerCounter | None = None,  # of the model's encoding, new for this answer; None: it is not known
        bytes_per_token_milli: int = 4000,  # thousandths, for text whose tokens are not counted
    ) -> None: ...
    ending: int
    status: int  # upstream's, 0 before its head
    started: bool  # a byte has gone to the client
    reusable: bool  # the connection was given back
    is_stream: bool  # the answer is text/event-stream
    cut_clean: bool  # `cut` gave the client its ending: it has a whole answer that says that it is none
    frames: int  # to the client; 1 for a whole non-stream answer
    bytes: int  # payload bytes to the client
    text_bytes: int
    text_tokens: int  # of the text so far, as the slot says it: what the counter has counted, the rest by its bytes
    text_estimated: bool  # not all of it is counted, or some text could not be read
    backlog: int  # bytes of text that `finish_count` would count
    usage: tuple[int, int, int, int, int] | None  # prompt, cached, completion, reasoning, audio
    model: str
    first_us: int  # from arrival to the first byte of the body, 0 before it
    error_body: builtins.bytes  # of an ANSWERED relay, at most ERROR_BODY_BYTES_MAX; b"" when it was coded
    error_type: builtins.bytes  # its content-type
    retry_after: builtins.bytes  # upstream's retry-after header, as it stood
    retry_after_ms: builtins.bytes
    should_retry: builtins.bytes
    upstream_request_id: builtins.bytes
    upstream_error: bool  # the stream carried an `error` frame
    detail: str
    def finish_count(self) -> None:
        """Counts the text that waits, once the relay has ended (else ValueError). Gives up the GIL: for a thread."""
    def resume(self) -> None:
        """The client has read: the upstream is read again. No-op when it is not paused."""
    def release_end(self) -> None:
        """Writes what `hold_end` kept of a COMPLETE answer: the last piece, of a stream all from `data: [DONE]` on."""
    def cancel(self) -> None:
        """Ends it now: the upstream's connection is aborted. Nothing more is written. No-op once ended."""
    def cut(self, ending: builtins.bytes) -> None:
        """Ends a stream in the middle, well formed: writes `ending` (whole frames) and the terminating chunk.

        In the middle of a frame its rest is passed on first, so the relay may end a read later, and by itself if its
        end comes sooner. Where nothing was written yet, or a length was promised, nothing is written. `ending` is in
        no counter: it is not the upstream's.
        """

class Connection(asyncio.Protocol):
    """One connection to an upstream: one answer at a time, over httptools' llhttp parser.

    Has all that asyncio asks of a Protocol, but does not inherit from it. Nothing that comes from the network raises.
    """

    def __init__(self, on_idle: Callable[[Connection, bool], None]) -> None:
        """on_idle(connection, reusable) is called when an answer has ended or the idle connection was closed.

        With reusable False it is the last time, and happens exactly once. It must not raise.
        """
    def start(self, relay: Relay, request: bytes) -> None:
        """Writes the whole request and binds the relay.

        Raises ConnectionError when the connection is known to be closed, is busy, or the relay has ended: nothing was
        sent then, so the call may go to another connection.
        """
    def alive(self) -> bool:
        """Whether an idle connection can be used: the upstream has neither closed nor sent anything since the last
        answer (this looks at the socket itself), and UPSTREAM_IDLE_SECONDS_MAX has not passed.
        """
    @property
    def closed(self) -> bool: ...
    idle_since_ns: int
    answers: int  # so far
    def abort(self) -> None:
        """Closes it at once. A running relay ends as CANCELLED."""

class Sweeper:
    """Looks at the deadlines of all running relays every SWEEP_SECONDS: one timer for all, none per request.

    A sweep that comes more than a period late judges nobody: what arrived while the loop stood still is read first.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, *, stall_seconds: float = bounds.CLIENT_STALL_SECONDS_MAX
    ) -> None: ...
    def add(self, relay: Relay) -> None:
        """It leaves by itself when it ends. One that is never started ends by its deadline, counted from here."""
    def running(self) -> int: ...
    def lag_us(self) -> int:
        """How late the last sweeps were: the loop's lag. The maximum since the last call."""
    def close(self) -> None: ...
