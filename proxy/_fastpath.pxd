"""What other compiled modules may use of `_fastpath`: the mapped arena and the one thing a closing call does to it, and
the token counter's vocabulary with its caches.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef extern from "_stream.h":
    ctypedef struct weir_vocab:
        const void* base
        size_t size
        const char* name
    ctypedef struct weir_encoding:
        pass
    ctypedef struct weir_stream:
        pass
    # The tokens of a text; -1 without memory. One thread at a time for one weir_encoding.
    int64_t weir_count_tokens(weir_encoding* e, const uint8_t* text, size_t n) nogil
    void weir_stream_start(weir_stream* s, weir_encoding* e) nogil
    int weir_stream_feed(weir_stream* s, const uint8_t* text, size_t n) nogil
    int weir_stream_feed_json(weir_stream* s, const uint8_t* raw, size_t n) nogil
    int64_t weir_stream_count(weir_stream* s) nogil
    size_t weir_stream_pending(const weir_stream* s) nogil
    void weir_stream_end(weir_stream* s) nogil

cdef enum:
    SPARES_MAX = 4  # caches kept for counts without the GIL: as many threads rarely count at once


cdef class Arena:
    cdef char* base  # start of the mapping, NULL once closed
    cdef char* rates  # first rate cell
    cdef char* counts  # first count cell
    cdef size_t size
    cdef uint64_t rate_cells
    cdef uint64_t count_cells
    cdef uint8_t[32] key  # of the cells' keyed hash
    cdef readonly int column
    cdef readonly str path
    cdef void drop(self, uint64_t cell) noexcept


cdef class Encoding:
    cdef weir_vocab vocab
    cdef weir_encoding own
    cdef weir_encoding* c  # for counts with the GIL held: the loop's
    cdef weir_encoding* spare[SPARES_MAX]
    cdef int spares
    cdef readonly str path
    # Without the GIL: borrow one with it, count, give it back with it. Raises MemoryError.
    cdef weir_encoding* borrow(self) except NULL
    cdef void give_back(self, weir_encoding* e) noexcept
