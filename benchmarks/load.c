/* A load generator: one thread, epoll, its own small reader of answers. Prints one JSON line.
 *
 *     load --mode closed|rate|stream|hold --port N --key KEY [--connections N] [--seconds S] [--warm S] [--rate N]
 *          [--pids N,N] [--model NAME] [--body-bytes N]
 *
 * closed  each connection sends its next request when the last is answered: saturates
 * rate    open loop: requests start on a fixed clock; latency counts from the intended start, so a stall is counted
 * stream  each connection reads one stream after another; SSE frames are counted
 * hold    opens the streams and keeps them; memory of the pids before, with idle connections, and with open streams
 *
 * CPU time of the pids (all threads, nanoseconds) is taken over the measured window only.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CLOSED, RATE, STREAM, HOLD };
enum { HEAD, BY_LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, LAST_LINE }; /* where the reader of an answer stands */
enum { HEAD_MAX = 8192, READ_BYTES = 262144, EVENTS = 1024, PIDS = 16 };

typedef struct {
    int fd, busy, state, head_length, first_seen, newlines, skip_line;
    long left;
    int64_t start;
    char head[HEAD_MAX];
} connection;

typedef struct { double *values; long count, room; } sample;

static int mode = CLOSED, port, connections = 64, poll_fd, pids[PIDS], pid_count;
static double seconds = 5, warm = 1, rate = 500;
static char request[65536];
static int request_length;
static connection *all;
static long requests, frames, payload_bytes, errors, not_200, late;
static sample latency, first_byte;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void add(sample *s, double value) {
    if (s->count == s->room) {
        s->room = s->room ? s->room * 2 : 65536;
        s->values = realloc(s->values, s->room * sizeof(double));
    }
    s->values[s->count++] = value;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double quantile(const sample *s, double q) {
    if (!s->count) return 0;
    long at = (long)(q * s->count);
    return s->values[at < s->count ? at : s->count - 1];
}

static int64_t cpu_ns(int pid) {
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t)) return 0;
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long resident_kb(void) {
    long total = 0;
    for (int i = 0; i < pid_count; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/statm", pids[i]);
        FILE *file = fopen(path, "r");
        long size, resident;
        if (!file) continue;
        if (fscanf(file, "%ld %ld", &size, &resident) == 2) total += resident * (sysconf(_SC_PAGESIZE) / 1024);
        fclose(file);
    }
    return total;
}

static int dial(connection *c) {
    int one = 1;
    memset(c, 0, sizeof *c);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (connect(c->fd, (void *)&address, sizeof address)) {
        perror("load: connect");
        exit(1);
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    return epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event);
}

static void ask(connection *c, int64_t start) {
    c->busy = 1;
    c->state = HEAD;
    c->head_length = c->first_seen = c->newlines = c->skip_line = 0;
    c->left = 0;
    c->start = start;
    if (send(c->fd, request, request_length, MSG_NOSIGNAL) != request_length) errors++;
}

static void payload(connection *c, const char *data, long length) {
    payload_bytes += length;
    if (!c->first_seen) {
        c->first_seen = 1;
        add(&first_byte, (now() - c->start) / 1e3);
    }
    if (mode < STREAM) return;
    for (const char *at = data, *end = data + length; at < end;) { /* a frame ends with an empty line */
        if (*at == '\n') {
            if (++c->newlines == 2) { frames++; c->newlines = 0; }
            at++;
        } else {
            c->newlines = 0;
            at = memchr(at, '\n', end - at);
            if (!at) break;
        }
    }
}

/* Takes in the head. -1 fault, 0 more is needed, 1 the answer is over already. */
static int read_head(connection *c, const char **at, const char *end) {
    long room = HEAD_MAX - 1 - c->head_length, take = end - *at < room ? end - *at : room;
    int before = c->head_length;
    memcpy(c->head + before, *at, take);
    c->head_length += take;
    c->head[c->head_length] = 0;
    char *blank = strstr(c->head + (before > 3 ? before - 3 : 0), "\r\n\r\n");
    if (!blank) {
        *at += take;
        return c->head_length >= HEAD_MAX - 1 ? -1 : 0;
    }
    *at += blank + 4 - (c->head + before);
    blank[2] = 0;
    if (memcmp(c->head + 9, "200", 3)) {
        if (++not_200 == 1) fprintf(stderr, "load: first answer that is not 200:\n%s%.300s\n", c->head, *at);
    }
    char *field = strcasestr(c->head, "\ncontent-length:");
    if (field) {
        c->left = atol(field + 16);
        c->state = BY_LENGTH;
        return c->left == 0;
    }
    if (!strcasestr(c->head, "\ntransfer-encoding: chunked")) return -1;
    c->state = CHUNK_SIZE;
    c->left = 0;
    return 0;
}

/* Reads on. -1 fault, 0 more to come, 1 the answer is over. */
static int feed(connection *c, const char *at, const char *end) {
    while (at < end) {
        long take = end - at < c->left ? end - at : c->left;
        char byte = *at;
        switch (c->state) {
        case HEAD: {
            int result = read_head(c, &at, end);
            if (result) return result;
            break;
        }
        case BY_LENGTH:
            payload(c, at, take);
            at += take;
            if (!(c->left -= take)) return 1;
            break;
        case CHUNK_SIZE:
            at++;
            if (byte == '\n') c->state = c->left ? CHUNK_DATA : LAST_LINE, c->skip_line = 0;
            else if (byte == ';') c->skip_line = 1;
            else if (byte != '\r' && !c->skip_line)
                c->left = c->left * 16 + (byte <= '9' ? byte - '0' : (byte | 32) - 'a' + 10);
            break;
        case CHUNK_DATA:
            payload(c, at, take);
            at += take;
            if (!(c->left -= take)) c->state = CHUNK_END;
            break;
        case CHUNK_END:
            at++;
            if (byte == '\n') c->state = CHUNK_SIZE;
            else if (byte != '\r') return -1;
            break;
        case LAST_LINE:
            at++;
            if (byte == '\n') return 1;
            if (byte != '\r') return -1;
        }
    }
    return 0;
}

static void make_request(const char *key, const char *model, int body_bytes) {
    static char body[32768], filler[16384];
    const char *form = "{\"model\":\"%s\",\"messages\":[{\"role\":\"system\",\"content\":\"You are a helpful assistant.\"},"
        "{\"role\":\"user\",\"content\":\"%s\"}],\"temperature\":0.7,\"max_tokens\":100%s}";
    const char *tail = mode >= STREAM ? ",\"stream\":true" : "";
    int fill = body_bytes - snprintf(body, sizeof body, form, model, "", tail);
    for (int i = 0; i < fill && i < (int)sizeof filler - 1; i++)
        filler[i] = "The quick brown fox jumps over the lazy dog. "[i % 45];
    int length = snprintf(body, sizeof body, form, model, filler, tail);
    request_length = snprintf(request, sizeof request,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
        "Content-Type: application/json\r\nAccept: application/json\r\nUser-Agent: OpenAI/Python 3.54.0\r\n"
        "Content-Length: %d\r\n\r\n%s", port, key, length, body);
}

static void read_options(int count, char **args) {
    const char *key = "none", *model = "bench";
    int body_bytes = 1024;
    for (int i = 1; i + 1 < count; i += 2) {
        const char *name = args[i], *value = args[i + 1];
        if (!strcmp(name, "--mode"))
            mode = !strcmp(value, "closed") ? CLOSED : !strcmp(value, "rate") ? RATE : !strcmp(value, "stream") ? STREAM : HOLD;
        else if (!strcmp(name, "--port")) port = atoi(value);
        else if (!strcmp(name, "--key")) key = value;
        else if (!strcmp(name, "--model")) model = value;
        else if (!strcmp(name, "--connections")) connections = atoi(value);
        else if (!strcmp(name, "--seconds")) seconds = atof(value);
        else if (!strcmp(name, "--warm")) warm = atof(value);
        else if (!strcmp(name, "--rate")) rate = atof(value);
        else if (!strcmp(name, "--body-bytes")) body_bytes = atoi(value);
        else if (!strcmp(name, "--pids")) {
            char *list = strdup(value);
            for (char *p = strtok(list, ","); p && pid_count < PIDS; p = strtok(NULL, ",")) pids[pid_count++] = atoi(p);
            free(list);
        } else {
            fprintf(stderr, "load: %s is no option\n", name);
            exit(2);
        }
    }
    make_request(key, model, body_bytes);
}

static void again(connection *c) {
    close(c->fd);
    dial(c);
    if (mode != RATE && errors < 1000) ask(c, now());
}

static void receive(connection *c) {
    static char buffer[READ_BYTES];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        if (c->busy) errors++;
        again(c);
        return;
    }
    int result = feed(c, buffer, buffer + got);
    if (result < 0) {
        errors++;
        again(c);
    } else if (result) {
        c->busy = 0;
        requests++;
        add(&latency, (now() - c->start) / 1e3);
        if (mode != RATE) ask(c, now());
    }
}

int main(int count, char **args) {
    signal(SIGPIPE, SIG_IGN);
    read_options(count, args);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    all = calloc(connections, sizeof *all);
    long kb_before = resident_kb();
    for (int i = 0; i < connections; i++) dial(&all[i]);
    usleep(mode == HOLD ? 500000 : 0);
    long kb_idle = resident_kb();
    int64_t begin = now(), measure = begin + (int64_t)(warm * 1e9), stop = measure + (int64_t)(seconds * 1e9);
    /* Streams start one after the other over most of the warm-up, so that their chunks do not come in one beat. */
    int64_t gap = mode >= STREAM ? (int64_t)(warm * 0.8e9) / connections : 0, next_start = begin;
    int64_t interval = mode == RATE ? (int64_t)(1e9 / rate) : 0, next_request = begin;
    int started = mode == RATE ? connections : 0, turn = 0, measuring = 0;
    int64_t cpu_before[PIDS] = {0}, measured_from = 0;
    static struct epoll_event events[EVENTS];
    for (;;) {
        int64_t t = now(), wake = measuring ? stop : measure;
        if (!measuring && t >= measure) {
            measuring = 1;
            requests = frames = payload_bytes = latency.count = first_byte.count = late = 0;
            for (int i = 0; i < pid_count; i++) cpu_before[i] = cpu_ns(pids[i]);
            measured_from = now();
            wake = stop;
        }
        if (t >= stop) break;
        while (started < connections && next_start <= t) {
            ask(&all[started++], now());
            next_start += gap;
        }
        if (started < connections && next_start < wake) wake = next_start;
        if (mode == RATE) {
            for (; next_request <= t; next_request += interval) {
                int tried = 0;
                while (tried < connections && all[(turn + tried) % connections].busy) tried++;
                if (tried == connections) { late++; continue; }
                ask(&all[(turn + tried) % connections], next_request);
                turn = (turn + tried + 1) % connections;
            }
            if (next_request < wake) wake = next_request;
        }
        int64_t left = wake - now();
        struct timespec wait = {.tv_sec = left > 0 ? left / 1000000000 : 0, .tv_nsec = left > 0 ? left % 1000000000 : 0};
        int ready = epoll_pwait2(poll_fd, events, EVENTS, &wait, NULL);
        for (int i = 0; i < ready; i++) receive(events[i].data.ptr);
    }
    int64_t cpu_after[PIDS];
    for (int i = 0; i < pid_count; i++) cpu_after[i] = cpu_ns(pids[i]);
    double elapsed = (now() - measured_from) / 1e9;
    long kb_open = resident_kb();
    qsort(latency.values, latency.count, sizeof(double), ascending);
    qsort(first_byte.values, first_byte.count, sizeof(double), ascending);
    printf("{\"seconds\": %.3f, \"requests\": %ld, \"requests_per_s\": %.1f, \"frames\": %ld, \"frames_per_s\": %.1f, "
           "\"payload_bytes\": %ld, \"errors\": %ld, \"not_200\": %ld, \"late\": %ld, \"p50_us\": %.1f, \"p90_us\": %.1f, "
           "\"p99_us\": %.1f, \"first_p50_us\": %.1f, \"first_p99_us\": %.1f, \"kb_before\": %ld, \"kb_idle\": %ld, "
           "\"kb_open\": %ld, \"cpu_us\": [", elapsed, requests, requests / elapsed, frames, frames / elapsed,
           payload_bytes, errors, not_200, late, quantile(&latency, .5), quantile(&latency, .9), quantile(&latency, .99),
           quantile(&first_byte, .5), quantile(&first_byte, .99), kb_before, kb_idle, kb_open);
    for (int i = 0; i < pid_count; i++) printf("%s%.1f", i ? ", " : "", (cpu_after[i] - cpu_before[i]) / 1e3);
    printf("]}\n");
    return 0;
}
