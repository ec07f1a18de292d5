"""What other compiled modules may use of `_fastpath`: the mapped arena and the one thing a closing call does to it."""

from libc.stdint cimport uint64_t


cdef class Arena:
    cdef char* base  # start of the mapping, NULL once closed
    cdef size_t size
    cdef readonly int column
    cdef readonly str path
    cdef void drop(self, uint64_t cell) noexcept
