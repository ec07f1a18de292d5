/* What is done to a cell: GCRA by one compare-and-swap, concurrency by columns. See `_arena.h` for how cells live. */
#ifndef WEIR_LIMITS_H
#define WEIR_LIMITS_H

#include <sched.h>
#include <string.h>

#include "_arena.h"

#define WEIR_UNIT 64                                  /* parts of a nanosecond in which rates are kept */
#define WEIR_MINUTE (60000000000ll * WEIR_UNIT)
#define WEIR_UNITS_MAX (1ll << 58)                    /* the longest refill and the deepest debt: 52 days */
#define WEIR_NOW_NS_MAX ((1ll << 57) - (1ll << 53))   /* four and a half years of uptime: beyond it units overflow */
#define WEIR_SPINS 1000                               /* 40 microseconds behind a dead or stopped announcer, then no */
#define WEIR_TOUCH_NS (1ll << 30)                     /* how coarse `touched` is */

enum { WEIR_TAKEN = 0, WEIR_REFUSED = 1, WEIR_GONE = 2 };

typedef struct {
    uint64_t lo, hi, cell; /* the key, and where it was last found */
    int64_t increment;     /* units per request or token, rounded up: the rate is never above what is written */
    int64_t burst_units;   /* how far the arrival time may run ahead */
    int64_t limit, burst;
    int kind;
    int text_bytes;
    char text[112]; /* the lines of the headers that never change */
} weir_entry;

static inline void weir_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static inline int64_t weir_cost(const weir_entry *entry, int64_t amount) {
    return amount > WEIR_UNITS_MAX / entry->increment ? WEIR_UNITS_MAX : amount * entry->increment;
}

static inline int weir_same(uint64_t *lo, uint64_t *hi, const weir_entry *entry) {
    return WEIR_LOAD(hi) == entry->hi && WEIR_LOAD(lo) == entry->lo;
}

/* `wait` is set on refusal: units until the same charge could pass. A `now` that lags is harmless: it sees less room. */
static int weir_rate_take(weir_rate *cell, const weir_entry *entry, int64_t now, int64_t cost, int64_t *wait) {
    int64_t tat = weir_load_signed(&cell->tat);
    for (;;) {
        if (!weir_same(&cell->lo, &cell->hi, entry)) return WEIR_GONE;
        int64_t next = (tat > now ? tat : now) + cost;
        if (next - now > entry->burst_units) {
            *wait = next - now - entry->burst_units;
            return WEIR_REFUSED;
        }
        if (WEIR_CAS(&cell->tat, &tat, next)) return WEIR_TAKEN;
    }
}

/* Gives back what was charged. A cell that is gone was full, so there is nothing to give. */
static void weir_rate_give(weir_rate *cell, const weir_entry *entry, int64_t cost) {
    int64_t tat = weir_load_signed(&cell->tat);
    for (;;) {
        if (!weir_same(&cell->lo, &cell->hi, entry)) return;
        if (WEIR_CAS(&cell->tat, &tat, tat - cost)) return;
    }
}

/* Charges without asking: the tokens are already spent. Debt is bounded so that one wild figure cannot shut a tenant
 * out for longer than the longest refill. */
static int weir_rate_owe(weir_rate *cell, const weir_entry *entry, int64_t now, int64_t cost) {
    int64_t tat = weir_load_signed(&cell->tat);
    for (;;) {
        if (!weir_same(&cell->lo, &cell->hi, entry)) return WEIR_GONE;
        int64_t next = (tat > now ? tat : now) + cost;
        if (next - now > WEIR_UNITS_MAX) next = now + WEIR_UNITS_MAX;
        if (WEIR_CAS(&cell->tat, &tat, next)) return WEIR_TAKEN;
    }
}

/* How many more of `increment` would pass now; `full_in` is set to the units until the bucket is full. */
static int64_t weir_rate_room(weir_rate *cell, const weir_entry *entry, int64_t now, int64_t *full_in) {
    int64_t tat = weir_load_signed(&cell->tat);
    *full_in = tat > now && weir_same(&cell->lo, &cell->hi, entry) ? tat - now : 0;
    if (*full_in > WEIR_UNITS_MAX) *full_in = WEIR_UNITS_MAX;
    int64_t room = entry->burst_units - *full_in;
    return room > 0 ? room / entry->increment : 0;
}

static inline void weir_store_column(int64_t *column, int64_t value) {
    WEIR_STORE(column, value);
}

/* Sum of all columns; `pending` becomes which of the others are announcing: 1 a higher column, 2 a lower one, 3 both. */
static inline int64_t weir_look(weir_count *cell, int column, int64_t *seen, int *pending) {
    int64_t sum = 0;
    int who = 0;
    for (int other = 0; other < WEIR_COLUMNS; other++) {
        int64_t value = weir_load_signed(&cell->used[other]);
        seen[other] = value;
        sum += value >> 1;
        if ((value & 1) && other != column) who |= other < column ? 2 : 1;
    }
    *pending = who;
    return sum;
}

static inline int weir_unchanged(weir_count *cell, const int64_t *seen) {
    for (int other = 0; other < WEIR_COLUMNS; other++)
        if (weir_load_signed(&cell->used[other]) != seen[other]) return 0;
    return 1;
}

/* Takes one hold in this life's column: announce, look at all, keep or step back; of two announcers at the limit the
 * lower column goes first. Never passes the limit: of all holds alive, the last to announce saw the others. Refuses
 * falsely only behind an announcer that does not move for WEIR_SPINS looks. */
static int weir_count_take(weir_count *cell, const weir_entry *entry, int column) {
    int64_t *own = &cell->used[column];
    int64_t before = weir_load_signed(own) & ~1ll;
    int64_t seen[WEIR_COLUMNS];
    int pending, spins = 0;
    while (spins <= WEIR_SPINS) {
        /* A cell at its limit refuses without writing: a crowd of refused calls must not slow the admitted ones. */
        int64_t sum = weir_look(cell, column, seen, &pending);
        if (sum + 1 > entry->limit && !pending && weir_unchanged(cell, seen))
            return weir_same(&cell->lo, &cell->hi, entry) ? WEIR_REFUSED : WEIR_GONE;
        WEIR_EXCHANGE(own, (before + 2) | 1);
        if (!weir_same(&cell->lo, &cell->hi, entry)) {
            weir_store_column(own, before);
            return WEIR_GONE;
        }
        for (; spins <= WEIR_SPINS; spins++) {
            sum = weir_look(cell, column, seen, &pending);
            if (sum <= entry->limit) {
                weir_store_column(own, before + 2);
                return WEIR_TAKEN;
            }
            if (pending & 2) break; /* a lower column decides first */
            if (!pending && weir_unchanged(cell, seen)) {
                weir_store_column(own, before);
                return WEIR_REFUSED;
            }
            if ((spins & 255) == 255) sched_yield();
            weir_pause();
        }
        weir_store_column(own, before);
        for (; spins <= WEIR_SPINS && (pending & 2); spins++) {
            if ((spins & 255) == 255) sched_yield();
            weir_pause();
            weir_look(cell, column, seen, &pending);
        }
    }
    return WEIR_REFUSED;
}

static inline void weir_count_drop(weir_count *cell, int column) {
    weir_store_column(&cell->used[column], weir_load_signed(&cell->used[column]) - 2);
}

static inline char *weir_put_number(char *to, int64_t number) {
    char digits[20];
    int count = 0;
    do {
        digits[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number);
    while (count) *to++ = digits[--count];
    return to;
}

/* A duration as Go writes it, which is what OpenAI sends: 12ms, 1s, 8.64s, 6m0s, 1h2m3s. Rounded up to milliseconds. */
static char *weir_put_duration(char *to, int64_t units) {
    int64_t ms = (units + 1000000 * WEIR_UNIT - 1) / (1000000 * WEIR_UNIT);
    if (ms > 0 && ms < 1000) {
        to = weir_put_number(to, ms);
        *to++ = 'm';
        *to++ = 's';
        return to;
    }
    int64_t seconds = ms / 1000;
    if (seconds >= 3600) {
        to = weir_put_number(to, seconds / 3600);
        *to++ = 'h';
    }
    if (seconds >= 60) {
        to = weir_put_number(to, seconds / 60 % 60);
        *to++ = 'm';
    }
    to = weir_put_number(to, seconds % 60);
    int64_t part = ms % 1000;
    if (part) {
        *to++ = '.';
        for (int64_t place = 100; part; place /= 10) {
            *to++ = (char)('0' + part / place);
            part %= place;
        }
    }
    *to++ = 's';
    return to;
}

static inline char *weir_put(char *to, const char *text) {
    size_t bytes = strlen(text);
    memcpy(to, text, bytes);
    return to + bytes;
}

#endif
