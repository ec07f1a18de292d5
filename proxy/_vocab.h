/* A vocabulary as one mapped file, and what is looked up in it. The writer is proxy/tokens/build.py.

   The head has 4,096 bytes: see weir_table_head; magic at 0, version at 8, the whole file's size at 16. Parts follow,
   each at a multiple of 4,096. A table's sha256 is the supervisor's matter; here nothing that a damaged table says may
   lead out of its mapping or into an endless loop: sizes are checked at the opening, indices are masked or checked. */

#ifndef WEIR_VOCAB_H
#define WEIR_VOCAB_H

#include <stdint.h>
#include <string.h>

#define WEIR_MIX_A 0x9E3779B97F4A7C15ull
#define WEIR_MIX_B 0xD6E8FEB86659FD93ull
#define WEIR_NONE 0x7FFFFFFF /* no token: above every rank, so that a search for the least one passes over it */
#define WEIR_LIKELY(x) __builtin_expect(!!(x), 1)
#define WEIR_TABLE_VERSION 1u
#define WEIR_TABLE_HEAD 4096u
#define WEIR_ID_BITS 18
#define WEIR_FILTER_BITS 21
#define WEIR_PROBES_MAX 4096u /* a table built well needs about 200 */
#define WEIR_TOKEN_MAX 128u   /* bytes of the longest token: two of them fill a window of the merge */

enum { WEIR_CL100K, WEIR_O200K, WEIR_PATTERNS };

/* Classes of code points, as in proxy/tokens/vocabulary.py. Letters and marks lie together, white space is last. */
enum { WEIR_C_OTHER, WEIR_C_UPPER, WEIR_C_LOWER, WEIR_C_LETTER, WEIR_C_MARK, WEIR_C_NUMBER, WEIR_C_SPACE, WEIR_C_LINE };

enum {
    WEIR_P_BYTE,   /* i32[256]: the token of each byte */
    WEIR_P_COUPLE, /* i32[65536]: the token of each two bytes */
    WEIR_P_PAIR,   /* u64: left, right and merged token, 18 bits each; all ones when empty */
    WEIR_P_FILTER, /* bits: 0 when no such pair exists */
    WEIR_P_SHORT,  /* u64: a token of 2 to 7 bytes, its length in the top byte; 0 when empty */
    WEIR_P_MIDDLE, /* 2 x u64: a token of 8 to 15 bytes, its length in the top byte of the second */
    WEIR_P_LONG,   /* 2 x u64: hash of a longer token; its place in P_TEXT, and its length from bit 32 on */
    WEIR_P_TEXT,
    WEIR_P_INDEX,  /* u16[8704]: the block of each 128 code points */
    WEIR_P_BLOCKS, /* u8[128] a block: classes; the first is ASCII's */
    WEIR_P_CHARS,  /* i32[69632]: the token of each code point that is one: 0x80 to 0xFFFF, then 0x1F000 to 0x1FFFF */
    WEIR_P_SEAMS,  /* six times 65536 bits: see _seams in build.py */
    WEIR_TABLE_PARTS
};

typedef struct {
    char magic[8];
    uint32_t version, pattern;
    uint64_t bytes;
    uint32_t tokens, token_bytes_max, probes, pair_bits, short_bits, middle_bits, long_bits;
    char name[32];
    uint32_t unused;
    uint64_t part[WEIR_TABLE_PARTS][2]; /* offset, bytes */
} weir_table_head;

typedef struct {
    const int32_t *byte, *couple, *chars;
    const uint64_t *pair, *shorts, *middles, *longs;
    const uint8_t *filter, *text, *blocks, *seams;
    const uint16_t *index;
    uint64_t text_bytes;
    uint32_t pair_shift, short_shift, middle_shift, long_shift, probes, long_max;
    int pattern;
    char name[32];
    const void *base;
    size_t size;
} weir_vocab;

/* The class of an ASCII character: what the splitter's short cuts take for granted. */
static inline int weir_ascii_class(int c) {
    if (c == '\n' || c == '\r') return WEIR_C_LINE;
    if (c == ' ' || (c >= '\t' && c <= '\f')) return WEIR_C_SPACE;
    if (c >= '0' && c <= '9') return WEIR_C_NUMBER;
    if ((c | 0x20) >= 'a' && (c | 0x20) <= 'z') return c < 'a' ? WEIR_C_UPPER : WEIR_C_LOWER;
    return WEIR_C_OTHER;
}

/* Why a mapped file is no table of this version, or NULL, and then the vocabulary is filled in. */
static const char *weir_vocab_open(weir_vocab *v, const uint8_t *base, size_t size) {
    const weir_table_head *head = (const weir_table_head *)base;
    const uint8_t *part[WEIR_TABLE_PARTS];
    uint64_t expected[WEIR_TABLE_PARTS] = {0}, blocks;
    if (size < WEIR_TABLE_HEAD) return "is shorter than a table's head of 4096 bytes";
    if (memcmp(head->magic, "WEIRTOKN", 8) != 0) return "is no token table: it does not begin with WEIRTOKN";
    if (head->version != WEIR_TABLE_VERSION) return "is of another version of the format than this build reads";
    if (head->bytes != size) return "has another size than its head says: it was cut or added to";
    if (head->pattern >= WEIR_PATTERNS) return "names a way of splitting text that this build does not know";
    if (memchr(head->name, 0, sizeof head->name) == NULL || head->name[0] == 0) return "has no name in its head";
    if (head->probes > WEIR_PROBES_MAX || head->token_bytes_max > WEIR_TOKEN_MAX || head->pair_bits - 4u > 24u ||
        head->short_bits - 4u > 24u || head->middle_bits - 4u > 24u || head->long_bits - 4u > 24u)
        return "has a head with numbers that no build writes";
    expected[WEIR_P_BYTE] = 256 * 4;
    expected[WEIR_P_COUPLE] = 65536 * 4;
    expected[WEIR_P_PAIR] = 8ull << head->pair_bits;
    expected[WEIR_P_FILTER] = 1u << (WEIR_FILTER_BITS - 3);
    expected[WEIR_P_SHORT] = 8ull << head->short_bits;
    expected[WEIR_P_MIDDLE] = 16ull << head->middle_bits;
    expected[WEIR_P_LONG] = 16ull << head->long_bits;
    expected[WEIR_P_INDEX] = 8704 * 2;
    expected[WEIR_P_CHARS] = (65536 + 4096) * 4;
    expected[WEIR_P_SEAMS] = 6 * 8192;
    for (int i = 0; i < WEIR_TABLE_PARTS; i++) {
        uint64_t offset = head->part[i][0], bytes = head->part[i][1];
        if (offset < WEIR_TABLE_HEAD || offset % 8 || offset > size || bytes > size - offset)
            return "has a part that lies outside the file";
        if (bytes == 0 || (expected[i] && bytes != expected[i])) return "has a part of the wrong size";
        part[i] = base + offset;
    }
    blocks = head->part[WEIR_P_BLOCKS][1] / 128;
    for (int i = 0; i < 8704; i++)
        if (((const uint16_t *)part[WEIR_P_INDEX])[i] >= blocks) return "names a block of classes that it does not have";
    if (((const uint16_t *)part[WEIR_P_INDEX])[0] != 0) return "does not have the classes of ASCII first";
    for (int c = 0; c < 128; c++)
        if (part[WEIR_P_BLOCKS][c] != weir_ascii_class(c)) return "has classes of ASCII that no build writes";
    for (uint64_t i = 128; i < blocks * 128; i++)
        if (part[WEIR_P_BLOCKS][i] > WEIR_C_LINE) return "has a class of characters that no build writes";
    v->byte = (const int32_t *)part[WEIR_P_BYTE];
    v->couple = (const int32_t *)part[WEIR_P_COUPLE];
    v->pair = (const uint64_t *)part[WEIR_P_PAIR];
    v->filter = part[WEIR_P_FILTER];
    v->shorts = (const uint64_t *)part[WEIR_P_SHORT];
    v->middles = (const uint64_t *)part[WEIR_P_MIDDLE];
    v->longs = (const uint64_t *)part[WEIR_P_LONG];
    v->text = part[WEIR_P_TEXT];
    v->text_bytes = head->part[WEIR_P_TEXT][1];
    v->index = (const uint16_t *)part[WEIR_P_INDEX];
    v->blocks = part[WEIR_P_BLOCKS];
    v->chars = (const int32_t *)part[WEIR_P_CHARS];
    v->seams = part[WEIR_P_SEAMS];
    v->pair_shift = 64 - head->pair_bits;
    v->short_shift = 64 - head->short_bits;
    v->middle_shift = 64 - head->middle_bits;
    v->long_shift = 64 - head->long_bits;
    v->probes = head->probes;
    v->long_max = head->token_bytes_max;
    v->pattern = (int)head->pattern;
    memcpy(v->name, head->name, sizeof v->name);
    v->base = base;
    v->size = size;
    return NULL;
}

/* A pair of neighbours; the byte of the filter, and below the slot, where the pair is looked for. */
static inline uint64_t weir_pair_key(int32_t left, int32_t right) {
    return ((uint64_t)(uint32_t)left << WEIR_ID_BITS) | (uint32_t)right;
}

static inline const uint8_t *weir_filter_of(const weir_vocab *v, uint64_t key) {
    return v->filter + (key * WEIR_MIX_A >> (64 - WEIR_FILTER_BITS + 3));
}

/* Whether there is no such pair for certain. */
static inline int weir_filtered(const weir_vocab *v, uint64_t key) {
    return !(*weir_filter_of(v, key) >> (key * WEIR_MIX_A >> (64 - WEIR_FILTER_BITS) & 7) & 1);
}

/* Where there is nothing to look for (`may` is 0) that is the first slot: chance decides, and a branch would often be
   guessed wrongly. */
static inline const uint64_t *weir_slot_if(const weir_vocab *v, uint64_t key, uint64_t may) {
    return v->pair + (key * WEIR_MIX_A >> v->pair_shift) * may;
}

/* The token that a pair which the filter lets pass merges into, or WEIR_NONE. */
static inline int32_t weir_slot_rank(const weir_vocab *v, uint64_t key) {
    uint64_t at = key * WEIR_MIX_A >> v->pair_shift, mask = (1ull << (64 - v->pair_shift)) - 1;
    for (uint32_t probe = 0; probe <= v->probes; probe++) {
        uint64_t slot = v->pair[at];
        if ((slot >> WEIR_ID_BITS) == key) return (int32_t)(slot & ((1u << WEIR_ID_BITS) - 1));
        if (slot == ~0ull) break;
        at = (at + 1) & mask;
    }
    return WEIR_NONE;
}

/* The token that two neighbours merge into, or WEIR_NONE. */
static inline int32_t weir_pair(const weir_vocab *v, int32_t left, int32_t right) {
    uint64_t key = weir_pair_key(left, right);
    return weir_filtered(v, key) ? WEIR_NONE : weir_slot_rank(v, key);
}

/* Up to 15 bytes and their number as two words: how short pieces are compared, hashed and remembered. */
typedef struct {
    uint64_t low, high;
} weir_key;

static inline weir_key weir_key_of(const uint8_t *text, size_t n, size_t readable) {
    weir_key key;
    if (WEIR_LIKELY(readable >= 16)) {
        /* Which of the two the text ends in is as good as random: no branch decides it. */
        uint64_t rest = (1ull << 8 * (n & 7)) - 1, two = 0 - (uint64_t)(n >> 3);
        memcpy(&key.low, text, 8);
        memcpy(&key.high, text + 8, 8);
        key.low &= rest | two;
        key.high &= rest & two;
    } else {
        uint8_t bytes[16] = {0};
        memcpy(bytes, text, n);
        memcpy(&key.low, bytes, 8);
        memcpy(&key.high, bytes + 8, 8);
    }
    key.high |= (uint64_t)n << 56;
    return key;
}

static inline uint64_t weir_short_home(const weir_vocab *v, weir_key key) {
    return ((key.low | key.high) * WEIR_MIX_A) >> v->short_shift;
}

static inline uint64_t weir_middle_home(const weir_vocab *v, weir_key key) {
    uint64_t mixed = (key.low * WEIR_MIX_A) ^ (key.high * WEIR_MIX_B);
    return ((mixed ^ (mixed >> 32)) * WEIR_MIX_A) >> v->middle_shift;
}

/* Whether 2 to 15 bytes are one token. */
static inline int weir_known(const weir_vocab *v, weir_key key, size_t n) {
    if (n <= 7) {
        uint64_t word = key.low | key.high, at = weir_short_home(v, key), mask = (1ull << (64 - v->short_shift)) - 1;
        for (uint32_t probe = 0; probe <= v->probes; probe++, at = (at + 1) & mask) {
            if (v->shorts[at] == word) return 1;
            if (v->shorts[at] == 0) return 0;
        }
        return 0;
    }
    uint64_t at = weir_middle_home(v, key), mask = (1ull << (64 - v->middle_shift)) - 1;
    for (uint32_t probe = 0; probe <= v->probes; probe++, at = (at + 1) & mask) {
        const uint64_t *slot = v->middles + 2 * at;
        if (slot[1] == key.high && slot[0] == key.low) return 1;
        if (slot[1] == 0) return 0;
    }
    return 0;
}

/* Of more than 15 bytes: eight at a time, the last word filled with zeros. */
static inline uint64_t weir_long_hash(const uint8_t *text, size_t n) {
    uint64_t mixed = (uint64_t)n * WEIR_MIX_B, word;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        memcpy(&word, text + i, 8);
        mixed = (mixed ^ word) * WEIR_MIX_A;
        mixed ^= mixed >> 29;
    }
    if (i < n) {
        word = 0;
        memcpy(&word, text + i, n - i);
        mixed = (mixed ^ word) * WEIR_MIX_A;
        mixed ^= mixed >> 29;
    }
    return mixed;
}

static inline uint64_t weir_long_home(const weir_vocab *v, uint64_t hash) {
    return ((hash ^ (hash >> 32)) * WEIR_MIX_A) >> v->long_shift;
}

/* Whether more than 15 bytes with this hash are one token. */
static int weir_known_long(const weir_vocab *v, const uint8_t *text, size_t n, uint64_t hash) {
    uint64_t at = weir_long_home(v, hash), mask = (1ull << (64 - v->long_shift)) - 1;
    for (uint32_t probe = 0; probe <= v->probes; probe++, at = (at + 1) & mask) {
        const uint64_t *slot = v->longs + 2 * at;
        if (slot[1] == 0) return 0;
        if (slot[0] != hash || slot[1] >> 32 != n) continue;
        uint64_t place = (uint32_t)slot[1];
        if (place + n <= v->text_bytes && memcmp(v->text + place, text, n) == 0) return 1;
    }
    return 0;
}

/* Whether all three are bytes within a character. Without this look the class of what is no UTF-8 would depend on what
   follows it, and a stream's count on where it was cut. */
static inline int weir_rest(uint8_t a, uint8_t b, uint8_t c) {
    return (((a ^ 0x80) | (b ^ 0x80) | (c ^ 0x80)) & 0xC0) == 0;
}

/* The class of the code point at `at` and its length; what is no UTF-8 is one byte of class OTHER. */
static inline int weir_class_wide(const weir_vocab *v, const uint8_t *text, size_t at, size_t n, unsigned *length) {
    uint32_t c = text[at];
    *length = 1;
    if (c >= 0xF0) {
        if (n - at < 4 || !weir_rest(text[at + 1], text[at + 2], text[at + 3])) return WEIR_C_OTHER;
        c = ((c & 7) << 18) | ((text[at + 1] & 63u) << 12) | ((text[at + 2] & 63u) << 6) | (text[at + 3] & 63u);
        if (c > 0x10FFFF) return WEIR_C_OTHER;
        *length = 4;
    } else if (c >= 0xE0) {
        if (n - at < 3 || !weir_rest(text[at + 1], text[at + 2], 0x80)) return WEIR_C_OTHER;
        c = ((c & 15) << 12) | ((text[at + 1] & 63u) << 6) | (text[at + 2] & 63u);
        *length = 3;
    } else if (c >= 0xC0) {
        if (n - at < 2 || !weir_rest(text[at + 1], 0x80, 0x80)) return WEIR_C_OTHER;
        c = ((c & 31) << 6) | (text[at + 1] & 63u);
        *length = 2;
    } else {
        return WEIR_C_OTHER;
    }
    return v->blocks[((size_t)v->index[c >> 7] << 7) | (c & 127)];
}

static inline int weir_class(const weir_vocab *v, const uint8_t *text, size_t at, size_t n, unsigned *length) {
    if (WEIR_LIKELY(text[at] < 0x80)) {
        *length = 1;
        return v->blocks[text[at]];
    }
    return weir_class_wide(v, text, at, n, length);
}

#endif
