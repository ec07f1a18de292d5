/* The first step of counting: text into pieces, as the encodings' patterns say (tiktoken 0.14,
   tiktoken_ext/openai_public.py), written out by hand because the patterns need no searching back.

   A piece whose end would move if text followed is reported as open: a stream keeps it until more has come. */

#ifndef WEIR_SPLIT_H
#define WEIR_SPLIT_H

#include "_vocab.h"

/* Whether at the end of what is there the next character, or its rest, is still to come. */
static inline int weir_unfinished(const uint8_t *text, size_t at, size_t n) {
    if (at >= n) return 1;
    return text[at] >= 0xC0 && n - at < (text[at] < 0xE0 ? 2u : text[at] < 0xF0 ? 3u : 4u);
}

/* Length of 's 't 're 've 'm 'll 'd in either case at `at`, or 0. U+017F is another s. */
static inline size_t weir_contraction(const uint8_t *text, size_t at, size_t n, int *open) {
    if (at < n && text[at] != '\'') return 0;
    if (n - at < 2) {
        *open = 1;
        return 0;
    }
    uint8_t letter = text[at + 1] | 0x20, second;
    if (text[at + 1] == 0xC5) {
        if (n - at < 3) *open = 1;
        return n - at > 2 && text[at + 2] == 0xBF ? 3 : 0;
    }
    if (text[at + 1] < 'A' || text[at + 1] >= 0x80) return 0;
    if (letter == 's' || letter == 't' || letter == 'm' || letter == 'd') return 2;
    if (letter != 'l' && letter != 'r' && letter != 'v') return 0;
    if (n - at < 3) {
        *open = 1;
        return 0;
    }
    second = text[at + 2];
    if (second < 'A' || second >= 0x80) return 0;
    return (second | 0x20) == (letter == 'l' ? 'l' : 'e') ? 3 : 0;
}

/* White space that nothing else took: up to its last line end; all of it at the end of the text; else all but its last
   character, which belongs to what follows, unless it is the only one. */
static size_t weir_blank(const weir_vocab *v, const uint8_t *text, size_t at, size_t n, int *open) {
    size_t end = at, last = at, line = 0;
    unsigned length;
    while (end < n) {
        int class = weir_class(v, text, end, n, &length);
        if (class < WEIR_C_SPACE) break;
        last = end;
        end += length;
        if (class == WEIR_C_LINE) line = end;
    }
    if (weir_unfinished(text, end, n)) *open = 1;
    if (end == n) return line && v->pattern == WEIR_O200K ? line : n;
    if (line) return line;
    return last > at ? last : end;
}

/* One to three digits of any script. */
static inline size_t weir_number(const weir_vocab *v, const uint8_t *text, size_t at, size_t n, int *open) {
    unsigned length;
    for (int digits = 0; digits < 3; digits++) {
        if (weir_unfinished(text, at, n)) *open = 1;
        if (at >= n || weir_class(v, text, at, n, &length) != WEIR_C_NUMBER) break;
        at += length;
    }
    return at;
}

/* Punctuation and marks from `at` on, with the line ends (in o200k: and slashes) after them. */
static inline size_t weir_signs(const weir_vocab *v, const uint8_t *text, size_t at, size_t n, int *open) {
    unsigned length;
    while (at < n) {
        int class = weir_class(v, text, at, n, &length);
        if (class != WEIR_C_OTHER && class != WEIR_C_MARK) break;
        at += length;
    }
    if (weir_unfinished(text, at, n)) *open = 1;
    while (at < n && (text[at] == '\n' || text[at] == '\r' || (text[at] == '/' && v->pattern == WEIR_O200K))) at++;
    if (at == n) *open = 1;
    return at;
}

/* What starts with neither letter nor digit, and is followed by no letter that it could belong to. */
static size_t weir_no_word(
    const weir_vocab *v, const uint8_t *text, size_t at, size_t n, int class, unsigned length, int *open
) {
    if (class == WEIR_C_OTHER || class == WEIR_C_MARK) return weir_signs(v, text, at + length, n, open);
    if (text[at] == ' ') {
        unsigned next_length;
        if (weir_unfinished(text, at + 1, n)) *open = 1;
        if (at + 1 < n) {
            int next = weir_class(v, text, at + 1, n, &next_length);
            if (next == WEIR_C_OTHER || next == WEIR_C_MARK) return weir_signs(v, text, at + 1 + next_length, n, open);
        }
    }
    return weir_blank(v, text, at, n, open);
}

/* o200k: a word is upper case, then lower case; letters without case and marks are both. */
static size_t weir_piece_o200k(const weir_vocab *v, const uint8_t *text, size_t at, size_t n, int *open) {
    unsigned length, next_length;
    int class = weir_class(v, text, at, n, &length), next = WEIR_C_OTHER;
    if (class == WEIR_C_NUMBER) return weir_number(v, text, at, n, open);
    if (class == WEIR_C_LINE) return weir_blank(v, text, at, n, open);
    if (weir_unfinished(text, at, n)) *open = 1;
    int letter = class >= WEIR_C_UPPER && class <= WEIR_C_LETTER;
    size_t start = letter ? at : at + length, end = start, both = 0;
    while (end < n) {
        next = weir_class(v, text, end, n, &next_length);
        if (next < WEIR_C_UPPER || next > WEIR_C_MARK || next == WEIR_C_LOWER) break;
        end += next_length;
        if (next != WEIR_C_UPPER) both = end;
    }
    if (end < n && next == WEIR_C_LOWER) {
        while (end < n) {
            if (text[end] < 0x80) {
                if ((uint8_t)(text[end] - 'a') >= 26) break;
                end++;
                continue;
            }
            next = weir_class_wide(v, text, end, n, &next_length);
            if (next < WEIR_C_LOWER || next > WEIR_C_MARK) break;
            end += next_length;
        }
        if (weir_unfinished(text, end, n)) *open = 1;
        return end + weir_contraction(text, end, n, open);
    }
    if (weir_unfinished(text, end, n)) *open = 1;
    if (both) return both + weir_contraction(text, both, n, open);
    if (class == WEIR_C_MARK) return start + weir_contraction(text, start, n, open);
    if (end > start) return end + weir_contraction(text, end, n, open);
    return weir_no_word(v, text, at, n, class, length, open);
}

/* cl100k: letters of any case, without marks; a contraction is a piece of its own. */
static size_t weir_piece_cl100k(const weir_vocab *v, const uint8_t *text, size_t at, size_t n, int *open) {
    unsigned length, next_length;
    if (text[at] == '\'') {
        size_t contraction = weir_contraction(text, at, n, open);
        if (contraction) return at + contraction;
    }
    int class = weir_class(v, text, at, n, &length);
    if (class == WEIR_C_NUMBER) return weir_number(v, text, at, n, open);
    if (class == WEIR_C_LINE) return weir_blank(v, text, at, n, open);
    if (weir_unfinished(text, at, n)) *open = 1;
    int letter = class >= WEIR_C_UPPER && class <= WEIR_C_LETTER;
    size_t start = letter ? at : at + length, end = start;
    while (end < n) {
        if (text[end] < 0x80) {
            if ((uint8_t)((text[end] | 0x20) - 'a') >= 26) break;
            end++;
            continue;
        }
        int next = weir_class_wide(v, text, end, n, &next_length);
        if (next < WEIR_C_UPPER || next > WEIR_C_LETTER) break;
        end += next_length;
    }
    if (weir_unfinished(text, end, n)) *open = 1;
    if (end > start) return end;
    return weir_no_word(v, text, at, n, class, length, open);
}

/* The end of the piece that starts at `at` < n. */
static inline size_t weir_piece(const weir_vocab *v, const uint8_t *text, size_t at, size_t n, int *open) {
    return v->pattern == WEIR_O200K ? weir_piece_o200k(v, text, at, n, open) : weir_piece_cl100k(v, text, at, n, open);
}

#endif
