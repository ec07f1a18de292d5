/* Whether a request's head is an ordinary one: what nearly every request has, and nothing that two readers could read
   in two ways. llhttp parses it all the same; this only decides who serves it. */

#ifndef WEIR_FRONT_H
#define WEIR_FRONT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <strings.h>

enum { WEIR_HEAD_UNUSUAL, WEIR_HEAD_PARTIAL, WEIR_HEAD_USUAL };

typedef struct {
    size_t bytes;          /* of the head, its empty line included */
    int64_t content_length; /* 0 without one */
    int post;              /* else GET */
    int close;             /* the client wants no other answer on this connection */
} weir_head;

/* The characters of the paths that Weir serves; a query or an escape is for the other front to refuse. */
static inline int weir_path_char(uint8_t c) {
    const uint8_t low = c | 0x20;
    return (low >= 'a' && low <= 'z') || (c >= '-' && c <= ':') || c == '_';
}

static inline int weir_name_char(uint8_t c) {
    const uint8_t low = c | 0x20;
    return (low >= 'a' && low <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static inline int weir_front_is(const uint8_t *p, size_t n, const char *word) {
    return n == strlen(word) && strncasecmp((const char *)p, word, n) == 0;
}

/* The fields met so far, each of which stands once. */
enum { LENGTH = 1, CONNECTION = 2, HOST = 4 };

/* One field that frames the message or changes the connection. 0: not an ordinary one. */
static int weir_front_field(const uint8_t *name, size_t name_bytes, const uint8_t *value, size_t n, weir_head *head,
                            int *met) {
#define NAMED(word) weir_front_is(name, name_bytes, word)
    switch (name_bytes) {
    case 4:
        if (!NAMED("host")) return 1;
        if (*met & HOST) return 0;
        *met |= HOST;
        return 1;
    case 6: return !NAMED("expect");
    case 7: return !NAMED("upgrade");
    case 10:
        if (!NAMED("connection")) return 1;
        if (*met & CONNECTION) return 0;
        *met |= CONNECTION;
        head->close = weir_front_is(value, n, "close");
        return head->close || weir_front_is(value, n, "keep-alive");
    case 14:
        if (!NAMED("content-length")) return 1;
        if ((*met & LENGTH) || n == 0 || n > 15) return 0;
        *met |= LENGTH;
        for (size_t i = 0; i < n; i++) {
            if (value[i] < '0' || value[i] > '9') return 0;
            head->content_length = head->content_length * 10 + (value[i] - '0');
        }
        return 1;
    case 16: return !NAMED("proxy-connection"); /* which llhttp, and so the other front, reads as a Connection */
    case 17: return !NAMED("transfer-encoding");
    default: return 1;
    }
#undef NAMED
}

/* Judges data[0:size], which begins a request; at most `max` bytes of head are ordinary. */
static int weir_front_head(const uint8_t *data, size_t size, size_t max, weir_head *head) {
    const uint8_t *p = data, *end = data + (size < max ? size : max);
    const int cut = size < max ? WEIR_HEAD_PARTIAL : WEIR_HEAD_UNUSUAL;
    static const char version[] = " HTTP/1.1\r\n";
    int met = 0;
    memset(head, 0, sizeof *head);
#define EXPECT(word) \
    for (const char *w = (word); *w; w++, p++) { \
        if (p == end) return cut; \
        if (*p != (uint8_t)*w) return WEIR_HEAD_UNUSUAL; \
    }
    if (p == end) return cut;
    head->post = *p == 'P';
    EXPECT(head->post ? "POST /" : "GET /");
    while (p < end && weir_path_char(*p)) p++;
    EXPECT(version);
    for (;;) {
        const uint8_t *name = p, *colon, *value, *last;
        if (p == end) return cut;
        if (*p == '\r') break;
        while (p < end && weir_name_char(*p)) p++;
        if (p == end) return cut;
        if (*p != ':' || p == name) return WEIR_HEAD_UNUSUAL;
        colon = p++;
        value = p;
        for (; p < end && ((*p >= 0x20 && *p < 0x7f) || *p == '\t'); p++) {}
        last = p;
        EXPECT("\r\n");
        while (value < last && (*value == ' ' || *value == '\t')) value++;
        while (value < last && (last[-1] == ' ' || last[-1] == '\t')) last--;
        if (!weir_front_field(name, (size_t)(colon - name), value, (size_t)(last - value), head, &met))
            return WEIR_HEAD_UNUSUAL;
    }
    EXPECT("\r\n");
#undef EXPECT
    if (!(met & HOST)) return WEIR_HEAD_UNUSUAL; /* RFC 9112, 3.2: to be refused */
    if (!head->post && head->content_length) return WEIR_HEAD_UNUSUAL;
    head->bytes = (size_t)(p - data);
    return WEIR_HEAD_USUAL;
}

#endif
