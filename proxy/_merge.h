/* Byte-pair encoding: the two neighbours whose merged token has the lowest rank are merged first, from the left where
   ranks are equal.

   Long pieces are merged window by window. What makes that exact: a sequence of tokens is the encoding of its text if
   each two neighbours are the encoding of theirs (the theorem behind github's rust-gems `bpe`). So where a token of one
   window is also the first token of a window that begins with it, the two may be joined there. */

#ifndef WEIR_MERGE_H
#define WEIR_MERGE_H

#include "_vocab.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum {
    WEIR_SPAN = 256,       /* bytes merged at once on the stack */
    WEIR_KEEP = 208,       /* windows are joined at a token that begins before: what follows needs not be right yet */
    WEIR_SPAN_WIDE = 4096, /* where tokens are too long for that: 66 KB, made when first needed */
};

/* A unit's rank and its place in one number, so that the least of many says where it is too. */
enum { WEIR_PLACE_BITS = 12 };

/* What is being merged: units in a row, each with the key of its merge with the next one. Above the keys stand the
   least of each 16, and the least of each 16 of those. */
typedef struct {
    int32_t *key, *least, *top; /* top has 16 */
    int32_t *id;
    uint16_t *next, *before, *start; /* start: of the unit's bytes; next: of the last unit is the units' number */
} weir_units;

typedef struct weir_units_wide {
    int32_t key[WEIR_SPAN_WIDE], least[WEIR_SPAN_WIDE / 16], top[16], id[WEIR_SPAN_WIDE];
    uint16_t next[WEIR_SPAN_WIDE], before[WEIR_SPAN_WIDE], start[WEIR_SPAN_WIDE + 1];
} weir_units_wide;

static inline int32_t weir_keyed(int32_t rank, unsigned place) {
    return rank == WEIR_NONE ? WEIR_NONE : (int32_t)((uint32_t)rank << WEIR_PLACE_BITS | place);
}

#if defined(__SSE2__)
static inline __m128i weir_min_of(__m128i a, __m128i b) {
    __m128i less = _mm_cmplt_epi32(a, b);
    return _mm_or_si128(_mm_and_si128(less, a), _mm_andnot_si128(less, b));
}

static inline int32_t weir_min(const int32_t *r) {
    const __m128i *a = (const __m128i *)r;
    __m128i m = weir_min_of(_mm_loadu_si128(a), _mm_loadu_si128(a + 1));
    m = weir_min_of(m, weir_min_of(_mm_loadu_si128(a + 2), _mm_loadu_si128(a + 3)));
    m = weir_min_of(m, _mm_shuffle_epi32(m, 0x4E));
    return _mm_cvtsi128_si32(weir_min_of(m, _mm_shuffle_epi32(m, 0xB1)));
}
#else
static inline int32_t weir_min(const int32_t *r) {
    int32_t least = r[0];
    for (int i = 1; i < 16; i++) least = r[i] < least ? r[i] : least;
    return least;
}
#endif

enum { WEIR_SEAM_LEFT = 1, WEIR_SEAM_RIGHT = 2 };

static inline int weir_seam_bit(const uint8_t *bits, uint64_t bit) { return bits[bit >> 3] >> (bit & 7) & 1; }

static inline int weir_seam_marked(const uint8_t *bits, const uint8_t *text, size_t at, size_t n) {
    uint64_t near = (uint64_t)text[at - 1] << 8 | text[at];
    if (WEIR_LIKELY(!weir_seam_bit(bits, near))) return 0;
    if (at >= 2 && !weir_seam_bit(bits + 8192, ((uint64_t)text[at - 2] << 16 | near) * WEIR_MIX_A >> 48)) return 0;
    return at + 1 >= n || weir_seam_bit(bits + 16384, (near << 8 | text[at + 1]) * WEIR_MIX_A >> 48);
}

/* Which characters beside a seam must start as their bytes, because some token may take a part of them. */
static inline int weir_seam(const weir_vocab *v, const uint8_t *text, size_t at, size_t n) {
    return (weir_seam_marked(v->seams, text, at, n) ? WEIR_SEAM_LEFT : 0) |
           (weir_seam_marked(v->seams + 3 * 8192, text, at, n) ? WEIR_SEAM_RIGHT : 0);
}

/* The token of the character at the text's start if it is one, and its length in any case; 0 for what is no character
   of two to four bytes, or is followed by more of their kind. */
static inline size_t weir_character(const weir_vocab *v, const uint8_t *text, size_t n, int32_t *id) {
    uint8_t lead = text[0];
    size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    uint32_t point;
    if (lead < 0xC2 || lead > 0xF4 || length > n) return 0;
    if (!weir_rest(text[1], length > 2 ? text[2] : 0x80, length > 3 ? text[3] : 0x80)) return 0;
    if (length < n && (text[length] & 0xC0) == 0x80) return 0;
    if (length == 2) {
        point = (lead & 31u) << 6 | (text[1] & 63u);
    } else if (length == 3) {
        point = (lead & 15u) << 12 | (text[1] & 63u) << 6 | (text[2] & 63u);
        if (point < 0x800) point = 0; /* written too long, and so no UTF-8 */
    } else {
        point = (lead & 7u) << 18 | (text[1] & 63u) << 12 | (text[2] & 63u) << 6 | (text[3] & 63u);
        point = point >> 12 == 0x1F ? point - 0x1F000 + 0x10000 : 0; /* code point 0 is no character's token */
    }
    *id = point ? v->chars[point] : WEIR_NONE;
    return length;
}

/* Splits text into the units that merging starts from; returns their number. A character that is a token is one unit
   where its seams allow it; else its bytes are. */
static inline unsigned weir_start(const weir_vocab *v, const uint8_t *text, size_t n, const weir_units *u) {
    unsigned units = 0;
    int seam = 0; /* before `at` */
    size_t at = 0;
    while (at < n) {
        int32_t id;
        size_t length = text[at] < 0x80 ? 0 : weir_character(v, text + at, n - at, &id), end = at + length;
        u->start[units] = (uint16_t)at;
        if (length == 0) {
            u->id[units++] = v->byte[text[at++]];
            seam = at < n && text[at] >= 0xC0 ? weir_seam(v, text, at, n) : 0;
            continue;
        }
        int before = seam;
        seam = end < n ? weir_seam(v, text, end, n) : 0;
        if (id != WEIR_NONE && !(before & WEIR_SEAM_RIGHT) && !(seam & WEIR_SEAM_LEFT)) {
            u->id[units++] = id;
            at = end;
            continue;
        }
        for (; at < end; at++) {
            u->start[units] = (uint16_t)at;
            u->id[units++] = v->byte[text[at]];
        }
    }
    u->start[units] = (uint16_t)n;
    return units;
}

/* The rank of each unit's merge with the next one at the start. */
static inline int32_t weir_first_rank(const weir_vocab *v, const uint8_t *text, const weir_units *u, unsigned i) {
    unsigned at = u->start[i];
    if (u->start[i + 2] - at == 2) return v->couple[text[at] << 8 | text[at + 1]];
    return weir_pair(v, u->id[i], u->id[i + 1]);
}

/* Merges n bytes (as many as the units have room for) and leaves the tokens linked from unit 0; returns their number.
   `units_out` is the number of units at the start, which ends the chain. */
static unsigned weir_merge_in(
    const weir_vocab *v, const uint8_t *text, size_t n, const weir_units *u, unsigned *units_out
) {
    unsigned units = weir_start(v, text, n, u), left = units, blocks = (units + 15) / 16, tops = (blocks + 15) / 16, i;
    *units_out = units;
    for (i = 0; i < units; i++) {
        u->next[i] = (uint16_t)(i + 1);
        u->before[i] = (uint16_t)(i - 1);
    }
    for (i = 0; i + 1 < units; i++) u->key[i] = weir_keyed(weir_first_rank(v, text, u, i), i);
    for (; i < blocks * 16; i++) u->key[i] = WEIR_NONE;
    for (i = 0; i < blocks; i++) u->least[i] = weir_min(u->key + 16 * i);
    for (; i < tops * 16; i++) u->least[i] = WEIR_NONE;
    for (i = 0; i < tops; i++) u->top[i] = weir_min(u->least + 16 * i);
    for (; i < 16; i++) u->top[i] = WEIR_NONE;
    for (;;) {
        int32_t least = tops == 1 ? u->top[0] : weir_min(u->top), rank = least >> WEIR_PLACE_BITS;
        if (least == WEIR_NONE) break;
        unsigned at = (unsigned)least & ((1u << WEIR_PLACE_BITS) - 1);
        unsigned taken = u->next[at], after = u->next[taken], before = at > 0 ? u->before[at] : at;
        u->id[at] = rank;
        u->key[taken] = u->key[at] = WEIR_NONE;
        u->next[at] = (uint16_t)after;
        left--;
        if (after < units) {
            u->before[after] = (uint16_t)at;
            u->key[at] = weir_keyed(weir_pair(v, rank, u->id[after]), at);
        }
        if (at > 0) u->key[before] = weir_keyed(weir_pair(v, u->id[before], rank), before);
        unsigned block = at / 16, group = at / 256;
        u->least[block] = weir_min(u->key + 16 * block);
        if (taken / 16 != block) u->least[taken / 16] = weir_min(u->key + 16 * (taken / 16));
        if (before / 16 != block) u->least[before / 16] = weir_min(u->key + 16 * (before / 16));
        u->top[group] = weir_min(u->least + 16 * group);
        if (tops == 1) continue;
        if (taken / 256 != group) u->top[taken / 256] = weir_min(u->least + 16 * (taken / 256));
        if (before / 256 != group) u->top[before / 256] = weir_min(u->least + 16 * (before / 256));
    }
    return left;
}

/* Where a window may be joined to the next. */
typedef struct {
    size_t first_bytes;          /* its first token */
    size_t start, bytes, tokens; /* the last token that begins before `keep`, and the number of tokens before it */
} weir_joint;

static void weir_find_joint(const weir_units *u, unsigned units, size_t keep, weir_joint *joint) {
    unsigned at = 0, tokens = 0;
    joint->first_bytes = u->start[u->next[0]];
    while (u->next[at] < units && u->start[u->next[at]] < keep) {
        at = u->next[at];
        tokens++;
    }
    joint->start = u->start[at];
    joint->bytes = (size_t)u->start[u->next[at]] - joint->start;
    joint->tokens = tokens;
}

/* The tokens of a piece, merged in windows of so many bytes; -1 where two windows could not be joined, or where the
   first token has not the `expected` bytes, if any are. */
static int64_t weir_merge_windows(
    const weir_vocab *v, const uint8_t *text, size_t n, size_t window, size_t keep, size_t expected, const weir_units *u
) {
    weir_joint joint = {0, 0, 0, 0};
    size_t at = 0;
    int64_t tokens = 0;
    unsigned units;
    while (n - at > window) {
        /* The text of the window before once more has its result once more: runs cost a comparison. */
        if (joint.start == 0 || memcmp(text + at - joint.start, text + at, window) != 0) {
            weir_merge_in(v, text + at, window, u, &units);
            weir_find_joint(u, units, keep, &joint);
        }
        if (joint.start == 0 || (expected && joint.first_bytes != expected)) return -1;
        tokens += (int64_t)joint.tokens;
        at += joint.start;
        expected = joint.bytes;
    }
    tokens += weir_merge_in(v, text + at, n - at, u, &units);
    return !expected || u->start[u->next[0]] == expected ? tokens : -1;
}

/* The tokens of up to 256 bytes, merged on the stack; of more, window by window, or -1. */
static int64_t weir_merge(const weir_vocab *v, const uint8_t *text, size_t n, size_t expected) {
    int32_t key[WEIR_SPAN], least[16], top[16], id[WEIR_SPAN];
    uint16_t next[WEIR_SPAN], before[WEIR_SPAN], start[WEIR_SPAN + 1];
    weir_units u = {key, least, top, id, next, before, start};
    return weir_merge_windows(v, text, n, WEIR_SPAN, WEIR_KEEP, expected, &u);
}

/* Whether the bytes are one token, however many. */
static int weir_token(const weir_vocab *v, const uint8_t *text, size_t n) {
    if (n == 1) return 1;
    return n <= 15 ? weir_known(v, weir_key_of(text, n, n), n) : weir_known_long(v, text, n, weir_long_hash(text, n));
}

/* The tokens of any piece without windows: of each beginning of it, the last token is the one that stands well beside
   the last token of what is before it. Needs the memory of one token's length, and a lot of time. */
static int64_t weir_merge_slowly(const weir_vocab *v, const uint8_t *text, size_t n) {
    enum { RING = 2 * WEIR_TOKEN_MAX };
    struct {
        int64_t tokens;
        size_t last;
    } ring[RING] = {{0, 0}};
    int32_t key[WEIR_SPAN], least[16], top[16], id[WEIR_SPAN];
    uint16_t next[WEIR_SPAN], before[WEIR_SPAN], start[WEIR_SPAN + 1];
    weir_units u = {key, least, top, id, next, before, start};
    for (size_t end = 1; end <= n; end++) {
        size_t bytes = end < v->long_max ? end : v->long_max;
        for (; bytes > 1; bytes--) {
            size_t last = ring[(end - bytes) % RING].last;
            unsigned units;
            if (!weir_token(v, text + end - bytes, bytes)) continue;
            if (last == 0) break;
            if (weir_merge_in(v, text + end - bytes - last, bytes + last, &u, &units) == 2 && start[next[0]] == last) break;
        }
        ring[end % RING].tokens = ring[(end - bytes) % RING].tokens + 1;
        ring[end % RING].last = bytes;
    }
    return ring[n % RING].tokens;
}

#endif
