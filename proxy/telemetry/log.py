"""Log lines: one JSON object a request on standard output, and one a fact of the processes on standard error.

Neither ever carries a key, a prompt or an upstream's error body. Request lines are collected by the loop and written
by whoever calls `flush` (the journal's sync thread, and the process at its end); nobody who reads slowly can hold up a
call or the journal, so lines beyond LOG_LINES_MAX are dropped and counted.
"""

from __future__ import annotations

import logging
import os
import select
import stat
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from proxy import bounds, clock
from proxy.call import UsageEvent
from proxy.identity.tenancy import TENANT

if TYPE_CHECKING:
    from proxy.telemetry.metrics import Counters

Mode = Literal["json", "summary", "off"]

_PIPE_BYTES_MAX = select.PIPE_BUF  # POSIX: a write up to it is whole or not at all, however many write to one pipe
_FILE_BYTES_MAX = 256 * 1024
_LINES_AT_ONCE = 256  # made in one go: about 150 KB, and a quarter of a millisecond of the interpreter
_MILLISECONDS = tuple(f"{number:03d}Z" for number in range(1000))
_encoder = msgspec.json.Encoder()


class RequestLine(Struct, omit_defaults=True, gc=False):
    """The line of one request. Durations in microseconds; absent fields are empty, 0 or false."""

    time: str
    status: int
    endpoint: str = ""
    tenant: str = ""
    key_id: str = ""
    model: str = ""
    request_id: str = ""
    refusal: str = ""
    call: int = 0
    epoch: str = ""
    termination: str = ""
    stream: bool = False
    upstream: str = ""
    model_served: str = ""
    upstream_request_id: str = ""
    attempts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    audio_tokens: int = 0
    source: str = ""
    relayed_frames: int = 0
    relayed_bytes: int = 0
    cost_nanos: int = 0
    price_version: str = ""
    queue_us: int = 0
    first_us: int = 0
    total_us: int = 0
    lower_bound: bool = False  # of the tokens: there may have been more


class Refused(Struct, frozen=True):
    """A request that was refused before it became a call. `started_us` is wall-clock time."""

    reason: str
    status: int
    endpoint: str
    tenant: str
    key_id: str
    model: str
    request_id: str
    started_us: int
    total_us: int


class Lines:
    """The request lines of one process. `mode` json, summary (one line for people) or off; `fd` is where they go.

    `request` and `refused` cost an append; the text is made in `flush`, which one thread at a time may call. `counters`
    is told of dropped lines.
    """

    def __init__(
        self, mode: Mode = "json", *, epoch: bytes = b"", fd: int = 1, counters: Counters | None = None
    ) -> None:
        self.dropped = 0
        self._counters = counters
        self._epoch = epoch.hex()
        self._waiting: deque[UsageEvent | Refused] = deque()
        self._ready: deque[bytes] = deque()  # blocks of whole lines that did not get away yet
        self._format: Callable[[list[UsageEvent | Refused]], bytes] = _summaries if mode == "summary" else self._json
        self._off = mode == "off"
        self._sink = None if self._off else Sink(fd)

    def request(self, event: UsageEvent) -> None:
        """Adds the line of a finished call."""
        if not self._off:
            if len(self._waiting) >= bounds.LOG_LINES_MAX:
                self._drop()
            else:
                self._waiting.append(event)

    def refused(self, refused: Refused) -> None:
        """Adds the line of a refused request."""
        if not self._off:
            if len(self._waiting) >= bounds.LOG_LINES_MAX:
                self._drop()
            else:
                self._waiting.append(refused)

    def flush(self) -> None:
        """Writes what is waiting, as far as it can be written without blocking."""
        if self._sink is None:
            return
        while True:
            while self._ready:
                if not self._sink.write(self._ready[0]):
                    return
                self._ready.popleft()
            if not self._waiting:
                return
            items = [self._waiting.popleft() for _ in range(min(len(self._waiting), _LINES_AT_ONCE))]
            self._ready.extend(_blocks(self._format(items), self._sink.block_bytes_max))

    def close(self) -> None:
        """Writes what can be written and lets the descriptor go."""
        self.flush()
        if self._sink is not None:
            self._sink.close()
            self._sink = None
            self._off = True

    def _drop(self) -> None:
        self.dropped += 1
        if self._counters is not None:
            self._counters.add(self._counters.series("weir_log_lines_dropped_total"))

    def _json(self, items: list[UsageEvent | Refused]) -> bytes:
        return _encoder.encode_lines([self._line(item) for item in items])

    def _line(self, item: UsageEvent | Refused) -> RequestLine:
        if isinstance(item, Refused):
            return RequestLine(
                time=timestamp(item.started_us),
                status=item.status,
                endpoint=item.endpoint,
                tenant=item.tenant,
                key_id=item.key_id,
                model=item.model,
                request_id=item.request_id,
                refusal=item.reason,
                total_us=item.total_us,
            )
        # By position, in the order of the struct: names would cost half as much again.
        return RequestLine(
            timestamp(item.started_us),
            item.status,
            item.endpoint,
            item.tenant,
            item.key_id,
            item.model,
            item.request_id,
            "",
            item.call,
            self._epoch,
            item.termination,
            item.stream,
            item.upstream,
            item.model_served,
            item.upstream_request_id,
            item.attempts,
            item.prompt_tokens,
            item.cached_tokens,
            item.completion_tokens,
            item.reasoning_tokens,
            item.audio_tokens,
            item.source,
            item.relayed_frames,
            item.relayed_bytes,
            item.cost_nanos,
            item.price_version,
            item.queue_us,
            item.first_us,
            item.total_us,
            item.lower_bound,
        )


def _blocks(text: bytes, bytes_max: int) -> Iterator[bytes]:
    """Whole lines, as many as fit into each block: where a pipe's atomic write ends, so that no worker's lines mix.

    A line that is longer than a block is one by itself.
    """
    start = 0
    while len(text) - start > bytes_max:
        end = text.rfind(b"\n", start, start + bytes_max) + 1 or text.index(b"\n", start) + 1
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _summaries(items: list[UsageEvent | Refused]) -> bytes:
    return "".join(map(_summary, items)).encode()


def _summary(item: UsageEvent | Refused) -> str:
    when = datetime.fromtimestamp(item.started_us / 1e6, UTC).astimezone().strftime("%H:%M:%S")
    who = f"{when}  {_plain(item.tenant) or '-':<12} {_plain(item.model) or '-':<20} {item.status}"
    milliseconds = f"{item.total_us / 1000:,.0f} ms"
    if isinstance(item, Refused):
        return f"{who}  refused: {item.reason}  {milliseconds}\n"
    about = "" if item.source == "provider" else f" ({item.source})"
    tokens = f"{item.prompt_tokens}+{'≥' if item.lower_bound else ''}{item.completion_tokens} tokens{about}"
    cost = f"${item.cost_nanos / 1e9:.6f}" if item.price_version else "unpriced"
    end = "" if item.termination == "complete" else f"  {item.termination}"
    return f"{who}  {tokens}  {cost}  {milliseconds}{end}\n"


class Sink:
    """A descriptor that is written to without ever blocking."""

    def __init__(self, fd: int) -> None:
        mode = os.fstat(fd).st_mode
        self._own = False
        self._fd = fd
        self.block_bytes_max = _FILE_BYTES_MAX if stat.S_ISREG(mode) else _PIPE_BYTES_MAX
        self._poll: select.poll | None = None
        if stat.S_ISFIFO(mode):
            # A descriptor's non-blocking flag is shared with everyone who inherited it; a second opening has its own.
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._own = True
            except OSError:
                self._fd = fd  # another user's pipe (a container's standard output): asked before each write instead
        if not self._own and not stat.S_ISREG(mode):
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

    def write(self, block: bytes) -> bool:
        """Writes a block whole, or says False: try later. A reader that went away swallows everything."""
        try:
            if self._poll is not None and not self._poll.poll(0):
                return False
            written = os.write(self._fd, block)
            while written < len(block):  # only a file or a terminal takes less, and takes the rest at once
                written += os.write(self._fd, block[written:])
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def close(self) -> None:
        """Closes what it opened itself."""
        if self._own:
            os.close(self._fd)
            self._own = False


class Log:
    """Facts of one process, for people and collectors: `part` is supervisor, worker, keeper or flusher.

    `mode` json writes `{"time","level","part","message",…}`; summary writes `part: message` (what `weir run` shows).
    """

    def __init__(self, part: str, mode: Mode = "json", *, fd: int = 2) -> None:
        self._part = part
        self._mode = mode
        self._fd = fd

    def info(self, message: str, **fields: object) -> None:
        """Something an operator may want to know."""
        self._write("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        """Something that heals by itself, or that an operator should look at soon."""
        self._write("warning", message, fields)

    def error(self, message: str, **fields: object) -> None:
        """Something an operator must look at."""
        self._write("error", message, fields)

    def take_over(self) -> None:
        """From now on what libraries and lower floors log goes where this log goes, from INFO up."""
        root = logging.getLogger()
        root.handlers[:] = [_Forwarding(self)]
        root.setLevel(logging.INFO)

    def _write(self, level: str, message: str, fields: dict[str, object]) -> None:
        if self._mode == "off":
            return
        if self._mode == "summary":
            detail = "".join(f" {name}={value}" for name, value in fields.items() if value is not None)
            text = f"{self._part}: {_plain(message)}{_plain(detail)}\n".encode()
        else:
            line = {
                "time": timestamp(clock.wall_us()),
                "level": level,
                "part": self._part,
                "pid": os.getpid(),
                "message": message,
                **fields,
            }
            text = _encoder.encode(line) + b"\n"
        try:
            os.write(self._fd, text)
        except OSError:
            return  # nobody reads: there is nowhere left to say so


class _Forwarding(logging.Handler):
    """Standard logging's records as lines of `log`; the call's tenant and an exception's traceback are fields."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, object] = {"logger": record.name}
        if tenant := TENANT.get():
            fields["tenant"] = tenant
        if record.exc_info:
            fields["exception"] = logging.Formatter().formatException(record.exc_info)
        if record.levelno >= logging.ERROR:
            self._log.error(record.getMessage(), **fields)
        elif record.levelno >= logging.WARNING:
            self._log.warning(record.getMessage(), **fields)
        else:
            self._log.info(record.getMessage(), **fields)


def timestamp(wall_us: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    seconds, rest_us = divmod(wall_us, 1_000_000)
    return _second(seconds) + _MILLISECONDS[rest_us // 1000]


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.")


def _plain(text: str) -> str:
    """Text for a terminal: a client's own strings can carry no control characters into it."""
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
