"""What the journey asks of a front: one request as it came, and the way back to its client.

The journey knows this and no more, so that a faster front can take the place of aiohttp's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from proxy._wire import Relay


class Exchange(Protocol):
    """One request at the front. Paths and headers are as they stood on the wire, never decoded or rebuilt."""

    method: str
    raw_path: str
    raw_headers: tuple[tuple[bytes, bytes], ...]
    http10: bool
    close: bool  # the connection ends with this answer
    arrived_ns: int
    started: bool  # a byte of the answer may be on the wire
    lines: bytes  # header lines that every answer carries from now on, each ended by CRLF
    write: Callable[[bytes], object]
    buffered: Callable[[], int]  # bytes written and not yet taken by the kernel

    @property
    def peer(self) -> str:
        """The address that the connection comes from, "" where it has none."""

    def body_now(self) -> bytes | None:
        """The whole body when it has arrived with the head, else None."""

    async def body(self, bytes_max: int, seconds_max: float) -> bytes:
        """Waits for the whole body. Raises Refusal body_too_large or body_timeout."""

    def forget_body(self) -> None:
        """The body has gone upstream: a stream that lasts an hour must not keep its prompt in memory."""

    def say_continue(self) -> None:
        """Answers `Expect: 100-continue`: the client may send its body now."""

    def answer(self, data: bytes, *, close: bool) -> None:
        """Writes one whole answer; with `close` the connection ends after it."""

    def paused(self, relay: Relay) -> None:
        """The client reads too slowly and the relay paused its upstream: resume it when the client has caught up."""

    def abort(self) -> None:
        """Ends the connection at once, so that the client cannot take what it has for the whole."""

    def ended(self) -> None:
        """The journey is over, in whatever way: the connection goes on to its next request, or ends."""
