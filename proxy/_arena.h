/* The arena: one mapped file with the board, the rate cells and the count cells, shared by every process of a host.
 *
 * A cell is found by a keyed 128-bit hash of its limit (two words, lo and hi, both with the top bit set) within
 * WEIR_WINDOW places from its home. Nothing here waits for another process: each may be killed or stopped anywhere.
 *
 *   lo   FREE(g)       nobody's; g makes the value unlike every earlier one
 *        key           taken
 *        RELEASING(g)  on its way to FREE; whoever meets it finishes the work
 *   hi   EMPTY(g)      taken, but the inserter has not written hi yet: the next seeker of the key completes it
 *        key           live
 *        LEAVING(g)    the keeper wants it back; the next seeker of the key may still take it again
 *        DEAD(g)       the keeper has it back
 *
 * Why no key ever has two live cells. An inserter takes the first free cell of the window, by comparing with the value
 * it read. Without releases two inserters of one key therefore meet in one cell. A release could open a hole before a
 * cell that a slow inserter has already chosen. So every free cell behind a hole gets a new value while the hole is
 * RELEASING, which makes the slow inserter's exchange fail; and an inserter looks again at the cells before its choice
 * after it has read the choice, so that it cannot have read the new value and missed the hole, or its own key in it.
 *
 * Why no charge is lost to a reclaimed cell. A user reads the amount, then the key, then exchanges the amount; the
 * keeper takes the key away, then changes an idle amount to an equivalent unique one, then decides. Columns: a user
 * announces and then looks at the key; the keeper takes the key and then looks at the columns; both sequentially
 * consistent, so that at least one sees the other.
 */
#ifndef WEIR_ARENA_H
#define WEIR_ARENA_H

#include <stddef.h>
#include <stdint.h>

#define WEIR_LAYOUT 1
#define WEIR_MAGIC 0x31616e6572617277ull /* "wrarena1" */
#ifndef WEIR_COLUMNS
#define WEIR_COLUMNS 32
#endif
#define WEIR_ROW_WORDS 32
#define WEIR_HOST_WORDS 64
#ifndef WEIR_WINDOW
#define WEIR_WINDOW 64
#endif
#define WEIR_HEAD_BYTES 4096
#define WEIR_FIND_TRIES 10000 /* each lost try is another process's progress; so many in a row is a damaged file */

/* Before each access to shared memory: a test defines it to let another actor run there. */
#ifndef WEIR_STEP
#define WEIR_STEP() ((void)0)
#endif
#define WEIR_LOAD(p) (WEIR_STEP(), __atomic_load_n((p), __ATOMIC_SEQ_CST))
#define WEIR_STORE(p, v) (WEIR_STEP(), __atomic_store_n((p), (v), __ATOMIC_RELEASE))
#define WEIR_EXCHANGE(p, v) (WEIR_STEP(), __atomic_exchange_n((p), (v), __ATOMIC_SEQ_CST))
#define WEIR_CAS(p, expected, desired) \
    (WEIR_STEP(), __atomic_compare_exchange_n((p), (expected), (desired), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))

typedef struct {
    uint64_t magic, layout, size, rate_cells, count_cells, rate_offset, count_offset, columns;
    char boot_id[64];
    uint8_t key[32];       /* of the cells' hash: random per file, so that nobody can choose colliding names */
    uint64_t pad[4];
    uint64_t generation;   /* last number used in a control value */
    uint64_t pad_line[7];
    uint64_t words[WEIR_HOST_WORDS];
} weir_head;

typedef struct {
    uint64_t lo, hi;
    int64_t tat;     /* theoretical arrival time, in 1/64 ns since boot: now or earlier is a full bucket */
    int64_t touched; /* ns since boot: when it was last found */
} weir_rate;

typedef struct {
    uint64_t lo, hi;
    int64_t pad0;
    int64_t touched; /* ns since boot: last found or, to about a second, last taken */
    int64_t pad1[4];
    int64_t used[WEIR_COLUMNS];    /* amount << 1 | pending: one writer per column */
    int64_t settled[WEIR_COLUMNS]; /* what stays of `used` when a life ends: 0 for concurrency */
} weir_count;

_Static_assert(sizeof(weir_head) <= WEIR_HEAD_BYTES, "the head is one page");
_Static_assert(offsetof(weir_head, generation) % 64 == 0 && offsetof(weir_head, words) % 64 == 0, "lines of their own");
_Static_assert(sizeof(weir_rate) == 32 && sizeof(weir_count) == 64 + 16 * WEIR_COLUMNS, "the documented sizes");
_Static_assert(offsetof(weir_rate, touched) == offsetof(weir_count, touched), "read without knowing which cell it is");

/* One table of cells, as the functions below see it: both kinds of cell begin with lo and hi. */
typedef struct {
    char *base;
    uint64_t cells; /* a power of two */
    uint64_t stride;
    uint64_t *generation;
} weir_table;

enum { WEIR_FREE = 0, WEIR_RELEASING = 1 };                /* tags of lo */
enum { WEIR_EMPTY = 0, WEIR_LEAVING = 1, WEIR_DEAD = 2 };  /* tags of hi */

static inline int weir_is_key(uint64_t word) { return (int)(word >> 63); }
static inline unsigned weir_tag(uint64_t word) { return word & 3; }
static inline uint64_t weir_retag(uint64_t word, unsigned tag) { return (word & ~3ull) | tag; }
static inline uint64_t weir_fresh(weir_table *table) {
    return (__atomic_add_fetch(table->generation, 1, __ATOMIC_SEQ_CST) << 2) & ~(1ull << 63);
}
static inline uint64_t *weir_cell(const weir_table *table, uint64_t index) {
    return (uint64_t *)(table->base + (index & (table->cells - 1)) * table->stride);
}

/* Takes a RELEASING cell to FREE. Any number of processes may run this on one cell, and each may die in it. */
static void weir_release(weir_table *table, uint64_t index, uint64_t releasing) {
    uint64_t *cell = weir_cell(table, index);
    uint64_t fresh = weir_fresh(table);
    uint64_t dead = weir_retag(releasing, WEIR_DEAD);
    WEIR_CAS(&cell[1], &dead, weir_retag(fresh, WEIR_EMPTY));
    for (uint64_t step = 1; step < WEIR_WINDOW; step++) {
        uint64_t *behind = weir_cell(table, index + step);
        uint64_t word = WEIR_LOAD(&behind[0]);
        /* When the exchange fails the cell was taken or renewed meanwhile: both are as good. */
        if (!weir_is_key(word) && weir_tag(word) == WEIR_FREE) WEIR_CAS(&behind[0], &word, weir_retag(fresh, WEIR_FREE));
    }
    WEIR_CAS(&cell[0], &releasing, weir_retag(fresh, WEIR_FREE));
}

/* Makes a cell whose lo is ours live, if it is ours: completes a killed insertion, takes a leaving cell again. */
static int weir_claim(uint64_t *cell, uint64_t lo, uint64_t hi) {
    for (;;) {
        uint64_t word = WEIR_LOAD(&cell[1]);
        if (word == hi) return WEIR_LOAD(&cell[0]) == lo;
        if (weir_is_key(word) || weir_tag(word) == WEIR_DEAD) return 0;
        /* With lo unchanged after hi was read, the exchange can only succeed on this very occupant. */
        if (WEIR_LOAD(&cell[0]) != lo) return 0;
        if (WEIR_CAS(&cell[1], &word, hi)) return 1;
    }
}

/* The index of the key's cell, inserted if need be; -1 when the window is full. */
static int64_t weir_find(weir_table *table, uint64_t lo, uint64_t hi) {
    uint64_t home = lo & (table->cells - 1);
    uint64_t window = table->cells < WEIR_WINDOW ? table->cells : WEIR_WINDOW;
    for (int tries = 0; tries < WEIR_FIND_TRIES; tries++) {
        uint64_t chosen = window, chosen_word = 0, step;
        int again = 0;
        for (step = 0; step < window; step++) {
            uint64_t *cell = weir_cell(table, home + step);
            uint64_t word = WEIR_LOAD(&cell[0]);
            if (word == lo) {
                if (weir_claim(cell, lo, hi)) return (int64_t)((home + step) & (table->cells - 1));
            } else if (!weir_is_key(word)) {
                if (weir_tag(word) == WEIR_RELEASING) {
                    weir_release(table, home + step, word);
                    again = 1;
                    break;
                }
                if (chosen == window) chosen = step, chosen_word = word;
            }
        }
        if (again) continue;
        if (chosen == window) return -1;
        for (step = 0; step < chosen && !again; step++) {
            uint64_t *cell = weir_cell(table, home + step);
            uint64_t word = WEIR_LOAD(&cell[0]);
            if (word == lo && weir_claim(cell, lo, hi)) return (int64_t)((home + step) & (table->cells - 1));
            again = !weir_is_key(word);
        }
        if (again) continue;
        uint64_t *cell = weir_cell(table, home + chosen);
        if (!WEIR_CAS(&cell[0], &chosen_word, lo)) continue;
        if (weir_claim(cell, lo, hi)) return (int64_t)((home + chosen) & (table->cells - 1));
    }
    return -1;
}

static inline int64_t weir_load_signed(int64_t *word) { return WEIR_LOAD(word); }

/* Whether a cell at rest may go, called while its key is away. A rate cell gets a new amount that means the same. */
static int weir_rate_rests(weir_rate *cell, int64_t before_ns, int64_t unique) {
    int64_t tat = weir_load_signed(&cell->tat);
    if (tat > before_ns * 64 || weir_load_signed(&cell->touched) > before_ns) return 0;
    return WEIR_CAS(&cell->tat, &tat, unique);
}

static int weir_count_rests(weir_count *cell, int64_t before_ns) {
    if (weir_load_signed(&cell->touched) > before_ns) return 0;
    for (int column = 0; column < WEIR_COLUMNS; column++)
        if (weir_load_signed(&cell->used[column]) | weir_load_signed(&cell->settled[column])) return 0;
    return 1;
}

/* Frees one cell if it rests since `before_ns`. One caller at a time on a host: the keeper, by its lock. */
static int weir_reclaim(weir_table *table, uint64_t index, int is_rate, int64_t before_ns) {
    uint64_t *cell = weir_cell(table, index);
    uint64_t lo = WEIR_LOAD(&cell[0]), hi = WEIR_LOAD(&cell[1]);
    if (!weir_is_key(lo)) {
        if (weir_tag(lo) != WEIR_RELEASING) return 0;
        weir_release(table, index, lo);
        return 1;
    }
    if (weir_is_key(hi) || weir_tag(hi) != WEIR_DEAD) {
        int64_t touched = weir_load_signed(&((weir_count *)cell)->touched);
        if (touched > before_ns) return 0; /* the cheap look: most cells end here */
        uint64_t leaving = hi;
        if (weir_is_key(hi) || weir_tag(hi) == WEIR_EMPTY) {
            leaving = weir_retag(weir_fresh(table), WEIR_LEAVING);
            if (!WEIR_CAS(&cell[1], &hi, leaving)) return 0;
        }
        int64_t unique = -(int64_t)(weir_fresh(table) >> 2);
        int rests = is_rate ? weir_rate_rests((weir_rate *)cell, before_ns, unique)
                            : weir_count_rests((weir_count *)cell, before_ns);
        uint64_t expected = leaving;
        if (!rests) {
            /* A leaving cell that a dead keeper left has lost its hi: the key's next seeker writes it. */
            WEIR_CAS(&cell[1], &expected, hi);
            return 0;
        }
        hi = weir_retag(leaving, WEIR_DEAD);
        if (!WEIR_CAS(&cell[1], &expected, hi)) return 0; /* taken again */
    }
    uint64_t releasing = weir_retag(hi, WEIR_RELEASING);
    if (!WEIR_CAS(&cell[0], &lo, releasing)) return 0;
    weir_release(table, index, releasing);
    return 1;
}

#endif
