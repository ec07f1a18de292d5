/* Reads a request's body once: is it strict JSON, what do its governed keys say, and where does its text stand? Nothing
   is built or copied. */

#ifndef WEIR_PEEK_H
#define WEIR_PEEK_H

#include "_walk.h"

enum { WEIR_FINE, WEIR_BAD_JSON, WEIR_DUPLICATE_KEY, WEIR_BAD_VALUE };

/* Governed keys: Weir judges by them, so the upstream must read them as Weir does. */
enum {
    WEIR_MODEL,
    WEIR_STREAM,
    WEIR_STREAM_OPTIONS,
    WEIR_MAX_TOKENS,
    WEIR_MAX_COMPLETION_TOKENS,
    WEIR_MAX_OUTPUT_TOKENS,
    WEIR_N,
    WEIR_USER,
    WEIR_INCLUDE_USAGE, /* from here on inside stream_options */
    WEIR_INCLUDE_OBFUSCATION,
    WEIR_GOVERNED,
};

static const char *const weir_governed[WEIR_GOVERNED] = {
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "user",
    "include_usage", "include_obfuscation",
};

static const uint8_t weir_governed_bytes[WEIR_GOVERNED] = {5, 6, 14, 10, 21, 17, 1, 4, 13, 19};

static const char *const weir_param[WEIR_GOVERNED] = {
    "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens", "n", "user",
    "stream_options.include_usage", "stream_options.include_obfuscation",
};

typedef struct {
    Py_ssize_t start, end; /* -1, -1 when absent */
} weir_span;

/* Outer keys whose whole values the count of tokens must see. */
enum { WEIR_TOOLS, WEIR_FUNCTIONS, WEIR_TOOL_CHOICE, WEIR_FUNCTION_CALL, WEIR_RESPONSE_FORMAT, WEIR_PARTS };

/* Outer keys that hold a prompt. */
enum { WEIR_MESSAGES, WEIR_PROMPT, WEIR_INPUT, WEIR_PROMPTS };

typedef struct {
    weir_span span[WEIR_GOVERNED]; /* of the values */
    weir_span part[WEIR_PARTS];
    wj_str model, user;            /* start NULL when absent or null */
    int stream, usage_asked;
    int64_t limit[3]; /* max_tokens, max_completion_tokens, max_output_tokens; -1 without one */
    int64_t choices;
    int64_t text_bytes, images, token_ids, messages;
    int64_t unread; /* audio, files and what is not known */
    uint8_t prompt[WEIR_PROMPTS]; /* the first byte of each one's value; 0 when absent */
    Py_ssize_t end; /* of the outer object: its closing brace */
    Py_ssize_t body_bytes;
    int members;    /* of the outer object */
    int option_members;
    /* when it is refused */
    const char *why;
    int key; /* the governed key, -1 without one */
    Py_ssize_t at;
    wj_strings strings; /* last: the rest is set to zero */
} weir_peek;

/* The name as careless parsers fold it: Go's encoding/json takes any case of ASCII letters, and U+017F and U+212A for
   s and k. Returns the bytes written to `out`, which holds WJ_NAME_MAX. */
static size_t weir_fold(const uint8_t *name, size_t n, uint8_t *out) {
    size_t m = 0;
    for (size_t i = 0; i < n; i++) {
        uint8_t c = name[i];
        if (c >= 'A' && c <= 'Z') c |= 0x20;
        else if (c == 0xC5 && i + 1 < n && name[i + 1] == 0xBF) c = 's', i += 1;
        else if (c == 0xE2 && i + 2 < n && name[i + 1] == 0x84 && name[i + 2] == 0xAA) c = 'k', i += 2;
        out[m++] = c;
    }
    return m;
}

/* Which of the governed keys [first, last) it is, -1 for none. */
static int weir_which(const uint8_t *folded, size_t n, int first, int last) {
    for (int key = first; key < last; key++)
        if (weir_governed_bytes[key] == n && memcmp(folded, weir_governed[key], n) == 0) return key;
    return -1;
}

static int weir_refuse(weir_peek *k, int code, int key, const char *why) {
    k->key = key;
    k->why = why;
    return code;
}

/* Notes that a governed key was met. A second one is refused, in whatever spelling; an unusual spelling alone is noted,
   and refused at the object's end, since a proper one may still follow. */
static int weir_meet(weir_peek *k, int key, const uint8_t *name, size_t n, unsigned *met, unsigned *odd) {
    if (*met >> key & 1) return weir_refuse(k, WEIR_DUPLICATE_KEY, key, NULL);
    *met |= 1u << key;
    if (weir_governed_bytes[key] != n || memcmp(name, weir_governed[key], n) != 0) *odd |= 1u << key;
    return WEIR_FINE;
}

static int weir_odd(weir_peek *k, unsigned odd) {
    return odd ? weir_refuse(k, WEIR_BAD_VALUE, __builtin_ctz(odd), "must be spelt in lower case") : WEIR_FINE;
}

/* A whole number >= 0 in [p, end) below 2**40, or -1. */
static int64_t weir_whole(const uint8_t *p, const uint8_t *end) {
    int64_t value = 0;
    if (end - p > 13) return -1;
    for (; p < end; p++) {
        if ((uint8_t)(*p - '0') > 9) return -1;
        value = value * 10 + (*p - '0');
    }
    return value <= (int64_t)1 << 40 ? value : -1;
}

/* Judges the value [p, end) of a governed key; it is valid JSON. */
static int weir_value(weir_peek *k, int key, const uint8_t *p, const uint8_t *end, const wj_str *text) {
    const int null = *p == 'n';
    int64_t number;
    switch (key) {
    case WEIR_MODEL:
        if (*p != '"') return weir_refuse(k, WEIR_BAD_VALUE, key, "must be a string");
        k->model = *text;
        break;
    case WEIR_USER:
        if (*p != '"' && !null) return weir_refuse(k, WEIR_BAD_VALUE, key, "must be a string or null");
        if (!null) k->user = *text;
        break;
    case WEIR_STREAM: case WEIR_INCLUDE_USAGE: case WEIR_INCLUDE_OBFUSCATION:
        if (*p != 't' && *p != 'f' && !null) return weir_refuse(k, WEIR_BAD_VALUE, key, "must be true, false or null");
        if (key == WEIR_STREAM) k->stream = *p == 't';
        if (key == WEIR_INCLUDE_USAGE) k->usage_asked = *p == 't';
        break;
    case WEIR_STREAM_OPTIONS:
        if (*p != '{' && !null) return weir_refuse(k, WEIR_BAD_VALUE, key, "must be an object or null");
        break;
    case WEIR_N:
        number = null ? 1 : weir_whole(p, end);
        if (number < 1 || number > 128)
            return weir_refuse(k, WEIR_BAD_VALUE, key, "must be an integer from 1 to 128, or null");
        k->choices = number;
        break;
    default:
        number = null ? -1 : weir_whole(p, end);
        if (!null && number < 0)
            return weir_refuse(k, WEIR_BAD_VALUE, key, "must be an integer from 0 to 2**40, or null");
        k->limit[key - WEIR_MAX_TOKENS] = number;
    }
    return WEIR_FINE;
}

/* p stands behind the opening brace of stream_options; *at is set behind its end. */
static int weir_stream_options(weir_peek *k, wj *j, const uint8_t *p, const uint8_t **at) {
    uint8_t buffer[WJ_NAME_MAX + 1], folded[WJ_NAME_MAX + 1];
    unsigned met = 0, odd = 0;
    wj_str key;
    int more, code;
    j->depth++;
    while ((more = wj_member(j, &p, &key, &k->option_members, 1)) == 1) {
        size_t n;
        const uint8_t *name = wj_name(&key, buffer, &n), *value = p;
        const int which = weir_which(folded, weir_fold(name, n, folded), WEIR_INCLUDE_USAGE, WEIR_GOVERNED);
        if (which >= 0 && (code = weir_meet(k, which, name, n, &met, &odd))) return code;
        p = wj_walk_request(j, p, WJ_SKIP);
        if (!p) return WEIR_BAD_JSON;
        if (which < 0 || odd >> which & 1) continue;
        if ((code = weir_value(k, which, value, p, NULL))) return code;
        k->span[which] = (weir_span){value - j->start, p - j->start};
    }
    j->depth--;
    *at = p;
    return more < 0 ? WEIR_BAD_JSON : weir_odd(k, odd);
}

/* What the strings below an ungoverned outer key mean; *part is set where its whole value is wanted. */
static int weir_text_class(const uint8_t *name, size_t n, int *part) {
    switch (n) {
    case 5:
        if (WJ_IS(name, n, "input")) return WJ_TEXT;
        return WJ_IS(name, n, "tools") ? *part = WEIR_TOOLS, WJ_ALL : WJ_SKIP;
    case 6: return WJ_IS(name, n, "prompt") || WJ_IS(name, n, "suffix") ? WJ_TEXT : WJ_SKIP;
    case 8: return WJ_IS(name, n, "messages") ? WJ_ENTER : WJ_SKIP;
    case 9: return WJ_IS(name, n, "functions") ? *part = WEIR_FUNCTIONS, WJ_ALL : WJ_SKIP;
    case 11:
        if (WJ_IS(name, n, "tool_choice")) *part = WEIR_TOOL_CHOICE;
        return WJ_SKIP;
    case 12: return WJ_IS(name, n, "instructions") ? WJ_TEXT : WJ_SKIP;
    case 13:
        if (WJ_IS(name, n, "function_call")) *part = WEIR_FUNCTION_CALL;
        return WJ_SKIP;
    case 15: return WJ_IS(name, n, "response_format") ? *part = WEIR_RESPONSE_FORMAT, WJ_ALL : WJ_SKIP;
    default: return WJ_SKIP;
    }
}

static int weir_peek_object(weir_peek *k, wj *j) {
    uint8_t buffer[WJ_NAME_MAX + 1], folded[WJ_NAME_MAX + 1];
    unsigned met = 0, odd = 0;
    wj_str key, text = {NULL, NULL, 0};
    int more, code;
    const uint8_t *p = wj_space(j->start, j->end);
    if (p == j->end || *p != '{') {
        wj_fail(j, p, "the body must be one object");
        return WEIR_BAD_JSON;
    }
    p++;
    while ((more = wj_member(j, &p, &key, &k->members, 1)) == 1) {
        size_t n;
        const uint8_t *name = wj_name(&key, buffer, &n), *value = p;
        n = weir_fold(name, n, folded);
        const int which = weir_which(folded, n, 0, WEIR_INCLUDE_USAGE);
        if (which < 0) {
            int part = -1;
            const int class = weir_text_class(folded, n, &part);
            const int64_t numbers = j->numbers;
            j->elements = 0;
            k->strings.message = -1;
            p = wj_walk_request(j, p, class);
            if (!p) return WEIR_BAD_JSON;
            if (class == WJ_ENTER) {
                k->messages += j->elements;
                k->prompt[WEIR_MESSAGES] = *value;
            } else if (class == WJ_TEXT && (WJ_IS(folded, n, "input") || WJ_IS(folded, n, "prompt"))) {
                k->prompt[n == 5 ? WEIR_INPUT : WEIR_PROMPT] = *value;
            }
            if (class == WJ_TEXT) k->token_ids += j->numbers - numbers;
            if (WJ_IS(folded, n, "web_search_options")) j->unread += *value != 'n'; /* what is found joins the prompt */
            if (part >= 0) k->part[part] = (weir_span){value - j->start, p - j->start};
            continue;
        }
        size_t length;
        name = wj_name(&key, buffer, &length);
        if ((code = weir_meet(k, which, name, length, &met, &odd))) return code;
        const int ours = !(odd >> which & 1);
        if (ours && which == WEIR_STREAM_OPTIONS && *p == '{') {
            if ((code = weir_stream_options(k, j, p + 1, &p))) return code;
        } else if (*p == '"') p = wj_string(j, p, &text, 1);
        else p = wj_walk_request(j, p, WJ_SKIP);
        if (!p) return WEIR_BAD_JSON;
        if (!ours) continue;
        if ((code = weir_value(k, which, value, p, &text))) return code;
        k->span[which] = (weir_span){value - j->start, p - j->start};
    }
    if (more < 0) return WEIR_BAD_JSON;
    k->end = p - 1 - j->start;
    p = wj_space(p, j->end);
    if (p != j->end) {
        wj_fail(j, p, "something follows the object");
        return WEIR_BAD_JSON;
    }
    k->text_bytes = j->text;
    k->images = j->images;
    k->unread = j->unread;
    return weir_odd(k, odd);
}

/* WEIR_FINE, or why not: see `why`, `key` and, of bad JSON, `at`. At most `strings_max` strings are noted. The caller
   frees them: weir_peek_end. */
static int weir_peek_body(weir_peek *k, const uint8_t *body, Py_ssize_t size, int depth_max, uint32_t strings_max) {
    wj j = {.start = body, .end = body + size, .depth = 1, .depth_max = depth_max, .strings = &k->strings};
    memset(k, 0, offsetof(weir_peek, strings.own));
    for (int key = 0; key < WEIR_GOVERNED; key++) k->span[key] = (weir_span){-1, -1};
    for (int part = 0; part < WEIR_PARTS; part++) k->part[part] = (weir_span){-1, -1};
    k->limit[0] = k->limit[1] = k->limit[2] = -1;
    k->choices = 1;
    k->key = -1;
    k->body_bytes = size;
    k->strings.at = k->strings.own;
    k->strings.room = WJ_STRINGS_OWN;
    k->strings.room_max = strings_max;
    k->strings.incomplete = size > WJ_STRING_BYTES_MAX;
    int code = weir_peek_object(k, &j);
    if (code == WEIR_BAD_JSON) {
        k->why = j.why;
        k->at = j.at - j.start;
    }
    return code;
}

static void weir_peek_end(weir_peek *k) {
    if (k->strings.at != k->strings.own) free(k->strings.at); /* NULL where nothing was peeked */
}

/* Bytes that it holds beside itself. */
static size_t weir_peek_beside(const weir_peek *k) {
    return k->strings.at == k->strings.own ? 0 : k->strings.room * sizeof(wj_string_at);
}

/* What a chat's messages say of calls. */
typedef struct {
    int64_t tools;    /* names in tool_calls */
    int64_t parallel; /* messages with more than one of them */
    int64_t functions; /* names in function_call */
    int64_t tool_results, function_results; /* messages in the role of a tool, of a function */
} weir_prompt_calls;

/* Whether a noted string is that text, however it is written. */
static int weir_says(const wj_string_at *at, const uint8_t *body, const char *text) {
    const size_t n = strlen(text);
    const wj_str s = {body + at->start, body + at->start + at->size, 0};
    uint8_t decoded[WJ_NAME_MAX];
    if (!at->escaped) return at->size == n && memcmp(s.start, text, n) == 0;
    return wj_decode(&s, decoded, sizeof decoded) == n && memcmp(decoded, text, n) == 0;
}

static void weir_peek_calls(const weir_peek *k, const uint8_t *body, weir_prompt_calls *found) {
    int run = 0;
    memset(found, 0, sizeof *found);
    for (uint32_t i = 0; i < k->strings.used; i++) {
        const wj_string_at *at = &k->strings.at[i];
        if (at->first) run = 0;
        if (at->kind == WJ_STRING_FUNCTION) found->functions++;
        if (at->kind == WJ_STRING_CALL) {
            found->tools++;
            if (++run == 2) found->parallel++;
        }
        if (at->kind != WJ_STRING_ROLE) continue;
        found->tool_results += weir_says(at, body, "tool");
        found->function_results += weir_says(at, body, "function");
    }
}

/* Whether there is nothing in the prompt but text and names of messages: most calls. */
static int weir_peek_plain(const weir_peek *k, const uint8_t *body) {
    weir_prompt_calls found;
    if (k->images || k->unread || k->strings.incomplete) return 0;
    for (int part = 0; part < WEIR_PARTS; part++)
        if (k->part[part].start >= 0) return 0;
    weir_peek_calls(k, body, &found);
    return !(found.tools | found.functions | found.tool_results | found.function_results);
}

/* The last text of the first message in the role of system or developer, NULL without one. */
static const wj_string_at *weir_peek_system(const weir_peek *k, const uint8_t *body) {
    const wj_string_at *text = NULL;
    int system = 0;
    for (uint32_t i = 0; i < k->strings.used; i++) {
        const wj_string_at *at = &k->strings.at[i];
        if (at->first) {
            if (system && text) return text;
            text = NULL;
            system = 0;
        }
        if (at->kind == WJ_STRING_TEXT) text = at;
        if (at->kind == WJ_STRING_ROLE)
            system = weir_says(at, body, "system") || weir_says(at, body, "developer");
    }
    return system ? text : NULL;
}

#endif
