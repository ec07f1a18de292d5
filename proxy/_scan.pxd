# The C face of _scan, for _wire. Facts are read straight from the struct: `frames.s.text_bytes`.
from libc.stdint cimport int64_t

from proxy._fastpath cimport Encoding, weir_encoding

cdef extern from "_sse.h":
    # What the scanner has seen so far, to be stored before each write. Counts only grow; `usage` is the last one seen.
    ctypedef struct weir_usage:
        int64_t prompt_tokens
        int64_t cached_tokens  # part of prompt_tokens
        int64_t completion_tokens
        int64_t reasoning_tokens  # part of completion_tokens
        int64_t audio_tokens  # part of completion_tokens

    # The count of an answer's tokens.
    ctypedef struct weir_lanes:
        weir_encoding* encoding
        int64_t tokens
        int64_t fresh
        int64_t waits
        int64_t lost
        int count
        int unread
        int failed

    ctypedef struct weir_sse:
        int64_t frames  # complete frames with a data line, hidden ones included
        int64_t hidden  # of them, frames that `take` removed
        int64_t text_bytes  # decoded bytes of generated text
        weir_usage usage  # of the last frame with a valid one; zeros before
        int usage_seen  # 1 once `usage` holds the provider's figures
        int done  # [DONE] seen
        int error  # a frame with a top-level error seen
        Py_ssize_t held  # bytes that `take` keeps back at this moment
        int model_bytes
        char* model
        weir_lanes* lanes
        char* tail
        Py_ssize_t tail_room

cimport cython

@cython.final
cdef class AnswerCounter:
    cdef weir_lanes l
    cdef readonly Encoding encoding
    cdef bint finishing

    # After each read, before its write: counts what came since the last look, as far as that holds up nobody. `last`:
    # when no more will come, long words too.
    cpdef void look(self, bint last) noexcept

    # The tokens as of the last look. `rest` is set to the bytes of text that are not in them, and is left alone, with 0
    # tokens, when there was no memory: then all of the text is to be estimated.
    cdef int64_t tell(self, int64_t* rest, bint* estimated) noexcept

    # Some of the text is unknown.
    cdef void not_read(self) noexcept

    # Counts everything. Gives up the GIL, so it may run in a thread, when no more text will come.
    cpdef finish(self)

@cython.final
cdef class Frames:
    cdef weir_sse s
    cdef AnswerCounter counter

    # Where the text is counted; before anything was read.
    cdef void attach(self, AnswerCounter counter) noexcept

    # Forward at once: counts what stands in the read, copies nothing but a frame that is cut. Call it before the write.
    cdef void see(self, const char* data, Py_ssize_t n) noexcept

    # Hide the usage frame: the bytes to forward now. It is `data` itself when nothing was held or hidden (no copy), and
    # b"" when all of it is held. Raises MemoryError only. A stream uses `see` or `take`, not both.
    cpdef bytes take(self, bytes data)

    # The stream has ended: judges an unterminated last frame too (the official SDKs read it) and returns what is still
    # held and must be forwarded, b"" when nothing is. After `see` it must be called as well, and returns b"". A torn last
    # frame is no frame: where the upstream was lost, what is still held may be dropped or forwarded, the facts are right.
    cpdef bytes rest(self)

    # Top-level `model` of the first frame that has one, "" before. Makes a new str: ask once, at the end.
    cdef str model_name(self)

    # (prompt, cached, completion, reasoning, audio) or None.
    cdef tuple usage_tuple(self)

# A whole JSON answer: (usage tuple or None, model, text_bytes). Never raises for content. Its text is given to the
# counter when it has no usage.
cpdef tuple read_answer(bytes body, AnswerCounter counter=*)
