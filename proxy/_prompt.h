/* The tokens of a prompt's strings, counted where they stand in the body: escapes are decoded on the way. */

#ifndef WEIR_PROMPT_H
#define WEIR_PROMPT_H

#include "_peek.h"
#include "_stream.h"

#define WEIR_PROMPT_SCRATCH 2048 /* an escaped string up to here is decoded on the stack, a longer one in steps */

/* The tokens of one noted string, -1 without memory. */
static int64_t weir_prompt_string(const wj_string_at *at, const uint8_t *body, weir_encoding *e) {
    const uint8_t *start = body + at->start;
    if (!at->escaped) return weir_count_tokens(e, start, at->size);
    if (at->size <= WEIR_PROMPT_SCRATCH) {
        const wj_str text = {start, start + at->size, 0};
        uint8_t decoded[WEIR_PROMPT_SCRATCH];
        return weir_count_tokens(e, decoded, wj_decode(&text, decoded, sizeof decoded));
    }
    weir_stream stream;
    weir_stream_start(&stream, e);
    const int failed = weir_stream_feed_json(&stream, start, at->size);
    const int64_t tokens = failed ? -1 : weir_stream_count(&stream);
    weir_stream_end(&stream);
    return tokens;
}

/* What the parts of a prompt cost to count, each at its worst, in bytes of text that takes as long: about 50 ns a byte.
   `benchmarks/micro_tokens.py` prints what the dearest prompts come to. */
enum {
    WEIR_COST_STRING = 8,   /* a string beside its bytes: its look-ups wait for memory alone */
    WEIR_COST_CALL = 32,    /* a call's name beside its bytes, which is counted once more behind a prefix */
    WEIR_COST_IMAGE = 2048, /* a header that Python looks for */
    WEIR_COST_JSON = 4,     /* a byte of a value that Python reads, and its text */
    WEIR_COST_TOOL = 6,     /* a byte of tool definitions, which Python writes anew: up to twice as long, and some more */
    WEIR_COST_TOOLS = 1024,
};

/* Of all noted strings but images' urls. */
static int64_t weir_prompt_text_cost(const weir_peek *k) {
    int64_t cost = 0;
    for (uint32_t i = 0; i < k->strings.used; i++)
        if (k->strings.at[i].kind < WJ_STRING_IMAGE) cost += k->strings.at[i].size + WEIR_COST_STRING;
    return cost;
}

/* Of tool definitions that were not counted before. */
static int64_t weir_prompt_tools_cost(const weir_peek *k) {
    int64_t cost = 0;
    for (int part = WEIR_TOOLS; part <= WEIR_FUNCTIONS; part++)
        if (k->part[part].start >= 0)
            cost += (k->part[part].end - k->part[part].start) * WEIR_COST_TOOL + WEIR_COST_TOOLS;
    return cost;
}

/* Where in a text, as it stands in the body, its last certain start of a piece is: what comes after the text changes
   nothing before. A space in front of an ASCII letter is one in every encoding, and part of no escape. */
static size_t weir_prompt_tail(const uint8_t *text, size_t n) {
    for (size_t at = n < 2 ? 0 : n - 2; at > 0; at--)
        if (text[at] == ' ' && (uint8_t)((text[at + 1] | 0x20) - 'a') < 26) return at;
    return 0;
}

/* Of everything but tool definitions. */
static int64_t weir_prompt_cost(const weir_peek *k, const uint8_t *body) {
    int64_t cost = weir_prompt_text_cost(k);
    for (uint32_t i = 0; i < k->strings.used; i++) {
        const wj_string_at *at = &k->strings.at[i];
        if (at->kind == WJ_STRING_CALL) cost += at->size + WEIR_COST_CALL;
        else if (at->kind >= WJ_STRING_IMAGE) cost += WEIR_COST_IMAGE;
    }
    for (int part = WEIR_TOOL_CHOICE; part < WEIR_PARTS; part++)
        if (k->part[part].start >= 0) cost += (k->part[part].end - k->part[part].start) * WEIR_COST_JSON;
    if (k->part[WEIR_TOOLS].start >= 0 || k->part[WEIR_FUNCTIONS].start >= 0) {
        const wj_string_at *at = weir_peek_system(k, body);
        if (at) cost += at->size - weir_prompt_tail(body + at->start, at->size);
    }
    return cost;
}

/* The tokens of all noted strings but images' urls, and how many of them are a message's name. -1 without memory. */
static int weir_prompt_count(
    const weir_peek *k, const uint8_t *body, weir_encoding *e, int64_t *tokens, int64_t *names
) {
    *tokens = *names = 0;
    for (uint32_t i = 0; i < k->strings.used; i++) {
        const wj_string_at *at = &k->strings.at[i];
        if (at->kind >= WJ_STRING_IMAGE) continue;
        const int64_t some = weir_prompt_string(at, body, e);
        if (some < 0) return -1;
        *tokens += some;
        *names += at->kind == WJ_STRING_NAME;
    }
    return 0;
}

/* The tokens of the names in tool_calls, each behind `prefix`. -1 without memory. A name too long to be one is counted
   apart from it. */
static int64_t weir_prompt_calls_count(
    const weir_peek *k, const uint8_t *body, weir_encoding *e, const uint8_t *prefix, size_t prefix_bytes
) {
    uint8_t whole[WEIR_PROMPT_SCRATCH];
    int64_t tokens = 0;
    if (prefix_bytes > sizeof whole / 2) prefix_bytes = sizeof whole / 2;
    memcpy(whole, prefix, prefix_bytes);
    for (uint32_t i = 0; i < k->strings.used; i++) {
        const wj_string_at *at = &k->strings.at[i];
        const wj_str name = {body + at->start, body + at->start + at->size, 0};
        int64_t some;
        if (at->kind != WJ_STRING_CALL) continue;
        if (at->size > sizeof whole / 2) {
            some = weir_prompt_string(at, body, e);
            if (some < 0) return -1;
            tokens += some;
            some = weir_count_tokens(e, whole, prefix_bytes);
        } else {
            const size_t n = wj_decode(&name, whole + prefix_bytes, sizeof whole - prefix_bytes);
            some = weir_count_tokens(e, whole, prefix_bytes + n);
        }
        if (some < 0) return -1;
        tokens += some;
    }
    return tokens;
}

/* What a line feed at its end adds to the system message's tokens: 1 and *tokens, which may be negative; 0 where there
   is no such message; -1 without memory. */
static int weir_prompt_line_end(const weir_peek *k, const uint8_t *body, weir_encoding *e, int64_t *tokens) {
    const wj_string_at *at = weir_peek_system(k, body);
    if (!at) return 0;
    const size_t tail = weir_prompt_tail(body + at->start, at->size);
    weir_stream stream;
    weir_stream_start(&stream, e);
    int failed = weir_stream_feed_json(&stream, body + at->start + tail, at->size - tail);
    const int64_t before = failed ? -1 : weir_stream_count(&stream);
    failed |= before < 0 || weir_stream_feed(&stream, (const uint8_t *)"\n", 1);
    const int64_t after = failed ? -1 : weir_stream_count(&stream);
    weir_stream_end(&stream);
    *tokens = after - before;
    return after < 0 ? -1 : 1;
}

#endif
