# One connection to an upstream, over llhttp: a part of _wire.pyx, which has the names that this one uses.

cdef class Connection:
    def __init__(self, on_idle not None):
        self._on_idle = on_idle
        self._fd = -1

    # --- asyncio.Protocol ---

    def connection_made(self, transport):
        self._transport = transport
        self._write = transport.write
        self._fd = transport.get_extra_info("socket").fileno()
        self._parser = HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self.idle_since_ns = weir_wire_now()

    def data_received(self, data):
        cdef Relay relay = self._relay
        cdef str fault = None
        if relay is None:
            # An answer that nobody asked for: it must not be taken for the next request's.
            self.abort()
            return
        if coarse_ns > relay._last_ns:
            relay._last_ns = coarse_ns
        try:
            self._feed(data)
        except Exception as error:
            self._keep = False
            fault = str(error) or type(error).__name__
        self.contain(relay, len(data), None if self._complete else fault)

    def eof_received(self):
        cdef Relay relay = self._relay
        self._ended = True
        if relay is None:
            return False
        if self._head_done and self._until_close:
            self._complete = True
            self._keep = False
            self.contain(relay, 0, None)
        else:
            relay.finish(LOST, "the upstream closed the connection")
        return False

    def connection_lost(self, exc):
        cdef Relay relay = self._relay  # a reference of our own: ending the relay drops the connection's
        self._ended = True
        if relay is not None:
            relay.finish(LOST, f"the connection was lost: {type(exc).__name__}" if exc else "the connection ended")
        self._transport = self._write = self._parser = self._feed = None
        self._fd = -1
        if not self._reported:
            self._reported = True
            self._on_idle(self, False)

    def pause_writing(self):
        """A request is one write, already made: there is nothing to hold back, here and in `resume_writing`."""

    def resume_writing(self):
        pass

    # --- llhttp's callbacks ---

    def on_message_begin(self):
        if self._complete:
            self._keep = False  # bytes after the answer's end

    def on_header(self, bytes name, bytes value):
        cdef int which
        cdef const char *p = PyBytes_AS_STRING(value)
        cdef Py_ssize_t n = PyBytes_GET_SIZE(value)
        cdef Relay relay = self._relay
        if self._head_done or relay is None:
            return  # a trailer: dropped
        self._head_bytes += PyBytes_GET_SIZE(name) + n + 4
        which = weir_wire_header(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))
        if which == WEIR_H_OTHER:
            return
        if which == WEIR_H_CONTENT_TYPE:
            relay._media = plain(value, 256)
        elif which == WEIR_H_CONTENT_LENGTH:
            self._length = weir_wire_length(p, n)
            if self._length < 0:
                self.refuse(PROTOCOL, "its Content-Length is not a length")
        elif which == WEIR_H_TRANSFER_ENCODING:
            if self._chunked or not weir_wire_is(p, n, b"chunked"):
                self.refuse(PROTOCOL, "its Transfer-Encoding is not exactly 'chunked'")
            self._chunked = True
        elif which == WEIR_H_CONTENT_ENCODING:
            if not weir_wire_is(p, n, b"identity"):
                self.refuse(CODED, "it has a Content-Encoding")
        elif which == WEIR_H_REQUEST_ID:
            relay.upstream_request_id = plain(value, REQUEST_ID_MAX)
        elif which == WEIR_H_RETRY_AFTER:
            relay.retry_after = plain(value, 64)
        elif which == WEIR_H_RETRY_AFTER_MS:
            relay.retry_after_ms = plain(value, 64)
        else:
            relay.should_retry = plain(value, 64)

    def on_headers_complete(self):
        cdef int status = self._parser.get_status_code()
        if self._complete or self._relay is None:
            return
        if self._head_bytes > HEAD_MAX:
            self.refuse(PROTOCOL, f"its head is larger than {HEAD_MAX} bytes")
        elif status == 101:
            self.refuse(PROTOCOL, "it switches protocols")
        elif 100 <= status < 200:
            self._informational += 1
            self._skip = True
            if self._informational > INFORMATIONAL_MAX:
                self.refuse(PROTOCOL, f"it has more than {INFORMATIONAL_MAX} interim answers")
            return
        elif not 100 <= status < 600:
            self.refuse(PROTOCOL, f"its status is {status}")
        self._head_done = True
        self._relay.status = status
        self._until_close = self._length < 0 and not self._chunked and status != 204 and status != 304
        if self._verdict == RUNNING or (self._verdict == CODED and not 200 <= status < 300):
            self._relay.take_head(status, self._length)

    def on_body(self, bytes data):
        if self._complete:
            return
        if self._one is None:
            self._one = data
        elif self._more is None:
            self._more = [self._one, data]
        else:
            self._more.append(data)

    def on_message_complete(self):
        if self._complete:
            return
        if self._skip:
            # An interim answer: what its head said is not the answer's.
            self._skip = False
            self._length = -1
            self._chunked = False
            self._relay._media = b""
            if self._verdict == CODED:
                self._verdict = RUNNING
            return
        self._complete = True
        self._keep = self._parser.should_keep_alive()

    # --- one answer ---

    cdef int refuse(self, int verdict, str detail) except -1:
        if self._verdict == RUNNING or (self._verdict == CODED and verdict == PROTOCOL):
            self._verdict = verdict
            self._detail = detail
        return 0

    cdef int contain(self, Relay relay, Py_ssize_t n, str fault) except -1:
        """`advance`, but nothing that goes wrong in it leaves this connection."""
        try:
            return self.advance(relay, n, fault)
        except Exception as error:
            return relay.finish(PROTOCOL, f"internal: {type(error).__name__}")

    cdef int advance(self, Relay relay, Py_ssize_t n, str fault) except -1:
        """After one read: hands on what came of it. `fault` says what was wrong with the framing, None: nothing."""
        cdef bytes one = self._one
        cdef list more = self._more
        cdef int ending
        self._one = None
        self._more = None
        # A coding is judged once the head is whole: on an error, only its body is lost by it.
        if self._verdict == PROTOCOL or (self._verdict == CODED and self._head_done and not relay._collecting):
            return relay.finish(self._verdict, self._detail)
        if one is None and not self._complete:
            # Head, interim answers, chunk extensions, trailers: bytes that bring the answer no further are bounded.
            self._barren += n
            if fault is None and self._barren > HEAD_MAX:
                fault = f"its head or framing is larger than {HEAD_MAX} bytes"
        else:
            self._barren = 0
            if not relay._collecting:
                ending = relay.deliver(one, more, self._complete)
            elif self._verdict == CODED:
                ending = RUNNING  # an error in a coding that nobody asked for: only its status can be read
            else:
                ending = relay.collect(one, more)
            if ending != RUNNING:
                return relay.finish(ending, None)
        if relay.ending != RUNNING:
            return 0  # the owner ended it from within one of our calls
        if self._complete:
            relay.reusable = (
                self._keep  # never after an end by closing
                and not self._transport.is_closing()
                # The answer came before the request was read: its rest would be taken for the next one.
                and self._transport.get_write_buffer_size() == 0
            )
            return relay.finish(ANSWERED if relay._collecting else COMPLETE, None)
        if fault is not None:
            return relay.finish(PROTOCOL, fault)
        return 0

    cdef int release(self, bint reusable) except -1:
        """The relay has let go: back to the pool, or closed for good."""
        self._relay = None
        self._one = None
        self._more = None
        self.answers += 1
        if reusable:
            self.idle_since_ns = weir_wire_now()
            self._on_idle(self, True)
        else:
            self.abort()
        return 0

    # --- what a pool may do ---

    def start(self, Relay relay not None, bytes request not None):
        if self._transport is None or self._ended or self._relay is not None or relay.ending != RUNNING:
            raise ConnectionError("this connection cannot take a request")
        self._one = None
        self._more = None
        self._verdict = RUNNING
        self._informational = 0
        self._head_done = self._skip = self._complete = self._keep = self._until_close = self._chunked = False
        self._length = -1
        self._barren = self._head_bytes = 0
        self._relay = relay
        relay._connection = self
        relay._start_ns = relay._last_ns = weir_wire_now()
        try:
            self._write(request)
        except Exception as fault:
            self._relay = None
            relay._connection = None
            self.abort()
            raise ConnectionError("this connection is closed") from fault

    def alive(self):
        return (
            self._relay is None
            and not self._ended
            and self._transport is not None
            and not self._transport.is_closing()
            and weir_wire_now() - self.idle_since_ns < UPSTREAM_IDLE_NS
            and weir_wire_quiet(self._fd) != 0
        )

    @property
    def closed(self):
        return self._ended or self._transport is None

    def abort(self):
        cdef Relay relay = self._relay  # see `connection_lost`
        self._ended = True
        if relay is not None:
            relay.finish(CANCELLED, "the connection was aborted")
            return
        if self._transport is not None:
            self._transport.abort()
        if not self._reported:
            self._reported = True
            self._on_idle(self, False)
