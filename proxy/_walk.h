/* Walks JSON values. Of a request's it counts the text in them, by the keys that it stands under, and notes where the
   text stands. */

#ifndef WEIR_WALK_H
#define WEIR_WALK_H

#include "_json.h"

#define WJ_LEVELS 256 /* room for nesting; the bound itself is `depth_max` */

/* What a string under a key means to us. */
enum {
    WJ_SKIP,            /* nothing below it counts */
    WJ_TEXT,            /* strings here count as text; objects below are read by their keys */
    WJ_ENTER,           /* strings here do not count; objects below are read by their keys */
    WJ_ALL,             /* every string and every key below counts */
    WJ_IMAGE,           /* counts as one image, and nothing below it as text */
    /* Text under a key that the count of tokens must know. */
    WJ_ROLE,      /* noted, but not counted as text: it is the same for every call */
    WJ_NAME,      /* as WJ_TEXT */
    WJ_ARGUMENTS, /* as WJ_TEXT */
    WJ_STRANGE,   /* as WJ_ENTER: nobody has told us what it is */
};

/* Keys inside messages, prompt and input. What we do not know may still contain what we know. Inlined, its many
   branches cost the walk a fifth of its speed. */
static __attribute__((noinline)) int wj_request_class(const wj_str *key) {
    uint8_t buffer[WJ_NAME_MAX + 1];
    size_t n;
    const uint8_t *name = wj_name(key, buffer, &n);
    switch (n) {
    case 2: return WJ_LIKE("id") ? WJ_ENTER : WJ_STRANGE;
    case 4:
        if (WJ_LIKE("text")) return WJ_TEXT;
        if (WJ_LIKE("role")) return WJ_ROLE;
        if (WJ_LIKE("name")) return WJ_NAME;
        if (WJ_LIKE("type")) return WJ_ENTER;
        return WJ_LIKE("file") ? WJ_SKIP : WJ_STRANGE;
    case 5: return WJ_LIKE("input") ? WJ_TEXT : WJ_STRANGE; /* of a custom tool's call */
    case 6:
        if (WJ_LIKE("output")) return WJ_TEXT; /* of a function, in Responses' input */
        return WJ_LIKE("custom") ? WJ_ENTER : WJ_STRANGE;
    case 7: return WJ_LIKE("content") || WJ_LIKE("refusal") ? WJ_TEXT : WJ_STRANGE;
    case 8: return WJ_LIKE("function") ? WJ_ENTER : WJ_STRANGE;
    case 9:
        if (WJ_LIKE("reasoning")) return WJ_TEXT;
        if (WJ_LIKE("arguments")) return WJ_ARGUMENTS;
        return WJ_LIKE("image_url") ? WJ_IMAGE : WJ_STRANGE;
    case 10: return WJ_LIKE("tool_calls") ? WJ_ENTER : WJ_STRANGE;
    case 11: return WJ_LIKE("input_audio") ? WJ_SKIP : WJ_STRANGE;
    case 12: return WJ_LIKE("tool_call_id") ? WJ_ENTER : WJ_STRANGE;
    case 13: return WJ_LIKE("function_call") || WJ_LIKE("cache_control") ? WJ_ENTER : WJ_STRANGE;
    case 17: return WJ_LIKE("reasoning_content") ? WJ_TEXT : WJ_STRANGE;
    default: return WJ_STRANGE;
    }
}

/* Whether a value may mean tokens to a model: a string, an object or an array with something in it. */
static int wj_means(const wj *j, const uint8_t *p) {
    p = wj_space(p, j->end);
    if (p == j->end || (*p != '"' && *p != '{' && *p != '[')) return 0;
    const uint8_t close = *p == '"' ? '"' : *p + 2;
    p = *p == '"' ? p + 1 : wj_space(p + 1, j->end);
    return p < j->end && *p != close;
}

static const uint8_t *wj_skip_strict(wj *j, const uint8_t *p);

/* === where a request's text stands === */

/* Notes [start, end) unless there are too many: then the strings are known to be incomplete. */
WJ_INLINE void wj_note(wj *j, int kind, const uint8_t *start, const uint8_t *end, int escaped) {
    wj_strings *strings = j->strings;
    if (strings->incomplete) return;
    if (__builtin_expect(strings->used == strings->room, 0) && !wj_strings_grow(strings)) {
        strings->incomplete = 1;
        return;
    }
    strings->at[strings->used++] = (wj_string_at){
        (uint32_t)(start - j->start), (uint32_t)(end - start), (uint32_t)kind, (uint32_t)escaped,
        strings->message != j->elements,
    };
    strings->message = j->elements;
}

/* A string of a request, `depth` objects and arrays below the value of its outer key: 2 inside a chat message. */
static __attribute__((noinline)) void wj_note_text(wj *j, int class, const wj_str *s, int depth) {
    static const uint8_t kinds[] = {
        [WJ_TEXT] = WJ_STRING_TEXT, [WJ_ROLE] = WJ_STRING_ROLE, [WJ_NAME] = WJ_STRING_NAME,
        [WJ_ARGUMENTS] = WJ_STRING_ARGUMENTS,
    };
    int kind = kinds[class];
    if (class == WJ_ENTER) return;
    if (class != WJ_ROLE) j->text += wj_length(s);
    if (class == WJ_ALL) return;
    if (class == WJ_NAME && depth != 2) kind = depth == 3 ? WJ_STRING_FUNCTION : WJ_STRING_CALL;
    wj_note(j, kind, s->start, s->end, s->spare != 0);
}

/* p is the value of an image_url: a url, or an object with `url` and `detail`; null is no image. `j->depth` objects and
   arrays are open around it. What cannot be read is still an image, with an empty url. */
static __attribute__((noinline)) const uint8_t *wj_image(wj *j, const uint8_t *p) {
    static const char *const details[] = {"auto", "low", "high", "original"};
    uint8_t buffer[WJ_NAME_MAX + 1];
    wj_str url = {p, p, 0}, key, detail;
    int kind = WJ_STRING_IMAGE, members = 0, more;
    if (*p == 'n') return wj_skip_strict(j, p);
    if (*p == '"') p = wj_string(j, p, &url, 1);
    else if (*p != '{') p = wj_skip_strict(j, p);
    else {
        if (j->depth >= j->depth_max) return wj_fail(j, p, "it is nested too deeply");
        j->depth++;
        p++;
        while ((more = wj_member(j, &p, &key, &members, 1)) == 1) {
            size_t n;
            const uint8_t *name = wj_name(&key, buffer, &n);
            if (*p == '"' && n == 3 && WJ_LIKE("url")) p = wj_string(j, p, &url, 1);
            else if (*p == '"' && n == 6 && WJ_LIKE("detail")) {
                p = wj_string(j, p, &detail, 1);
                if (!p) return NULL;
                name = wj_name(&detail, buffer, &n);
                kind = WJ_STRING_IMAGE_OTHER;
                for (int i = 0; i < 4; i++)
                    if (n == strlen(details[i]) && memcmp(name, details[i], n) == 0) kind = WJ_STRING_IMAGE + i;
            } else p = wj_skip_strict(j, p);
            if (!p) return NULL;
        }
        j->depth--;
        if (more < 0) return NULL;
    }
    if (!p) return NULL;
    j->images++;
    wj_note(j, kind, url.start, url.end, url.spare != 0);
    return p;
}

/* Walks any value, iteratively. `class` says what its strings mean; `j->depth` objects are open around it. Without
   `reads` nothing in it is read, and `class` is WJ_SKIP. */
WJ_INLINE const uint8_t *wj_walk(wj *j, const uint8_t *p, int class, const int strict, const int reads) {
    enum { ARRAY = 0x80 };
    uint8_t level[WJ_LEVELS];
    const int depth_max = j->depth_max - j->depth;
    const uint8_t *end = j->end;
    int depth = 0;
    wj_str s;
value:
    p = wj_space(p, end);
    if (p == end) return wj_fail(j, p, "a value is expected");
    if (reads && class == WJ_IMAGE) {
        j->depth += depth;
        p = wj_image(j, p);
        j->depth -= depth;
        if (!p) return NULL;
        goto next;
    }
    switch (*p) {
    case '"':
        p = wj_string(j, p, &s, strict);
        if (!p) return NULL;
        if (reads && class != WJ_SKIP) wj_note_text(j, class, &s, depth);
        break;
    case '{':
        if (depth >= depth_max) return wj_fail(j, p, "it is nested too deeply");
        p = wj_space(p + 1, end);
        if (p < end && *p == '}') {
            p++;
            break;
        }
        level[depth++] = (uint8_t)class;
        goto key;
    case '[':
        if (depth >= depth_max) return wj_fail(j, p, "it is nested too deeply");
        p = wj_space(p + 1, end);
        if (p < end && *p == ']') {
            p++;
            break;
        }
        if (reads && depth == 0) j->elements++;
        level[depth++] = (uint8_t)(class | ARRAY);
        goto value;
    case 't':
        p = wj_literal(j, p, "true", 4);
        break;
    case 'f':
        p = wj_literal(j, p, "false", 5);
        break;
    case 'n':
        p = wj_literal(j, p, "null", 4);
        break;
    default:
        p = wj_number(j, p, strict);
        if ((class == WJ_TEXT || class == WJ_NAME || class == WJ_ARGUMENTS) && depth && level[depth - 1] & ARRAY)
            j->numbers++;
    }
    if (!p) return NULL;
next:
    if (depth == 0) return p;
    p = wj_space(p, end);
    class = level[depth - 1];
    if (class & ARRAY) {
        class &= ~ARRAY;
        if (p < end && *p == ',') {
            if (reads && depth == 1) j->elements++;
            p++;
            goto value;
        }
        if (p == end || *p != ']') return wj_fail(j, p, "a comma or a closing bracket is expected");
    } else {
        if (p < end && *p == ',') {
            p = wj_space(p + 1, end);
            goto key;
        }
        if (p == end || *p != '}') return wj_fail(j, p, "a comma or a closing brace is expected");
    }
    p++;
    depth--;
    goto next;
key:
    if (p == end || *p != '"') return wj_fail(j, p, "a key in double quotes is expected");
    p = wj_string(j, p, &s, strict);
    if (!p) return NULL;
    class = level[depth - 1];
    if (reads && class == WJ_ALL) j->text += wj_length(&s);
    else if (reads && class != WJ_SKIP) class = wj_request_class(&s);
    p = wj_space(p, end);
    if (p == end || *p != ':') return wj_fail(j, p, "a colon is expected");
    p++;
    if (reads && (class == WJ_STRANGE || (class == WJ_SKIP && level[depth - 1] != WJ_SKIP))) {
        j->unread += wj_means(j, p);
        if (class == WJ_STRANGE) class = WJ_ENTER;
    }
    goto value;
}

static const uint8_t *wj_skip_strict(wj *j, const uint8_t *p) { return wj_walk(j, p, WJ_SKIP, 1, 0); }

/* Of an answer, which is not held to be strict. */
static const uint8_t *wj_skip(wj *j, const uint8_t *p) { return wj_walk(j, p, WJ_SKIP, 0, 0); }

static const uint8_t *wj_walk_request(wj *j, const uint8_t *p, int class) { return wj_walk(j, p, class, 1, 1); }

#endif
