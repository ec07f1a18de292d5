/* What an answer says: where in its `choices` the strings of generated text stand, and to which text each belongs.

   The shape is that of chat completions and completions: choices[] of delta or message, with content (a string, or
   parts), refusal, reasoning, tool_calls[] and function_call, or of text. Everything else is passed over: log
   probabilities and annotations repeat the text. Nothing is copied; the spans point into what was read, and count only
   once all of it has turned out to be well formed. */

#ifndef WEIR_SPEECH_H
#define WEIR_SPEECH_H

#include <stdlib.h>

#include "_walk.h"

#define WEIR_SPANS_FEW 12 /* without an allocation: a delta has one or two */
#define WEIR_INDEX_MAX ((int64_t)1 << 24)

static int weir_spans_max; /* bounds.ANSWER_STRINGS_MAX */

/* Whose text it is, within its choice. */
enum {
    WEIR_SAID_CONTENT,
    WEIR_SAID_REFUSAL,
    WEIR_SAID_REASONING,
    WEIR_SAID_TEXT,
    WEIR_SAID_CALL_NAME,
    WEIR_SAID_CALL_ARGUMENTS,
    WEIR_SAID_FUNCTION_NAME,
    WEIR_SAID_FUNCTION_ARGUMENTS,
};

/* The name of one text: the choice's index, the tool call's, and which of the above. */
#define WEIR_LANE_OF_CHOICE(lane, choice) (((lane) & 0xFFFFFFFF) | (uint64_t)(choice) << 32)
#define WEIR_LANE_OF_CALL(lane, call) (((lane) & ~(uint64_t)0xFFFFFF00) | (uint64_t)(call) << 8)

typedef struct {
    const uint8_t *start; /* inside the quotes, escapes and all */
    uint32_t bytes;       /* 0: taken back */
    uint32_t length;      /* decoded bytes */
    uint64_t lane;
} weir_span_said;

typedef struct {
    int64_t text;  /* decoded bytes of all texts; names are none */
    int64_t lost;  /* of them, and of names, in strings that there was no room to note */
    int heard;     /* whether somebody counts: without, no span is noted */
    int unread;    /* something is said that is no text */
    int count, room;
    weir_span_said *span;
    weir_span_said few[WEIR_SPANS_FEW];
} weir_speech;

static inline void weir_speech_start(weir_speech *s, int heard) {
    s->text = s->lost = 0;
    s->heard = heard;
    s->count = s->unread = 0;
    s->room = WEIR_SPANS_FEW;
    s->span = s->few;
}

static inline void weir_speech_end(weir_speech *s) {
    if (s->span != s->few) free(s->span);
}

/* Another `choices` follows: the last one counts. */
static inline void weir_unsaid(weir_speech *s) {
    s->text = s->lost = 0;
    s->count = s->unread = 0;
}

/* A token count or an index at p: 1 and its value, 0 for null, -1 when it cannot be believed (negative, fractional,
   above 2**40). */
static int weir_figure(const wj *j, const uint8_t *p, int64_t *value) {
    const uint8_t *q = wj_digits(p, j->end);
    int64_t sum = 0;
    if (*p == 'n') return 0;
    if (q == p || q - p > 13) return -1;
    if (q < j->end && (*q == '.' || *q == 'e' || *q == 'E')) return -1;
    for (; p < q; p++) sum = sum * 10 + (*p - '0');
    if (sum > (int64_t)1 << 40) return -1;
    *value = sum;
    return 1;
}

static int weir_more_spans(weir_speech *s) {
    if (s->span != s->few) return 0;
    weir_span_said *span = malloc((size_t)weir_spans_max * sizeof *span);
    if (!span) return 0;
    memcpy(span, s->few, sizeof s->few);
    s->span = span;
    s->room = weir_spans_max;
    return 1;
}

static inline void weir_say(weir_speech *s, const wj_str *text, uint64_t lane, int is_name) {
    const int64_t length = wj_length(text);
    if (!is_name) s->text += length;
    if (!s->heard || !length) return;
    if (s->count == s->room && !weir_more_spans(s)) {
        s->lost += length;
        return;
    }
    s->span[s->count++] = (weir_span_said){text->start, (uint32_t)(text->end - text->start), (uint32_t)length, lane};
}

/* What was said under one key of an object: taken back when the key stands there again. Which keys were met stands in
   a mask beside it, so that the others need not be set to zero. */
typedef struct {
    int first, end;
    int64_t text;
} weir_saying;

static inline void weir_take_back(weir_speech *s, const weir_saying *saying) {
    for (int i = saying->first; i < saying->end; i++) s->span[i].bytes = 0;
    s->text -= saying->text;
}

static inline weir_saying *weir_saying_starts(weir_speech *s, weir_saying *said, unsigned *met, int which) {
    weir_saying *saying = &said[which];
    if (*met >> which & 1) weir_take_back(s, saying);
    *met |= 1u << which;
    saying->first = s->count;
    saying->text = s->text;
    return saying;
}

static inline void weir_saying_ends(weir_speech *s, weir_saying *saying) {
    saying->end = s->count;
    saying->text = s->text - saying->text;
}

/* Steps to an array's next element: 1, *at then stands at it; 0 at its end, *at behind it; -1 if wrong. *at begins
   behind the opening bracket, with *elements 0; it counts them. */
static int weir_element(wj *j, const uint8_t **at, int64_t *elements) {
    const uint8_t *p = wj_space(*at, j->end);
    if (p < j->end && *p == ']') {
        *at = p + 1;
        return 0;
    }
    if (*elements) {
        if (p == j->end || *p != ',') return wj_fail(j, p, "a comma or a closing bracket is expected"), -1;
        p = wj_space(p + 1, j->end);
    }
    if (p == j->end || *p == ']') return wj_fail(j, p, "a value is expected"), -1;
    *at = p;
    *elements += 1;
    return 1;
}

/* A value that is said where it is a string. */
static inline const uint8_t *weir_string_said(wj *j, const uint8_t *p, weir_speech *s, uint64_t lane, int is_name) {
    wj_str text;
    if (*p != '"') return wj_skip(j, p);
    p = wj_string(j, p, &text, 0);
    if (p) weir_say(s, &text, lane, is_name);
    return p;
}

/* A content in parts (objects with a text, and Mistral's with thinking, which holds parts again), or what an upstream
   sends in its place. */
static const uint8_t *weir_parts(wj *j, const uint8_t *p, weir_speech *s, uint64_t lane) {
    int more;
    if (*p != '[' && *p != '{') return weir_string_said(j, p, s, lane, 0);
    if (j->depth >= j->depth_max) return wj_fail(j, p, "it is nested too deeply");
    j->depth++;
    if (*p++ == '[') {
        int64_t elements = 0;
        while ((more = weir_element(j, &p, &elements)) == 1) {
            p = weir_parts(j, p, s, lane);
            if (!p) return NULL;
        }
    } else {
        uint8_t buffer[WJ_NAME_MAX + 1];
        weir_saying said[2];
        unsigned met = 0;
        wj_str key;
        int members = 0;
        while ((more = wj_member(j, &p, &key, &members, 0)) == 1) {
            size_t n;
            const uint8_t *name = wj_name(&key, buffer, &n);
            const int thought = WJ_IS(name, n, "thinking");
            if (thought || WJ_IS(name, n, "text")) {
                weir_saying *saying = weir_saying_starts(s, said, &met, thought);
                p = weir_parts(j, p, s, thought ? (lane & ~(uint64_t)0xFF) | WEIR_SAID_REASONING : lane);
                weir_saying_ends(s, saying);
            } else p = wj_skip(j, p);
            if (!p) return NULL;
        }
    }
    j->depth--;
    return more < 0 ? NULL : p;
}

/* {name, arguments}, or a custom tool's {name, input}; p is any value. The name's lane is `lane`, the other the next.
   */
static const uint8_t *weir_function(wj *j, const uint8_t *p, weir_speech *s, uint64_t lane, int custom) {
    uint8_t buffer[WJ_NAME_MAX + 1];
    weir_saying said[2];
    unsigned met = 0;
    wj_str key;
    int members = 0, more;
    if (*p != '{') return wj_skip(j, p);
    p++;
    j->depth++;
    while ((more = wj_member(j, &p, &key, &members, 0)) == 1) {
        size_t n;
        const uint8_t *name = wj_name(&key, buffer, &n);
        const int is_name = WJ_IS(name, n, "name");
        if (is_name || (custom ? WJ_IS(name, n, "input") : WJ_IS(name, n, "arguments"))) {
            weir_saying *saying = weir_saying_starts(s, said, &met, is_name);
            p = weir_string_said(j, p, s, lane + !is_name, is_name);
            weir_saying_ends(s, saying);
        } else p = wj_skip(j, p);
        if (!p) return NULL;
    }
    j->depth--;
    return more < 0 ? NULL : p;
}

/* An element's index among its like, once it is known: a stream says it, a whole answer need not. */
static inline void weir_renumber(weir_speech *s, int first, int64_t index, int of_call) {
    for (int i = first; i < s->count; i++) {
        uint64_t *lane = &s->span[i].lane;
        *lane = of_call ? WEIR_LANE_OF_CALL(*lane, index) : WEIR_LANE_OF_CHOICE(*lane, index);
    }
}

static const uint8_t *weir_calls(wj *j, const uint8_t *p, weir_speech *s, uint64_t lane) {
    uint8_t buffer[WJ_NAME_MAX + 1];
    int64_t calls = 0;
    int more, inner;
    if (*p != '[') return wj_skip(j, p);
    p++;
    j->depth++;
    while ((more = weir_element(j, &p, &calls)) == 1) {
        weir_saying said[2];
        unsigned met = 0;
        const int first = s->count;
        int64_t index = calls - 1, found;
        wj_str key;
        int members = 0;
        if (*p != '{') {
            p = wj_skip(j, p);
            if (!p) return NULL;
            continue;
        }
        p++;
        j->depth++;
        while ((inner = wj_member(j, &p, &key, &members, 0)) == 1) {
            size_t n;
            const uint8_t *name = wj_name(&key, buffer, &n);
            const int is_custom = WJ_IS(name, n, "custom");
            if (is_custom || WJ_IS(name, n, "function")) {
                weir_saying *saying = weir_saying_starts(s, said, &met, is_custom);
                p = weir_function(j, p, s, lane | WEIR_SAID_CALL_NAME, is_custom);
                weir_saying_ends(s, saying);
            } else {
                if (WJ_IS(name, n, "index") && weir_figure(j, p, &found) == 1 && found < WEIR_INDEX_MAX) index = found;
                p = wj_skip(j, p);
            }
            if (!p) return NULL;
        }
        j->depth--;
        if (inner < 0) return NULL;
        weir_renumber(s, first, index, 1);
    }
    j->depth--;
    return more < 0 ? NULL : p;
}

/* A delta or a message; p is any value. */
static const uint8_t *weir_message(wj *j, const uint8_t *p, weir_speech *s) {
    enum { CONTENT, REFUSAL, REASONING, REASONING_OTHER, CALLS, FUNCTION, KEYS };
    uint8_t buffer[WJ_NAME_MAX + 1];
    weir_saying said[KEYS];
    unsigned met = 0;
    wj_str key;
    int members = 0, more;
    if (*p != '{') return wj_skip(j, p);
    p++;
    j->depth++;
    while ((more = wj_member(j, &p, &key, &members, 0)) == 1) {
        size_t n;
        const uint8_t *name = wj_name(&key, buffer, &n);
        int which = KEYS;
        switch (n) {
        case 5: s->unread |= *p != 'n' && memcmp(name, "audio", 5) == 0; break;
        case 6: s->unread |= *p != 'n' && memcmp(name, "images", 6) == 0; break;
        case 7:
            if (memcmp(name, "content", 7) == 0) which = CONTENT;
            else if (memcmp(name, "refusal", 7) == 0) which = REFUSAL;
            break;
        case 9: if (memcmp(name, "reasoning", 9) == 0) which = REASONING_OTHER; break;
        case 10: if (memcmp(name, "tool_calls", 10) == 0) which = CALLS; break;
        case 13: if (memcmp(name, "function_call", 13) == 0) which = FUNCTION; break;
        case 17: if (memcmp(name, "reasoning_content", 17) == 0) which = REASONING; break;
        }
        if (which == KEYS) p = wj_skip(j, p);
        else {
            weir_saying *saying = weir_saying_starts(s, said, &met, which);
            switch (which) {
            case CONTENT: p = weir_parts(j, p, s, WEIR_SAID_CONTENT); break;
            case REFUSAL: p = weir_string_said(j, p, s, WEIR_SAID_REFUSAL, 0); break;
            case CALLS: p = weir_calls(j, p, s, 0); break;
            case FUNCTION: p = weir_function(j, p, s, WEIR_SAID_FUNCTION_NAME, 0); break;
            default: p = weir_string_said(j, p, s, WEIR_SAID_REASONING, 0);
            }
            weir_saying_ends(s, saying);
        }
        if (!p) return NULL;
    }
    j->depth--;
    /* Providers send the same thoughts under both names. */
    if ((met >> REASONING & 1) && (met >> REASONING_OTHER & 1))
        weir_take_back(s, &said[said[REASONING].text >= said[REASONING_OTHER].text ? REASONING_OTHER : REASONING]);
    return more < 0 ? NULL : p;
}

/* p is the opening bracket of `choices`; counts its elements. */
static const uint8_t *weir_choices(wj *j, const uint8_t *p, weir_speech *s, int64_t *elements) {
    uint8_t buffer[WJ_NAME_MAX + 1];
    int more, inner;
    *elements = 0;
    p++;
    j->depth++;
    while ((more = weir_element(j, &p, elements)) == 1) {
        enum { DELTA, MESSAGE, TEXT, KEYS };
        weir_saying said[KEYS], *saying;
        unsigned met = 0;
        const int first = s->count;
        int64_t index = *elements - 1, found;
        wj_str key;
        int members = 0;
        if (*p != '{') {
            p = wj_skip(j, p);
            if (!p) return NULL;
            continue;
        }
        p++;
        j->depth++;
        while ((inner = wj_member(j, &p, &key, &members, 0)) == 1) {
            size_t n;
            const uint8_t *name = wj_name(&key, buffer, &n);
            const int is_delta = WJ_IS(name, n, "delta");
            if (is_delta || WJ_IS(name, n, "message")) {
                saying = weir_saying_starts(s, said, &met, is_delta ? DELTA : MESSAGE);
                p = weir_message(j, p, s);
                weir_saying_ends(s, saying);
            } else if (WJ_IS(name, n, "text")) {
                saying = weir_saying_starts(s, said, &met, TEXT);
                p = weir_string_said(j, p, s, WEIR_SAID_TEXT, 0);
                weir_saying_ends(s, saying);
            } else {
                if (WJ_IS(name, n, "index") && weir_figure(j, p, &found) == 1 && found < WEIR_INDEX_MAX) index = found;
                p = wj_skip(j, p);
            }
            if (!p) return NULL;
        }
        j->depth--;
        if (inner < 0) return NULL;
        if (index) weir_renumber(s, first, index, 0);
    }
    j->depth--;
    return more < 0 ? NULL : p;
}

#endif
