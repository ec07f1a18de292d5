# The C headers of _scan, as _scan.pyx uses them. Nothing else needs them: the face for other modules is _scan.pxd.
from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef extern from "_walk.h":
    enum: WJ_LEVELS

cdef extern from "_json.h":
    ctypedef struct wj_str:
        const uint8_t* start
        const uint8_t* end
        int64_t spare
    enum: WJ_STRING_IMAGE
    ctypedef struct wj_string_at:
        uint32_t start
        uint32_t size
        uint32_t kind
        uint32_t escaped
    ctypedef struct wj_strings:
        wj_string_at* at
        uint32_t used
        int incomplete
    size_t wj_decode(const wj_str* s, uint8_t* out, size_t room) noexcept

cdef extern from "_peek.h":
    enum: WEIR_MODEL, WEIR_STREAM_OPTIONS, WEIR_INCLUDE_USAGE
    enum: WEIR_FINE, WEIR_BAD_JSON, WEIR_DUPLICATE_KEY
    enum: WEIR_TOOLS, WEIR_FUNCTIONS, WEIR_TOOL_CHOICE, WEIR_FUNCTION_CALL, WEIR_RESPONSE_FORMAT
    enum: WEIR_PROMPTS
    ctypedef struct weir_span:
        Py_ssize_t start
        Py_ssize_t end
    ctypedef struct weir_peek:
        weir_span* span
        weir_span* part
        wj_str model
        wj_str user
        int stream
        int usage_asked
        int64_t* limit
        int64_t choices
        int64_t text_bytes
        int64_t images
        int64_t token_ids
        int64_t messages
        int64_t unread
        uint8_t* prompt
        Py_ssize_t end
        Py_ssize_t body_bytes
        int members
        int option_members
        const char* why
        int key
        Py_ssize_t at
        wj_strings strings
    const char** weir_param
    int weir_peek_body(
        weir_peek* k, const uint8_t* body, Py_ssize_t size, int depth_max, uint32_t strings_max
    ) noexcept
    void weir_peek_end(weir_peek* k) noexcept
    size_t weir_peek_beside(const weir_peek* k) noexcept
    ctypedef struct weir_prompt_calls:
        int64_t tools
        int64_t parallel
        int64_t functions
        int64_t tool_results
        int64_t function_results
    bint weir_peek_plain(const weir_peek* k, const uint8_t* body) noexcept
    void weir_peek_calls(const weir_peek* k, const uint8_t* body, weir_prompt_calls* found) noexcept

cdef extern from "_head.h":
    enum:
        WEIR_OTHER, WEIR_HOST, WEIR_EXPECT, WEIR_API_KEY, WEIR_X_API_KEY, WEIR_CONNECTION, WEIR_X_TENANT_ID
        WEIR_X_REQUEST_ID, WEIR_AUTHORIZATION, WEIR_CONTENT_LENGTH, WEIR_CONTENT_ENCODING, WEIR_TRANSFER_ENCODING
        WEIR_FORWARD_FIRST, WEIR_CONTENT_TYPE
    enum: WEIR_PLAIN, WEIR_BREAKS
    const char** weir_field_name
    int weir_field(const uint8_t* name, Py_ssize_t n) noexcept
    bint weir_same(const uint8_t* name, Py_ssize_t n, const char* text, Py_ssize_t text_bytes) noexcept
    int weir_value_kind(const uint8_t* p, Py_ssize_t n) noexcept
    bint weir_host_fine(const uint8_t* p, Py_ssize_t n) noexcept
    bint weir_visible(const uint8_t* p, Py_ssize_t n) noexcept
    unsigned weir_hop_fields(const uint8_t* p, Py_ssize_t n) noexcept
