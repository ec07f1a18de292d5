# The C face of _scan, for _wire. Facts are read straight from the struct: `frames.s.text_bytes`.
from libc.stdint cimport int64_t

cdef extern from "_sse.h":
    # What the scanner has seen so far, to be stored before each write. Counts only grow; `usage` is the last one seen.
    ctypedef struct weir_usage:
        int64_t prompt_tokens
        int64_t cached_tokens  # part of prompt_tokens
        int64_t completion_tokens
        int64_t reasoning_tokens  # part of completion_tokens
        int64_t audio_tokens  # part of completion_tokens

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
        char* tail
        Py_ssize_t tail_room

cimport cython

@cython.final
cdef class Frames:
    cdef weir_sse s

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

# A whole JSON answer: (usage tuple or None, model, text_bytes). Never raises for content.
cpdef tuple read_answer(bytes body)
