"""The C face of the journal for other compiled parts: the handle of a call in flight."""

from libc.stdint cimport uint32_t, uint64_t


cdef extern from "_journal.h":
    ctypedef struct jrn_slot:
        uint64_t state
        uint64_t call
        uint64_t flip
        uint64_t sent_word
        uint32_t opened_size
        char* opened
        char* sent


cdef class Slot:
    # NULL once the call is closed: a late writer then writes nowhere, and not into the next call's slot.
    cdef jrn_slot* at
    cdef object mapping
    cdef readonly uint64_t call
    cdef void note(
        self,
        uint64_t frames,
        uint64_t bytes_,
        uint64_t text_bytes,
        uint64_t prompt_tokens,
        uint64_t cached,
        uint64_t completion,
        uint64_t reasoning,
        uint64_t audio,
        uint64_t usage_seen,
        uint64_t first_us,
        uint64_t status,
        uint64_t text_tokens,
        uint64_t text_estimated,
    ) noexcept
