"""Reading bytes in C, with no I/O: a request's head, a request's body, a stream's frames. Bytes in, facts out."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memchr, memcmp, memcpy

from proxy import bounds

from proxy._fastpath cimport Encoding, weir_encoding
from proxy._scan_h cimport (
    WEIR_API_KEY, WEIR_AUTHORIZATION, WEIR_BAD_JSON, WEIR_BREAKS, WEIR_CONNECTION, WEIR_CONTENT_ENCODING,
    WEIR_CONTENT_LENGTH, WEIR_CONTENT_TYPE, WEIR_DUPLICATE_KEY, WEIR_EXPECT, WEIR_FINE, WEIR_FORWARD_FIRST,
    WEIR_FUNCTIONS, WEIR_FUNCTION_CALL, WEIR_HOST, WEIR_INCLUDE_USAGE, WEIR_MODEL, WEIR_OTHER, WEIR_PLAIN, WEIR_PROMPTS,
    WEIR_RESPONSE_FORMAT, WEIR_STREAM_OPTIONS, WEIR_TOOLS, WEIR_TOOL_CHOICE, WEIR_TRANSFER_ENCODING, WEIR_X_API_KEY,
    WEIR_X_REQUEST_ID, WEIR_X_TENANT_ID, WJ_LEVELS, WJ_STRING_IMAGE, weir_field, weir_field_name, weir_hop_fields,
    weir_host_fine, weir_param, weir_peek, weir_peek_beside, weir_peek_body, weir_peek_calls, weir_peek_end,
    weir_peek_plain, weir_prompt_calls, weir_same, weir_span, weir_value_kind, weir_visible, wj_decode, wj_str,
    wj_string_at,
)

cdef extern from "_sse.h":
    enum: WEIR_MODEL_BYTES
    Py_ssize_t weir_block_held_max
    Py_ssize_t weir_block_parsed_max
    int weir_depth_max
    ctypedef struct weir_facts:
        weir_usage usage
        int usage_valid
        wj_str model
    ctypedef struct weir_out:
        PyObject* bytes
        Py_ssize_t room
    ctypedef struct weir_speech:
        int64_t text
    int weir_answer(const uint8_t* data, size_t size, weir_facts* facts, weir_speech* speech) noexcept
    void weir_feed(weir_sse* s, const char* data, Py_ssize_t size, weir_out* out) noexcept
    bint weir_end(weir_sse* s) noexcept
    void weir_block_done(weir_sse* s) noexcept
    object weir_out_finish(weir_out* out, object data)

cdef extern from "_prompt.h" nogil:
    int64_t weir_prompt_text_cost(const weir_peek* k) noexcept
    int64_t weir_prompt_tools_cost(const weir_peek* k) noexcept
    int64_t weir_prompt_cost(const weir_peek* k, const uint8_t* body) noexcept
    int weir_prompt_count(
        const weir_peek* k, const uint8_t* body, weir_encoding* e, int64_t* tokens, int64_t* names
    ) noexcept
    int64_t weir_prompt_calls_count(
        const weir_peek* k, const uint8_t* body, weir_encoding* e, const uint8_t* prefix, size_t prefix_bytes
    ) noexcept
    int weir_prompt_line_end(const weir_peek* k, const uint8_t* body, weir_encoding* e, int64_t* tokens) noexcept

cdef enum:
    TEXT_BYTES_MAX = 256  # room for a model's or user's name: above both bounds
    FORWARD_LINES_MAX = 16  # header lines for upstream: five names, some of which may stand on several lines

cdef int depth_max = bounds.JSON_DEPTH_MAX
cdef uint32_t strings_max = bounds.PROMPT_STRINGS_MAX
cdef int64_t text_bytes_inline = bounds.TEXT_BYTES_INLINE
cdef Py_ssize_t model_bytes_max = bounds.MODEL_BYTES_MAX
cdef Py_ssize_t user_bytes_max = bounds.USER_BYTES_MAX
cdef Py_ssize_t request_id_bytes_max = bounds.REQUEST_ID_BYTES_MAX
weir_depth_max = bounds.JSON_DEPTH_MAX
weir_block_held_max = bounds.FRAME_BYTES_HELD_MAX
weir_block_parsed_max = bounds.FRAME_BYTES_PARSED_MAX

assert depth_max <= WJ_LEVELS
assert model_bytes_max + 4 <= TEXT_BYTES_MAX and user_bytes_max <= TEXT_BYTES_MAX
assert model_bytes_max <= WEIR_MODEL_BYTES
assert weir_block_held_max <= weir_block_parsed_max


# === a request's head ===

cdef struct weir_line:
    int field
    const uint8_t* value
    Py_ssize_t size


class BadHead(Exception):
    """args: (code of errors.KINDS, detail)."""


cdef str shown(bytes value):
    """A client's bytes as they may stand in a sentence: ASCII, one line, bounded."""
    return "".join([chr(c) if 0x20 <= c < 0x7F else "?" for c in value[:64]])


@cython.final
@cython.freelist(64)
cdef class Head:
    """What Weir needs of a request's headers."""

    cdef readonly bytes authorization
    cdef readonly bytes content_type
    cdef readonly long long content_length
    cdef readonly bint chunked
    cdef readonly bytes expect
    cdef readonly bytes request_id
    cdef readonly bytes tenant
    cdef readonly bytes host
    cdef readonly bytes tag
    cdef readonly bytes forward

    def __cinit__(self):
        self.content_length = -1


cdef inline bytes part(bytes whole, const uint8_t* p, Py_ssize_t n):
    """[p, p + n) of `whole`: itself, when that is all of it."""
    return whole if n == PyBytes_GET_SIZE(whole) else PyBytes_FromStringAndSize(<const char*>p, n)


cdef long long content_length(const uint8_t* p, Py_ssize_t n) except -1:
    cdef long long length = 0
    cdef Py_ssize_t i
    if not 0 < n <= 18:
        raise BadHead("bad_header", "content-length")
    for i in range(n):
        if not c"0" <= p[i] <= c"9":
            raise BadHead("bad_header", "content-length")
        length = length * 10 + (p[i] - c"0")
    return length


cdef bytes bearer(const uint8_t* p, Py_ssize_t n):
    """The token of an Authorization value; None for another scheme or an empty token: that call has no key."""
    if n < 8 or not weir_same(p, 6, "bearer", 6) or (p[6] != c" " and p[6] != c"\t"):
        return None
    p += 6
    n -= 6
    while n and (p[0] == c" " or p[0] == c"\t"):
        p += 1
        n -= 1
    return PyBytes_FromStringAndSize(<const char*>p, n) if n else None


cdef bytes forward_lines(unsigned hop, int count, const weir_line* line):
    """Header lines for upstream, but not of the fields whose bits stand in `hop`."""
    cdef Py_ssize_t total = 0, name_bytes
    cdef int i
    cdef char* to
    cdef bytes lines
    cdef bytes name
    for i in range(count):
        if not hop >> line[i].field & 1:
            total += len(weir_field_name[line[i].field]) + 4 + line[i].size
    lines = PyBytes_FromStringAndSize(NULL, total)
    to = PyBytes_AS_STRING(lines)
    for i in range(count):
        if hop >> line[i].field & 1:
            continue
        name_bytes = len(weir_field_name[line[i].field])
        memcpy(to, weir_field_name[line[i].field], name_bytes)
        to += name_bytes
        memcpy(to, b": ", 2)
        memcpy(to + 2, line[i].value, line[i].size)
        to += 2 + line[i].size
        memcpy(to, b"\r\n", 2)
        to += 2
    return lines


def read_head(tuple raw_headers not None, bytes tag_header not None=b"") -> Head:
    """Judges and reads a request's headers in one pass; see `_scan.pyi`."""
    cdef Head head = Head.__new__(Head)
    cdef bytes name, value, credential = None, found
    cdef bytes tag_name = tag_header.lower() if tag_header else tag_header
    cdef const char* tag = PyBytes_AS_STRING(tag_name)
    cdef Py_ssize_t tag_bytes = PyBytes_GET_SIZE(tag_name), name_bytes, n
    cdef const uint8_t* p
    cdef const uint8_t* q
    cdef int field, kind, count = 0
    cdef unsigned met = 0, hop = 0
    cdef weir_line[FORWARD_LINES_MAX] line
    for name, value in raw_headers:
        if name is None or value is None:
            raise TypeError("header names and values must be bytes")
        q = <const uint8_t*>PyBytes_AS_STRING(name)
        name_bytes = PyBytes_GET_SIZE(name)
        p = <const uint8_t*>PyBytes_AS_STRING(value)
        n = PyBytes_GET_SIZE(value)
        kind = weir_value_kind(p, n)
        if kind == WEIR_BREAKS:
            raise BadHead("bad_header", shown(name))
        field = weir_field(q, name_bytes)
        if field == WEIR_OTHER and not tag_bytes:
            continue
        while n and (p[0] == c" " or p[0] == c"\t"):
            p += 1
            n -= 1
        while n and (p[n - 1] == c" " or p[n - 1] == c"\t"):
            n -= 1
        if tag_bytes and weir_same(q, name_bytes, tag, tag_bytes):
            # A credential is no tag: tags end in rows and logs.
            if field != WEIR_AUTHORIZATION and field != WEIR_X_API_KEY and field != WEIR_API_KEY:
                if head.tag is not None:
                    raise BadHead("bad_header", shown(name))
                head.tag = part(value, p, n)
        if field == WEIR_OTHER:
            continue
        if field <= WEIR_CONTENT_TYPE and field != WEIR_CONNECTION:
            # Readers differ in which of two they take; what we judged might not be what the upstream reads.
            if met >> field & 1:
                raise BadHead("bad_header", weir_field_name[field].decode("ascii"))
            met |= 1u << field
        if field >= WEIR_FORWARD_FIRST:
            if field == WEIR_CONTENT_TYPE:
                head.content_type = part(value, p, n)
            if kind == WEIR_PLAIN and n:
                if count == FORWARD_LINES_MAX:
                    raise BadHead("bad_header", weir_field_name[field].decode("ascii"))
                line[count] = weir_line(field=field, value=p, size=n)
                count += 1
        elif field == WEIR_HOST:
            if not weir_host_fine(p, n):
                raise BadHead("bad_header", "host")
            head.host = part(value, p, n)
        elif field == WEIR_AUTHORIZATION or field == WEIR_X_API_KEY or field == WEIR_API_KEY:
            if field == WEIR_AUTHORIZATION:
                found = bearer(p, n)
            else:
                found = part(value, p, n) if n else None
            if found is not None:
                if credential is not None and credential != found:
                    raise BadHead("bad_header", "authorization, x-api-key and api-key disagree")
                credential = found
        elif field == WEIR_CONTENT_LENGTH:
            head.content_length = content_length(p, n)
        elif field == WEIR_CONTENT_ENCODING:
            if n and not weir_same(p, n, "identity", 8):
                raise BadHead("compressed_body", shown(value))
        elif field == WEIR_TRANSFER_ENCODING:
            if not weir_same(p, n, "chunked", 7):
                raise BadHead("unsupported_transfer_coding", shown(value))
            head.chunked = True
        elif field == WEIR_X_REQUEST_ID:
            if 0 < n <= request_id_bytes_max and weir_visible(p, n):
                head.request_id = part(value, p, n)
        elif field == WEIR_X_TENANT_ID:
            head.tenant = part(value, p, n)
        elif field == WEIR_EXPECT:
            head.expect = part(value, p, n)
        else:
            hop |= weir_hop_fields(p, n)
    if head.chunked and head.content_length >= 0:
        # Two lengths for one body: the root of request smuggling (RFC 9112, 6.1).
        raise BadHead("bad_header", "content-length beside transfer-encoding")
    head.authorization = credential
    head.forward = forward_lines(hop, count, line)
    return head


# === a request's body ===

STRING_KINDS = (
    "role", "name", "text", "function", "call", "arguments",
    "image auto", "image low", "image high", "image original", "image other",
)
PROMPTS = ("messages", "prompt", "input")


class BadBody(Exception):
    """args: (code of errors.KINDS, detail, param or None)."""


cdef tuple span_of(const weir_peek* k, int key):
    return (k.span[key].start, k.span[key].end)


cdef tuple part_of(const weir_peek* k, int part):
    return (k.part[part].start, k.part[part].end)


cdef bytes decoded_at(const uint8_t* body, const wj_string_at* at):
    """A noted string as it is meant, UTF-8."""
    cdef const uint8_t* start = body + at.start
    cdef wj_str text = wj_str(start=start, end=start + at.size, spare=0)
    cdef bytes decoded
    if not at.escaped:
        return PyBytes_FromStringAndSize(<const char*>start, at.size)
    decoded = PyBytes_FromStringAndSize(NULL, at.size)
    return decoded[: wj_decode(&text, <uint8_t*>PyBytes_AS_STRING(decoded), at.size)]


cdef str text_of(const wj_str* text, Py_ssize_t bytes_max, str key):
    """A scanned string, whole characters up to the bound. U+0000 is refused: databases do not store it."""
    cdef uint8_t[TEXT_BYTES_MAX] decoded
    cdef size_t n = wj_decode(text, decoded, bytes_max)
    if memchr(decoded, 0, n) != NULL:
        raise BadBody("bad_value", f"{key} must not contain U+0000", key)
    return PyUnicode_DecodeUTF8(<const char*>decoded, n, NULL)


@cython.final
@cython.freelist(64)
cdef class Peek:
    """The governed facts of a JSON body and where they stand in it; see `_scan.pyi`."""

    cdef weir_peek k
    cdef readonly str model
    cdef readonly str user

    def __dealloc__(self):
        weir_peek_end(&self.k)

    def __sizeof__(self):
        """Bytes of this object and of what it holds beside itself."""
        return Peek.__basicsize__ + weir_peek_beside(&self.k)

    @property
    def model_span(self):
        return span_of(&self.k, WEIR_MODEL)

    @property
    def stream(self):
        return self.k.stream != 0

    @property
    def usage_asked(self):
        return self.k.usage_asked != 0

    @property
    def stream_options_span(self):
        return span_of(&self.k, WEIR_STREAM_OPTIONS)

    @property
    def include_usage_span(self):
        return span_of(&self.k, WEIR_INCLUDE_USAGE)

    @property
    def answer_tokens(self):
        cdef int64_t* limit = self.k.limit
        return limit[1] if limit[1] >= 0 else limit[0] if limit[0] >= 0 else limit[2]

    @property
    def choices(self):
        return self.k.choices

    @property
    def text_bytes(self):
        return self.k.text_bytes

    @property
    def images(self):
        return self.k.images

    @property
    def token_ids(self):
        return self.k.token_ids

    @property
    def messages(self):
        return self.k.messages

    @property
    def tools_span(self):
        return part_of(&self.k, WEIR_TOOLS)

    @property
    def functions_span(self):
        return part_of(&self.k, WEIR_FUNCTIONS)

    @property
    def tool_choice_span(self):
        return part_of(&self.k, WEIR_TOOL_CHOICE)

    @property
    def function_call_span(self):
        return part_of(&self.k, WEIR_FUNCTION_CALL)

    @property
    def response_format_span(self):
        return part_of(&self.k, WEIR_RESPONSE_FORMAT)

    @property
    def incomplete(self):
        return self.k.strings.incomplete != 0

    @property
    def strings(self):
        cdef wj_string_at* at = self.k.strings.at
        cdef uint32_t i
        return [(STRING_KINDS[at[i].kind], at[i].start, at[i].start + at[i].size) for i in range(self.k.strings.used)]

    @property
    def string_count(self):
        return self.k.strings.used

    def image_urls(self):
        cdef wj_string_at* at = self.k.strings.at
        cdef uint32_t i
        return [
            (STRING_KINDS[at[i].kind].removeprefix("image "), at[i].start, at[i].start + at[i].size)
            for i in range(self.k.strings.used)
            if at[i].kind >= WJ_STRING_IMAGE
        ]

    def texts(self, bytes body not None):
        check_body(body, self)
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef wj_string_at* at = self.k.strings.at
        cdef uint32_t i
        return [decoded_at(p, &at[i]) for i in range(self.k.strings.used) if at[i].kind < WJ_STRING_IMAGE]

    @property
    def text_cost(self):
        return weir_prompt_text_cost(&self.k)

    @property
    def tools_cost(self):
        return weir_prompt_tools_cost(&self.k)

    def cost(self, bytes body not None):
        check_body(body, self)
        return weir_prompt_cost(&self.k, <const uint8_t*>PyBytes_AS_STRING(body))

    cdef int counted(self, bytes body, Encoding encoding, int64_t* tokens, int64_t* names) except -1:
        """What `count` returns, in `tokens` and `names`."""
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef int failed
        cdef weir_encoding* e
        if weir_prompt_text_cost(&self.k) <= text_bytes_inline:
            failed = weir_prompt_count(&self.k, p, encoding.c, tokens, names)
        else:
            e = encoding.borrow()
            with nogil:
                failed = weir_prompt_count(&self.k, p, e, tokens, names)
            encoding.give_back(e)
        if failed:
            raise MemoryError
        return 0

    def count(self, bytes body not None, Encoding encoding not None):
        cdef int64_t tokens, names
        check_body(body, self)
        self.counted(body, encoding, &tokens, &names)
        return (tokens, names)

    def count_plain(self, bytes body not None, Encoding encoding not None, int64_t message, int64_t name):
        cdef int64_t tokens, names
        check_body(body, self)
        if not weir_peek_plain(&self.k, <const uint8_t*>PyBytes_AS_STRING(body)):
            return None
        self.counted(body, encoding, &tokens, &names)
        return tokens + self.k.messages * message + names * name

    def count_calls(self, bytes body not None, Encoding encoding not None, bytes prefix not None):
        check_body(body, self)
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef const uint8_t* before = <const uint8_t*>PyBytes_AS_STRING(prefix)
        cdef Py_ssize_t before_bytes = PyBytes_GET_SIZE(prefix)
        cdef int64_t tokens
        cdef weir_encoding* e
        if weir_prompt_cost(&self.k, p) <= text_bytes_inline:
            tokens = weir_prompt_calls_count(&self.k, p, encoding.c, before, before_bytes)
        else:
            e = encoding.borrow()
            with nogil:
                tokens = weir_prompt_calls_count(&self.k, p, e, before, before_bytes)
            encoding.give_back(e)
        if tokens < 0:
            raise MemoryError
        return tokens

    @property
    def unread(self):
        return self.k.unread

    def plain(self, bytes body not None):
        check_body(body, self)
        return weir_peek_plain(&self.k, <const uint8_t*>PyBytes_AS_STRING(body)) != 0

    def count_line_end(self, bytes body not None, Encoding encoding not None):
        check_body(body, self)
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(body)
        cdef int64_t tokens = 0
        cdef int found
        cdef weir_encoding* e
        if weir_prompt_cost(&self.k, p) <= text_bytes_inline:
            found = weir_prompt_line_end(&self.k, p, encoding.c, &tokens)
        else:
            e = encoding.borrow()
            with nogil:
                found = weir_prompt_line_end(&self.k, p, e, &tokens)
            encoding.give_back(e)
        if found < 0:
            raise MemoryError
        return tokens if found else None

    def calls(self, bytes body not None):
        check_body(body, self)
        cdef weir_prompt_calls found
        weir_peek_calls(&self.k, <const uint8_t*>PyBytes_AS_STRING(body), &found)
        return (found.tools, found.parallel, found.functions, found.tool_results, found.function_results)

    @property
    def prompts(self):
        return {PROMPTS[i]: chr(self.k.prompt[i]) for i in range(WEIR_PROMPTS) if self.k.prompt[i] not in b"\0n"}

    @property
    def end(self):
        return self.k.end


def peek(bytes body not None) -> Peek:
    """Strict JSON over the whole body, and its governed facts; see `_scan.pyi`."""
    cdef Peek facts = Peek.__new__(Peek)
    cdef weir_peek* k = &facts.k
    cdef const uint8_t* start = <const uint8_t*>PyBytes_AS_STRING(body)
    cdef int code = weir_peek_body(k, start, PyBytes_GET_SIZE(body), depth_max, strings_max)
    if code != WEIR_FINE:
        if code == WEIR_BAD_JSON:
            raise BadBody("bad_json", f"{k.why.decode('ascii')}, at byte {k.at}", None)
        key = weir_param[k.key].decode("ascii")
        if code == WEIR_DUPLICATE_KEY:
            raise BadBody("duplicate_key", key, key)
        raise BadBody("bad_value", f"{key} {k.why.decode('ascii')}", key)
    if k.model.start != NULL:
        # One character more than the bound: a name that is too long stays too long, but 32 MB of it are not copied.
        facts.model = text_of(&k.model, model_bytes_max + 4, "model")
    if k.user.start != NULL:
        facts.user = text_of(&k.user, user_bytes_max, "user")
    return facts


cdef bytes splice(bytes body, Py_ssize_t start, Py_ssize_t end, bytes new):
    cdef const char* p = PyBytes_AS_STRING(body)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body), added = PyBytes_GET_SIZE(new)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size - (end - start) + added)
    cdef char* to = PyBytes_AS_STRING(result)
    memcpy(to, p, start)
    memcpy(to + start, PyBytes_AS_STRING(new), added)
    memcpy(to + start + added, p + end, size - end)
    return result


cdef bytes with_usage_only(bytes body, weir_peek* k):
    cdef weir_span options = k.span[WEIR_STREAM_OPTIONS], asked = k.span[WEIR_INCLUDE_USAGE]
    if k.usage_asked:
        return body
    if options.start < 0:
        return splice(body, k.end, k.end, (b"," if k.members else b"") + b'"stream_options":{"include_usage":true}')
    if asked.start >= 0:
        return splice(body, asked.start, asked.end, b"true")
    if body[options.start] == c"n":
        return splice(body, options.start, options.end, b'{"include_usage":true}')
    return splice(
        body, options.start + 1, options.start + 1, b'"include_usage":true' + (b"," if k.option_members else b"")
    )


cdef bytes with_model_only(bytes body, weir_peek* k, bytes model):
    cdef weir_span at = k.span[WEIR_MODEL]
    cdef Py_ssize_t size = PyBytes_GET_SIZE(model)
    if at.start < 0:
        raise ValueError("the body names no model")
    if at.end - at.start == size and not memcmp(PyBytes_AS_STRING(body) + at.start, PyBytes_AS_STRING(model), size):
        return body
    return splice(body, at.start, at.end, model)


cdef int check_body(bytes body, Peek facts) except -1:
    """The spans must lie in this body; a wrong one would be read past its end."""
    if facts.k.end == 0 or facts.k.body_bytes != PyBytes_GET_SIZE(body) or body[facts.k.end] != c"}":
        raise ValueError("these facts are of another body")
    return 0


def with_usage(bytes body not None, Peek facts not None, bytes model) -> bytes:
    """The body with usage asked for and, when given, another model; see `_scan.pyi`."""
    cdef Py_ssize_t model_at = facts.k.span[WEIR_MODEL].start, options_at = facts.k.span[WEIR_STREAM_OPTIONS].start
    check_body(body, facts)
    if model is None:
        return with_usage_only(body, &facts.k)
    # From the back, so that the first edit moves nothing that the second needs.
    if model_at > options_at >= 0:
        return with_usage_only(with_model_only(body, &facts.k, model), &facts.k)
    return with_model_only(with_usage_only(body, &facts.k), &facts.k, model)


def with_model(bytes body not None, Peek facts not None, bytes model not None) -> bytes:
    """The body with another model value; nothing else changes."""
    check_body(body, facts)
    return with_model_only(body, &facts.k, model)


include "_answers.pxi"
