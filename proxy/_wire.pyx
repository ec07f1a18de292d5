# cython: language_level=3
"""Bytes on the wire in C: the upstream's connection over llhttp, and the relay of its answer to a client.

Framing is llhttp's alone (through httptools): this file sees heads, body bytes and ends, never chunk sizes. One read
of the upstream becomes at most one write to the client, and the slot's counters are raised before that write. The
writes of one turn of the loop are made together, at its end.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy

from contextvars import Context
from http import HTTPStatus

from httptools import HttpResponseParser

from proxy import bounds
from proxy._journal cimport Slot
from proxy._scan cimport AnswerCounter, Frames, read_answer

cdef extern from "_wire.h" nogil:
    int64_t weir_wire_now()
    const char *weir_wire_date()
    int weir_wire_quiet(int fd)
    int weir_wire_header(const char *name, size_t n)
    int weir_wire_is(const char *value, size_t n, const char *word)
    int weir_wire_media(const char *value, size_t n, const char *media)
    int64_t weir_wire_length(const char *value, size_t n)
    int weir_wire_plain(const char *value, size_t n, size_t max)
    uint32_t weir_wire_tail(uint32_t tail, const char *data, size_t n)
    int weir_wire_between(uint32_t tail)
    int weir_wire_chunk(char *to, size_t n)
    Py_ssize_t weir_wire_boundary(uint32_t tail, const char *data, size_t n)
    enum:
        WEIR_DATE_BYTES
        WEIR_H_OTHER, WEIR_H_CONTENT_TYPE, WEIR_H_CONTENT_LENGTH, WEIR_H_TRANSFER_ENCODING, WEIR_H_CONTENT_ENCODING
        WEIR_H_REQUEST_ID, WEIR_H_RETRY_AFTER, WEIR_H_RETRY_AFTER_MS, WEIR_H_SHOULD_RETRY

cpdef enum:
    RUNNING = 0
    COMPLETE = 1
    ANSWERED = 2
    LOST = 3
    PROTOCOL = 4
    CODED = 5
    FIRST_BYTE_TIMEOUT = 6
    IDLE_TIMEOUT = 7
    TOTAL_TIMEOUT = 8
    CLIENT_GONE = 9
    CLIENT_STALLED = 10
    CANCELLED = 11
    CUT = 12

# How the body is framed for the client.
cdef enum: BY_LENGTH, BY_CHUNKS, BY_CLOSE, NO_BODY

cdef int64_t HEAD_MAX = bounds.UPSTREAM_HEAD_BYTES_MAX
cdef int64_t ERROR_BODY_MAX = bounds.ERROR_BODY_BYTES_MAX
cdef int64_t PARSED_MAX = bounds.ANSWER_BYTES_PARSED_MAX
cdef int64_t CLIENT_BUFFER_MAX = bounds.CLIENT_BUFFER_BYTES_MAX
cdef Py_ssize_t TOGETHER_MAX = bounds.WRITE_TOGETHER_BYTES_MAX
cdef int64_t UPSTREAM_IDLE_NS = <int64_t>(bounds.UPSTREAM_IDLE_SECONDS_MAX * 1_000_000_000)
cdef double SWEEP_SECONDS = bounds.SWEEP_SECONDS
cdef int64_t SWEEP_NS = <int64_t>(bounds.SWEEP_SECONDS * 1_000_000_000)
cdef int INFORMATIONAL_MAX = bounds.UPSTREAM_INFORMATIONAL_MAX
cdef size_t REQUEST_ID_MAX = bounds.REQUEST_ID_BYTES_MAX

# The time as the last sweep saw it: activity is stamped with it, so that no chunk reads the clock.
cdef int64_t coarse_ns = weir_wire_now()

cdef bytes STREAM_LINES = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"
cdef dict STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


cdef bytes plain(bytes value, size_t longest):
    """A header's value as a fact, or b"" when it is not short visible text."""
    if weir_wire_plain(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), longest):
        return value
    return b""


include "_outbox.pxi"


cdef class Relay:
    def __init__(
        self, write not None, buffered not None, on_pause not None, done not None, Outbox outbox not None, Slot slot,
        int64_t arrived_ns, bytes head not None, *, bint http10, bint close, bint hide_usage, bint hold_end,
        int64_t first_byte_ms, int64_t idle_ms, int64_t total_ms,
        AnswerCounter counter=None, int64_t bytes_per_token_milli=4000,
    ):
        if bytes_per_token_milli <= 0:
            raise ValueError(f"{bytes_per_token_milli} thousandths of a byte per token: more than none are needed")
        self._write = write
        self._buffered = buffered
        self._on_pause = on_pause
        self._done = done
        self._outbox = outbox
        self._slot = slot
        self._arrived_ns = arrived_ns
        self._head = head
        self._http10 = http10
        self._close = close or http10
        self._hide = hide_usage
        self._hold = hold_end
        self._first_byte_ns = first_byte_ms * 1_000_000
        self._idle_ns = idle_ms * 1_000_000
        self._total_ns = total_ms * 1_000_000
        self._counter = counter
        self._milli = bytes_per_token_milli
        self._model = ""
        self.retry_after = self.retry_after_ms = b""
        self.should_retry = self.upstream_request_id = self._media = b""
        self.detail = ""

    # --- what the owner may do ---

    def resume(self):
        if self._paused_ns and self.ending == RUNNING:
            self._paused_ns = 0
            self._last_ns = weir_wire_now()
            self._connection._transport.resume_reading()

    def release_end(self):
        cdef bytes held = self._held
        if held is None or self.ending != COMPLETE:
            return
        self.flush()
        self._held = None
        self.started = True
        write, self._write = self._write, None
        try:
            write(held)
        except Exception:
            return  # the record is finished and durable: a client that left since then changes nothing in it

    def cancel(self):
        if self.ending == RUNNING:
            self._unsent = None
            self.finish(CANCELLED, "cancelled")

    def cut(self, bytes ending not None):
        if self.ending != RUNNING or self._held is not None or self._last:
            return  # over, or all but over: the end is written or held
        if not self.started or self._framing == BY_LENGTH or not self.is_stream:
            self.finish(CUT, "cut before a frame could be written")
        elif self._hide or weir_wire_between(self._tail):
            self.send(self.framed(ending, None, PyBytes_GET_SIZE(ending), True))
            self.cut_clean = self.ending == RUNNING
            self.finish(CUT, "cut between two frames")
        else:
            self._cut_with = ending  # half a frame is with the client: its rest comes first

    # --- from the upstream's head ---

    cdef int take_head(self, int status, int64_t length) except -1:
        """Decides what becomes of the answer. `length` is -1 when upstream did not say one."""
        self._length = length
        if not 200 <= status < 300:
            self._collecting = True
            self._kept = []
            return 0
        self.is_stream = weir_wire_media(self._media, PyBytes_GET_SIZE(self._media), b"text/event-stream")
        if self.is_stream:
            self._scan = Frames.__new__(Frames)
            self._scan.attach(self._counter)
        else:
            self._kept = []
        if status == 204:
            self._framing = NO_BODY
        elif length >= 0 and not (self._hide and self.is_stream):
            self._framing = BY_LENGTH
        elif self._http10:
            self._framing = BY_CLOSE
        else:
            self._framing = BY_CHUNKS
        return 0

    # --- from the upstream's body ---

    cdef int deliver(self, bytes one, list more, bint complete) except -1:
        """Passes on what one read brought: `one`, or all of `more`. Returns an ending, or RUNNING."""
        cdef bytes piece
        cdef list pieces = None
        cdef Py_ssize_t total = 0
        if one is not None and self.first_us == 0:
            self.first_us = max(1, (weir_wire_now() - self._arrived_ns) // 1000)
        if self.is_stream:
            if self._cut_with is not None and self._held is None and not complete and one is not None:
                return self.cut_at_frame(one if more is None else b"".join(more))
            if self._hide:
                if more is not None:
                    pieces = [self._scan.take(piece) for piece in more]
                elif one is not None:
                    one = self._scan.take(one)
                if complete:
                    piece = self._scan.rest()
                    if piece:
                        pieces = [one] if pieces is None and one is not None else pieces or []
                        pieces.append(piece)
            else:
                if more is not None:
                    for piece in more:
                        self._scan.see(PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
                    pieces = more
                elif one is not None:
                    self._scan.see(PyBytes_AS_STRING(one), PyBytes_GET_SIZE(one))
                if complete:
                    self._scan.rest()
        else:
            pieces = more
            if self._kept is not None and one is not None:
                for piece in more if more is not None else (one,):
                    self._kept.append(piece)
                    self._kept_bytes += PyBytes_GET_SIZE(piece)
                if self._kept_bytes > PARSED_MAX:
                    self._kept = None
            if complete:
                self.read_whole()
        if pieces is not None:
            for piece in pieces:
                total += PyBytes_GET_SIZE(piece)
        elif one is not None:
            total = PyBytes_GET_SIZE(one)
        self._bytes += total
        self.note(complete)
        if total == 0 and not complete:
            return RUNNING
        return self.hand_over(one, pieces, total, complete)

    cdef int hand_over(self, bytes one, list pieces, Py_ssize_t total, bint complete) except -1:
        """Writes the payload in our own framing, or keeps it when the end is held. Returns an ending, or RUNNING."""
        cdef bytes data = self.framed(one, pieces, total, complete)
        if self.is_stream:
            if pieces is not None:
                for one in pieces:
                    self._tail = weir_wire_tail(self._tail, PyBytes_AS_STRING(one), PyBytes_GET_SIZE(one))
            elif one is not None:
                self._tail = weir_wire_tail(self._tail, PyBytes_AS_STRING(one), PyBytes_GET_SIZE(one))
        if self._hold and (complete or self._held is not None or (self.is_stream and self._scan.s.done)):
            # Clients take `data: [DONE]` for the end, so holding begins there and not at the last chunk.
            self._held = data if self._held is None else self._held + data
            if complete or PyBytes_GET_SIZE(self._held) <= CLIENT_BUFFER_MAX:
                return RUNNING
            data = self._held
            self._held = None
        if PyBytes_GET_SIZE(data):
            self.send(data)
        if self._unread > CLIENT_BUFFER_MAX and not complete:
            self.flush()
            if self.ending == RUNNING:
                self._unread = self._buffered()
                if self._unread > CLIENT_BUFFER_MAX:
                    self.pause()
        return RUNNING

    cdef int cut_at_frame(self, bytes data) except -1:
        """A cut is waiting for the end of the frame: passes on its rest, then the ending."""
        cdef Py_ssize_t end = weir_wire_boundary(self._tail, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        if end >= 0:
            data = data[:end]
        self._scan.see(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        self._bytes += PyBytes_GET_SIZE(data)
        self.note(end >= 0)
        if end < 0:
            return self.hand_over(data, None, PyBytes_GET_SIZE(data), False)
        data = data + self._cut_with
        self.send(self.framed(data, None, PyBytes_GET_SIZE(data), True))
        self.cut_clean = self.ending == RUNNING
        return CUT

    cdef bytes framed(self, bytes one, list pieces, Py_ssize_t total, bint complete):
        """The client head when it is still due, and the payload as one chunk, with the last chunk when it is the end."""
        cdef bytes head = None, out, piece
        cdef Py_ssize_t n = total, h = 0
        cdef int size_bytes = 0
        cdef char size[24]
        cdef char *to
        self._last = complete
        if not self.started and self._held is None:
            head = self.client_head()
            h = PyBytes_GET_SIZE(head)
            n += h
        elif self._framing != BY_CHUNKS and pieces is None:
            return one if one is not None else b""
        if self._framing == BY_CHUNKS:
            if total:
                size_bytes = weir_wire_chunk(size, total)
                n += size_bytes + 2
            if complete:
                n += 5
        out = PyBytes_FromStringAndSize(NULL, n)
        to = PyBytes_AS_STRING(out)
        if h:
            memcpy(to, PyBytes_AS_STRING(head), h)
            to += h
        memcpy(to, size, size_bytes)
        to += size_bytes
        if pieces is not None:
            for piece in pieces:
                memcpy(to, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
                to += PyBytes_GET_SIZE(piece)
        elif total:
            memcpy(to, PyBytes_AS_STRING(one), total)
            to += total
        if self._framing == BY_CHUNKS:
            if total:
                memcpy(to, b"\r\n", 2)
                to += 2
            if complete:
                memcpy(to, b"0\r\n\r\n", 5)
        return out

    cdef bytes client_head(self):
        cdef char length[48]
        cdef bytes framing, date
        if self._framing == BY_CHUNKS:
            framing = b"transfer-encoding: chunked\r\n"
        elif self._framing == BY_LENGTH:
            framing = length[: snprintf(length, sizeof(length), "content-length: %lld\r\n", <long long>self._length)]
        else:
            framing = b""
        date = PyBytes_FromStringAndSize(weir_wire_date(), WEIR_DATE_BYTES)
        return b"".join((
            STATUS_LINES.get(self.status) or b"HTTP/1.1 %d \r\n" % self.status,
            b"content-type: %b\r\n" % self._media if self._media else b"",
            STREAM_LINES if self.is_stream else b"",
            self._head,
            date,
            framing,
            b"connection: close\r\n\r\n" if self._close else b"\r\n",
        ))

    cdef int collect(self, bytes one, list more) except -1:
        """Keeps a bounded part of an error's body. Returns an ending when there is no room for more, or RUNNING."""
        cdef bytes piece
        if one is None:
            return RUNNING
        for piece in more if more is not None else (one,):
            if self._kept_bytes + PyBytes_GET_SIZE(piece) > ERROR_BODY_MAX:
                self._kept.append(piece[: ERROR_BODY_MAX - self._kept_bytes])
                self._kept_bytes = ERROR_BODY_MAX
                return ANSWERED
            self._kept.append(piece)
            self._kept_bytes += PyBytes_GET_SIZE(piece)
        return RUNNING

    cdef void read_whole(self):
        """The answer is whole: usage, model and text of a JSON body, before its last bytes leave."""
        self._whole = 1
        if self._kept:
            self._usage, self._model, self._text_bytes = read_answer(
                <bytes>self._kept[0] if len(self._kept) == 1 else b"".join(self._kept), self._counter
            )
            if self._usage is not None:
                self._counter = None  # the provider has counted
        elif self._counter is not None and self._kept_bytes:
            self._counter.not_read()
        self._kept = None

    cdef void note(self, bint last) noexcept:
        """Raises the slot's counters: always before the write that they count."""
        cdef int64_t[5] usage
        cdef int seen = 0
        cdef bint estimated
        cdef int64_t tokens
        if self._counter is not None:
            self._counter.look(last)
        if self._slot is None:
            return
        tokens = self.count(&estimated)
        if self._scan is not None:
            self._slot.note(
                self._scan.s.frames - self._scan.s.hidden, self._bytes, self._scan.s.text_bytes,
                self._scan.s.usage.prompt_tokens, self._scan.s.usage.cached_tokens,
                self._scan.s.usage.completion_tokens, self._scan.s.usage.reasoning_tokens,
                self._scan.s.usage.audio_tokens, self._scan.s.usage_seen, self.first_us, self.status,
                tokens, estimated,
            )
            return
        usage[0] = usage[1] = usage[2] = usage[3] = usage[4] = 0
        if self._usage is not None:
            seen = 1
            usage[0], usage[1], usage[2], usage[3], usage[4] = self._usage
        self._slot.note(self._whole, self._bytes, self._text_bytes, usage[0], usage[1], usage[2], usage[3], usage[4],
                        seen, self.first_us, self.status, tokens, estimated)

    cdef int64_t count(self, bint *estimated) noexcept:
        """Tokens of the text as of the last look; what is not counted is estimated from its bytes."""
        cdef int64_t rest = self._scan.s.text_bytes if self._scan is not None else self._text_bytes
        cdef int64_t counted = 0
        estimated[0] = True
        if self._counter is not None:
            counted = self._counter.tell(&rest, estimated)
            if self._scan is None and not self._whole and self._bytes:
                estimated[0] = True  # a part of an answer that can only be read whole
        return counted + rest * 1000 // self._milli + (rest * 1000 % self._milli != 0)

    # --- towards the client ---

    cdef int send(self, bytes data) except -1:
        """Writes at the end of the turn, or at once what is long or comes second. The client may be gone afterwards."""
        self.started = True
        self._unread += PyBytes_GET_SIZE(data)
        if self._unsent is not None:
            data = self._unsent + data
            self._unsent = None
        elif PyBytes_GET_SIZE(data) <= TOGETHER_MAX:
            self._unsent = data
            return self._outbox.put(self)
        return self.put_out(data)

    cdef int flush(self) except -1:
        """Writes what waits for the end of the turn."""
        cdef bytes data = self._unsent
        if data is None:
            return 0
        self._unsent = None
        self.put_out(data)
        if self.ending != RUNNING and self._held is None:
            self._write = None
        return 0

    cdef int put_out(self, bytes data) except -1:
        """One write. Where the client's transport is closed, that is how the relay has ended."""
        try:
            self._write(data)
        except Exception as fault:
            # uvloop raises RuntimeError on a write after close; whatever it is, this client takes nothing more.
            if self.ending == RUNNING:
                return self.finish(CLIENT_GONE, f"{type(fault).__name__} on writing to the client")
            # The owner has not looked yet: its turn comes after the outbox's.
            self.ending = CLIENT_GONE
            self.cut_clean = False
            self._held = None
        return 0

    cdef int pause(self) except -1:
        if not self._paused_ns:
            self._paused_ns = weir_wire_now()
            self._connection._transport.pause_reading()
            self._on_pause(self)
        return 0

    cdef int finish(self, int ending, str detail) except -1:
        """The relay is over. Everything it held goes back, then `done` is resolved; a second call does nothing."""
        cdef Connection connection = self._connection
        cdef Sweeper sweeper = self._sweeper
        if self.ending != RUNNING:
            return 0
        if self._collecting:
            self.note(True)
        elif self._counter is not None:
            self._counter.look(True)
        if self._collecting and ending in (LOST, PROTOCOL, FIRST_BYTE_TIMEOUT, IDLE_TIMEOUT, TOTAL_TIMEOUT):
            ending = ANSWERED  # its status is known, and that is what the owner acts on
        self.ending = ending
        self.reusable = self.reusable and (ending == COMPLETE or ending == ANSWERED)
        if detail is not None and not self.detail:
            self.detail = detail
        self._connection = None
        if sweeper is not None:
            sweeper.drop(self)
        self._on_pause = self._buffered = self._cut_with = None
        if ending != COMPLETE:
            self._held = None
        if self._held is None and self._unsent is None:
            self._write = None
        done, self._done = self._done, None
        if not done.done():
            done.set_result(None)
        if connection is not None:
            connection.release(self.reusable)
        return 0

    # --- facts for the owner ---

    @property
    def error_body(self):
        if not self._collecting or not self._kept:
            return b""
        return b"".join(self._kept)

    @property
    def error_type(self):
        return self._media

    @property
    def frames(self):
        if self._scan is not None:
            return self._scan.s.frames - self._scan.s.hidden
        return self._whole

    @property
    def text_bytes(self):
        return self._scan.s.text_bytes if self._scan is not None else self._text_bytes

    @property
    def usage(self):
        return self._scan.usage_tuple() if self._scan is not None else self._usage

    @property
    def model(self):
        return self._scan.model_name() if self._scan is not None else self._model

    @property
    def text_tokens(self):
        cdef bint estimated
        return self.count(&estimated)

    @property
    def text_estimated(self):
        cdef bint estimated
        self.count(&estimated)
        return estimated

    @property
    def backlog(self):
        return self._counter.backlog if self._counter is not None else 0

    def finish_count(self):
        if self.ending == RUNNING:
            raise ValueError("this answer is still being relayed: its text is counted to the end when it has ended")
        if self._counter is not None:
            self._counter.finish()

    @property
    def upstream_error(self):
        return self._scan is not None and self._scan.s.error != 0

    @property
    def bytes(self):
        return self._bytes


include "_connection.pxi"
include "_sweeper.pxi"
