/* Scans a stream of server-sent events that is cut anywhere (WHATWG HTML, 9.2.6), and counts what a chat stream says.

   Two ways to use it. `out` NULL: the caller forwards every read at once, and only facts are gathered. With `out`:
   whole blocks are forwarded and an incomplete one is held, so that the usage frame of a client that did not ask can
   be removed.

   A block is what stands between blank lines. Blank lines, and comment lines in front of a block, are units of their
   own: they are forwarded at once, so a keep-alive comment is never held. What is found and what is forwarded does not
   depend on where the stream is cut. */

#ifndef WEIR_SSE_H
#define WEIR_SSE_H

#include <Python.h>
#include <stdlib.h>

#include "_answer.h"
#include "_lanes.h"

#define WEIR_MODEL_BYTES 96 /* room for bounds.MODEL_BYTES_MAX, checked at import; a longer name is cut */
#define WEIR_TAIL_BYTES_KEPT 4096 /* a larger tail is given back after its block: thousands of streams are open */

static Py_ssize_t weir_block_held_max;   /* bounds.FRAME_BYTES_HELD_MAX */
static Py_ssize_t weir_block_parsed_max; /* bounds.FRAME_BYTES_PARSED_MAX */

typedef struct {
    /* what was found */
    int64_t frames, hidden, text_bytes;
    weir_usage usage;
    int usage_seen, done, error;
    int model_bytes;
    char model[WEIR_MODEL_BYTES];
    weir_lanes *lanes; /* where the text is counted; NULL: nowhere */
    /* where it stands */
    Py_ssize_t held;       /* of the tail, bytes that were not forwarded */
    Py_ssize_t tail_bytes; /* of the block so far, as kept in `tail` */
    Py_ssize_t tail_room;
    Py_ssize_t block_bytes; /* of the block so far, kept or not */
    char *tail;
    uint8_t begun;      /* a block has ended before: no byte order mark any more */
    uint8_t in_block;   /* inside a block */
    uint8_t in_comment; /* inside a comment line in front of a block */
    uint8_t line_empty; /* in a block: the line so far is empty */
    uint8_t after_cr;   /* the last byte was a carriage return: a line feed belongs to it */
    uint8_t drop_lf;    /* and the block it ended was removed */
    uint8_t released;   /* the block's beginning was forwarded: it cannot be hidden any more */
    uint8_t unread;     /* the block is too long to be parsed, or there was no memory: 1 with data lines, 2 without */
} weir_sse;

/* === lines and blocks === */

/* The next line end, `end` without one. */
static inline const char *weir_line_end(const char *p, const char *end) {
#if defined(__SSE2__)
    const __m128i lf = _mm_set1_epi8('\n'), cr = _mm_set1_epi8('\r');
    while (end - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)p);
        int mask = _mm_movemask_epi8(_mm_or_si128(_mm_cmpeq_epi8(v, lf), _mm_cmpeq_epi8(v, cr)));
        if (mask) return p + __builtin_ctz((unsigned)mask);
        p += 16;
    }
#endif
    while (p < end && *p != '\n' && *p != '\r') p++;
    return p;
}

static inline const char *weir_line_skip(const char *p, const char *end) {
    if (p == end) return p;
    return p + (*p == '\r' && p + 1 < end && p[1] == '\n' ? 2 : 1);
}

/* Whether the line [p, end) is a data line; its value is then [*value, end). */
static inline int weir_data_line(const char *p, const char *end, const char **value) {
    if (end - p < 4 || memcmp(p, "data", 4) != 0) return 0;
    if (end - p > 4 && p[4] != ':') return 0;
    p += end - p > 4 ? 5 : 4;
    *value = p < end && *p == ' ' ? p + 1 : p;
    return 1;
}

/* A block's data: 0 without a data line, 1 with *data inside the block, 2 with *data joined by line feeds and
   malloc'ed. -1 when there is no memory. */
static int weir_block_data(const char *p, const char *end, const char **data, size_t *size) {
    const char *value, *first = NULL, *first_end = NULL;
    char *joined = NULL, *to = NULL;
    for (const char *line = p; line < end;) {
        const char *stop = weir_line_end(line, end);
        if (weir_data_line(line, stop, &value)) {
            if (!first) {
                first = value;
                first_end = stop;
            } else {
                if (!joined) {
                    joined = to = malloc((size_t)(end - p)); /* each line is longer than its value and a line feed */
                    if (!joined) return -1;
                    memcpy(to, first, (size_t)(first_end - first));
                    to += first_end - first;
                }
                *to++ = '\n';
                memcpy(to, value, (size_t)(stop - value));
                to += stop - value;
            }
        }
        line = weir_line_skip(stop, end);
    }
    *data = joined ? joined : first;
    *size = (size_t)(joined ? to - joined : first_end - first);
    return joined ? 2 : first != NULL;
}

static int weir_has_data(const char *p, const char *end) {
    const char *value;
    while (p < end) {
        const char *stop = weir_line_end(p, end);
        if (weir_data_line(p, stop, &value)) return 1;
        p = weir_line_skip(stop, end);
    }
    return 0;
}

static const char *weir_after_mark(const weir_sse *s, const char *p, const char *end) {
    return !s->begun && end - p >= 3 && memcmp(p, "\xEF\xBB\xBF", 3) == 0 ? p + 3 : p;
}

/* Judges a whole block and notes its facts. 1 when a client that did not ask for usage must not see it. `whole` is 0
   for what the stream's end left without its blank line: it counts when it can be read, as the official SDKs read it.
   */
static int weir_judge(weir_sse *s, const char *block, Py_ssize_t size, int whole) {
    const char *end = block + size, *data = NULL;
    size_t data_bytes = 0;
    weir_facts facts;
    weir_speech speech;
    block = weir_after_mark(s, block, end);
    s->begun = 1;
    int kind = weir_block_data(block, end, &data, &data_bytes);
    if (kind == 0) return 0;
    if (kind < 0) {
        if (s->lanes) s->lanes->unread = 1;
        s->frames += whole;
        return 0;
    }
    int hide = 0, read = 0;
    weir_speech_start(&speech, s->lanes != NULL);
    if (data_bytes >= 6 && memcmp(data, "[DONE]", 6) == 0) s->done = read = 1; /* openai-python: startswith */
    else if (weir_answer((const uint8_t *)data, data_bytes, &facts, &speech)) {
        read = 1;
        s->text_bytes += speech.text;
        if (s->lanes) weir_lanes_hear(s->lanes, &speech);
        s->error |= facts.error;
        if (facts.usage_valid) {
            s->usage = facts.usage;
            s->usage_seen = 1;
        }
        if (facts.model.end > facts.model.start && !s->model_bytes)
            s->model_bytes = (int)wj_decode(&facts.model, (uint8_t *)s->model, WEIR_MODEL_BYTES);
        hide = facts.choices_empty && facts.usage_object && !facts.error;
    }
    s->frames += whole || read;
    weir_speech_end(&speech);
    if (kind == 2) free((void *)data);
    return hide;
}

/* === the stream === */

/* Finds where the block ends. Returns behind its blank line, NULL when it goes on behind `end`; *content is then the
   end of what belongs to it without that line. */
static const char *weir_block_end(weir_sse *s, const char *p, const char *end, const char **content) {
    if (s->after_cr && p < end) {
        s->after_cr = 0;
        if (*p == '\n') p++;
    }
    while (p < end) {
        if (*p != '\n' && *p != '\r') {
            s->line_empty = 0;
            p = weir_line_end(p, end);
            if (p == end) break;
        }
        const int ends = s->line_empty;
        *content = p;
        s->line_empty = 1;
        if (*p++ == '\r') {
            if (p == end) s->after_cr = 1;
            else if (*p == '\n') p++;
        }
        if (ends) return p;
    }
    *content = end;
    return NULL;
}

typedef struct {
    PyObject *bytes; /* what to forward, NULL while it is the whole read */
    Py_ssize_t used;
    Py_ssize_t room; /* no more can come out: what was held and this read */
    int failed;      /* no memory */
} weir_out;

static void weir_emit(weir_out *out, const char *p, Py_ssize_t n) {
    if (out->failed) return;
    if (!out->bytes) {
        out->bytes = PyBytes_FromStringAndSize(NULL, out->room);
        if (!out->bytes) {
            out->failed = 1;
            return;
        }
    }
    if (n) memcpy(PyBytes_AS_STRING(out->bytes) + out->used, p, (size_t)n);
    out->used += n;
}

static void weir_not_heard(weir_sse *s) {
    if (s->lanes && s->unread == 1) s->lanes->unread = 1;
}

/* Adds a part of the block to the tail. A block above the bound is given up, but it is remembered whether it held
   data. */
static void weir_keep(weir_sse *s, const char *p, Py_ssize_t n) {
    s->block_bytes += n;
    if (s->unread) return;
    const int too_long = s->block_bytes > weir_block_parsed_max;
    if (too_long) n = weir_block_parsed_max - s->tail_bytes;
    if (s->tail_bytes + n > s->tail_room) {
        Py_ssize_t room = s->tail_room ? s->tail_room : 512;
        while (room < s->tail_bytes + n) room *= 2;
        char *tail = realloc(s->tail, (size_t)room);
        if (!tail) {
            s->unread = 1;
            weir_not_heard(s);
            return;
        }
        s->tail = tail;
        s->tail_room = room;
    }
    memcpy(s->tail + s->tail_bytes, p, (size_t)n);
    s->tail_bytes += n;
    if (too_long) {
        const char *end = s->tail + s->tail_bytes;
        s->unread = weir_has_data(weir_after_mark(s, s->tail, end), end) ? 1 : 2;
        weir_not_heard(s);
    }
}

static void weir_block_done(weir_sse *s) {
    s->begun = 1;
    s->in_block = s->released = s->unread = 0;
    s->held = s->tail_bytes = s->block_bytes = 0;
    if (s->tail_room > WEIR_TAIL_BYTES_KEPT) {
        free(s->tail);
        s->tail = NULL;
        s->tail_room = 0;
    }
}

/* The block is whole, and all of it is in the tail or in [p, p + n). 1 when it is to be hidden. */
static int weir_judge_long_or_short(weir_sse *s, const char *p, Py_ssize_t n) {
    if (!s->block_bytes && n <= weir_block_parsed_max) return weir_judge(s, p, n, 1) && n <= weir_block_held_max;
    weir_keep(s, p, n);
    if (s->unread) {
        s->frames += s->unread == 1;
        return 0;
    }
    return weir_judge(s, s->tail, s->tail_bytes, 1) && s->block_bytes <= weir_block_held_max;
}

static void weir_feed(weir_sse *s, const char *data, Py_ssize_t size, weir_out *out) {
    const char *p = data, *end = data + size;
    const char *kept = data; /* from here on everything is forwarded, until something is removed or held */
    if (size == 0) return;
    if (s->after_cr && !s->in_block) {
        s->after_cr = 0;
        if (*p == '\n') {
            p++;
            if (s->drop_lf && out) {
                weir_emit(out, NULL, 0);
                kept = p;
            }
        }
    }
    while (p < end) {
        if (s->in_comment || (!s->in_block && (*p == ':' || *p == '\n' || *p == '\r'))) {
            s->begun = s->in_comment = 1;
            p = weir_line_end(p, end);
            if (p == end) break;
            s->in_comment = 0;
            s->drop_lf = 0;
            s->after_cr = *p == '\r' && p + 1 == end;
            p = weir_line_skip(p, end);
            continue;
        }
        const char *start = p, *content;
        if (!s->in_block) {
            s->in_block = 1;
            s->line_empty = 0;
        }
        p = weir_block_end(s, p, end, &content);
        if (!p) {
            const Py_ssize_t held = s->held;
            weir_keep(s, start, end - start);
            if (out && !s->released && !s->unread && s->block_bytes <= weir_block_held_max) {
                weir_emit(out, kept, start - kept);
                kept = end;
                s->held = s->tail_bytes;
            } else {
                if (held) weir_emit(out, s->tail, held);
                s->released = 1;
                s->held = 0;
            }
            break;
        }
        const Py_ssize_t held = s->held;
        const int released = s->released;
        const int hide = weir_judge_long_or_short(s, start, content - start) && out && !released;
        if (hide) {
            weir_emit(out, kept, start - kept);
            kept = p;
            s->hidden++;
        } else if (held) weir_emit(out, s->tail, held);
        s->drop_lf = (uint8_t)hide;
        weir_block_done(s);
    }
    if (out && out->bytes) weir_emit(out, kept, end - kept);
}

/* What to forward of `data`: a new reference. */
static PyObject *weir_out_finish(weir_out *out, PyObject *data) {
    PyObject *bytes = out->bytes;
    if (out->failed) {
        Py_XDECREF(bytes);
        return PyErr_NoMemory();
    }
    if (!bytes) {
        Py_INCREF(data);
        return data;
    }
    if (out->used < out->room && _PyBytes_Resize(&bytes, out->used) < 0) return NULL;
    return bytes;
}

/* The stream has ended. 1 when the `held` bytes at the tail's start are to be forwarded. */
static int weir_end(weir_sse *s) {
    if (!s->in_block) return 0;
    const int hide = !s->unread && weir_judge(s, s->tail, s->tail_bytes, 0) && s->block_bytes <= weir_block_held_max;
    if (hide && s->held) {
        s->hidden++;
        return 0;
    }
    return s->held > 0;
}

#endif
