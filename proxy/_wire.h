/* Small C of _wire: the clock, the Date line, a look at an idle socket, and reading single header fields. */
#ifndef WEIR_WIRE_H
#define WEIR_WIRE_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

/* Nanoseconds of CLOCK_BOOTTIME, the clock of clock.now_ns. */
static inline int64_t weir_wire_now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_BOOTTIME, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

#define WEIR_DATE_BYTES 37 /* "date: Sun, 06 Nov 1994 08:49:37 GMT\r\n" */

/* The Date header line (RFC 9110, 6.6.1), made once a second. Names are spelt out: strftime follows the locale. */
static const char *weir_wire_date(void) {
    static char line[64];
    static time_t made = -1;
    static const char *days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
    static const char *months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    struct timespec ts;
    struct tm tm;
    clock_gettime(CLOCK_REALTIME_COARSE, &ts);
    if (ts.tv_sec != made) {
        gmtime_r(&ts.tv_sec, &tm);
        snprintf(line, sizeof line, "date: %s, %02u %s %04u %02u:%02u:%02u GMT\r\n", days[tm.tm_wday % 7],
                 (unsigned)tm.tm_mday % 100, months[tm.tm_mon % 12], (unsigned)(tm.tm_year + 1900) % 10000,
                 (unsigned)tm.tm_hour % 100, (unsigned)tm.tm_min % 100, (unsigned)tm.tm_sec % 100);
        made = ts.tv_sec;
    }
    return line;
}

/* Whether an idle socket has neither data, nor an end, nor an error waiting. */
static int weir_wire_quiet(int fd) {
    char byte;
    ssize_t n;
    do {
        n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

enum {
    WEIR_H_OTHER,
    WEIR_H_CONTENT_TYPE,
    WEIR_H_CONTENT_LENGTH,
    WEIR_H_TRANSFER_ENCODING,
    WEIR_H_CONTENT_ENCODING,
    WEIR_H_REQUEST_ID,
    WEIR_H_RETRY_AFTER,
    WEIR_H_RETRY_AFTER_MS,
    WEIR_H_SHOULD_RETRY
};

/* Which of the few header fields that matter this is. */
static int weir_wire_header(const char *name, size_t n) {
#define IS(word, which) (n == sizeof(word) - 1 && strncasecmp(name, word, n) == 0 ? which : WEIR_H_OTHER)
    switch (n) {
    case 11: return IS("retry-after", WEIR_H_RETRY_AFTER);
    case 12: {
        int which = IS("content-type", WEIR_H_CONTENT_TYPE);
        return which ? which : IS("x-request-id", WEIR_H_REQUEST_ID);
    }
    case 14: {
        int which = IS("content-length", WEIR_H_CONTENT_LENGTH);
        which = which ? which : IS("retry-after-ms", WEIR_H_RETRY_AFTER_MS);
        return which ? which : IS("x-should-retry", WEIR_H_SHOULD_RETRY);
    }
    case 16: return IS("content-encoding", WEIR_H_CONTENT_ENCODING);
    case 17: return IS("transfer-encoding", WEIR_H_TRANSFER_ENCODING);
    default: return WEIR_H_OTHER;
    }
#undef IS
}

static void weir_wire_trim(const char **value, size_t *n) {
    while (*n && ((*value)[0] == ' ' || (*value)[0] == '\t')) { (*value)++; (*n)--; }
    while (*n && ((*value)[*n - 1] == ' ' || (*value)[*n - 1] == '\t')) (*n)--;
}

/* Whether the field's value is exactly this word, whatever its case. */
static int weir_wire_is(const char *value, size_t n, const char *word) {
    weir_wire_trim(&value, &n);
    return n == strlen(word) && strncasecmp(value, word, n) == 0;
}

/* Whether a media type, parameters aside, is this one. */
static int weir_wire_media(const char *value, size_t n, const char *type) {
    size_t t = strlen(type);
    weir_wire_trim(&value, &n);
    return n >= t && strncasecmp(value, type, t) == 0 && (n == t || value[t] == ';' || value[t] == ' ' || value[t] == '\t');
}

/* A Content-Length, or -1: llhttp has judged it already, this only reads it again. */
static int64_t weir_wire_length(const char *value, size_t n) {
    int64_t length = 0;
    weir_wire_trim(&value, &n);
    if (n == 0 || n > 18) return -1;
    for (size_t i = 0; i < n; i++) {
        if (value[i] < '0' || value[i] > '9') return -1;
        length = length * 10 + (value[i] - '0');
    }
    return length;
}

/* Visible ASCII only, 1..max bytes: what may be kept of an upstream's header as a fact. */
static int weir_wire_plain(const char *value, size_t n, size_t max) {
    if (n == 0 || n > max) return 0;
    for (size_t i = 0; i < n; i++)
        if (value[i] < 0x20 || value[i] > 0x7e) return 0;
    return 1;
}

/* The last four bytes of the payload so far, newest lowest. */
static uint32_t weir_wire_tail(uint32_t tail, const char *data, size_t n) {
    for (size_t i = n > 4 ? n - 4 : 0; i < n; i++) tail = tail << 8 | (unsigned char)data[i];
    return tail;
}

/* Whether an event stream that ends in these bytes stands between two frames: after a blank line (WHATWG HTML, 9.2.6). */
static int weir_wire_between(uint32_t tail) {
    uint32_t two = tail & 0xffff;
    return two == 0x0a0a || two == 0x0d0d || (tail & 0xffffff) == 0x0a0d0a || tail == 0x0d0a0d0a;
}

/* A chunk's size line (RFC 9112, 7.1); returns its bytes, at most 18. By hand: snprintf is half of a chunk's framing. */
static int weir_wire_chunk(char *to, size_t n) {
    int digits = 1;
    for (size_t rest = n >> 4; rest; rest >>= 4) digits++;
    for (int at = digits; at--; n >>= 4) to[at] = "0123456789abcdef"[n & 15];
    to[digits] = '\r';
    to[digits + 1] = '\n';
    return digits + 2;
}

/* Where in `data` the first frame ends that `tail` had begun: the offset after it, or -1. */
static ssize_t weir_wire_boundary(uint32_t tail, const char *data, size_t n) {
    for (size_t i = 0; i < n; i++) {
        tail = tail << 8 | (unsigned char)data[i];
        if (weir_wire_between(tail)) return (ssize_t)i + 1;
    }
    return -1;
}

#endif
