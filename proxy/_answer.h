/* The JSON of one stream frame or of a whole answer: usage, model, error, and the text that was generated. */

#ifndef WEIR_ANSWER_H
#define WEIR_ANSWER_H

#include "_speech.h"

static int weir_depth_max; /* bounds.JSON_DEPTH_MAX */

typedef struct {
    int64_t prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens, audio_tokens;
} weir_usage;

typedef struct {
    weir_usage usage;
    int usage_object, usage_valid; /* the last top-level `usage` is an object, and its figures can be believed */
    int choices_empty;             /* the last top-level `choices` is [] */
    int error;                     /* a top-level `error` that an SDK raises for: an object, or a string with text */
    wj_str model;                  /* empty without one */
} weir_facts;

/* The figures in the details object at p, 0 where they are absent; *good falls when one cannot be believed. */
static const uint8_t *weir_usage_details(wj *j, const uint8_t *p, weir_usage *usage, int prompt, int *good) {
    uint8_t buffer[WJ_NAME_MAX + 1];
    wj_str key;
    int members = 0, more;
    if (*p != '{') return wj_skip(j, p);
    p++;
    while ((more = wj_member(j, &p, &key, &members, 0)) == 1) {
        size_t n;
        const uint8_t *name = wj_name(&key, buffer, &n);
        int64_t *figure = NULL;
        if (prompt && WJ_IS(name, n, "cached_tokens")) figure = &usage->cached_tokens;
        else if (!prompt && WJ_IS(name, n, "reasoning_tokens")) figure = &usage->reasoning_tokens;
        else if (!prompt && WJ_IS(name, n, "audio_tokens")) figure = &usage->audio_tokens;
        if (figure && weir_figure(j, p, figure) < 0) *good = 0;
        p = wj_skip(j, p);
        if (!p) return NULL;
    }
    return more < 0 ? NULL : p;
}

static inline int64_t weir_at_most(int64_t value, int64_t bound) { return value < bound ? value : bound; }

/* p stands behind the opening brace of `usage`. */
static const uint8_t *weir_usage_object(wj *j, const uint8_t *p, weir_facts *facts) {
    uint8_t buffer[WJ_NAME_MAX + 1];
    weir_usage usage = {0, 0, 0, 0, 0};
    wj_str key;
    int members = 0, more, good = 1, prompt = 0;
    j->depth++;
    while ((more = wj_member(j, &p, &key, &members, 0)) == 1) {
        size_t n;
        const uint8_t *name = wj_name(&key, buffer, &n);
        if (WJ_IS(name, n, "prompt_tokens")) {
            prompt = weir_figure(j, p, &usage.prompt_tokens);
            if (prompt < 0) good = 0;
        } else if (WJ_IS(name, n, "completion_tokens")) {
            if (weir_figure(j, p, &usage.completion_tokens) < 0) good = 0;
        } else if (WJ_IS(name, n, "prompt_tokens_details") || WJ_IS(name, n, "completion_tokens_details")) {
            j->depth++;
            p = weir_usage_details(j, p, &usage, name[0] == 'p', &good);
            j->depth--;
            if (!p) return NULL;
            continue;
        }
        p = wj_skip(j, p);
        if (!p) return NULL;
    }
    j->depth--;
    if (more < 0) return NULL;
    facts->usage_valid = good && prompt == 1; /* an object without figures is no bill of zero */
    if (facts->usage_valid) {
        /* Details are parts of the totals (OpenAI's convention); a part larger than its whole is cut to it. */
        usage.cached_tokens = weir_at_most(usage.cached_tokens, usage.prompt_tokens);
        usage.reasoning_tokens = weir_at_most(usage.reasoning_tokens, usage.completion_tokens);
        usage.audio_tokens = weir_at_most(usage.audio_tokens, usage.completion_tokens);
        facts->usage = usage;
    }
    return p;
}

/* Reads one JSON object. Facts and speech count only when all of it is well formed: 1, else 0. Of two equal keys the
   last one counts, as the SDKs' parsers have it. */
static int weir_answer(const uint8_t *data, size_t size, weir_facts *facts, weir_speech *speech) {
    uint8_t buffer[WJ_NAME_MAX + 1];
    wj j = {.start = data, .end = data + size, .depth = 1, .depth_max = weir_depth_max};
    const uint8_t *p = wj_space(data, j.end);
    wj_str key, text;
    int members = 0, more;
    memset(facts, 0, sizeof *facts);
    if (p == j.end || *p != '{') return 0;
    p++;
    while ((more = wj_member(&j, &p, &key, &members, 0)) == 1) {
        size_t n;
        const uint8_t *name = wj_name(&key, buffer, &n);
        if (n == 5 && memcmp(name, "usage", 5) == 0) {
            facts->usage_object = *p == '{';
            facts->usage_valid = 0;
            if (*p == '{') {
                p = weir_usage_object(&j, p + 1, facts);
                if (!p) return 0;
                continue;
            }
        } else if (n == 5 && memcmp(name, "model", 5) == 0) {
            facts->model.start = facts->model.end = NULL;
            if (*p == '"') {
                p = wj_string(&j, p, &facts->model, 0);
                if (!p) return 0;
                continue;
            }
        } else if (n == 5 && memcmp(name, "error", 5) == 0) {
            facts->error = *p == '{' || (*p == '"' && p + 1 < j.end && p[1] != '"');
        } else if (n == 7 && memcmp(name, "choices", 7) == 0) {
            int64_t elements = -1;
            weir_unsaid(speech);
            p = *p == '[' ? weir_choices(&j, p, speech, &elements) : wj_skip(&j, p);
            if (!p) return 0;
            facts->choices_empty = elements == 0;
            continue;
        }
        if (*p == '"') p = wj_string(&j, p, &text, 0);
        else p = wj_skip(&j, p);
        if (!p) return 0;
    }
    return more == 0 && wj_space(p, j.end) == j.end;
}

#endif
