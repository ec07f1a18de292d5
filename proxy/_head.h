/* Names and characters of HTTP header fields. */

#ifndef WEIR_HEAD_H
#define WEIR_HEAD_H

#include "_json.h"

/* The fields that Weir reads or forwards; everything else stays here. Those of WEIR_FORWARD_FIRST and later are
   forwarded. */
enum {
    WEIR_OTHER,
    WEIR_HOST,
    WEIR_EXPECT,
    WEIR_API_KEY,
    WEIR_X_API_KEY,
    WEIR_CONNECTION,
    WEIR_X_TENANT_ID,
    WEIR_X_REQUEST_ID,
    WEIR_AUTHORIZATION,
    WEIR_CONTENT_LENGTH,
    WEIR_CONTENT_ENCODING,
    WEIR_TRANSFER_ENCODING,
    WEIR_FORWARD_FIRST,
    WEIR_CONTENT_TYPE = WEIR_FORWARD_FIRST,
    WEIR_ACCEPT,
    WEIR_OPENAI_BETA,
    WEIR_TRACEPARENT,
    WEIR_TRACESTATE,
    WEIR_FIELDS,
};

static const char *const weir_field_name[WEIR_FIELDS] = {
    "", "host", "expect", "api-key", "x-api-key", "connection", "x-tenant-id", "x-request-id", "authorization",
    "content-length", "content-encoding", "transfer-encoding", "content-type", "accept", "openai-beta", "traceparent",
    "tracestate",
};

/* Which field a name is, in any case of letters. */
static int weir_field(const uint8_t *name, Py_ssize_t n) {
    switch (n) {
    case 4: return WJ_LIKE("host") ? WEIR_HOST : WEIR_OTHER;
    case 6: return WJ_LIKE("accept") ? WEIR_ACCEPT : WJ_LIKE("expect") ? WEIR_EXPECT : WEIR_OTHER;
    case 7: return WJ_LIKE("api-key") ? WEIR_API_KEY : WEIR_OTHER;
    case 9: return WJ_LIKE("x-api-key") ? WEIR_X_API_KEY : WEIR_OTHER;
    case 10: return WJ_LIKE("connection") ? WEIR_CONNECTION : WJ_LIKE("tracestate") ? WEIR_TRACESTATE : WEIR_OTHER;
    case 11:
        if (WJ_LIKE("openai-beta")) return WEIR_OPENAI_BETA;
        return WJ_LIKE("traceparent") ? WEIR_TRACEPARENT : WJ_LIKE("x-tenant-id") ? WEIR_X_TENANT_ID : WEIR_OTHER;
    case 12:
        if (WJ_LIKE("content-type")) return WEIR_CONTENT_TYPE;
        return WJ_LIKE("x-request-id") ? WEIR_X_REQUEST_ID : WEIR_OTHER;
    case 13: return WJ_LIKE("authorization") ? WEIR_AUTHORIZATION : WEIR_OTHER;
    case 14: return WJ_LIKE("content-length") ? WEIR_CONTENT_LENGTH : WEIR_OTHER;
    case 16: return WJ_LIKE("content-encoding") ? WEIR_CONTENT_ENCODING : WEIR_OTHER;
    case 17: return WJ_LIKE("transfer-encoding") ? WEIR_TRANSFER_ENCODING : WEIR_OTHER;
    default: return WEIR_OTHER;
    }
}

/* `text` is in lower case. */
static int weir_same(const uint8_t *name, Py_ssize_t n, const char *text, Py_ssize_t text_bytes) {
    return n == text_bytes && wj_like(name, text, (size_t)n);
}

enum { WEIR_PLAIN, WEIR_HIGH, WEIR_BREAKS };

/* Whether a value is ASCII, has bytes from 0x80 on, or has a byte that could end its line: CR, LF or NUL. */
static int weir_value_kind(const uint8_t *p, Py_ssize_t n) {
    int high = 0;
    Py_ssize_t i = 0;
#if defined(__SSE2__)
    const __m128i cr = _mm_set1_epi8('\r'), lf = _mm_set1_epi8('\n'), nul = _mm_setzero_si128();
    for (; n - i >= 16; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(p + i));
        __m128i hit = _mm_or_si128(_mm_cmpeq_epi8(v, cr), _mm_or_si128(_mm_cmpeq_epi8(v, lf), _mm_cmpeq_epi8(v, nul)));
        if (_mm_movemask_epi8(hit)) return WEIR_BREAKS;
        high |= _mm_movemask_epi8(v);
    }
#endif
    for (; i < n; i++) {
        if (p[i] == '\r' || p[i] == '\n' || p[i] == 0) return WEIR_BREAKS;
        high |= p[i] & 0x80;
    }
    return high ? WEIR_HIGH : WEIR_PLAIN;
}

/* Letters, digits and -._:[] : names, IPv4, IPv6 and a port. No host has anything else. */
static int weir_host_fine(const uint8_t *p, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++) {
        const uint8_t c = p[i], low = c | 0x20;
        if ((low >= 'a' && low <= 'z') || (c >= '0' && c <= ':')) continue;
        if (c != '-' && c != '.' && c != '_' && c != '[' && c != ']') return 0;
    }
    return 1;
}

static int weir_visible(const uint8_t *p, Py_ssize_t n) {
    for (Py_ssize_t i = 0; i < n; i++)
        if (p[i] < 0x21 || p[i] > 0x7E) return 0;
    return 1;
}

/* Bits of the forwarded fields that a Connection header names: they are for this hop only (RFC 9110, 7.6.1). */
static unsigned weir_hop_fields(const uint8_t *p, Py_ssize_t n) {
    const uint8_t *end = p + n;
    unsigned named = 0;
    while (p < end) {
        while (p < end && (*p == ' ' || *p == '\t' || *p == ',')) p++;
        const uint8_t *start = p;
        while (p < end && *p != ' ' && *p != '\t' && *p != ',') p++;
        const int field = weir_field(start, p - start);
        if (field >= WEIR_FORWARD_FIRST) named |= 1u << field;
    }
    return named;
}

#endif
