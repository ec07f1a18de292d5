/* The journal in C: slots (what is in flight), segments (what is done), and the one close that both the living
 * worker and the recoverer run.
 *
 * The rule that carries it: a store into a shared mapping survives SIGKILL, and a killed process leaves a prefix of
 * its stores in program order. So every step ends in one word whose store makes the step true (state, flip, length),
 * and everything the word speaks for is stored before it. JRN_STEP marks the boundaries: a compiler barrier in the
 * product, and the place where the kill harness of the tests dies.
 */
#ifndef WEIR_JOURNAL_H
#define WEIR_JOURNAL_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Of slots files: 1 had a counter less in each slot, and is still read; 2. Of segments: 1. */
#define JRN_SLOTS_FORMAT 2u
#define JRN_SLOTS_FORMAT_OLD 1u
#define JRN_SEGMENT_FORMAT 1u
#define JRN_SLOTS_MAGIC 0x3153544f4c535257ull /* "WRSLOTS1" */
#define JRN_SEGMENT_MAGIC 0x31544d4745535257ull /* "WRSEGMT1" */

/* The same figures stand in bounds.py; a test compares them. */
#define JRN_SLOT_BYTES 1024u
#define JRN_OPENED_BYTES_MAX 640u
#define JRN_SENT_BYTES_MAX 96u
#define JRN_RECORD_BYTES_MAX 2048u
#define JRN_HOLDS 6u
#define JRN_COUNTERS 12u /* words of one note */
#define JRN_COUNTERS_OLD 11u

#define JRN_SLOTS_HEAD_BYTES 4096u
#define JRN_SEGMENT_HEAD_BYTES 128u

#define JRN_LOAD(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define JRN_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

#ifdef WEIR_KILLPOINTS
void jrn_killpoint(void);
#define JRN_STEP() jrn_killpoint()
#else
#define JRN_STEP() __asm__ __volatile__("" ::: "memory")
#endif

enum { JRN_FREE = 0, JRN_OPEN = 1, JRN_SENT = 2, JRN_CLOSING = 3 };

typedef struct {
    uint64_t state;
    uint64_t call;
    uint64_t flip;      /* progress[flip & 1] is whole */
    uint64_t sent_word; /* attempt << 32 | bytes of the sent record: one store says both */
    uint32_t opened_size;
    uint32_t hold_count;
    uint64_t progress[2][JRN_COUNTERS];
    uint64_t hold[JRN_HOLDS];
    uint64_t unused;
    char opened[JRN_OPENED_BYTES_MAX];
    char sent[JRN_SENT_BYTES_MAX];
} jrn_slot;

_Static_assert(sizeof(jrn_slot) == JRN_SLOT_BYTES, "a slot is SLOT_BYTES");

typedef struct {
    uint64_t magic;
    uint32_t format, slot_bytes;
    uint64_t slots;
    uint64_t column;
    uint8_t epoch[16];
    uint64_t segment_bytes;
    uint64_t calls;     /* opened so far; raised after OPEN, so it never counts a call that has no slot */
    uint64_t recovered; /* the last word of a life: nothing is in flight and all is synced */
    uint64_t created_us;
    /* One closing area is enough: a process closes one call at a time. */
    uint64_t closing_call;
    uint64_t closing_size;
    char closing[JRN_RECORD_BYTES_MAX];
} jrn_head;

_Static_assert(sizeof(jrn_head) <= JRN_SLOTS_HEAD_BYTES, "the slots file's header is one page");

typedef struct {
    uint64_t magic;
    uint32_t format, unused;
    uint8_t epoch[16];
    uint64_t index;
    uint64_t first_seq; /* 0 while the segment waits as a spare */
    uint64_t last_seq;  /* a hint for readers; the records themselves decide */
    uint64_t synced;    /* records up to here are on the disk */
    uint64_t started_us;
    uint64_t bad;       /* JRN_FAILED: its fdatasync failed; JRN_MOVED: what was unsynced stands in a later segment */
    uint64_t cut;       /* with JRN_MOVED: the last record to be read here */
    uint64_t spare[5];
} jrn_segment_head;

enum { JRN_FAILED = 1, JRN_MOVED = 2 };

_Static_assert(sizeof(jrn_segment_head) == JRN_SEGMENT_HEAD_BYTES, "records begin behind the segment's header");

typedef struct {
    uint32_t size; /* stored last: the record's commit */
    uint32_t crc;
    uint64_t seq;
    uint64_t call; /* 0: not a call's record */
} jrn_record;

typedef struct {
    char *base;
    uint64_t size;
} jrn_segment;

typedef struct {
    jrn_head *head;
    jrn_slot *slots;
    jrn_segment segment; /* being written */
    uint64_t offset;     /* in it */
    uint64_t seq;        /* of the last record */
    uint32_t seed;       /* of every CRC of this epoch */
} jrn;

typedef void (*jrn_drop)(void *context, uint64_t cell);

/* ---- CRC-32C (RFC 3720, appendix B.4): the instruction where the CPU has it, tables elsewhere ---- */

static uint32_t jrn_crc_table[8][256];
static uint32_t (*jrn_crc)(uint32_t crc, const void *data, uint64_t size);

static uint32_t jrn_crc_portable(uint32_t crc, const void *data, uint64_t size) {
    const uint8_t *p = data;
    crc = ~crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint32_t low = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = jrn_crc_table[7][low & 255] ^ jrn_crc_table[6][low >> 8 & 255] ^ jrn_crc_table[5][low >> 16 & 255] ^
              jrn_crc_table[4][low >> 24] ^ jrn_crc_table[3][p[4]] ^ jrn_crc_table[2][p[5]] ^
              jrn_crc_table[1][p[6]] ^ jrn_crc_table[0][p[7]];
    }
    while (size--) crc = crc >> 8 ^ jrn_crc_table[0][(crc ^ *p++) & 255];
    return ~crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t jrn_crc_sse42(uint32_t crc, const void *data, uint64_t size) {
    const uint8_t *p = data;
    uint64_t wide = ~crc;
    for (; size >= 8; size -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        wide = __builtin_ia32_crc32di(wide, word);
    }
    uint32_t narrow = (uint32_t)wide;
    while (size--) narrow = __builtin_ia32_crc32qi(narrow, *p++);
    return ~narrow;
}
#endif

/* Once per process, before anything else. */
static void jrn_init(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
        jrn_crc_table[0][i] = crc;
    }
    for (int row = 1; row < 8; row++)
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t before = jrn_crc_table[row - 1][i];
            jrn_crc_table[row][i] = before >> 8 ^ jrn_crc_table[0][before & 255];
        }
    jrn_crc = jrn_crc_portable;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2")) jrn_crc = jrn_crc_sse42;
#endif
}

static inline uint64_t jrn_wall_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
}

/* The kill harness cuts a copy in half, since a real one may be cut anywhere. */
static inline void jrn_copy(void *to, const void *from, uint64_t size) {
#ifdef WEIR_KILLPOINTS
    memcpy(to, from, size / 2);
    JRN_STEP();
    memcpy((char *)to + size / 2, (const char *)from + size / 2, size - size / 2);
#else
    memcpy(to, from, size);
#endif
    JRN_STEP();
}

/* ---- segments ---- */

static inline uint64_t jrn_space(uint64_t payload) { return sizeof(jrn_record) + ((payload + 7) & ~7ull); }

#define JRN_SPACE_MAX (sizeof(jrn_record) + JRN_RECORD_BYTES_MAX)

static inline jrn_segment_head *jrn_segment_headof(jrn_segment segment) { return (jrn_segment_head *)segment.base; }

/* The seed holds the epoch's random bits, so that bytes a client sent can never pass for a record. */
static uint32_t jrn_seed(const uint8_t epoch[16]) { return jrn_crc(0, epoch, 16); }

static uint32_t jrn_record_crc(uint32_t seed, uint64_t seq, uint64_t call, uint64_t size, const void *payload) {
    uint64_t head[3] = {seq, call, size};
    return jrn_crc(jrn_crc(seed, head, sizeof head), payload, size);
}

static void jrn_segment_begin(jrn_segment segment, const uint8_t epoch[16], uint64_t index) {
    jrn_segment_head *head = jrn_segment_headof(segment);
    head->format = JRN_SEGMENT_FORMAT;
    memcpy(head->epoch, epoch, 16);
    head->index = index;
    JRN_STORE(&head->magic, JRN_SEGMENT_MAGIC);
    JRN_STEP();
}

/* Goes on in a fresh segment. */
static void jrn_use(jrn *j, jrn_segment segment) {
    jrn_segment_head *head = jrn_segment_headof(segment);
    head->started_us = jrn_wall_us();
    JRN_STEP();
    JRN_STORE(&head->first_seq, j->seq + 1);
    JRN_STEP();
    j->segment = segment;
    j->offset = JRN_SEGMENT_HEAD_BYTES;
}

static inline int jrn_fits(const jrn *j, uint64_t payload) {
    return j->offset + jrn_space(payload) <= j->segment.size;
}

/* The caller has made sure that it fits. */
static void jrn_append(jrn *j, uint64_t call, const void *payload, uint64_t size) {
    jrn_record *record = (jrn_record *)(j->segment.base + j->offset);
    uint64_t seq = j->seq + 1;
    jrn_copy(record + 1, payload, size);
    record->seq = seq;
    record->call = call;
    JRN_STEP();
    record->crc = jrn_record_crc(j->seed, seq, call, size, payload);
    JRN_STEP();
    JRN_STORE(&record->size, (uint32_t)size);
    JRN_STEP();
    j->offset += jrn_space(size);
    j->seq = seq;
    jrn_segment_headof(j->segment)->last_seq = seq;
    JRN_STEP();
}

static const jrn_record *jrn_record_at(jrn_segment segment, uint64_t offset) {
    const jrn_record *record = (const jrn_record *)(segment.base + offset);
    if (offset + sizeof(jrn_record) > segment.size) return NULL;
    uint32_t size = JRN_LOAD(&record->size);
    if (size == 0 || size > JRN_RECORD_BYTES_MAX || offset + jrn_space(size) > segment.size) return NULL;
    return record;
}

static int jrn_valid(const jrn_record *record, uint32_t seed) {
    return record->crc == jrn_record_crc(seed, record->seq, record->call, record->size, record + 1);
}

/* Where a walk stands. A record before `from` is stepped over by its length, unread. */
typedef struct {
    uint64_t last;    /* seq of the last record found */
    int segment;      /* where it lies; -1: none yet */
    uint64_t offset;  /* behind it */
} jrn_place;

/* Returns non-zero to stop. A seq that is not the last plus one means damage between the two. */
typedef int (*jrn_visit)(void *context, const jrn_record *record);

/* Visits the records in the order of seq up to `until`, beginning with the first there is: older ones are pruned.
 * What is unreadable is passed over by looking for the next valid record at each multiple of eight; copies of records
 * that were seen (a segment that was moved) are left out. */
static jrn_place jrn_walk(const jrn_segment *segments, int count, uint32_t seed, uint64_t from, uint64_t until,
                          jrn_visit visit, void *context) {
    jrn_place place = {0, -1, JRN_SEGMENT_HEAD_BYTES};
    for (int i = 0; i < count; i++) {
        const jrn_segment_head *head = jrn_segment_headof(segments[i]);
        uint64_t offset = JRN_SEGMENT_HEAD_BYTES;
        /* Wholly moved, or never used: its copies follow. */
        if (head->bad == JRN_MOVED && head->first_seq - 1 >= head->cut) continue;
        while (place.last < until) {
            if (head->bad == JRN_MOVED && place.last >= head->cut) break;
            const jrn_record *record = jrn_record_at(segments[i], offset);
            if (!record && i + 1 < count && jrn_segment_headof(segments[i + 1])->first_seq == place.last + 1) break;
            int hop = record && record->seq == place.last + 1 && record->seq < from;
            if (!record || !(hop || jrn_valid(record, seed))) {
                do {
                    offset += 8;
                    record = jrn_record_at(segments[i], offset);
                } while (offset + sizeof(jrn_record) <= segments[i].size &&
                         !(record && record->seq > place.last && jrn_valid(record, seed)));
                if (offset + sizeof(jrn_record) > segments[i].size) break;
            }
            offset += jrn_space(record->size);
            if (record->seq <= place.last) continue;
            place = (jrn_place){record->seq, i, offset};
            if (record->seq >= from && visit && visit(context, record)) return place;
        }
    }
    return place;
}

static int jrn_mend_visit(void *context, const jrn_record *record) {
    jrn_segment_head *head = context;
    if (!head->first_seq) head->first_seq = record->seq;
    head->last_seq = record->seq;
    return 0;
}

/* A new header for a segment that has lost its own: first and last are what can be read. */
static void jrn_mend(jrn_segment segment, const uint8_t epoch[16], uint64_t index) {
    jrn_segment_head fresh = {0};
    memset(segment.base, 0, sizeof fresh);
    jrn_walk(&segment, 1, jrn_seed(epoch), 0, UINT64_MAX, jrn_mend_visit, &fresh);
    memcpy(segment.base, &fresh, sizeof fresh);
    jrn_segment_begin(segment, epoch, index);
}

/* Zeroes what is not zero from `offset` on: only foreign pages are made dirty. */
static void jrn_wipe(jrn_segment segment, uint64_t offset) {
    for (uint64_t *word = (uint64_t *)(segment.base + offset), *end = (uint64_t *)(segment.base + segment.size);
         word < end; word++)
        if (*word) {
            *word = 0;
            JRN_STEP();
        }
}

typedef struct {
    jrn target;
    const jrn_segment *spares;
    int used;
} jrn_moving;

static int jrn_move_visit(void *context, const jrn_record *record) {
    jrn_moving *moving = context;
    if (!moving->used || !jrn_fits(&moving->target, record->size))
        jrn_use(&moving->target, moving->spares[moving->used++]);
    jrn_append(&moving->target, record->call, record + 1, record->size);
    return 0;
}

/* What fdatasync has failed for is written again, from memory, into fresh segments: the same records under the same
 * seqs. `old` are the segments not wholly synced, up to the one being written. The caller gives spares enough (one more
 * than there are old ones). Returns how many were used. */
static int jrn_move(jrn *j, const jrn_segment *old, int count, const jrn_segment *spares, uint64_t synced) {
    jrn_moving moving = {*j, spares, 0};
    moving.target.seq = synced;
    jrn_walk(old, count, j->seed, synced + 1, j->seq, jrn_move_visit, &moving);
    if (!moving.used) jrn_use(&moving.target, moving.spares[moving.used++]);
    /* The newest first: an old one is left only when every later record is read from its copy. */
    for (int i = count - 1; i >= 0; i--) {
        jrn_segment_headof(old[i])->cut = synced;
        JRN_STEP();
        JRN_STORE(&jrn_segment_headof(old[i])->bad, JRN_MOVED);
        JRN_STEP();
    }
    *j = moving.target;
    return moving.used;
}

/* After a failed fdatasync the kernel calls the pages clean: touching makes it write them again. */
static void jrn_touch(jrn_segment segment) {
    for (uint64_t offset = 0; offset < segment.size; offset += 4096) {
        volatile uint64_t *word = (volatile uint64_t *)(segment.base + offset);
        *word = *word;
    }
}

/* ---- slots ---- */

static void jrn_open(jrn *j, jrn_slot *slot, uint64_t call, const void *opened, uint64_t size, const uint64_t *holds,
                     uint32_t hold_count) {
    slot->call = call;
    JRN_STEP();
    jrn_copy(slot->opened, opened, size);
    slot->opened_size = (uint32_t)size;
    slot->flip = 0;
    memset(slot->progress[0], 0, sizeof slot->progress[0]);
    slot->sent_word = 0;
    JRN_STEP();
    memcpy(slot->hold, holds, hold_count * sizeof *holds);
    slot->hold_count = hold_count;
    JRN_STEP();
    JRN_STORE(&slot->state, JRN_OPEN);
    JRN_STEP();
    JRN_STORE(&j->head->calls, call);
    JRN_STEP();
}

/* A second attempt first takes the first one's name away, so that no mixture of two can be read. */
static void jrn_sent(jrn_slot *slot, uint32_t attempt, const void *sent, uint64_t size) {
    JRN_STORE(&slot->sent_word, slot->sent_word & ~0xffffffffull);
    JRN_STEP();
    jrn_copy(slot->sent, sent, size);
    JRN_STORE(&slot->sent_word, (uint64_t)attempt << 32 | size);
    JRN_STEP();
    JRN_STORE(&slot->state, JRN_SENT);
    JRN_STEP();
}

static inline void jrn_note(jrn_slot *slot, const uint64_t counters[JRN_COUNTERS]) {
    uint64_t flip = slot->flip + 1;
    uint64_t *buffer = slot->progress[flip & 1];
    jrn_copy(buffer, counters, JRN_COUNTERS * sizeof *counters);
    JRN_STORE(&slot->flip, flip);
    JRN_STEP();
}

static inline const uint64_t *jrn_counters(const jrn_slot *slot) { return slot->progress[slot->flip & 1]; }

/* In a slot of the old format: the two buffers lay nearer to each other, and all that recovery reads besides lies where
 * it did. */
static inline const uint64_t *jrn_counters_old(const jrn_slot *slot) {
    return slot->progress[0] + (slot->flip & 1 ? JRN_COUNTERS_OLD : 0);
}

/* The holds fall and the slot is free. A recoverer drops nothing: it overwrites the whole column afterwards. */
static void jrn_settle(jrn_slot *slot, jrn_drop drop, void *context) {
    if (drop)
        for (uint32_t i = 0; i < slot->hold_count; i++) {
            drop(context, slot->hold[i]);
            JRN_STEP();
        }
    JRN_STORE(&slot->state, JRN_FREE);
    JRN_STEP();
}

/* The final record stands in the closing area before the word CLOSING, so whoever finds the word can finish. */
static void jrn_close(jrn *j, jrn_slot *slot, const void *payload, uint64_t size, jrn_drop drop, void *context) {
    j->head->closing_call = slot->call;
    JRN_STEP();
    j->head->closing_size = size;
    JRN_STEP();
    jrn_copy(j->head->closing, payload, size);
    JRN_STORE(&slot->state, JRN_CLOSING);
    JRN_STEP();
    jrn_append(j, slot->call, payload, size);
    jrn_settle(slot, drop, context);
}

/* ---- recovery: by whoever holds the lock of a dead epoch; may be killed anywhere and run again ---- */

/* Writes the record of a call that its process did not finish into `payload` (RECORD_BYTES_MAX); returns its size, or
 * below zero to stop. */
typedef int (*jrn_build)(void *context, const jrn_slot *slot, char *payload);

typedef struct {
    uint64_t *calls; /* of the slots that are not free, ascending */
    uint8_t *found;  /* whether the segments have the call's record */
    uint64_t count;
    uint64_t last;
    uint64_t gaps;
    int ended; /* an EpochEnd was found */
} jrn_log;

static int jrn_by_call(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static uint64_t *jrn_log_find(jrn_log *log, uint64_t call) {
    return bsearch(&call, log->calls, log->count, sizeof *log->calls, jrn_by_call);
}

static int jrn_log_visit(void *context, const jrn_record *record) {
    jrn_log *log = context;
    if (record->seq != log->last + 1) log->gaps++;
    log->last = record->seq;
    if (record->call == 0) log->ended = 1;
    uint64_t *at = record->call ? jrn_log_find(log, record->call) : NULL;
    if (at) log->found[at - log->calls] = 1;
    return 0;
}

typedef struct {
    uint64_t added; /* records of calls, this time */
    uint64_t gaps;  /* places where records were lost to damage */
    int ended;
    int at; /* the segment being written */
} jrn_recovery;

/* Makes room for a record of any size, in a later segment if need be: 0, or -ENOSPC when there is none. */
static int jrn_room(jrn *j, const jrn_segment *segments, int count, int *at) {
    if (*at >= 0 && j->offset + JRN_SPACE_MAX <= j->segment.size) return 0;
    while (*at + 1 < count && jrn_segment_headof(segments[*at + 1])->bad == JRN_MOVED) ++*at;
    if (*at + 1 >= count) return -ENOSPC;
    jrn_use(j, segments[++*at]);
    return 0;
}

/* Everything up to the columns and the EpochEnd, which need the arena and the disk. 0, -ENOMEM, -ENOSPC (give one more
 * empty segment and run again), or what `build` returned. */
static int jrn_recover(jrn *j, const jrn_segment *segments, int count, jrn_build build, void *context,
                       jrn_recovery *result) {
    jrn_head *head = j->head;
    jrn_log log = {0};
    int status = -ENOMEM, at = -1;
    memset(result, 0, sizeof *result);
    log.calls = calloc(head->slots + 1, sizeof *log.calls);
    log.found = calloc(head->slots + 1, 1);
    if (!log.calls || !log.found) goto out;

    /* The death may lie between OPEN and the count of calls. */
    uint64_t calls = head->calls;
    for (uint64_t i = 0; i < head->slots; i++)
        if (j->slots[i].state != JRN_FREE) {
            log.calls[log.count++] = j->slots[i].call;
            if (j->slots[i].call > calls) calls = j->slots[i].call;
        }
    JRN_STORE(&head->calls, calls);
    JRN_STEP();
    qsort(log.calls, log.count, sizeof *log.calls, jrn_by_call);

    if (count && jrn_segment_headof(segments[0])->first_seq) log.last = jrn_segment_headof(segments[0])->first_seq - 1;
    jrn_place place = jrn_walk(segments, count, j->seed, 0, UINT64_MAX, jrn_log_visit, &log);

    /* Cut the torn tail: nothing valid follows the last valid record, wherever it lies. A later segment is empty, or
     * holds the copies of a move that did not come to its end. */
    at = place.segment;
    j->seq = place.last;
    if (at >= 0) {
        j->segment = segments[at];
        j->offset = place.offset;
        jrn_wipe(segments[at], j->offset);
        jrn_segment_headof(segments[at])->last_seq = j->seq;
        JRN_STEP();
        /* Behind its cut nothing is read. */
        if (jrn_segment_headof(segments[at])->bad == JRN_MOVED) j->offset = segments[at].size;
    }
    for (int i = at + 1; i < count; i++) {
        jrn_segment_headof(segments[i])->first_seq = 0;
        jrn_segment_headof(segments[i])->last_seq = 0;
        JRN_STEP();
        jrn_wipe(segments[i], JRN_SEGMENT_HEAD_BYTES);
    }

    /* The call that was being closed first, since every other close uses the closing area. */
    for (uint64_t i = 0; i < head->slots; i++) {
        jrn_slot *slot = &j->slots[i];
        if (slot->state != JRN_CLOSING) continue;
        if (!log.found[jrn_log_find(&log, slot->call) - log.calls]) {
            if (slot->call != head->closing_call) continue; /* only after a power cut: as any open call, below */
            if (head->closing_size == 0 || head->closing_size > JRN_RECORD_BYTES_MAX) continue;
            if ((status = jrn_room(j, segments, count, &at))) goto out;
            jrn_append(j, slot->call, head->closing, head->closing_size);
            result->added++;
        }
        jrn_settle(slot, NULL, NULL);
    }
    for (uint64_t i = 0; i < head->slots; i++) {
        jrn_slot *slot = &j->slots[i];
        if (slot->state == JRN_FREE) continue;
        if (log.found[jrn_log_find(&log, slot->call) - log.calls]) {
            jrn_settle(slot, NULL, NULL);
            continue;
        }
        char payload[JRN_RECORD_BYTES_MAX];
        int size = build(context, slot, payload);
        status = size;
        if (size < 0) goto out;
        if ((status = jrn_room(j, segments, count, &at))) goto out;
        jrn_close(j, slot, payload, (uint64_t)size, NULL, NULL);
        result->added++;
    }
    status = jrn_room(j, segments, count, &at); /* for the EpochEnd */
out:
    result->gaps = log.gaps;
    result->ended = log.ended;
    result->at = at;
    free(log.calls);
    free(log.found);
    return status;
}

#endif
