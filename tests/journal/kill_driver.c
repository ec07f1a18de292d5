/* Lives and deaths of the journal's C core, with an oracle outside the slots that says what was begun, opened, noted
 * and closed. Built by the tests against the product's own header (or a mutated copy) with WEIR_KILLPOINTS.
 *
 *   kill_driver points FIRST LAST STEP SEED   the worker dies at boundary FIRST, FIRST + STEP, ...
 *   kill_driver chains LIVES SEED             so does every recoverer, at later and later boundaries
 *   kill_driver random LIVES SEED LOCKFILE    SIGKILL at any moment; recoverers race for the lock and are killed too
 *
 * Prints counters as `name=value`; every one from `dup` on must be 0.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int64_t kill_after;
void jrn_killpoint(void) {
    if (kill_after && --kill_after == 0) kill(getpid(), SIGKILL);
}
#include JOURNAL_HEADER

#define SLOTS 12
#define SEGMENTS 128
#define SEGMENT_BYTES 6144 /* small, so that calls often lie across several */
#define CELLS 8
#define CALLS_MAX 4000
#define CRASH 9

typedef struct {
    uint64_t begun, opened, sent_tried, sent, noted, closing, closed, attempts;
} oracle;

typedef struct {
    char kind, pad[7];
    uint64_t call, term, noted, torn, opened_bad, sent_bad, attempt, filler;
} event;

static struct {
    jrn_head *head;
    jrn_slot *slots;
    jrn_segment segments[SEGMENTS];
    uint64_t *used; /* the column: amount << 1 */
    oracle *oracles;
} world;

static uint64_t random_state;
static uint64_t draw(uint64_t below) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (random_state >> 11) % below;
}

static void *shared(uint64_t size) {
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) abort();
    return at;
}

static uint64_t opened_size(uint64_t call) { return 16 + call * 37 % (JRN_OPENED_BYTES_MAX - 16); }
static uint64_t sent_size(uint64_t call, uint64_t attempt) { return 8 + (call * 7 + attempt * 13) % (JRN_SENT_BYTES_MAX - 8); }
static void fill(char *to, uint64_t size, uint64_t seed) {
    for (uint64_t i = 0; i < size; i++) to[i] = (char)(seed * 131 + i * 7 + (seed >> 8));
}
static int differs(const char *at, uint64_t size, uint64_t seed) {
    char want[JRN_RECORD_BYTES_MAX];
    fill(want, size, seed);
    return memcmp(at, want, size) != 0;
}

/* Counters of the k-th note: each differs, so a mixture of two notes shows. */
static void counters_of(uint64_t k, uint64_t counters[JRN_COUNTERS]) {
    for (uint64_t i = 0; i < JRN_COUNTERS; i++) counters[i] = k ? k * (2 * i + 1) + i : 0;
}

static int make_event(const jrn_slot *slot, uint64_t term, char *payload) {
    const uint64_t *seen = jrn_counters(slot);
    uint64_t want[JRN_COUNTERS], sent = slot->sent_word & 0xffffffff, attempt = slot->sent_word >> 32;
    event e = {.kind = 'E', .call = slot->call, .term = term, .noted = seen[0], .attempt = attempt};
    counters_of(seen[0], want);
    e.torn = memcmp(want, seen, sizeof want) != 0;
    e.opened_bad = slot->opened_size != opened_size(slot->call) || differs(slot->opened, slot->opened_size, slot->call);
    e.sent_bad = sent && (sent != sent_size(slot->call, attempt) || differs(slot->sent, sent, slot->call * 8 + attempt));
    e.filler = slot->call * 53 % 1200 + (slot->call % 41 == 0 ? 700 : 0);
    memcpy(payload, &e, sizeof e);
    fill(payload + sizeof e, e.filler, e.call + e.term);
    return (int)(sizeof e + e.filler);
}

static int build_crash(void *context, const jrn_slot *slot, char *payload) {
    (void)context;
    return make_event(slot, CRASH, payload);
}

static void drop(void *context, uint64_t cell) {
    (void)context;
    __atomic_store_n(&world.used[cell], world.used[cell] - 2, __ATOMIC_RELEASE);
}

static void begin_life(void) {
    uint8_t epoch[16];
    for (int i = 0; i < 16; i++) epoch[i] = (uint8_t)draw(256);
    memset(world.head, 0, JRN_SLOTS_HEAD_BYTES + SLOTS * sizeof(jrn_slot));
    memset(world.oracles, 0, CALLS_MAX * sizeof(oracle));
    memcpy(world.head->epoch, epoch, 16);
    world.head->slots = SLOTS;
    for (int i = 0; i < SEGMENTS; i++) {
        jrn_segment_head *head = jrn_segment_headof(world.segments[i]);
        if (head->first_seq || head->bad) memset(world.segments[i].base, 0, SEGMENT_BYTES);
        jrn_segment_begin(world.segments[i], epoch, (uint64_t)i + 1);
    }
}

static void work(uint64_t seed) {
    jrn j = {.head = world.head, .slots = world.slots, .seed = jrn_seed(world.head->epoch)};
    int at = 0, unsynced = 0;
    uint64_t synced = 0, calls = 0;
    random_state = seed | 1;
    jrn_use(&j, world.segments[0]);
    for (;;) {
        jrn_slot *slot = &world.slots[draw(SLOTS)];
        char bytes[JRN_RECORD_BYTES_MAX];
        if (at > SEGMENTS - 24 || calls + 1 >= CALLS_MAX) {
            if (kill_after) kill(getpid(), SIGKILL); /* the world is too small for this boundary */
            pause();
        }
        if (draw(70) == 0) { /* a group sync, now and then one that fails */
            if (draw(2)) {
                at += jrn_move(&j, world.segments + unsynced, at - unsynced + 1, world.segments + at + 1, synced);
            }
            synced = j.seq;
            unsynced = at;
            continue;
        }
        if (slot->state == JRN_FREE) {
            uint64_t holds[2] = {draw(CELLS), draw(CELLS)}, call = ++calls;
            oracle *o = &world.oracles[call];
            for (int i = 0; i < 2; i++) {
                JRN_STORE(&world.used[holds[i]], world.used[holds[i]] + 2);
                JRN_STEP();
            }
            fill(bytes, opened_size(call), call);
            JRN_STORE(&o->begun, 1);
            JRN_STEP();
            jrn_open(&j, slot, call, bytes, opened_size(call), holds, 2);
            JRN_STORE(&o->opened, 1);
            continue;
        }
        oracle *o = &world.oracles[slot->call];
        uint64_t what = draw(8);
        if (o->noted == 0 && o->attempts < 4 && draw(2)) {
            uint64_t attempt = o->attempts + 1;
            fill(bytes, sent_size(slot->call, attempt), slot->call * 8 + attempt);
            JRN_STORE(&o->attempts, attempt);
            JRN_STEP();
            jrn_sent(slot, (uint32_t)attempt, bytes, sent_size(slot->call, attempt));
            JRN_STORE(&o->sent, attempt);
        } else if (what < 7) {
            uint64_t counters[JRN_COUNTERS];
            counters_of(o->noted + 1, counters);
            JRN_STORE(&o->noted, o->noted + 1);
            JRN_STEP();
            jrn_note(slot, counters);
        } else {
            int size = make_event(slot, 1, bytes);
            if (!jrn_fits(&j, (uint64_t)size)) jrn_use(&j, world.segments[++at]);
            JRN_STORE(&o->closing, 1);
            JRN_STEP();
            jrn_close(&j, slot, bytes, (uint64_t)size, drop, NULL);
            JRN_STORE(&o->closed, 1);
            JRN_STEP();
        }
    }
}

/* The order of epochs.recover. */
static void recover(void) {
    jrn j = {.head = world.head, .slots = world.slots, .seed = jrn_seed(world.head->epoch)};
    jrn_recovery result;
    if (world.head->recovered) return;
    if (jrn_recover(&j, world.segments, SEGMENTS, build_crash, NULL, &result)) abort();
    for (int i = 0; i < CELLS; i++) {
        JRN_STORE(&world.used[i], 0);
        JRN_STEP();
    }
    if (!result.ended) {
        event end = {.kind = 'Z', .call = world.head->calls};
        jrn_append(&j, 0, &end, sizeof end);
    }
    JRN_STORE(&world.head->recovered, 1);
    JRN_STEP();
}

static pid_t worker(int64_t after, uint64_t seed) {
    pid_t pid = fork();
    if (pid == 0) {
        kill_after = after;
        work(seed);
    }
    return pid;
}

static pid_t recoverer(int64_t after, const char *lockfile) {
    pid_t pid = fork();
    if (pid == 0) {
        if (lockfile) {
            int fd = open(lockfile, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
            if (fd < 0 || flock(fd, LOCK_EX)) abort();
        }
        kill_after = after;
        recover();
        _exit(0);
    }
    return pid;
}

enum { LIVES, WORKER_KILLS, RECOVERER_KILLS, RECORDS, CRASHES, COMPLETE, DOUBT,
       DUP, GHOST, TORN, OPENED, SENTBAD, NOTED, WRONG, MISSING, GAP, END, BUSY, COLUMN, BROKEN, COUNTS };
static const char *const NAMES[] = {"lives", "worker_kills", "recoverer_kills", "records", "crashes", "complete", "doubt",
                                    "dup", "ghost", "torn", "opened", "sent", "noted", "wrong", "missing", "gap", "end",
                                    "busy", "column", "broken"};
static uint64_t counts[COUNTS];

static int reap(pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) != pid) abort();
    if (WIFSIGNALED(status) && WTERMSIG(status) != SIGKILL) counts[BROKEN]++;
    return WIFSIGNALED(status);
}

typedef struct {
    uint64_t *rows, last, distinct, ends, end_calls, end_seq;
} reading;

static int read_record(void *context, const jrn_record *record) {
    reading *r = context;
    event e;
    memcpy(&e, record + 1, sizeof e);
    if (record->seq != r->last + 1) counts[GAP]++;
    r->last = record->seq;
    if (record->call == 0) {
        r->ends++;
        r->end_calls = e.call;
        r->end_seq = record->seq;
        return 0;
    }
    counts[RECORDS]++;
    if (e.kind != 'E' || e.call != record->call || e.call >= CALLS_MAX || record->size != sizeof e + e.filler ||
        differs((const char *)(record + 1) + sizeof e, e.filler, e.call + e.term)) {
        counts[WRONG]++;
        return 0;
    }
    oracle *o = &world.oracles[e.call];
    if (r->rows[e.call]++) counts[DUP]++; else r->distinct++;
    if (!o->begun) counts[GHOST]++;
    counts[TORN] += e.torn;
    counts[OPENED] += e.opened_bad;
    counts[SENTBAD] += e.sent_bad || e.attempt > o->attempts || e.attempt < o->sent;
    if (e.term == CRASH) {
        counts[CRASHES]++;
        if (o->closed) counts[WRONG]++;
        if (!(e.noted == o->noted || e.noted + 1 == o->noted)) counts[NOTED]++;
    } else {
        counts[COMPLETE]++;
        if (!o->closing) counts[WRONG]++;
        if (e.noted != o->noted) counts[NOTED]++;
    }
    return 0;
}

static void verify(void) {
    static uint64_t rows[CALLS_MAX];
    reading r = {.rows = rows};
    memset(rows, 0, sizeof rows);
    jrn_walk(world.segments, SEGMENTS, jrn_seed(world.head->epoch), 0, UINT64_MAX, read_record, &r);
    for (uint64_t call = 1; call < CALLS_MAX; call++)
        if (world.oracles[call].opened && !rows[call]) counts[MISSING]++;
    /* One EpochEnd, the last record, and it counts exactly the rows. */
    if (r.ends != 1 || r.end_seq != r.last || r.end_calls != r.distinct) counts[END]++;
    for (int i = 0; i < SLOTS; i++) counts[BUSY] += world.slots[i].state != JRN_FREE;
    for (int i = 0; i < CELLS; i++) counts[COLUMN] += world.used[i] != 0;
    counts[LIVES]++;
}

/* How often the column at death is not what the slots say: what a recovery by decrements would leak. */
static void doubt(void) {
    uint64_t held[CELLS] = {0};
    for (int i = 0; i < SLOTS; i++)
        if (world.slots[i].state != JRN_FREE)
            for (uint32_t h = 0; h < world.slots[i].hold_count && h < JRN_HOLDS; h++)
                if (world.slots[i].hold[h] < CELLS) held[world.slots[i].hold[h]] += 2;
    counts[DOUBT] += memcmp(held, world.used, sizeof held) != 0;
}

static void give_up_on_endless(int attempts) {
    if (attempts > 20000) abort();
}

int main(int argc, char **argv) {
    jrn_init();
    if (argc < 4) return 2;
    world.head = shared(JRN_SLOTS_HEAD_BYTES + SLOTS * sizeof(jrn_slot));
    world.slots = (jrn_slot *)((char *)world.head + JRN_SLOTS_HEAD_BYTES);
    char *segments = shared(SEGMENTS * SEGMENT_BYTES);
    for (int i = 0; i < SEGMENTS; i++) world.segments[i] = (jrn_segment){segments + i * SEGMENT_BYTES, SEGMENT_BYTES};
    world.used = shared(4096);
    world.oracles = shared(CALLS_MAX * sizeof(oracle));
    const char *mode = argv[1];
    if (!strcmp(mode, "points") && argc == 6) {
        uint64_t seed = strtoull(argv[5], NULL, 10);
        for (int64_t n = atoll(argv[2]); n <= atoll(argv[3]); n += atoll(argv[4])) {
            random_state = seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            begin_life();
            counts[WORKER_KILLS] += (uint64_t)reap(worker(n, seed >> 7));
            doubt();
            counts[RECOVERER_KILLS] += (uint64_t)reap(recoverer(0, NULL));
            verify();
        }
    } else if (!strcmp(mode, "chains") && argc == 4) {
        uint64_t seed = strtoull(argv[3], NULL, 10) | 1;
        for (int64_t life = 0; life < atoll(argv[2]); life++) {
            random_state = seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            begin_life();
            counts[WORKER_KILLS] += (uint64_t)reap(worker((int64_t)draw(6000) + 1, seed >> 7));
            random_state = seed >> 3 | 1;
            int64_t after = (int64_t)draw(40) + 1, step = (int64_t)draw(4) * 5 + 1;
            for (int i = 0; !world.head->recovered; i++, after += step) {
                give_up_on_endless(i);
                counts[RECOVERER_KILLS] += (uint64_t)reap(recoverer(after, NULL));
            }
            verify();
        }
    } else if (!strcmp(mode, "random") && argc == 5) {
        uint64_t seed = strtoull(argv[3], NULL, 10) | 1;
        for (int64_t life = 0; life < atoll(argv[2]); life++) {
            random_state = seed = seed * 6364136223846793005ull + 1442695040888963407ull;
            begin_life();
            pid_t pid = worker(0, seed >> 7);
            random_state = seed >> 3 | 1;
            usleep((useconds_t)draw(draw(4) ? 600 : 4000));
            kill(pid, SIGKILL);
            counts[WORKER_KILLS] += (uint64_t)reap(pid);
            doubt();
            for (int i = 0; !world.head->recovered; i++) {
                give_up_on_endless(i);
                pid_t racing[3];
                for (int k = 0; k < 3; k++) racing[k] = recoverer(0, argv[4]);
                if (i < 3) {
                    usleep((useconds_t)draw(500));
                    for (int k = 0; k < 3; k++)
                        if (draw(4)) kill(racing[k], SIGKILL);
                }
                for (int k = 0; k < 3; k++) counts[RECOVERER_KILLS] += (uint64_t)reap(racing[k]);
            }
            verify();
        }
    } else {
        return 2;
    }
    for (int i = 0; i < COUNTS; i++) printf("%s=%llu\n", NAMES[i], (unsigned long long)counts[i]);
    return 0;
}
