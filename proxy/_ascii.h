/* Splitting ASCII 64 bytes at a time: one bit for each byte, and where pieces start by arithmetic on those words.

   It finds what weir_piece in _split.h finds, and leaves to it whatever is not certain from those bytes alone: what
   stands beside other bytes than ASCII, what reaches the end. */

#ifndef WEIR_ASCII_H
#define WEIR_ASCII_H

#include "_split.h"

#if defined(__SSE2__)
#include <emmintrin.h>

enum { WEIR_ASCII_BLOCK = 64 };

typedef struct {
    uint64_t lower, upper, digit, space, control, line, slash, apostrophe, wide;
} weir_bits;

/* Bytes from `first` on, `count` of them, as a mask of 16. SSE2 compares signed numbers, so zero is moved. */
static inline uint64_t weir_range16(__m128i v, uint8_t first, uint8_t count) {
    __m128i moved = _mm_add_epi8(v, _mm_set1_epi8((char)(128 - first)));
    return (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmplt_epi8(moved, _mm_set1_epi8((char)(count - 128))));
}

static inline uint64_t weir_equal16(__m128i v, char c) {
    return (uint64_t)(uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(v, _mm_set1_epi8(c)));
}

static inline void weir_classify(const uint8_t *text, weir_bits *b) {
    memset(b, 0, sizeof *b);
    for (int i = 0; i < 64; i += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(text + i));
        b->lower |= weir_range16(v, 'a', 26) << i;
        b->upper |= weir_range16(v, 'A', 26) << i;
        b->digit |= weir_range16(v, '0', 10) << i;
        b->control |= weir_range16(v, '\t', 5) << i;
        b->space |= weir_equal16(v, ' ') << i;
        b->line |= (weir_equal16(v, '\n') | weir_equal16(v, '\r')) << i;
        b->slash |= weir_equal16(v, '/') << i;
        b->apostrophe |= weir_equal16(v, '\'') << i;
        b->wide |= (uint64_t)(uint32_t)_mm_movemask_epi8(v) << i;
    }
}

/* Bits from `at` on that are set one after the other. */
static inline unsigned weir_run_of(uint64_t bits, unsigned at) {
    uint64_t rest = ~(bits >> at);
    return rest ? (unsigned)__builtin_ctzll(rest) : 64;
}

/* Whether it is worth it: fewer bytes, or words of another script after an ASCII space, are split sooner one by one. */
static inline int weir_ascii_next(const uint8_t *text, size_t n) {
    uint64_t first;
    if (n < 24) return 0;
    memcpy(&first, text, 8);
    return (first & 0x8080808080808080ull) == 0;
}

/* Starts of pieces among the 64 bytes from a piece's start on: bit 0 is always one. A piece is known with the start of
   the next, so one bit alone says that nothing is known. */
static inline uint64_t weir_ascii_starts(int pattern, const uint8_t *text, size_t n) {
    uint8_t filled[WEIR_ASCII_BLOCK];
    weir_bits b;
    if (n < WEIR_ASCII_BLOCK) {
        memset(filled, 0, sizeof filled);
        memcpy(filled, text, n);
        text = filled;
    }
    weir_classify(text, &b);
    unsigned known = n < WEIR_ASCII_BLOCK ? (unsigned)n : WEIR_ASCII_BLOCK;
    if (b.wide) {
        unsigned first = (unsigned)__builtin_ctzll(b.wide);
        if (first < known) known = first;
    }
    if (known < 4) return 1;
    uint64_t valid = ~0ull >> (64 - known);
    uint64_t letter = (b.lower | b.upper) & valid, digit = b.digit & valid, white = (b.space | b.control) & valid;
    uint64_t sign = valid & ~(letter | digit | white), line = b.line & valid, starts = 1;

    /* Line ends after signs belong to them; in o200k so do slashes after those. The sum carries a bit from the first
       such line end through the run that follows. */
    uint64_t tail = line & (sign << 1);
    if (tail) {
        uint64_t may = pattern == WEIR_O200K ? line | (b.slash & valid) : line;
        tail |= may & ~(may + tail);
        sign &= ~tail;
        line &= ~tail;
        white &= ~tail;
        starts |= (tail << 1) & ~tail;
    }

    /* Digits in threes. */
    uint64_t third = digit & ~(digit << 1), three = digit & digit << 1 & digit << 2 & digit << 3;
    do starts |= third;
    while ((third = third << 3 & three));

    /* White space: at its start, after its last line end, and before its last character. What follows a line end is
       cut off only if it does not run into another. */
    uint64_t blank = white & ~line, indent = blank & line << 1;
    starts |= white & ~(white << 1);
    if (((blank + indent) & ~blank & line) == 0) {
        starts |= indent;
    } else {
        for (uint64_t rest = indent; rest; rest &= rest - 1) {
            unsigned at = (unsigned)__builtin_ctzll(rest), end = at + weir_run_of(blank, at);
            if (end >= 64 || !(line >> end & 1)) starts |= 1ull << at;
        }
    }
    starts |= blank & ~(white >> 1);

    /* Signs, with a space before them; a single one without belongs to the letter after it, as any blank does. */
    uint64_t alone = sign & ~(sign << 1) & ~(b.space << 1);
    starts |= alone;
    starts |= letter & ~((letter | alone | blank) << 1);
    if (pattern == WEIR_O200K) {
        starts |= b.upper & b.lower << 1 & valid;
        uint64_t quote = b.apostrophe & letter << 1 & valid;
        for (unsigned taken = 0; quote; quote &= quote - 1) {
            unsigned at = (unsigned)__builtin_ctzll(quote);
            int open = 0;
            if (at == taken && at) continue; /* the word before it has its contraction */
            size_t length = weir_contraction(text, at, known, &open);
            if (!length) continue;
            taken = at + (unsigned)length;
            starts &= ~(((1ull << length) - 1) << at);
            if (taken < known) starts |= letter & 1ull << taken;
        }
    } else {
        for (uint64_t quote = b.apostrophe & alone & letter >> 1; quote; quote &= quote - 1) {
            unsigned at = (unsigned)__builtin_ctzll(quote);
            int open = 0;
            size_t length = weir_contraction(text, at, known, &open);
            if (length && at + length < known) starts |= letter & 1ull << (at + length);
        }
    }

    /* Certain is what three more bytes are known of; in white space that reaches the end, its start alone. */
    uint64_t open = ~(white << (64 - known));
    unsigned reach = known - (open ? (unsigned)__builtin_clzll(open) : 64), certain = known - 2;
    if (reach + 1 < certain) certain = reach + 1;
    return (starts & ((1ull << certain) - 1)) | 1;
}
#else
enum { WEIR_ASCII_BLOCK = 0 };

static inline int weir_ascii_next(const uint8_t *text, size_t n) { return 0; }

static inline uint64_t weir_ascii_starts(int pattern, const uint8_t *text, size_t n) { return 1; }
#endif

#endif
