# An answer, whole or as a stream of frames, and the count of its tokens: a part of _scan.pyx.

cdef extern from "_sse.h":
    size_t weir_inline_max
    size_t weir_backlog_max
    size_t weir_word_max
    int weir_lanes_max
    int weir_spans_max
    void weir_speech_start(weir_speech* s, int heard) noexcept
    void weir_speech_end(weir_speech* s) noexcept
    void weir_lanes_hear(weir_lanes* l, const weir_speech* speech) noexcept
    void weir_lanes_look(weir_lanes* l, int bound) noexcept
    void weir_lanes_finish(weir_lanes* l, weir_encoding* other) noexcept nogil
    size_t weir_lanes_bytes(const weir_lanes* l) noexcept
    void weir_lanes_end(weir_lanes* l) noexcept
    bint weir_lanes_estimate(const weir_lanes* l) noexcept

weir_inline_max = bounds.TEXT_BYTES_INLINE
weir_backlog_max = bounds.ANSWER_BACKLOG_BYTES_MAX
weir_word_max = bounds.WORD_BYTES_RECOUNTED
weir_lanes_max = bounds.ANSWER_LANES_MAX
weir_spans_max = bounds.ANSWER_STRINGS_MAX


cdef tuple figures(const weir_usage* usage):
    return (
        usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.reasoning_tokens, usage.audio_tokens
    )


@cython.final
@cython.no_gc  # an encoding refers to nothing that could lead back
cdef class AnswerCounter:
    """The tokens of one answer's text; see `_scan.pyi` and, for the C form, `_scan.pxd`."""

    def __cinit__(self, Encoding encoding not None):
        self.encoding = encoding
        self.l.encoding = encoding.c

    def __dealloc__(self):
        weir_lanes_end(&self.l)

    def __sizeof__(self):
        """Bytes of this object and of what it holds of the text."""
        return AnswerCounter.__basicsize__ + weir_lanes_bytes(&self.l)

    cpdef void look(self, bint last) noexcept:
        if not self.finishing:
            weir_lanes_look(&self.l, 2 if last else 1)

    cdef int64_t tell(self, int64_t* rest, bint* estimated) noexcept:
        estimated[0] = weir_lanes_estimate(&self.l)
        if self.l.failed:
            return 0
        rest[0] = self.l.fresh + self.l.waits + self.l.lost
        return self.l.tokens

    cdef void not_read(self) noexcept:
        self.l.unread = 1

    cpdef finish(self):
        if self.finishing:
            raise ValueError("this answer's text is being counted to its end already")
        cdef weir_encoding* other = self.encoding.borrow()
        self.finishing = True
        with nogil:
            weir_lanes_finish(&self.l, other)
        self.finishing = False
        self.encoding.give_back(other)

    @property
    def tokens(self):
        return 0 if self.l.failed else self.l.tokens

    @property
    def rest(self):
        return self.l.fresh + self.l.waits + self.l.lost

    @property
    def backlog(self):
        return 0 if self.l.failed else self.l.fresh + self.l.waits

    @property
    def estimated(self):
        return weir_lanes_estimate(&self.l)

    @property
    def lanes(self):
        return self.l.count


@cython.final
@cython.no_gc
cdef class Frames:
    """Scans an SSE byte stream cut anywhere; see `_scan.pyi` and, for the C form, `_scan.pxd`."""

    def __init__(self, AnswerCounter counter=None):
        self.attach(counter)

    cdef void attach(self, AnswerCounter counter) noexcept:
        self.counter = counter
        self.s.lanes = &counter.l if counter is not None else NULL

    def __dealloc__(self):
        free(self.s.tail)

    def __sizeof__(self):
        """Bytes of this object and of what it holds of a frame."""
        return Frames.__basicsize__ + self.s.tail_room

    cdef void see(self, const char* data, Py_ssize_t n) noexcept:
        weir_feed(&self.s, data, n, NULL)

    cpdef bytes take(self, bytes data):
        if data is None:
            raise TypeError("data must be bytes")
        cdef weir_out out = weir_out(bytes=NULL, room=self.s.held + PyBytes_GET_SIZE(data))
        weir_feed(&self.s, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &out)
        return weir_out_finish(&out, data)

    cpdef bytes rest(self):
        cdef bytes last = b""
        if weir_end(&self.s):
            last = PyBytes_FromStringAndSize(self.s.tail, self.s.held)
        weir_block_done(&self.s)
        return last

    cdef str model_name(self):
        return PyUnicode_DecodeUTF8(self.s.model, self.s.model_bytes, "replace")

    cdef tuple usage_tuple(self):
        return figures(&self.s.usage) if self.s.usage_seen else None

    def feed(self, bytes data not None):
        self.see(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    @property
    def frames(self):
        return self.s.frames

    @property
    def hidden(self):
        return self.s.hidden

    @property
    def held(self):
        return self.s.held

    @property
    def text_bytes(self):
        return self.s.text_bytes

    @property
    def usage(self):
        return self.usage_tuple()

    @property
    def model(self):
        return self.model_name()

    @property
    def done(self):
        return self.s.done != 0

    @property
    def error(self):
        return self.s.error != 0


cpdef tuple read_answer(bytes body, AnswerCounter counter=None):
    """The facts of a whole JSON answer; see `_scan.pyi`."""
    cdef weir_facts facts
    cdef weir_speech speech
    cdef uint8_t[WEIR_MODEL_BYTES] model
    if body is None:
        raise TypeError("body must be bytes")
    weir_speech_start(&speech, counter is not None)
    cdef bint read = weir_answer(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), &facts, &speech)
    if counter is not None:
        if not read:
            counter.not_read()
        elif not facts.usage_valid:  # else the provider has counted
            weir_lanes_hear(&counter.l, &speech)
    weir_speech_end(&speech)
    if not read:
        return (None, "", 0)
    name = ""
    if facts.model.start != NULL:
        name = PyUnicode_DecodeUTF8(<const char*>model, wj_decode(&facts.model, model, WEIR_MODEL_BYTES), "replace")
    return (figures(&facts.usage) if facts.usage_valid else None, name, speech.text)
