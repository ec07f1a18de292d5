/* The second step of counting: how many tokens a piece has.

   Most pieces are found: in a cache, or whole in the vocabulary. The others are merged. What takes the time is waiting
   for memory, as neither caches nor table stay near a core that does other work in between; so pieces go through the
   steps in batches, each step asking for what the next one reads, and up to WEIR_JOBS of them are merged in turns. */

#ifndef WEIR_BPE_H
#define WEIR_BPE_H

#include <stdlib.h>

#include "_ascii.h"
#include "_merge.h"

enum {
    WEIR_FRONT_BITS = 15, /* cached pieces up to 15 bytes: 512 KB */
    WEIR_BACK_BITS = 12,  /* cached pieces of 16 to 30 bytes: 128 KB */
    WEIR_FRONT_BYTES = 15,
    WEIR_BACK_BYTES = 30,
    WEIR_JOB_BYTES = 64, /* longer pieces are merged by themselves */
    WEIR_JOBS = 12,      /* merged in turns: about as many cache misses as a core has open at a time */
    WEIR_BATCH = 32,     /* pieces looked up in the caches together */
    WEIR_MISSED = 16,    /* and those not found there, in the vocabulary */
    WEIR_BATCH_MAX = WEIR_BATCH + WEIR_ASCII_BLOCK,
};

typedef struct {
    uint64_t low, high; /* a weir_key, and the number of tokens in the top four bits */
} weir_front;

typedef struct {
    uint8_t text[WEIR_BACK_BYTES], bytes, tokens;
} weir_back;

typedef struct weir_encoding {
    const weir_vocab *v;
    weir_front *front;
    weir_back *back;
    struct weir_units_wide *wide; /* NULL until a long piece needs it */
} weir_encoding;

/* The caches of an encoding; 0 or -1 without memory. The vocabulary stays the caller's. */
static int weir_encoding_start(weir_encoding *e, const weir_vocab *v) {
    e->v = v;
    e->wide = NULL;
    e->front = calloc((size_t)1 << WEIR_FRONT_BITS, sizeof *e->front);
    e->back = calloc((size_t)1 << WEIR_BACK_BITS, sizeof *e->back);
    return e->front && e->back ? 0 : -1;
}

static void weir_encoding_end(weir_encoding *e) {
    free(e->front);
    free(e->back);
    free(e->wide);
    memset(e, 0, sizeof *e);
}

/* --- merging in turns --- */

/* A piece on its way through the batch, and through the merge if it comes to that. */
typedef struct {
    const uint8_t *text;
    size_t n;
    weir_key key;   /* up to 15 bytes; of longer ones `low` is the vocabulary's hash */
    weir_front *front; /* its place in a cache, or neither */
    weir_back *back;
} weir_held;

typedef struct {
    weir_held piece;
    unsigned units, left, blocks;
    uint64_t asked;        /* at the start: bits of the units whose pair is looked up */
    unsigned place[2];     /* later: the two units whose pair is looked up, */
    uint64_t pair[2];      /* those pairs, */
    unsigned may[2];       /* and whether they may exist: `pair` is read even where there is none */
    int32_t key[WEIR_JOB_BYTES], id[WEIR_JOB_BYTES + 1]; /* one more: what follows the last unit is looked at, too */
    uint8_t next[WEIR_JOB_BYTES], before[WEIR_JOB_BYTES + 1];
} weir_job;

/* Splits a piece of 2 to 64 bytes into units and asks whether their pairs may exist. */
static inline void weir_job_start(const weir_vocab *v, weir_job *j, const weir_held *piece) {
    uint16_t start[WEIR_JOB_BYTES + 1];
    weir_units u = {.id = j->id, .start = start};
    const uint8_t *text = piece->text;
    unsigned units = weir_start(v, text, piece->n, &u), i;
    j->piece = *piece;
    j->units = j->left = units;
    j->blocks = (units + 15) / 16;
    j->asked = j->pair[0] = j->pair[1] = 0;
    j->before[0] = 0;
    j->id[units] = 0;
    for (i = 0; i + 1 < units; i++) {
        unsigned at = start[i];
        j->next[i] = (uint8_t)(i + 1);
        j->before[i + 1] = (uint8_t)i;
        if (start[i + 2] - at == 2) {
            j->key[i] = weir_keyed(v->couple[text[at] << 8 | text[at + 1]], i);
        } else {
            j->asked |= 1ull << i;
            j->key[i] = WEIR_NONE;
            __builtin_prefetch(weir_filter_of(v, weir_pair_key(j->id[i], j->id[i + 1])));
        }
    }
    j->next[i] = (uint8_t)units;
    for (; i < j->blocks * 16; i++) j->key[i] = WEIR_NONE;
}

/* Asks for the pairs that may exist. */
static inline void weir_job_filter(const weir_vocab *v, weir_job *j) {
    uint64_t may = 0;
    for (uint64_t rest = j->asked; rest; rest &= rest - 1) {
        unsigned i = (unsigned)__builtin_ctzll(rest);
        uint64_t pair = weir_pair_key(j->id[i], j->id[i + 1]);
        uint64_t known = !weir_filtered(v, pair);
        may |= known << i;
        __builtin_prefetch(weir_slot_if(v, pair, known));
    }
    j->asked = may;
}

static inline void weir_job_rank(const weir_vocab *v, weir_job *j) {
    for (uint64_t rest = j->asked; rest; rest &= rest - 1) {
        unsigned i = (unsigned)__builtin_ctzll(rest);
        j->key[i] = weir_keyed(weir_slot_rank(v, weir_pair_key(j->id[i], j->id[i + 1])), i);
    }
}

/* Merges the pair of the least rank and asks about those with its neighbours. 0 when nothing is left to merge. */
static inline int weir_job_merge(const weir_vocab *v, weir_job *j) {
    int32_t least = weir_min(j->key);
    for (unsigned i = 1; i < j->blocks; i++) {
        int32_t other = weir_min(j->key + 16 * i);
        least = other < least ? other : least;
    }
    /* The whole piece is not one token, so two that are left stay two. */
    if (least == WEIR_NONE || --j->left == 2) return 0;
    int32_t rank = least >> WEIR_PLACE_BITS;
    unsigned at = (unsigned)least & (WEIR_JOB_BYTES - 1), taken = j->next[at], after = j->next[taken];
    j->id[at] = rank;
    j->key[taken] = j->key[at] = WEIR_NONE;
    j->next[at] = (uint8_t)after;
    /* Whether there are neighbours is as good as random: they are asked about in any case, and `may` judges. */
    unsigned before = j->before[at];
    j->key[before] = WEIR_NONE;
    j->before[after] = (uint8_t)at;
    j->place[0] = before;
    j->place[1] = at;
    j->pair[0] = weir_pair_key(j->id[before], rank);
    j->pair[1] = weir_pair_key(rank, j->id[after]);
    j->may[0] = at > 0;
    j->may[1] = after < j->units;
    __builtin_prefetch(weir_filter_of(v, j->pair[0]));
    __builtin_prefetch(weir_filter_of(v, j->pair[1]));
    return 1;
}

/* --- the batch --- */

typedef struct {
    weir_encoding *e;
    int64_t tokens;
    unsigned held, misses, jobs;
    weir_held piece[WEIR_BATCH_MAX];
    weir_held miss[WEIR_MISSED];
    weir_job job[WEIR_JOBS];
} weir_batch;

static inline weir_front *weir_front_of(const weir_encoding *e, weir_key key) {
    return e->front + (((key.low ^ (key.high * WEIR_MIX_B)) * WEIR_MIX_A) >> (64 - WEIR_FRONT_BITS));
}

static inline weir_back *weir_back_of(const weir_encoding *e, const uint8_t *text, size_t n) {
    uint64_t a, b, c;
    memcpy(&a, text, 8);
    memcpy(&b, text + 8, 8);
    memcpy(&c, text + n - 8, 8);
    uint64_t mixed = ((a * WEIR_MIX_A) ^ (b + n) ^ (c * WEIR_MIX_B)) * WEIR_MIX_A;
    return e->back + (((mixed ^ (mixed >> 29)) * WEIR_MIX_B) >> (64 - WEIR_BACK_BITS));
}

/* As weir_merge, with windows of 4,096 bytes; -2 without memory. */
static int64_t weir_merge_wide(weir_encoding *e, const uint8_t *text, size_t n, size_t expected) {
    if (e->wide == NULL && (e->wide = malloc(sizeof *e->wide)) == NULL) return -2;
    weir_units_wide *w = e->wide;
    weir_units u = {w->key, w->least, w->top, w->id, w->next, w->before, w->start};
    return weir_merge_windows(e->v, text, n, WEIR_SPAN_WIDE, WEIR_SPAN_WIDE - 4 * WEIR_TOKEN_MAX, expected, &u);
}

/* The tokens of a piece that is too long for the batch; -1 without memory. Where windows of 256 bytes cannot be joined,
   those of 4,096 can, and where those cannot, which no text is known to show, a search without windows ends it. */
static int64_t weir_count_long(weir_encoding *e, const uint8_t *text, size_t n) {
    const weir_vocab *v = e->v;
    if (n <= v->long_max && weir_known_long(v, text, n, weir_long_hash(text, n))) return 1;
    int64_t tokens = weir_merge(v, text, n, 0);
    if (tokens == -1) tokens = weir_merge_wide(e, text, n, 0);
    if (tokens == -2) return -1;
    return tokens >= 0 ? tokens : weir_merge_slowly(v, text, n);
}

/* Takes a piece: it waits, or is counted if it is long. -1 without memory. */
static inline int weir_take(weir_batch *b, const uint8_t *text, size_t n, size_t readable) {
    weir_held *piece = b->piece + b->held;
    if (WEIR_LIKELY(n <= WEIR_FRONT_BYTES)) {
        piece->key = weir_key_of(text, n, readable);
        piece->front = weir_front_of(b->e, piece->key);
        __builtin_prefetch(piece->front);
    } else if (n <= WEIR_JOB_BYTES) {
        piece->front = NULL;
        piece->back = n <= WEIR_BACK_BYTES ? weir_back_of(b->e, text, n) : NULL;
        __builtin_prefetch(piece->back);
    } else {
        int64_t tokens = weir_count_long(b->e, text, n);
        b->tokens += tokens;
        return tokens < 0 ? -1 : 0;
    }
    piece->text = text;
    piece->n = n;
    b->held++;
    return 0;
}

/* What a piece came to, into the sum and the cache. */
static inline void weir_settle(weir_batch *b, const weir_held *piece, unsigned tokens) {
    b->tokens += tokens;
    if (piece->front) {
        piece->front->low = piece->key.low;
        piece->front->high = piece->key.high | (uint64_t)tokens << 60;
    } else if (piece->back) {
        memcpy(piece->back->text, piece->text, piece->n);
        piece->back->bytes = (uint8_t)piece->n;
        piece->back->tokens = (uint8_t)tokens;
    }
}

/* Merges the pieces that are neither cached nor tokens, one step of each in turn. */
static void weir_merge_jobs(weir_batch *b) {
    const weir_vocab *v = b->e->v;
    weir_job *order[WEIR_JOBS];
    unsigned count = b->jobs;
    b->jobs = 0;
    for (unsigned i = 0; i < count; i++) weir_job_filter(v, order[i] = b->job + i);
    for (unsigned i = 0; i < count; i++) weir_job_rank(v, order[i]);
    while (count) {
        unsigned kept = 0;
        for (unsigned i = 0; i < count; i++) {
            weir_job *j = order[i];
            if (weir_job_merge(v, j)) order[kept++] = j;
            else weir_settle(b, &j->piece, j->left);
        }
        count = kept;
        for (unsigned i = 0; i < count; i++) {
            weir_job *j = order[i];
            for (int side = 0; side < 2; side++) {
                j->may[side] &= !weir_filtered(v, j->pair[side]);
                __builtin_prefetch(weir_slot_if(v, j->pair[side], j->may[side]));
            }
        }
        for (unsigned i = 0; i < count; i++) {
            weir_job *j = order[i];
            for (int side = 0; side < 2; side++)
                if (j->may[side]) j->key[j->place[side]] = weir_keyed(weir_slot_rank(v, j->pair[side]), j->place[side]);
        }
    }
}

/* Looks up in the vocabulary what no cache had. */
static void weir_resolve(weir_batch *b) {
    const weir_vocab *v = b->e->v;
    for (unsigned i = 0; i < b->misses; i++) {
        const weir_held *piece = b->miss + i;
        int known = piece->front ? weir_known(v, piece->key, piece->n)
                                 : weir_known_long(v, piece->text, piece->n, piece->key.low);
        if (known || piece->n == 2) {
            weir_settle(b, piece, known ? 1 : 2);
            continue;
        }
        weir_job_start(v, b->job + b->jobs, piece);
        if (++b->jobs == WEIR_JOBS) weir_merge_jobs(b);
    }
    b->misses = 0;
}

/* Looks up in the caches what waits in the batch. */
static void weir_look_up(weir_batch *b) {
    const weir_vocab *v = b->e->v;
    for (unsigned i = 0; i < b->held; i++) {
        weir_held *piece = b->piece + i;
        if (WEIR_LIKELY(piece->front != NULL)) {
            const weir_front *front = piece->front;
            if (WEIR_LIKELY(front->low == piece->key.low && front->high << 4 == piece->key.high << 4)) {
                b->tokens += (int64_t)(front->high >> 60);
                continue;
            }
            if (piece->n == 1) {
                weir_settle(b, piece, 1);
                continue;
            }
            if (piece->n <= 7) __builtin_prefetch(v->shorts + weir_short_home(v, piece->key));
            else __builtin_prefetch(v->middles + 2 * weir_middle_home(v, piece->key));
        } else {
            const weir_back *back = piece->back;
            if (back && back->bytes == piece->n && memcmp(back->text, piece->text, piece->n) == 0) {
                b->tokens += back->tokens;
                continue;
            }
            piece->key.low = weir_long_hash(piece->text, piece->n);
            __builtin_prefetch(v->longs + 2 * weir_long_home(v, piece->key.low));
        }
        b->miss[b->misses] = *piece;
        if (++b->misses == WEIR_MISSED) weir_resolve(b);
    }
    b->held = 0;
}

static inline void weir_finish(weir_batch *b) {
    weir_look_up(b);
    if (b->misses) weir_resolve(b);
    if (b->jobs) weir_merge_jobs(b);
}

/* Counts pieces; unless `whole`, only up to the first whose end is open. *used is how far. -1 without memory. */
static int64_t weir_run(weir_encoding *e, const uint8_t *text, size_t n, int whole, size_t *used) {
    const weir_vocab *v = e->v;
    weir_batch b;
    size_t at = 0;
    int open = 0;
    b.e = e;
    b.tokens = 0;
    b.held = b.misses = b.jobs = 0;
    while (at < n) {
        uint64_t starts = 1;
        if (weir_ascii_next(text + at, n - at)) starts = weir_ascii_starts(v->pattern, text + at, n - at);
        size_t start = at;
        while ((starts &= starts - 1)) {
            size_t end = start + (size_t)__builtin_ctzll(starts);
            if (weir_take(&b, text + at, end - at, n - at) < 0) return -1;
            at = end;
        }
        if (at == start) {
            size_t end = weir_piece(v, text, at, n, &open);
            if (open && !whole) break;
            open = 0;
            if (weir_take(&b, text + at, end - at, n - at) < 0) return -1;
            at = end;
        }
        if (b.held >= WEIR_BATCH) weir_look_up(&b);
    }
    if (at) weir_finish(&b);
    *used = at;
    return b.tokens;
}

/* The tokens of one piece; -1 without memory. */
static int64_t weir_count_piece(weir_encoding *e, const uint8_t *text, size_t n) {
    weir_batch b;
    b.e = e;
    b.tokens = 0;
    b.held = b.misses = b.jobs = 0;
    if (n && weir_take(&b, text, n, n) < 0) return -1;
    weir_finish(&b);
    return b.tokens;
}

/* The tokens of a text: any bytes. -1 without memory. */
static int64_t weir_count_tokens(weir_encoding *e, const uint8_t *text, size_t n) {
    size_t used;
    return weir_run(e, text, n, 1, &used);
}

#endif
