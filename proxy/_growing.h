/* A long piece that still grows, so that neither its end nor its tokens are looked for from its start again.

   What of it cannot change is remembered: how far the run of its characters goes on, and how many tokens its beginning
   has up to a joint of windows (see _merge.h). Each byte is then looked at a bounded number of times however it comes,
   and a count costs one window at most: some microseconds. */

#ifndef WEIR_GROWING_H
#define WEIR_GROWING_H

#include "_bpe.h"

enum { WEIR_STEP_BACK = 1024 };

/* A place where windows were joined. */
typedef struct {
    size_t at, expected; /* bytes of the token there, 0 at the piece's start */
    int64_t tokens;      /* before it */
} weir_mark;

/* A piece, or what would be one if the text ended, counted up to a joint. */
typedef struct {
    size_t from;             /* its start */
    weir_mark joint;         /* the last one */
    weir_mark middle, early; /* ones at least 1,024 bytes before it, and before each other */
    size_t reach;            /* where the windows so far end: a shorter piece needs others */
    int failed;              /* its windows could not be joined: it is counted whole, each time */
} weir_join;

typedef struct {
    /* What the piece is a run of: nothing yet; upper case (o200k); other letters; signs; line ends after signs; white
       space. */
    enum { WEIR_G_NONE, WEIR_G_UPPER, WEIR_G_LETTERS, WEIR_G_SIGNS, WEIR_G_LINES, WEIR_G_BLANK } kind;
    size_t scanned;      /* where the run has come to */
    size_t cut;          /* where the piece would end if the text did and nothing longer was to be: 0 for `scanned` */
    size_t last;         /* of white space: its last character */
    weir_join head, tail; /* the pieces before and after `cut` */
} weir_growing;

/* Follows the run through new text. 1 while it goes on, 0 once something else follows. */
static int weir_growing_on(weir_growing *g, const weir_vocab *v, const uint8_t *text, size_t n) {
    unsigned length;
    while (!weir_unfinished(text, g->scanned, n)) {
        int class = weir_class(v, text, g->scanned, n, &length);
        switch (g->kind) {
        case WEIR_G_UPPER:
            if (class < WEIR_C_UPPER || class > WEIR_C_MARK) return 0;
            if (class == WEIR_C_LOWER) {
                g->kind = WEIR_G_LETTERS;
                g->cut = 0;
            } else if (class != WEIR_C_UPPER) {
                g->cut = g->scanned + length;
            }
            break;
        case WEIR_G_LETTERS:
            if (v->pattern == WEIR_O200K ? class < WEIR_C_LOWER || class > WEIR_C_MARK
                                         : class < WEIR_C_UPPER || class > WEIR_C_LETTER)
                return 0;
            break;
        case WEIR_G_SIGNS:
            if (class == WEIR_C_LINE) g->kind = WEIR_G_LINES;
            else if (class != WEIR_C_OTHER && class != WEIR_C_MARK) return 0;
            break;
        case WEIR_G_LINES:
            if (class != WEIR_C_LINE && !(text[g->scanned] == '/' && v->pattern == WEIR_O200K)) return 0;
            break;
        case WEIR_G_BLANK:
            if (class < WEIR_C_SPACE) return 0;
            g->last = g->scanned;
            if (class == WEIR_C_LINE) g->cut = g->scanned + length;
            break;
        default: return 0;
        }
        g->scanned += length;
    }
    return 1;
}

/* Begins to follow the open piece at the text's start. */
static void weir_growing_start(weir_growing *g, const weir_vocab *v, const uint8_t *text, size_t n) {
    unsigned length;
    int class = weir_class(v, text, 0, n, &length), letter = class >= WEIR_C_UPPER && class <= WEIR_C_LETTER, next;
    memset(g, 0, sizeof *g);
    if (class == WEIR_C_NUMBER) return;
    if (class == WEIR_C_LINE) {
        g->kind = WEIR_G_BLANK;
    } else {
        g->scanned = letter ? 0 : length;
        next = weir_class(v, text, g->scanned, n, &length);
        if (v->pattern == WEIR_O200K ? next >= WEIR_C_UPPER && next <= WEIR_C_MARK
                                     : next >= WEIR_C_UPPER && next <= WEIR_C_LETTER) {
            g->kind = v->pattern == WEIR_O200K ? WEIR_G_UPPER : WEIR_G_LETTERS;
            if (class == WEIR_C_MARK && g->kind == WEIR_G_UPPER) g->cut = g->scanned;
        } else if (class != WEIR_C_SPACE || (text[0] == ' ' && (next == WEIR_C_OTHER || next == WEIR_C_MARK))) {
            g->kind = WEIR_G_SIGNS;
        } else {
            g->kind = WEIR_G_BLANK;
            g->scanned = 0;
        }
    }
    if (!weir_growing_on(g, v, text, n)) g->kind = WEIR_G_NONE;
}

/* Moves the joint on, with windows that no later text can change: the piece may lose its last character. */
static void weir_join_on(weir_join *join, const weir_vocab *v, const uint8_t *text, size_t from, size_t end) {
    int32_t key[WEIR_SPAN], least[16], top[16], id[WEIR_SPAN];
    uint16_t next[WEIR_SPAN], before[WEIR_SPAN], start[WEIR_SPAN + 1];
    weir_units u = {key, least, top, id, next, before, start};
    if (join->from != from || join->reach > end) {
        memset(join, 0, sizeof *join);
        join->from = join->joint.at = join->middle.at = join->early.at = from;
    }
    weir_mark *last = &join->joint;
    while (!join->failed && end > last->at && end - last->at > WEIR_SPAN + 8) {
        weir_joint joint;
        unsigned units;
        weir_merge_in(v, text + last->at, WEIR_SPAN, &u, &units);
        weir_find_joint(&u, units, WEIR_KEEP, &joint);
        if (joint.start == 0 || (last->expected && joint.first_bytes != last->expected)) {
            join->failed = 1;
            return;
        }
        if (last->at - join->middle.at >= WEIR_STEP_BACK) {
            join->early = join->middle;
            join->middle = *last;
        }
        join->reach = last->at + WEIR_SPAN;
        last->tokens += (int64_t)joint.tokens;
        last->at += joint.start;
        last->expected = joint.bytes;
    }
}

/* The tokens of the piece from `from` to `end`; -1 without memory. Near the end the encoding may not have a token where
   the last joint expects it; then it is merged in one from an early joint. */
static int64_t weir_join_count(weir_join *join, weir_encoding *e, const uint8_t *text, size_t from, size_t end) {
    int64_t tokens;
    if (end - from <= WEIR_SPAN) return weir_count_piece(e, text + from, end - from);
    weir_join_on(join, e->v, text, from, end);
    if (!join->failed) {
        tokens = weir_merge(e->v, text + join->joint.at, end - join->joint.at, join->joint.expected);
        if (tokens >= 0) return join->joint.tokens + tokens;
        tokens = weir_merge_wide(e, text + join->early.at, end - join->early.at, join->early.expected);
        if (tokens >= 0) return join->early.tokens + tokens;
    }
    return weir_count_long(e, text + from, end - from);
}

/* Counts what can be counted already. */
static void weir_growing_join(weir_growing *g, const weir_encoding *e, const uint8_t *text) {
    size_t cut = g->cut && !(g->kind == WEIR_G_BLANK && e->v->pattern == WEIR_CL100K) ? g->cut : g->scanned;
    weir_join_on(&g->head, e->v, text, 0, cut);
    if (cut < g->scanned) weir_join_on(&g->tail, e->v, text, cut, g->scanned);
}

/* The tokens of all n bytes as if the text ended; -1 without memory. */
static int64_t weir_growing_count(weir_growing *g, weir_encoding *e, const uint8_t *text, size_t n) {
    size_t end = g->kind == WEIR_G_SIGNS ? n : g->scanned, cut = g->cut;
    int64_t head, tail, rest = 0;
    if (g->kind == WEIR_G_BLANK) {
        /* White space before the first bytes of a character leaves its last one to that. */
        if (end < n) end = g->last > cut ? g->last : cut;
        else if (e->v->pattern == WEIR_CL100K) cut = 0;
    }
    if (cut == 0 || cut > end) cut = end;
    head = cut ? weir_join_count(&g->head, e, text, 0, cut) : 0;
    tail = cut < end ? weir_join_count(&g->tail, e, text, cut, end) : 0;
    if (end < n) rest = weir_count_tokens(e, text + end, n - end);
    return head < 0 || tail < 0 || rest < 0 ? -1 : head + tail + rest;
}

#endif
