"""Bytes on the wire in C: the upstream's connection over llhttp, and the relay of its answer to a client."""

import asyncio
from collections.abc import Callable
from typing import Any

from proxy._journal import Slot

# Why a relay ended, `Relay.ending`:
RUNNING: int  # 0: not yet
COMPLETE: int  # the answer's last byte was handed to the client's transport
ANSWERED: int  # upstream answered with a status other than 200, or one that must not be relayed: nothing was relayed; `status`, `error_body` say what
LOST: int  # upstream closed or reset before the answer was whole
PROTOCOL: int  # upstream's framing was wrong; `detail` says how
CODED: int  # upstream's answer has a Content-Encoding although identity was asked: nothing was relayed
FIRST_BYTE_TIMEOUT: int
IDLE_TIMEOUT: int
TOTAL_TIMEOUT: int
CLIENT_GONE: int  # the client's transport is closed
CLIENT_STALLED: int
CANCELLED: int  # `cancel` was called
CUT: int  # `cut` was called

class Relay:
    """One answer on its way from an upstream's connection to a client's transport.

    write: the client transport's `write`; buffered: its `get_write_buffer_size`; on_pause(relay): called once when more
    than CLIENT_BUFFER_BYTES_MAX stands unread (the upstream is paused by then); the owner calls `resume()` when drained.
    head: the client's response head lines from Weir (each "name: value\\r\\n"), sent after the status line and the allowed
    upstream headers. done: a future that is resolved (with None) when the relay has ended in whatever way.
    """

    def __init__(
        self,
        write: Callable[[bytes], Any],
        buffered: Callable[[], int],
        on_pause: Callable[[Relay], None],
        done: asyncio.Future[None],
        slot: Slot | None,
        arrived_ns: int,
        head: bytes,
        *,
        http10: bool,  # read-until-close framing instead of chunked
        close: bool,  # announce Connection: close
        hide_usage: bool,  # hide the usage frame, for a client that did not ask
        hold_end: bool,  # durability strict: keep the last bytes until `release_end()`
        first_byte_ms: int,
        idle_ms: int,
        total_ms: int,
    ) -> None: ...
    ending: int
    status: int  # upstream's, 0 before its head
    started: bool  # a byte has gone to the client
    reusable: bool
    is_stream: bool  # the answer is text/event-stream
    frames: int  # to the client; 1 for a whole non-stream answer
    bytes: int  # payload bytes to the client
    text_bytes: int
    usage: tuple[int, int, int, int, int] | None
    model: str
    first_us: int
    error_body: bytes  # of an ANSWERED relay, at most ERROR_BODY_BYTES_MAX
    error_type: bytes  # its content-type
    retry_after: bytes  # upstream's retry-after header, as it stood
    retry_after_ms: bytes
    should_retry: bytes
    upstream_request_id: bytes
    upstream_error: bool  # the stream carried an `error` frame
    detail: str
    def resume(self) -> None: ...
    def release_end(self) -> None: ...
    def cancel(self) -> None:
        """Ends it now: the upstream's connection is aborted. Nothing more is written. No-op once ended."""
    def cut(self, ending: bytes) -> None:
        """Ends a stream in the middle with a well-formed ending: writes `ending` (frames) and the terminating chunk."""

class Connection(asyncio.Protocol):
    """One connection to an upstream: one answer at a time, over httptools' llhttp parser."""

    def __init__(self, on_idle: Callable[[Connection, bool], None]) -> None:
        """on_idle(connection, reusable) is called when an answer has ended or the idle connection was closed."""
    def start(self, relay: Relay, request: bytes) -> None:
        """Writes the whole request and binds the relay. Raises ConnectionError when the connection is known to be closed."""
    def alive(self) -> bool:
        """Whether the upstream has neither closed nor sent anything since the last answer; looks at the socket itself."""
    idle_since_ns: int
    answers: int  # so far
    def abort(self) -> None: ...

class Sweeper:
    """Looks at the deadlines of all running relays every SWEEP_SECONDS: one timer for all, none per request."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None: ...
    def add(self, relay: Relay) -> None: ...
    def running(self) -> int: ...
    def lag_us(self) -> int:
        """How late the last sweep was: the loop's lag. Resets the maximum since the last call."""
    def close(self) -> None: ...
