/* Counting a text that comes in parts. Complete pieces are counted at once; what may still grow is kept.

   A stream has about half a kilobyte until a piece is long, and belongs to one encoding, which must outlive it. */

#ifndef WEIR_STREAM_H
#define WEIR_STREAM_H

#include <stddef.h>

#include "_growing.h"

enum {
    WEIR_STREAM_INLINE = 192, /* bytes kept in the stream itself; a longer piece is followed as it grows */
};

typedef struct weir_stream {
    weir_encoding *e;
    int64_t tokens; /* of what was settled */
    uint8_t *text;  /* what is pending, from a piece's start on: `kept`, or memory of its own */
    size_t pending, room;
    uint16_t high; /* a high surrogate whose low one may come, or 0 */
    weir_growing growing;
    uint8_t kept[WEIR_STREAM_INLINE];
} weir_stream;

static void weir_stream_start(weir_stream *s, weir_encoding *e) {
    memset(s, 0, offsetof(weir_stream, kept));
    s->e = e;
    s->text = s->kept;
    s->room = WEIR_STREAM_INLINE;
}

static void weir_stream_end(weir_stream *s) {
    if (s->text != s->kept) free(s->text);
    s->text = s->kept;
    s->pending = 0;
    s->room = WEIR_STREAM_INLINE;
}

static int weir_stream_grow(weir_stream *s, size_t more) {
    size_t room = s->room;
    if (more <= room - s->pending) return 0;
    while (room - s->pending < more) {
        if (room > SIZE_MAX / 2) return -1;
        room *= 2;
    }
    uint8_t *text = s->text == s->kept ? malloc(room) : realloc(s->text, room);
    if (text == NULL) return -1;
    if (s->text == s->kept) memcpy(text, s->kept, s->pending);
    s->text = text;
    s->room = room;
    return 0;
}

/* Forgets the first bytes of what is pending: they are counted. */
static void weir_stream_drop(weir_stream *s, size_t bytes) {
    s->pending -= bytes;
    if (s->text != s->kept && s->pending <= WEIR_STREAM_INLINE / 2) {
        memcpy(s->kept, s->text + bytes, s->pending);
        free(s->text);
        s->text = s->kept;
        s->room = WEIR_STREAM_INLINE;
    } else if (bytes) {
        memmove(s->text, s->text + bytes, s->pending);
    }
}

static int weir_stream_add(weir_stream *s, const uint8_t *text, size_t n) {
    size_t used;
    int64_t tokens;
    if (weir_stream_grow(s, n) < 0) return -1;
    memcpy(s->text + s->pending, text, n);
    s->pending += n;
    if (s->growing.kind) {
        int open = 0;
        if (weir_growing_on(&s->growing, s->e->v, s->text, s->pending)) {
            weir_growing_join(&s->growing, s->e, s->text);
            return 0;
        }
        s->growing.kind = WEIR_G_NONE;
        used = weir_piece(s->e->v, s->text, 0, s->pending, &open);
        if (!open) {
            tokens = weir_join_count(&s->growing.head, s->e, s->text, 0, used);
            if (tokens < 0) return -1;
            s->tokens += tokens;
            weir_stream_drop(s, used);
        }
    }
    tokens = weir_run(s->e, s->text, s->pending, 0, &used);
    if (tokens < 0) return -1;
    s->tokens += tokens;
    if (used) weir_stream_drop(s, used);
    if (s->pending > WEIR_STREAM_INLINE) weir_growing_start(&s->growing, s->e->v, s->text, s->pending);
    return 0;
}

static const uint8_t weir_replacement[3] = {0xEF, 0xBF, 0xBD};

/* UTF-8, cut anywhere. 0, or -1 without memory: then the count has lost this text. */
static int weir_stream_feed(weir_stream *s, const uint8_t *text, size_t n) {
    if (n == 0) return 0;
    if (s->high) {
        s->high = 0;
        if (weir_stream_add(s, weir_replacement, 3) < 0) return -1;
    }
    return weir_stream_add(s, text, n);
}

static int weir_hex4(const uint8_t *text) {
    int value = 0;
    for (int i = 0; i < 4; i++) {
        uint8_t c = text[i], letter = c | 0x20;
        int digit = c >= '0' && c <= '9' ? c - '0' : letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
        if (digit < 0) return -1;
        value = value << 4 | digit;
    }
    return value;
}

static size_t weir_utf8(uint8_t *to, uint32_t c) {
    if (c < 0x80) {
        to[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        to[0] = (uint8_t)(0xC0 | c >> 6);
        to[1] = (uint8_t)(0x80 | (c & 63));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = (uint8_t)(0xE0 | c >> 12);
        to[1] = (uint8_t)(0x80 | (c >> 6 & 63));
        to[2] = (uint8_t)(0x80 | (c & 63));
        return 3;
    }
    to[0] = (uint8_t)(0xF0 | c >> 18);
    to[1] = (uint8_t)(0x80 | (c >> 12 & 63));
    to[2] = (uint8_t)(0x80 | (c >> 6 & 63));
    to[3] = (uint8_t)(0x80 | (c & 63));
    return 4;
}

/* One escape after its backslash: its code unit in *c, and its length. What is no escape of JSON (RFC 8259, section 7)
   stands for its own character. */
static size_t weir_escape(const uint8_t *raw, size_t n, uint32_t *c) {
    static const char letters[] = "bfnrt", values[] = "\b\f\n\r\t";
    const char *found;
    if (raw[0] == 'u' && n >= 5) {
        int unit = weir_hex4(raw + 1);
        if (unit >= 0) {
            *c = (uint32_t)unit;
            return 5;
        }
    }
    found = raw[0] ? strchr(letters, raw[0]) : NULL;
    *c = found ? (uint8_t)values[found - letters] : raw[0];
    return 1;
}

/* The inside of one whole JSON string. A high surrogate at its end may find its low one in the next call's string; one
   that is alone counts as U+FFFD, as tiktoken has it. 0, or -1 without memory. */
static int weir_stream_feed_json(weir_stream *s, const uint8_t *raw, size_t n) {
    uint8_t made[256];
    size_t at = 0, filled = 0;
    if (n && s->high == 0 && memchr(raw, '\\', n) == NULL) return weir_stream_add(s, raw, n);
    while (at < n) {
        uint32_t c = raw[at];
        int escaped = c == '\\' && n - at > 1;
        if (filled > sizeof made - 8) {
            if (weir_stream_add(s, made, filled) < 0) return -1;
            filled = 0;
        }
        at++;
        if (escaped) at += weir_escape(raw + at, n - at, &c);
        int low = escaped && c >= 0xDC00 && c < 0xE000;
        if (s->high) {
            uint32_t high = s->high;
            s->high = 0;
            if (low) {
                filled += weir_utf8(made + filled, 0x10000 + ((high & 0x3FF) << 10) + (c & 0x3FF));
                continue;
            }
            memcpy(made + filled, weir_replacement, 3);
            filled += 3;
        }
        if (!escaped) {
            made[filled++] = (uint8_t)c;
        } else if (c >= 0xD800 && c < 0xDC00) {
            s->high = (uint16_t)c;
        } else {
            filled += weir_utf8(made + filled, low ? 0xFFFD : c);
        }
    }
    return filled ? weir_stream_add(s, made, filled) : 0;
}

/* Bytes that are not yet settled. */
static size_t weir_stream_pending(const weir_stream *s) { return s->pending + (s->high ? 3 : 0); }

/* The tokens of all text so far, as if it ended here; -1 without memory. Costs what the pending piece costs, or, once it
   is long, a window of it. */
static int64_t weir_stream_count(weir_stream *s) {
    if (s->pending == 0) return s->tokens + (s->high != 0);
    int64_t tokens;
    if (s->high) {
        if (weir_stream_grow(s, 3) < 0) return -1;
        memcpy(s->text + s->pending, weir_replacement, 3);
        tokens = weir_count_tokens(s->e, s->text, s->pending + 3);
    } else if (s->growing.kind) {
        tokens = weir_growing_count(&s->growing, s->e, s->text, s->pending);
    } else {
        tokens = weir_count_tokens(s->e, s->text, s->pending);
    }
    return tokens < 0 ? -1 : s->tokens + tokens;
}

#endif
