# Cells and Tally: counters of the metrics file, many at once. Included by _fastpath.pyx; the contract is `_fastpath.pyi`.


cdef enum:
    COUNTERS_MAX = 16
    HISTOGRAMS_MAX = 4
    BUCKETS_MAX = 32


@cython.final
cdef class Tally:
    cdef Py_ssize_t[COUNTERS_MAX] counters
    cdef Py_ssize_t[HISTOGRAMS_MAX] histograms
    cdef int counter_count
    cdef int histogram_count

    def __init__(self, tuple counters not None, tuple histograms not None):
        if len(counters) > COUNTERS_MAX or len(histograms) > HISTOGRAMS_MAX:
            raise ValueError(f"a tally has at most {COUNTERS_MAX} counters and {HISTOGRAMS_MAX} histograms")
        self.counter_count = 0  # while the places are being written there are none
        self.histogram_count = 0
        for at, place in enumerate(counters):
            self.counters[at] = place
        for at, place in enumerate(histograms):
            self.histograms[at] = place
        self.counter_count = len(counters)
        self.histogram_count = len(histograms)


@cython.final
cdef class Cells:
    cdef Py_buffer view
    cdef uint64_t* base  # NULL once closed
    cdef Py_ssize_t count
    cdef int64_t[BUCKETS_MAX] bounds
    cdef int bucket_count  # those with a bound; one more has none, and the sum stands behind it

    def __cinit__(self, cells, tuple bounds not None):
        if len(bounds) > BUCKETS_MAX:
            raise ValueError(f"a histogram has at most {BUCKETS_MAX} bounds, not {len(bounds)}")
        for at, bound in enumerate(bounds):
            self.bounds[at] = bound
        self.bucket_count = len(bounds)
        PyObject_GetBuffer(cells, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.base = <uint64_t*> self.view.buf
        self.count = self.view.len // <Py_ssize_t> sizeof(uint64_t)

    def __dealloc__(self):
        self.close()

    def add(self, Tally tally not None, *amounts):
        cdef Py_ssize_t place
        cdef int64_t amount
        cdef int at, bucket
        if self.base == NULL:
            raise ValueError("the counters are closed")
        if len(amounts) != tally.counter_count + tally.histogram_count:
            raise ValueError(f"{len(amounts)} amounts for {tally.counter_count} counters and "
                             f"{tally.histogram_count} histograms")
        for at in range(tally.counter_count):
            place = tally.counters[at]
            amount = amounts[at]
            if 0 <= place < self.count:
                self.base[place] += <uint64_t> amount
        for at in range(tally.histogram_count):
            place = tally.histograms[at]
            amount = amounts[tally.counter_count + at]
            if amount < 0 or not 0 <= place < self.count - self.bucket_count - 1:
                continue
            if place == 0:  # the table is full: such an event is counted and not measured
                self.base[0] += 1
                continue
            bucket = 0
            while bucket < self.bucket_count and self.bounds[bucket] < amount:
                bucket += 1
            self.base[place + bucket] += 1
            self.base[place + self.bucket_count + 1] += <uint64_t> amount

    cpdef void close(self) noexcept:
        if self.base != NULL:
            self.base = NULL
            PyBuffer_Release(&self.view)
