/* Reads JSON text in one pass without building anything: no allocation, no recursion, nothing kept. Strings, numbers
   and the steps of an object; whole values are walked in _walk.h.

   `strict` is RFC 8259 as orjson reads it: valid UTF-8, paired surrogates, finite numbers. Otherwise what Python's
   json takes from an upstream is taken: NaN, Infinity, lone surrogates, any bytes in strings. The structure is checked
   in both. Every function returns the byte after what it read, or NULL after `wj_fail` has noted where and why. */

#ifndef WEIR_JSON_H
#define WEIR_JSON_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#define WJ_INLINE static inline __attribute__((always_inline))
#define WJ_NAME_MAX 63 /* bytes of a decoded key that are looked at: above three times the longest name we know */

/* === where strings stand === */

enum {
    WJ_STRING_ROLE,
    WJ_STRING_NAME,     /* a message's own name */
    WJ_STRING_TEXT,
    WJ_STRING_FUNCTION, /* the name in a message's function_call */
    WJ_STRING_CALL,     /* the name in one of its tool_calls */
    WJ_STRING_ARGUMENTS,
    WJ_STRING_IMAGE, /* a url whose detail is auto or not said; from here on urls, by the detail that is asked for */
    WJ_STRING_IMAGE_LOW,
    WJ_STRING_IMAGE_HIGH,
    WJ_STRING_IMAGE_ORIGINAL,
    WJ_STRING_IMAGE_OTHER,
};

#define WJ_STRING_BYTES_MAX ((1 << 26) - 1) /* of a body whose strings can be noted: above bounds.BODY_BYTES_MAX */
#define WJ_STRINGS_OWN 16                   /* noted without malloc: most calls have fewer */

typedef struct {
    uint32_t start;
    uint32_t size : 26, kind : 4, escaped : 1;
    uint32_t first : 1; /* of its message */
} wj_string_at;

typedef struct {
    wj_string_at *at;
    uint32_t used, room, room_max;
    int incomplete;  /* there were more than room_max, or no memory for them */
    int64_t message; /* which element of `messages` the last one stood in */
    wj_string_at own[WJ_STRINGS_OWN];
} wj_strings;

/* Makes room for as many strings again: 1, or 0 where that is not allowed or not to be had. */
static int wj_strings_grow(wj_strings *strings) {
    const uint32_t room = strings->room * 4 < strings->room_max ? strings->room * 4 : strings->room_max;
    const int own = strings->at == strings->own;
    wj_string_at *at;
    if (room <= strings->room) return 0;
    at = realloc(own ? NULL : strings->at, room * sizeof *at);
    if (!at) return 0;
    if (own) memcpy(at, strings->own, sizeof strings->own);
    strings->at = at;
    strings->room = room;
    return 1;
}

typedef struct {
    const uint8_t *start, *end;
    const uint8_t *at; /* where it is wrong */
    const char *why;
    int depth;     /* objects that are open around a walk */
    int depth_max; /* the outermost object is depth 1 */
    int64_t text;  /* decoded bytes of text, as the walks found them */
    int64_t images;
    int64_t elements; /* of the value itself, where a walk began at an array */
    int64_t numbers;  /* numbers that are elements of an array of texts: token ids */
    wj_strings *strings; /* of a request: where its text stands */
    int64_t unread;      /* of a request: what its prompt says that is neither text nor image */
} wj;

typedef struct {
    const uint8_t *start, *end; /* between the quotes */
    int64_t spare;              /* bytes that decoding saves: 0 exactly where nothing is escaped */
} wj_str;

static const uint8_t *wj_fail(wj *j, const uint8_t *at, const char *why) {
    j->at = at;
    j->why = why;
    return NULL;
}

WJ_INLINE const uint8_t *wj_space(const uint8_t *p, const uint8_t *end) {
    while (p < end && *p <= 0x20 && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) p++;
    return p;
}

/* === strings === */

/* The next byte that needs a look: a quote or backslash, and if strict also a control byte or one of UTF-8's. */
WJ_INLINE const uint8_t *wj_plain(const uint8_t *p, const uint8_t *end, const int strict) {
#if defined(__SSE2__)
    const __m128i quote = _mm_set1_epi8('"'), slash = _mm_set1_epi8('\\'), space = _mm_set1_epi8(0x20);
    while (end - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)p);
        __m128i hit = _mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, slash));
        /* Signed, bytes from 0x80 on are below a space too. */
        if (strict) hit = _mm_or_si128(hit, _mm_cmplt_epi8(v, space));
        int mask = _mm_movemask_epi8(hit);
        if (mask) return p + __builtin_ctz((unsigned)mask);
        p += 16;
    }
#endif
    while (p < end && *p != '"' && *p != '\\' && !(strict && (int8_t)*p < 0x20)) p++;
    return p;
}

/* Bytes of the UTF-8 character at p, 0 when it is none (Unicode, table 3-7). */
WJ_INLINE int wj_utf8(const uint8_t *p, const uint8_t *end) {
    ptrdiff_t room = end - p;
    uint8_t a = p[0];
    if (a < 0xC2) return 0;
    if (a < 0xE0) return room >= 2 && (p[1] & 0xC0) == 0x80 ? 2 : 0;
    if (a < 0xF0) {
        if (room < 3 || (p[1] & 0xC0) != 0x80 || (p[2] & 0xC0) != 0x80) return 0;
        if ((a == 0xE0 && p[1] < 0xA0) || (a == 0xED && p[1] >= 0xA0)) return 0;
        return 3;
    }
    if (a > 0xF4 || room < 4) return 0;
    if ((p[1] & 0xC0) != 0x80 || (p[2] & 0xC0) != 0x80 || (p[3] & 0xC0) != 0x80) return 0;
    if ((a == 0xF0 && p[1] < 0x90) || (a == 0xF4 && p[1] >= 0x90)) return 0;
    return 4;
}

/* The value of four hexadecimal digits, -1 when they are none. */
static int32_t wj_hex4(const uint8_t *p, const uint8_t *end) {
    int32_t value = 0;
    if (end - p < 4) return -1;
    for (int i = 0; i < 4; i++) {
        uint8_t c = p[i], low = c | 0x20;
        if (c >= '0' && c <= '9') value = value << 4 | (c - '0');
        else if (low >= 'a' && low <= 'f') value = value << 4 | (low - 'a' + 10);
        else return -1;
    }
    return value;
}

/* The code point of the \u escape at p; *length is 6, or 12 for a pair. A lone surrogate is itself; -1 is no escape. */
static int32_t wj_unicode(const uint8_t *p, const uint8_t *end, int *length) {
    int32_t high = wj_hex4(p + 2, end);
    *length = 6;
    if (high < 0xD800 || high > 0xDBFF || end - p < 12 || p[6] != '\\' || p[7] != 'u') return high;
    int32_t low = wj_hex4(p + 8, end);
    if (low < 0xDC00 || low > 0xDFFF) return high;
    *length = 12;
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

WJ_INLINE int wj_utf8_length(int32_t point) {
    return point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
}

static const uint8_t *wj_escape(wj *j, const uint8_t *p, wj_str *s, const int strict) {
    if (j->end - p < 2) return wj_fail(j, j->end, "a string does not end");
    switch (p[1]) {
    case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't':
        s->spare += 1;
        return p + 2;
    case 'u':
        break;
    default:
        return wj_fail(j, p, "there is no such escape in a string");
    }
    int length;
    int32_t point = wj_unicode(p, j->end, &length);
    if (point < 0) return wj_fail(j, p, "\\u needs four hexadecimal digits");
    if (strict && point >= 0xD800 && point <= 0xDFFF) return wj_fail(j, p, "a surrogate stands without its pair");
    s->spare += length - wj_utf8_length(point);
    return p + length;
}

/* p is the opening quote. */
WJ_INLINE const uint8_t *wj_string(wj *j, const uint8_t *p, wj_str *s, const int strict) {
    const uint8_t *end = j->end;
    s->start = ++p;
    s->spare = 0;
    for (;;) {
        p = wj_plain(p, end, strict);
        if (p == end) return wj_fail(j, end, "a string does not end");
        if (*p == '"') {
            s->end = p;
            return p + 1;
        }
        if (*p == '\\') {
            p = wj_escape(j, p, s, strict);
            if (!p) return NULL;
            continue;
        }
        if (*p < 0x20) return wj_fail(j, p, "a control character stands unescaped in a string");
        do { /* Scripts without ASCII stay in this loop. */
            int length = wj_utf8(p, end);
            if (!length) return wj_fail(j, p, "the text is not UTF-8");
            p += length;
        } while (p < end && *p >= 0x80);
    }
}

WJ_INLINE int64_t wj_length(const wj_str *s) { return (s->end - s->start) - s->spare; }

/* Writes a scanned string decoded, at most `room` bytes and whole characters only. Returns the bytes written. */
static size_t wj_decode(const wj_str *s, uint8_t *out, size_t room) {
    const uint8_t *p = s->start, *end = s->end;
    size_t n = 0;
    while (p < end) {
        uint8_t one[4];
        int length = 1, taken = 1;
        if (*p != '\\') {
            if (*p >= 0x80 && (length = wj_utf8(p, end)) == 0) length = 1; /* odd bytes stay as they are */
            taken = length;
            memcpy(one, p, (size_t)length);
        } else if (p[1] == 'u') {
            int32_t point = wj_unicode(p, end, &taken);
            length = wj_utf8_length(point);
            if (length == 1) one[0] = (uint8_t)point;
            else {
                static const uint8_t lead[] = {0, 0, 0xC0, 0xE0, 0xF0};
                for (int i = length - 1; i > 0; i--, point >>= 6) one[i] = 0x80 | (point & 0x3F);
                one[0] = (uint8_t)(lead[length] | point);
            }
        } else {
            taken = 2;
            switch (p[1]) {
            case 'b': one[0] = '\b'; break;
            case 'f': one[0] = '\f'; break;
            case 'n': one[0] = '\n'; break;
            case 'r': one[0] = '\r'; break;
            case 't': one[0] = '\t'; break;
            default: one[0] = p[1];
            }
        }
        if (n + (size_t)length > room) break;
        memcpy(out + n, one, (size_t)length);
        n += (size_t)length;
        p += taken;
    }
    return n;
}

/* A key as it is meant: itself, or decoded into `buffer` of WJ_NAME_MAX bytes. A longer one is "", which we never look
   for. */
WJ_INLINE const uint8_t *wj_name(const wj_str *key, uint8_t *buffer, size_t *length) {
    *length = (size_t)wj_length(key);
    if (*length > WJ_NAME_MAX) *length = 0;
    if (!key->spare) return key->start;
    wj_decode(key, buffer, WJ_NAME_MAX);
    return buffer;
}

#define WJ_IS(name, length, text) ((length) == sizeof(text) - 1 && memcmp((name), (text), sizeof(text) - 1) == 0)

/* === numbers and literals === */

/* Whether a number of valid grammar is below the point where a double rounds to infinity: 2**1024 - 2**970. */
static int wj_finite(const uint8_t *p, const uint8_t *end) {
    static const char bound[] =
        "1797693134862315807937289714053034150799341327100378269361737789804449682927647509466490179775872070963"
        "3028641669288791094655554785194040263065748867150582068190890200070838367627385484581771153176447573027"
        "0069855571366959622842914819860834936475292719074168444365510704342711559699508093042880177904174497792";
    const int64_t power_max = 308; /* the bound is 1.79e308 */
    int64_t power = -1, exponent = 0;
    int point = 0, digits = 0, negative = 0;
    const uint8_t *first = NULL, *q = p;
    if (*q == '-') q++;
    for (; q < end && (*q | 0x20) != 'e'; q++) {
        if (*q == '.') {
            point = 1;
            continue;
        }
        if (*q != '0' || digits) {
            if (!first) first = q;
            digits = 1;
        }
        if (digits && !point) power++;
        if (!digits && point) power--;
    }
    if (!first) return 1;
    const uint8_t *stop = q;
    if (q < end) {
        q++;
        if (*q == '-' || *q == '+') negative = *q++ == '-';
        for (; q < end; q++)
            if (exponent < 1000000000000) exponent = exponent * 10 + (*q - '0');
    }
    power += negative ? -exponent : exponent;
    if (power != power_max) return power < power_max;
    const char *limit = bound;
    for (q = first; q < stop; q++) {
        if (*q == '.') continue;
        if (!*limit) return 0;
        if (*q != (uint8_t)*limit) return *q < (uint8_t)*limit;
        limit++;
    }
    return *limit != 0; /* fewer digits than the bound, whose last is not 0: below it */
}

static const uint8_t *wj_digits(const uint8_t *p, const uint8_t *end) {
    while (p < end && (uint8_t)(*p - '0') < 10) p++;
    return p;
}

WJ_INLINE const uint8_t *wj_literal(wj *j, const uint8_t *p, const char *text, size_t n) {
    if ((size_t)(j->end - p) < n || memcmp(p, text, n) != 0) return wj_fail(j, p, "a value is expected");
    return p + n;
}

static const uint8_t *wj_number(wj *j, const uint8_t *p, const int strict) {
    const uint8_t *start = p, *end = j->end, *q;
    int exponent = 0;
    if (*p == '-') p++;
    if (!strict && p < end && *p == 'I') return wj_literal(j, p, "Infinity", 8);
    if (!strict && p == start && *p == 'N') return wj_literal(j, p, "NaN", 3);
    q = wj_digits(p, end);
    if (q == p) return wj_fail(j, start, "a value is expected");
    if (*p == '0' && q > p + 1) return wj_fail(j, start, "a number begins with a needless zero");
    p = q;
    if (p < end && *p == '.') {
        q = wj_digits(p + 1, end);
        if (q == p + 1) return wj_fail(j, start, "a number lacks the digits after its point");
        p = q;
    }
    if (p < end && (*p | 0x20) == 'e') {
        p++;
        if (p < end && (*p == '+' || *p == '-')) p++;
        q = wj_digits(p, end);
        if (q == p) return wj_fail(j, start, "a number lacks the digits of its exponent");
        p = q;
        exponent = 1;
    }
    if (strict && (exponent || p - start > 300) && !wj_finite(start, p))
        return wj_fail(j, start, "a number is too large");
    return p;
}

/* === objects and arrays === */

/* Steps to an object's next member: 1 with its key, *at then stands at the value; 0 at its end, *at behind it; -1 if
   wrong. *at begins behind the opening brace, with *members 0; it counts them. */
WJ_INLINE int wj_member(wj *j, const uint8_t **at, wj_str *key, int *members, const int strict) {
    const uint8_t *end = j->end, *p = wj_space(*at, end);
    if (p < end && *p == '}') {
        *at = p + 1;
        return 0;
    }
    if (*members) {
        if (p == end || *p != ',') return wj_fail(j, p, "a comma or a closing brace is expected"), -1;
        p = wj_space(p + 1, end);
    }
    if (p == end || *p != '"') return wj_fail(j, p, "a key in double quotes is expected"), -1;
    p = wj_string(j, p, key, strict);
    if (!p) return -1;
    p = wj_space(p, end);
    if (p == end || *p != ':') return wj_fail(j, p, "a colon is expected"), -1;
    p = wj_space(p + 1, end);
    if (p == end) return wj_fail(j, p, "a value is expected"), -1;
    *at = p;
    *members += 1;
    return 1;
}

/* Case of ASCII letters is ignored: parsers exist that do (Go's encoding/json), and text must not hide from us there.
   */
WJ_INLINE int wj_like(const uint8_t *name, const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((name[i] | (name[i] >= 'A' && name[i] <= 'Z' ? 0x20 : 0)) != (uint8_t)text[i]) return 0;
    return 1;
}

#define WJ_LIKE(text) wj_like(name, text, sizeof(text) - 1)

#endif
