# Encoding and TextStream: the token counter's Python face. Included by _fastpath.pyx; the contract is `_fastpath.pyi`.


class BadTable(Exception):
    """A file is no token table that this build can use; the message is one sentence."""


cdef class Encoding:
    def __cinit__(self, path):
        cdef const char* wrong
        cdef void* base
        cdef weir_vocab* v = &self.vocab
        self.path = os.fspath(path)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BadTable(f"The token table {self.path} cannot be read: {error.strerror}.") from None
        try:
            size = os.fstat(descriptor).st_size
            if size < WEIR_TABLE_HEAD:
                raise BadTable(f"The token table {self.path} is shorter than a table's head of 4096 bytes.")
            # Populated, for a third of a millisecond: else the first texts pay for some hundred page faults.
            base = mmap(NULL, size, PROT_READ, MAP_SHARED | WEIR_POPULATE, descriptor, 0)
        finally:
            os.close(descriptor)
        if base == MAP_FAILED:
            raise BadTable(f"The token table {self.path} cannot be mapped into memory.")
        wrong = weir_vocab_open(v, <const uint8_t*> base, size)
        if wrong != NULL:
            munmap(base, size)
            v.base = NULL
            raise BadTable(f"The token table {self.path} {wrong.decode()}.")
        if weir_encoding_start(&self.own, v) < 0:
            raise MemoryError
        self.c = &self.own

    def __dealloc__(self):
        cdef weir_encoding* spare
        weir_encoding_end(&self.own)
        while self.spares > 0:
            self.spares -= 1
            spare = self.spare[self.spares]
            weir_encoding_end(spare)
            PyMem_Free(spare)
        if self.vocab.base != NULL:
            munmap(<void*> self.vocab.base, self.vocab.size)

    @property
    def name(self):
        return self.vocab.name.decode()

    cdef weir_encoding* borrow(self) except NULL:
        """Caches for a count without the GIL: a thread's own until it gives them back."""
        cdef weir_encoding* e
        if self.spares > 0:
            self.spares -= 1
            return self.spare[self.spares]
        e = <weir_encoding*> PyMem_Malloc(sizeof(weir_encoding))
        if e == NULL:
            raise MemoryError
        if weir_encoding_start(e, &self.vocab) < 0:
            weir_encoding_end(e)
            PyMem_Free(e)
            raise MemoryError
        return e

    cdef void give_back(self, weir_encoding* e) noexcept:
        if self.spares < SPARES_MAX:
            self.spare[self.spares] = e
            self.spares += 1
            return
        weir_encoding_end(e)
        PyMem_Free(e)

    def count(self, bytes text not None):
        cdef const uint8_t* start = <const uint8_t*> PyBytes_AS_STRING(text)
        cdef size_t n = PyBytes_GET_SIZE(text)
        cdef int64_t tokens
        cdef weir_encoding* e
        if n <= TEXT_BYTES_INLINE:
            tokens = weir_count_tokens(self.c, start, n)
        else:
            e = self.borrow()
            with nogil:
                tokens = weir_count_tokens(e, start, n)
            self.give_back(e)
        if tokens < 0:
            raise MemoryError
        return tokens

    def stream(self):
        return TextStream(self)


cdef class TextStream:
    cdef weir_stream s
    cdef Encoding encoding

    def __cinit__(self, Encoding encoding not None):
        self.encoding = encoding
        weir_stream_start(&self.s, encoding.c)

    def __dealloc__(self):
        weir_stream_end(&self.s)

    def feed(self, bytes text not None):
        if weir_stream_feed(&self.s, <const uint8_t*> PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)) < 0:
            raise MemoryError

    def feed_json(self, bytes raw not None):
        if weir_stream_feed_json(&self.s, <const uint8_t*> PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw)) < 0:
            raise MemoryError

    def count(self):
        cdef int64_t tokens = weir_stream_count(&self.s)
        if tokens < 0:
            raise MemoryError
        return tokens

    @property
    def pending(self):
        return weir_stream_pending(&self.s)
