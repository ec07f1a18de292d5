/* Runs the cells' own code in many actors of one process and switches between them before every access to shared
 * memory, at random by a seed: millions of interleavings that real processes meet once a year. Actors may be killed at
 * any such point, and the keeper is started again after its death.
 *
 * Usage: interleave SCENARIO FIRST_SEED SCHEDULES. Prints the first seed that breaks a rule and exits 1.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

static void yield_to_another(void);
#define WEIR_STEP() yield_to_another()
#define WEIR_WINDOW 4
#define WEIR_COLUMNS 4
#include "_limits.h"

#define ACTORS 5
#define CELLS 4
#define STACK (64 * 1024)
#define NOW_NS 1000000
#define STEPS_MAX 200000

typedef struct {
    ucontext_t context;
    char stack[STACK];
    void (*play)(int);
    int alive, number, restarts;
    int holding; /* holds of the one concurrency limit that this actor surely has */
} actor;

static actor actors[ACTORS];
static ucontext_t scheduler;
static int running = -1, kills, switches;
static uint64_t dice, generation;
static weir_rate rates[CELLS];
static weir_count counts[CELLS];
static int admitted, refused, most_holding, full, concurrency, deadly;
static const char *broken;

static uint64_t roll(void) {
    dice ^= dice << 13;
    dice ^= dice >> 7;
    dice ^= dice << 17;
    return dice;
}

static void yield_to_another(void) {
    if (running >= 0) swapcontext(&actors[running].context, &scheduler);
}

static weir_table rate_table(void) { return (weir_table){(char *)rates, CELLS, sizeof(weir_rate), &generation}; }
static weir_table count_table(void) { return (weir_table){(char *)counts, CELLS, sizeof(weir_count), &generation}; }

/* All keys have the same home, so that every hole lies before somebody. */
static weir_entry entry_of(int name) {
    weir_entry entry;
    memset(&entry, 0, sizeof entry);
    entry.lo = (1ull << 63) | ((uint64_t)(name + 1) << 8);
    entry.hi = (1ull << 63) | (uint64_t)(name + 1);
    entry.increment = 64;
    entry.burst_units = 3 * 64;
    entry.limit = 1;
    return entry;
}

static int find(weir_table table, weir_entry *entry) {
    int64_t cell = weir_find(&table, entry->lo, entry->hi);
    if (cell < 0) {
        full++;
        return 0;
    }
    entry->cell = (uint64_t)cell;
    return 1;
}

/* Tries four charges on the one limit that has room for three. */
static void charge(int number) {
    (void)number;
    weir_entry entry = entry_of(0);
    if (!find(rate_table(), &entry)) return;
    for (int tries = 0; tries < 4; tries++) {
        int64_t wait;
        int answer;
        while ((answer = weir_rate_take(&rates[entry.cell], &entry, NOW_NS * 64, 64, &wait)) == WEIR_GONE)
            if (!find(rate_table(), &entry)) return;
        if (answer == WEIR_TAKEN)
            admitted++;
        else
            refused++;
    }
}

/* Makes cells of other limits come and go around it. */
static void crowd(int number) {
    for (int round = 0; round < 2; round++) {
        weir_entry entry = entry_of(1 + (number + round) % 2);
        find(concurrency ? count_table() : rate_table(), &entry);
    }
}

/* Holds the one concurrency limit, one at a time over all. */
static void hold(int number) {
    weir_entry entry = entry_of(0);
    if (!find(count_table(), &entry)) return;
    for (int tries = 0; tries < 3; tries++) {
        int answer;
        while ((answer = weir_count_take(&counts[entry.cell], &entry, number)) == WEIR_GONE)
            if (!find(count_table(), &entry)) return;
        if (answer != WEIR_TAKEN) {
            refused++;
            continue;
        }
        actors[number].holding++;
        yield_to_another();
        actors[number].holding--;
        weir_count_drop(&counts[entry.cell], number);
    }
}

static void keep(int number) {
    (void)number;
    weir_table rate = rate_table(), count = count_table();
    for (int round = 0; round < 4; round++)
        for (int cell = 0; cell < CELLS; cell++) {
            if (concurrency)
                weir_reclaim(&count, cell, 0, NOW_NS - 1);
            else
                weir_reclaim(&rate, cell, 1, NOW_NS - 1);
        }
}

static void enter(int number) {
    actors[number].play(number);
    actors[number].alive = 0;
    swapcontext(&actors[number].context, &scheduler);
}

static void start(int number, void (*play)(int)) {
    actor *one = &actors[number];
    getcontext(&one->context);
    one->context.uc_stack.ss_sp = one->stack;
    one->context.uc_stack.ss_size = STACK;
    one->context.uc_link = &scheduler;
    one->play = play;
    one->alive = 1;
    one->holding = 0;
    makecontext(&one->context, (void (*)(void))enter, 1, number);
}

static int live_cells(char *base, size_t stride, weir_entry entry) {
    int found = 0;
    for (int cell = 0; cell < CELLS; cell++) {
        uint64_t *words = (uint64_t *)(base + cell * stride);
        found += words[0] == entry.lo && words[1] == entry.hi;
    }
    return found;
}

static void check_always(void) {
    int holding = 0;
    for (int number = 0; number < ACTORS; number++) holding += actors[number].holding;
    if (holding > most_holding) most_holding = holding;
    if (holding > 1) broken = "more holds than the limit";
    if (admitted > 3) broken = "more charges than the burst";
    for (int name = 0; name < 3; name++)
        if (live_cells((char *)rates, sizeof(weir_rate), entry_of(name)) > 1 ||
            live_cells((char *)counts, sizeof(weir_count), entry_of(name)) > 1)
            broken = "two live cells of one limit";
}

static void check_end(void) {
    running = -1;
    for (int column = 0; column < WEIR_COLUMNS && deadly; column++)
        for (int cell = 0; cell < CELLS; cell++) counts[cell].used[column] = 0; /* what recovery does */
    for (int cell = 0; cell < CELLS; cell++)
        for (int column = 0; column < WEIR_COLUMNS; column++)
            if (counts[cell].used[column]) broken = "a hold that nobody has";
    if (!concurrency && !kills && !full && admitted != 3) broken = "fewer charges than the burst";
    /* One keeper on its own gets every cell back that rests, and all is found again. */
    keep(0);
    for (int cell = 0; cell < CELLS; cell++)
        if (counts[cell].lo >> 63) broken = "a count cell that stays taken";
    for (int name = 0; name < 3; name++) {
        weir_entry entry = entry_of(name);
        if (!find(rate_table(), &entry) || !find(count_table(), &entry)) broken = "no cell although there is room";
    }
    check_always();
}

static void schedule(uint64_t seed) {
    memset(rates, 0, sizeof rates);
    memset(counts, 0, sizeof counts);
    dice = seed * 0x9e3779b97f4a7c15ull | 1;
    for (int warm = 0; warm < 8; warm++) roll();
    generation = 0;
    admitted = refused = kills = full = 0;
    running = -1;
    crowd(0); /* the first places are taken */
    for (int number = 0; number < 3; number++) start(number, concurrency ? hold : charge);
    start(3, crowd);
    start(4, keep);
    int most_restarts = deadly ? 3 : 0, restarts = 0;
    /* Mostly long runs of one actor, or many short ones: by the seed. */
    unsigned stay = roll() % 8;
    for (int steps = 0; steps < STEPS_MAX; steps++) {
        int candidates[ACTORS], count = 0;
        for (int number = 0; number < ACTORS; number++)
            if (actors[number].alive) candidates[count++] = number;
        if (!count) break;
        if (running < 0 || !actors[running].alive || roll() % (stay + 1) == 0) running = candidates[roll() % count];
        int now = running;
        if (deadly && roll() % 97 == 0) {
            /* A killed life's holds stay until recovery, which here comes at once or at the end. */
            actors[now].alive = 0;
            actors[now].holding = 0;
            kills++;
            if (now == 4 && restarts++ < most_restarts) start(4, keep);
            running = -1;
            continue;
        }
        switches++;
        swapcontext(&scheduler, &actors[now].context);
        check_always();
        if (broken) return;
        if (steps == STEPS_MAX - 1) broken = "no end";
    }
    check_end();
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    concurrency = strstr(argv[1], "hold") != NULL;
    deadly = strstr(argv[1], "kill") != NULL;
    uint64_t first = strtoull(argv[2], NULL, 10), schedules = strtoull(argv[3], NULL, 10);
    long total_refused = 0, total_kills = 0, total_steps = 0;
    for (uint64_t seed = first; seed < first + schedules; seed++) {
        schedule(seed);
        total_refused += refused, total_kills += kills, total_steps += switches, switches = 0;
        if (broken) {
            printf("%s: %s, seed %llu\n", argv[1], broken, (unsigned long long)seed);
            return 1;
        }
    }
    printf("%s: %llu schedules, %ld steps, %ld refused, %ld kills, at most %d holding\n", argv[1],
           (unsigned long long)schedules, total_steps, total_refused, total_kills, most_holding);
    return 0;
}
