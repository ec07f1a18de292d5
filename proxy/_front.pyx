# cython: language_level=3
"""The client's side of the wire in C: connections that carry ordinary requests, parsed by llhttp (through httptools).

What is not ordinary (`_front.h` says what is) goes to aiohttp's front, with its connection and with every byte of it:
there is one place for what is rare, and this file need not know it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t

from asyncio import timeout

from httptools import HttpParserError, HttpRequestParser

from proxy import bounds
from proxy.errors import Refusal

cdef extern from "_front.h" nogil:
    enum: WEIR_HEAD_UNUSUAL, WEIR_HEAD_PARTIAL, WEIR_HEAD_USUAL
    ctypedef struct weir_head:
        size_t bytes
        int64_t content_length
        int post
        int close
    int weir_front_head(const uint8_t* data, size_t size, size_t max, weir_head* head)

cdef extern from "_wire.h" nogil:
    int64_t weir_wire_now()

cdef size_t HEAD_MAX = bounds.REQUEST_LINE_BYTES_MAX
cdef int64_t AHEAD_MAX = bounds.CLIENT_AHEAD_BYTES_MAX
cdef int64_t HEADERS_SECONDS = bounds.HEADERS_SECONDS_MAX
cdef int64_t IDLE_SECONDS = bounds.CONNECTION_IDLE_SECONDS_MAX
cdef int64_t LINGER_SECONDS = bounds.LINGER_SECONDS_MAX


def usual(bytes data not None):
    """How a request's head is judged; see `_front.pyi`."""
    cdef weir_head head
    cdef int kind = weir_front_head(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), HEAD_MAX, &head)
    if kind == WEIR_HEAD_USUAL:
        return head.bytes, head.content_length, bool(head.post), bool(head.close)
    return None if kind == WEIR_HEAD_PARTIAL else False


cdef class Client


@cython.final
@cython.freelist(64)
cdef class Request:
    """One ordinary request, as the journey wants it. See `exchange.Exchange`."""

    cdef Client _client
    cdef readonly str method, raw_path
    cdef readonly tuple raw_headers
    cdef readonly int64_t arrived_ns
    cdef public bint close, started
    cdef public bytes lines
    cdef bytes _body  # None: not whole yet
    cdef list _parts
    cdef int64_t _gathered  # bytes in them
    cdef object _waiter

    @property
    def http10(self):
        return False

    @property
    def write(self):
        return self._client._write

    @property
    def buffered(self):
        return self._client._buffered

    @property
    def peer(self):
        name = self._client._transport.get_extra_info("peername") if self._client._transport is not None else None
        return str(name[0]) if isinstance(name, tuple) else ""

    def body_now(self):
        return self._body

    async def body(self, int64_t bytes_max, double seconds_max):
        if self._body is None:
            self._waiter = self._client._loop.create_future()
            self._client.read_on()
            try:
                async with timeout(seconds_max):
                    await self._waiter
            except TimeoutError:
                raise Refusal("body_timeout", f"{seconds_max:g}") from None
        if PyBytes_GET_SIZE(self._body) > bytes_max:
            raise Refusal("body_too_large", str(bytes_max))
        return self._body

    def forget_body(self):
        self._body = b""
        self.raw_headers = ()

    def say_continue(self):
        """Nothing: who waits to be told is no ordinary client."""

    def answer(self, bytes data not None, *, bint close):
        self.started = True
        if close:
            self.close = True
        transport = self._client._transport
        if transport is not None and not transport.is_closing():
            self._client._write(data)

    def paused(self, relay):
        if self._client._full:
            self._client._stalled = relay
        elif self._client._transport is not None:
            self._client._loop.call_soon(relay.resume)

    def abort(self):
        if self._client._transport is not None:
            self._client._transport.abort()

    def ended(self):
        self._client.ended(self)

    cdef int whole(self) except -1:
        """The body's last byte is here."""
        cdef list parts = self._parts
        self._parts = None
        self._body = b"" if not parts else <bytes>parts[0] if len(parts) == 1 else b"".join(parts)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return 0


@cython.final
cdef class Client:
    """One connection of a client: an `asyncio.Protocol`, and the request that it carries now.

    front: keeps the connections and runs the requests, see `front.Front`.
    """

    cdef object _front, _loop, _transport, _write, _buffered, _parser, _feed, _task, _stalled
    cdef Request _request
    cdef list _headers  # of the head being parsed
    cdef str _path
    cdef bytes _pending  # a head that has not come whole
    cdef bytes _ahead  # sent before its turn: the next request's first bytes
    cdef int64_t _owed  # bytes of the body that have not come
    cdef int64_t _since  # the front's ticks: when it began to wait for what it waits for
    cdef int64_t _idle_ns  # when its last answer ended
    cdef bint _served, _full, _held, _lingering

    def __init__(self, front not None, loop not None):
        self._front = front
        self._loop = loop

    # --- asyncio.Protocol ---

    def connection_made(self, transport):
        self._transport = transport
        self._write = transport.write
        self._buffered = transport.get_write_buffer_size
        self._parser = HttpRequestParser(self)
        self._feed = self._parser.feed_data
        self._since = self._front.tick
        self._front.entered(self, transport)

    def data_received(self, bytes data not None):
        cdef weir_head head
        cdef int kind
        if self._request is not None or self._lingering:
            self.more(data)
            return
        if self._pending is not None:
            data = self._pending + data
            self._pending = None
        elif self._served:
            self._since = self._front.tick
        kind = weir_front_head(<const uint8_t*>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), HEAD_MAX, &head)
        if kind == WEIR_HEAD_PARTIAL:
            self._pending = data
        elif kind == WEIR_HEAD_UNUSUAL or PyBytes_GET_SIZE(data) - <int64_t>head.bytes > head.content_length:
            self.hand_over(data)  # also with several requests at once: aiohttp keeps them in order
        else:
            self.begin(data, &head)

    def eof_received(self):
        """A client that has said its last word waits for no answer (as aiohttp has it): its transport closes."""
        return None

    def connection_lost(self, exc):
        self._front.left(self)
        self._transport = self._parser = self._feed = self._stalled = None
        if self._task is not None:
            self._task.cancel()
        # The two of them know each other; nobody else would part them where the request's task never came to run.
        self._request = self._task = None
        self._full = False

    def pause_writing(self):
        self._full = True

    def resume_writing(self):
        self._full = False
        if self._stalled is not None:
            relay, self._stalled = self._stalled, None
            relay.resume()

    # --- llhttp's callbacks ---

    def on_url(self, bytes url):
        self._path = url.decode("ascii")

    def on_header(self, bytes name, bytes value):
        self._headers.append((name, value))

    def on_body(self, bytes data):
        self._owed -= PyBytes_GET_SIZE(data)
        self._request._gathered += PyBytes_GET_SIZE(data)
        self._request._parts.append(data)

    # --- one request ---

    cdef int begin(self, bytes data, weir_head* head) except -1:
        """A whole head, and as much of the body as came with it."""
        cdef Request request = Request.__new__(Request)
        request._client = self
        request._parts = []
        request.arrived_ns = weir_wire_now()
        request.method = "POST" if head.post else "GET"
        request.close = head.close or self._front.draining
        request.lines = b""
        self._headers = []
        self._owed = head.content_length
        self._request = request
        try:
            self._feed(data)
        except HttpParserError:
            self._request = None
            self.hand_over(data)  # llhttp sees more than we do: it is refused in the words of the other front
            return 0
        request.raw_path = self._path
        request.raw_headers = tuple(self._headers)
        self._headers = None
        if self._owed == 0:
            request.whole()
        task = self._front.begin(request)
        if self._request is request:  # else it has ended already
            self._task = task
        return 0

    cdef int more(self, bytes data) except -1:
        """What comes while a request is answered: the rest of its body, or the next request before its turn."""
        cdef Request request = self._request
        cdef int64_t size = PyBytes_GET_SIZE(data)
        if self._lingering:
            self._owed -= size
            if self._owed <= 0:
                self._transport.close()
            return 0
        if self._owed:
            if size > self._owed:
                self._ahead = data[self._owed:]
                data = data[:self._owed]
            self._feed(data)
            if self._owed == 0:
                request.whole()
            elif request._waiter is None and request._gathered > AHEAD_MAX:
                self.hold()
            return 0
        self._ahead = data if self._ahead is None else self._ahead + data
        if PyBytes_GET_SIZE(self._ahead) > AHEAD_MAX:
            self.hold()
        return 0

    cdef int ended(self, Request request) except -1:
        """The answer is written."""
        if request is not self._request:
            return 0
        self._request = None
        self._task = self._stalled = None
        self._served = True
        if self._transport is None or self._transport.is_closing():
            return 0
        self._since = self._front.tick
        if self._owed:
            # Closing now would reset the connection, and the answer with it: its body is still on the way.
            self._lingering = True
            self.read_on()
        elif request.close:
            self._transport.close()
        elif self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self.read_on()
            self.data_received(ahead)
        elif self._front.draining:
            self._idle_ns = weir_wire_now()
        return 0

    cdef int hold(self) except -1:
        """Nobody asks for what the client sends: it waits in the kernel."""
        if not self._held:
            self._held = True
            self._transport.pause_reading()
        return 0

    cdef int read_on(self) except -1:
        if self._held:
            self._held = False
            self._transport.resume_reading()
        return 0

    cdef int hand_over(self, bytes data) except -1:
        """From its next request on, this connection is aiohttp's."""
        transport, self._transport = self._transport, None
        self._parser = self._feed = None
        self._front.left(self)
        door = self._front.door(self._since)
        transport.set_protocol(door)
        door.connection_made(transport)
        if self._full:
            door.pause_writing()
        if self._held:
            transport.resume_reading()
        door.data_received(data)
        return 0

    # --- what the front may do ---

    def look(self, int64_t tick):
        """Once a second: ends a connection that keeps us waiting."""
        cdef int64_t waited = tick - self._since
        if self._request is not None or self._transport is None:
            return
        if self._lingering:
            if waited > LINGER_SECONDS:
                self._transport.close()
        elif not self._served or self._pending is not None:
            if waited > HEADERS_SECONDS:
                self._transport.abort()
        elif waited > IDLE_SECONDS:
            self._transport.close()

    def end_idle(self, int64_t before_ns):
        """Closes the connection when it carries nothing, and has carried nothing since `before_ns`."""
        if self._request is not None or self._pending is not None or self._lingering or self._transport is None:
            return
        if self._idle_ns < before_ns:
            self._transport.close()

    def end(self):
        """Ends the connection, and whatever it carries."""
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.close()
