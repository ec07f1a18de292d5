# The C face of _wire. `Relay` and `Connection` call each other without Python in between.
from libc.stdint cimport int64_t, uint32_t

from proxy._journal cimport Slot
from proxy._scan cimport AnswerCounter, Frames


cdef class Outbox:
    cdef object _call_soon, _flush, _context
    cdef list _waiting

    cdef int put(self, Relay relay) except -1


cdef class Relay:
    # What the owner gave.
    cdef object _write, _buffered, _on_pause, _done
    cdef Outbox _outbox
    cdef Slot _slot
    cdef bytes _head
    cdef bint _http10, _close, _hide, _hold
    cdef int64_t _arrived_ns, _first_byte_ns, _idle_ns, _total_ns
    # What is bound to it while it runs.
    cdef Connection _connection
    cdef Sweeper _sweeper
    cdef Py_ssize_t _place
    # Where it stands. Times are CLOCK_BOOTTIME; `_paused_ns` is 0 while the upstream is read.
    cdef readonly int ending, status
    cdef readonly bint started, reusable, is_stream, cut_clean
    cdef int64_t _start_ns, _last_ns, _paused_ns, _unread, _bytes
    cdef int _framing
    cdef uint32_t _tail
    cdef bint _collecting, _last
    cdef int64_t _length
    cdef Frames _scan
    cdef list _kept
    cdef Py_ssize_t _kept_bytes
    cdef bytes _media, _unsent, _held, _cut_with
    cdef tuple _usage
    cdef str _model
    cdef int64_t _text_bytes, _whole
    cdef AnswerCounter _counter
    cdef int64_t _milli
    # Facts for the owner.
    cdef readonly int64_t first_us
    cdef readonly bytes retry_after, retry_after_ms, should_retry, upstream_request_id
    cdef readonly str detail

    cdef int take_head(self, int status, int64_t length) except -1
    cdef int deliver(self, bytes one, list more, bint complete) except -1
    cdef int cut_at_frame(self, bytes data) except -1
    cdef int hand_over(self, bytes one, list pieces, Py_ssize_t total, bint complete) except -1
    cdef bytes framed(self, bytes one, list pieces, Py_ssize_t total, bint complete)
    cdef bytes client_head(self)
    cdef int collect(self, bytes one, list more) except -1
    cdef void read_whole(self)
    cdef void note(self, bint last) noexcept
    cdef int64_t count(self, bint *estimated) noexcept
    cdef int send(self, bytes data) except -1
    cdef int flush(self) except -1
    cdef int put_out(self, bytes data) except -1
    cdef int pause(self) except -1
    cdef int finish(self, int ending, str detail) except -1


cdef class Connection:
    cdef object _on_idle, _transport, _write, _parser, _feed
    cdef Relay _relay
    cdef int _fd
    cdef public int64_t idle_since_ns
    cdef readonly int64_t answers
    cdef bint _ended, _reported
    # The answer being read.
    cdef bytes _one
    cdef list _more
    cdef int _verdict, _informational
    cdef str _detail
    cdef bint _head_done, _skip, _complete, _keep, _until_close, _chunked
    cdef int64_t _length, _barren, _head_bytes

    cdef int contain(self, Relay relay, Py_ssize_t n, str fault) except -1
    cdef int advance(self, Relay relay, Py_ssize_t n, str fault) except -1
    cdef int refuse(self, int verdict, str detail) except -1
    cdef int release(self, bint reusable) except -1


cdef class Sweeper:
    cdef object _loop, _timer, _tick
    cdef list _relays
    cdef int64_t _due_ns, _lag_ns, _stall_ns
    cdef bint _skipped

    cdef int drop(self, Relay relay) except -1
    cdef int judge(self, Relay relay, int64_t now) except -1
