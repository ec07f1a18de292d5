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

/* Bytes of all noted strings but images' urls, as they stand in the body: what a count has to read. */
static int64_t weir_prompt_bytes(const weir_peek *k) {
    int64_t bytes = 0;
    for (uint32_t i = 0; i < k->strings.used; i++)
        if (k->strings.at[i].kind < WJ_STRING_IMAGE) bytes += k->strings.at[i].size;
    return bytes;
}

/* What a count of the whole prompt has to read: the strings, and the values that are decoded. An image's header costs
   about as much as a kilobyte of text. */
static int64_t weir_prompt_bytes_whole(const weir_peek *k) {
    int64_t bytes = weir_prompt_bytes(k) + k->images * 1024;
    for (int part = 0; part < WEIR_PARTS; part++)
        if (k->part[part].start >= 0) bytes += k->part[part].end - k->part[part].start;
    return bytes;
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

#endif
