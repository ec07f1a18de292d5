"""What other compiled modules may use of `_fastpath`: the mapped arena and the one thing a closing call does to it."""

from libc.stdint cimport uint8_t, uint64_t


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
