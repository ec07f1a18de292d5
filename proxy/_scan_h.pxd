# The C headers of _scan, as _scan.pyx uses them. Nothing else needs them: the face for other modules is _scan.pxd.
from libc.stdint cimport int64_t, uint8_t

cdef extern from "_walk.h":
    enum: WJ_LEVELS

cdef extern from "_json.h":
    ctypedef struct wj_str:
        const uint8_t* start
        const uint8_t* end
    size_t wj_decode(const wj_str* s, uint8_t* out, size_t room) noexcept

cdef extern from "_peek.h":
    enum: WEIR_MODEL, WEIR_STREAM_OPTIONS, WEIR_INCLUDE_USAGE
    enum: WEIR_FINE, WEIR_BAD_JSON, WEIR_DUPLICATE_KEY
    ctypedef struct weir_span:
        Py_ssize_t start
        Py_ssize_t end
    ctypedef struct weir_peek:
        weir_span* span
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
        Py_ssize_t end
        int members
        int option_members
        const char* why
        int key
        Py_ssize_t at
    const char** weir_param
    int weir_peek_body(weir_peek* k, const uint8_t* body, Py_ssize_t size, int depth_max) noexcept

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
