/* Counts the tokens of what an answer says while it is said: one incremental count, a lane, for each text in it.

   Texts are told apart by choice, kind and tool call (`_speech.h`), since tokens do not reach from one into another.
   Text comes in by `weir_lanes_hear`, once a frame is known to be well formed, and goes straight to its lane as long as
   little has come since the last look; what is more waits in the backlog, so that neither one read of an upstream nor
   one long word holds up the loop. `weir_lanes_look` says how many tokens there are, once for each read. What waits
   goes to its lane at later looks, or in a thread at the end (`weir_lanes_finish`).

   At a look a lane's last word, which may still grow, is counted anew. Of a long one that is only its newest part, but
   for the few (`_growing.h`) that must be counted whole: these are put off until they have doubled, so that a text
   without spaces costs no more than twice its own count. In between, and for what waits, the count is an estimate by
   bytes and says so. */

#ifndef WEIR_LANES_H
#define WEIR_LANES_H

#include <stdlib.h>
#include <string.h>

#include "_speech.h"
#include "_stream.h"

static size_t weir_inline_max;  /* bounds.TEXT_BYTES_INLINE: counted between two looks, and in one word */
static size_t weir_backlog_max; /* bounds.ANSWER_BACKLOG_BYTES_MAX */
static size_t weir_word_max;    /* bounds.WORD_BYTES_RECOUNTED: a longer one is not counted anew at each look */
static int weir_lanes_max;      /* bounds.ANSWER_LANES_MAX */

enum { WEIR_LANES_FEW = 8 }; /* a call has one or two */

typedef struct weir_lane {
    struct weir_lane *next;  /* all, in a ring */
    struct weir_lane *stale; /* the next of those that have text that is not in `tokens` */
    uint64_t name;
    int64_t tokens;
    int64_t fresh;  /* bytes of text since `tokens` was found */
    size_t counted; /* bytes of the last word at that time */
    uint32_t look;  /* the last one that it got text for */
    int is_stale;
    weir_stream stream;
} weir_lane;

/* In front of each stretch of text that waits. */
typedef struct {
    weir_lane *lane;
    uint32_t bytes, length; /* raw, and decoded */
} weir_waiting;

typedef struct {
    weir_encoding *encoding;
    weir_lane *recent; /* where the ring is entered: the next text is mostly the same one's, or its neighbour's */
    weir_lane *stale;
    weir_lane **place; /* where each lane is found by its name, once there are many: `places` of them, or NULL */
    size_t places;     /* a power of two, at least twice the lanes */
    int64_t tokens; /* of all lanes */
    int64_t fresh;  /* of all lanes */
    int64_t waits;  /* decoded bytes in the backlog */
    int64_t lost;   /* decoded bytes that no lane will ever count */
    int count;
    uint32_t look;
    int unread; /* a frame was passed on unread, or has more in it than text: nobody knows its tokens */
    int failed; /* no memory */
    size_t spent; /* bytes counted since the last look */
    uint8_t *backlog;
    size_t from, to, room, last; /* `last`: where the last stretch's header is */
} weir_lanes;

static void weir_lanes_end(weir_lanes *l) {
    weir_lane *lane = l->recent;
    for (int i = 0; i < l->count; i++) {
        weir_lane *next = lane->next;
        weir_stream_end(&lane->stream);
        free(lane);
        lane = next;
    }
    free(l->backlog);
    free(l->place);
}

/* Where the lane of that name is, or would be. */
static weir_lane **weir_lane_place(const weir_lanes *l, uint64_t name) {
    size_t at = name * WEIR_MIX_A >> 32;
    while (l->place[at &= l->places - 1] && l->place[at]->name != name) at++;
    return &l->place[at];
}

/* Makes places for one lane more: 1, or 0 without memory. Few lanes are looked for one after the other. */
static int weir_lane_places(weir_lanes *l) {
    const size_t lanes = (size_t)l->count + 1, places = l->places ? l->places * 2 : 8 * WEIR_LANES_FEW;
    weir_lane *lane = l->recent;
    if (lanes <= WEIR_LANES_FEW || 2 * lanes <= l->places) return 1;
    weir_lane **place = calloc(places, sizeof *place);
    if (!place) return 0;
    free(l->place);
    l->place = place;
    l->places = places;
    for (int i = 0; i < l->count; i++, lane = lane->next) *weir_lane_place(l, lane->name) = lane;
    return 1;
}

static weir_lane *weir_lane_of(weir_lanes *l, uint64_t name) {
    weir_lane *lane = l->recent;
    if (l->place) {
        if ((lane = *weir_lane_place(l, name))) return l->recent = lane;
    } else {
        for (int i = 0; i < l->count; i++, lane = lane->next)
            if (lane->name == name) return l->recent = lane;
    }
    if (l->count >= weir_lanes_max || !weir_lane_places(l)) return NULL;
    lane = calloc(1, sizeof *lane);
    if (!lane) return NULL;
    lane->name = name;
    weir_stream_start(&lane->stream, l->encoding);
    if (l->recent) {
        lane->next = l->recent->next;
        l->recent->next = lane;
    } else lane->next = lane;
    l->count++;
    if (l->place) *weir_lane_place(l, name) = lane;
    lane->look = l->look - 1;
    return l->recent = lane;
}

/* How many more bytes the lane may get before the next look. Text may complete the last word, whose bytes are then
   counted too: they are charged with the first text after a look. */
static size_t weir_lane_room(const weir_lanes *l, const weir_lane *lane) {
    const size_t word = weir_stream_pending(&lane->stream);
    const size_t spent = l->spent + (lane->look == l->look ? 0 : word);
    const size_t most = spent > word ? spent : word;
    return most < weir_inline_max ? weir_inline_max - most : 0;
}

/* Whether a count of the last word costs no more than its newest part. */
static inline int weir_lane_followed(const weir_stream *s) {
    return s->growing.kind && !s->growing.head.failed && !s->growing.tail.failed && !s->high;
}

static void weir_lane_feed(weir_lanes *l, weir_lane *lane, const uint8_t *raw, size_t bytes, int64_t length) {
    if (lane->look != l->look) {
        lane->look = l->look;
        l->spent += weir_stream_pending(&lane->stream);
    }
    l->spent += bytes;
    if (weir_stream_feed_json(&lane->stream, raw, bytes) < 0) l->failed = 1;
    lane->fresh += length;
    l->fresh += length;
    if (!lane->is_stale) {
        lane->is_stale = 1;
        lane->stale = l->stale;
        l->stale = lane;
    }
}

/* --- what waits --- */

/* The text joins the backlog's end: 1, or 0 where that is full. */
static int weir_wait(weir_lanes *l, weir_lane *lane, const weir_span_said *said) {
    weir_waiting header = {lane, 0, 0};
    const int empty = l->from == l->to;
    int joins = 0;
    if (!empty) {
        memcpy(&header, l->backlog + l->last, sizeof header);
        joins = header.lane == lane;
    }
    const size_t need = said->bytes + (joins ? 0 : sizeof header);
    if (l->to - l->from + need > weir_backlog_max) return 0;
    if (l->to + need > l->room && l->from) {
        memmove(l->backlog, l->backlog + l->from, l->to - l->from);
        l->last -= l->from;
        l->to -= l->from;
        l->from = 0;
    }
    if (l->to + need > l->room) {
        size_t room = l->room ? l->room * 2 : 4096;
        while (room < l->to + need) room *= 2;
        uint8_t *backlog = realloc(l->backlog, room);
        if (!backlog) return 0;
        l->backlog = backlog;
        l->room = room;
    }
    if (!joins) {
        header = (weir_waiting){lane, 0, 0};
        l->last = l->to;
        l->to += sizeof header;
    }
    header.bytes += said->bytes;
    header.length += said->length;
    memcpy(l->backlog + l->last, &header, sizeof header);
    memcpy(l->backlog + l->to, said->start, said->bytes);
    l->to += said->bytes;
    l->waits += said->length;
    return 1;
}

/* The most of [p, p + n), n > `most`, that ends neither inside an escape nor inside a character. */
static size_t weir_whole_part(const uint8_t *p, size_t most) {
    size_t at = 0;
    while (at < most) {
        const uint8_t *slash = memchr(p + at, '\\', most - at);
        if (!slash) break;
        const size_t start = (size_t)(slash - p), escape = p[start + 1] == 'u' ? 6 : 2;
        if (start + escape > most) return start;
        at = start + escape;
    }
    size_t cut = most;
    while (cut > at && most - cut < 3 && (p[cut] & 0xC0) == 0x80) cut--;
    return (p[cut] & 0xC0) == 0x80 ? most : cut; /* odd bytes are no character, and may be cut anywhere */
}

/* Hands waiting text to its lanes in the order in which it came. `all`: without a bound. */
static void weir_catch_up(weir_lanes *l, int all) {
    weir_waiting header;
    while (l->from < l->to && !l->failed) {
        memcpy(&header, l->backlog + l->from, sizeof header);
        const uint8_t *raw = l->backlog + l->from + sizeof header;
        size_t bytes = header.bytes;
        int64_t length = header.length;
        if (!all) {
            const size_t room = weir_lane_room(l, header.lane);
            if (bytes > room) {
                bytes = weir_whole_part(raw, room);
                if (!bytes) return;
                length = length * (int64_t)bytes / header.bytes;
            }
        }
        weir_lane_feed(l, header.lane, raw, bytes, length);
        l->waits -= length;
        header.bytes -= (uint32_t)bytes;
        header.length -= (uint32_t)length;
        if (header.bytes) {
            const int only = l->last == l->from;
            l->from += bytes;
            if (only) l->last = l->from;
            memcpy(l->backlog + l->from, &header, sizeof header);
        } else l->from += sizeof header + bytes;
    }
    if (l->from == l->to) {
        free(l->backlog);
        l->backlog = NULL;
        l->from = l->to = l->room = l->last = 0;
    }
}

/* --- the four things a caller does --- */

static void weir_lanes_hear(weir_lanes *l, const weir_speech *speech) {
    if (l->failed) return;
    l->lost += speech->lost;
    l->unread |= speech->unread;
    for (int i = 0; i < speech->count; i++) {
        const weir_span_said *said = &speech->span[i];
        if (!said->bytes) continue;
        weir_lane *lane = weir_lane_of(l, said->lane);
        if (!lane) l->lost += said->length;
        else if (l->from == l->to && said->bytes <= weir_lane_room(l, lane))
            weir_lane_feed(l, lane, said->start, said->bytes, said->length);
        else if (!weir_wait(l, lane, said)) l->lost += said->length;
    }
}

/* Counts what it may. `bound` 0: everything; 1: at a read; 2: at the last one, where even a long word is counted anew.
   Afterwards `tokens` is exact but for `fresh`, `waits`, `lost` and `unread`. */
static void weir_lanes_look(weir_lanes *l, int bound) {
    if (l->from < l->to) weir_catch_up(l, !bound);
    weir_lane **at = &l->stale;
    while (*at && !l->failed) {
        weir_lane *lane = *at;
        const size_t word = weir_stream_pending(&lane->stream);
        if (bound && word > weir_word_max && !weir_lane_followed(&lane->stream)) {
            /* A shorter one than then is another one. */
            const int grows = word >= lane->counted && word < 2 * lane->counted;
            if ((bound == 1 && grows) || l->spent + word > weir_inline_max) {
                at = &lane->stale;
                continue;
            }
            l->spent += word;
        }
        const int64_t tokens = weir_stream_count(&lane->stream);
        if (tokens < 0) {
            l->failed = 1;
            break;
        }
        l->tokens += tokens - lane->tokens;
        lane->tokens = tokens;
        l->fresh -= lane->fresh;
        lane->fresh = 0;
        lane->counted = weir_stream_pending(&lane->stream);
        lane->is_stale = 0;
        *at = lane->stale;
    }
    l->spent = 0;
    l->look++;
}

/* Counts everything, with other caches of the same encoding: its own are the loop's, which uses them meanwhile. */
static void weir_lanes_finish(weir_lanes *l, weir_encoding *other) {
    weir_lane *lane = l->recent;
    for (int i = 0; i < l->count; i++, lane = lane->next) lane->stream.e = other;
    weir_lanes_look(l, 0);
    for (int i = 0; i < l->count; i++, lane = lane->next) lane->stream.e = l->encoding;
}

static size_t weir_lanes_bytes(const weir_lanes *l) {
    return l->room + (size_t)l->count * sizeof(weir_lane) + l->places * sizeof *l->place;
}

static inline int weir_lanes_estimate(const weir_lanes *l) {
    return l->failed || l->unread || l->fresh || l->waits || l->lost;
}

#endif
