/* A fast upstream for benchmarks: canned OpenAI answers, nothing else. One thread, epoll.
 *
 *     upstream [--port N] [--chunks N] [--delay-ms N] [--bytes N]        prints {"port": N} when it listens
 *
 * A body with "stream":true gets a stream of `chunks` content frames, one each `delay-ms`, then usage (when the body
 * has "include_usage":true, as OpenAI does) and [DONE]; any other POST gets a JSON answer of `bytes` bytes. It trusts
 * its callers: no limits, no checks. It ends when its standard input is closed.
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

enum { REQUEST_MAX = 65536, EVENTS = 512 };

typedef struct connection {
    int fd;
    int in_length;
    int streaming;
    int chunks_left;
    int usage;
    int queued;             /* stands in the queue of streams that wait for their next chunk */
    int64_t due;
    char *waiting;          /* bytes the kernel would not take yet */
    int waiting_length;
    struct connection *next;
    char in[REQUEST_MAX];
} connection;

typedef struct { char bytes[8192]; int length; } text;

static int poll_fd, chunks = 100;
static int64_t delay_ns = 10 * 1000000LL;
static text whole, head, chunk, chunk_null, usage_chunk, ending;
/* Every stream has the same delay, so the queue of due times is a plain list: who comes last is due last. */
static connection *first, *last;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void framed(text *to, const char *frame) {
    to->length += sprintf(to->bytes + to->length, "%zx\r\n%s\r\n", strlen(frame), frame);
}

static void prepare(int answer_bytes) {
    const char *common = "\"created\":1790000000,\"model\":\"bench\"";
    char frame[1024], body[8192], filler[4096] = "";
    const char *begin = "data: {\"id\":\"chatcmpl-BenchBenchBenchBenchBenc\",\"object\":\"chat.completion.chunk\",";
    snprintf(frame, sizeof frame, "%s%s,\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},"
             "\"logprobs\":null,\"finish_reason\":null}]}\n\n", begin, common);
    framed(&chunk, frame);
    snprintf(frame, sizeof frame, "%s%s,\"choices\":[{\"index\":0,\"delta\":{\"content\":\" token\"},"
             "\"logprobs\":null,\"finish_reason\":null}],\"usage\":null}\n\n", begin, common);
    framed(&chunk_null, frame);
    snprintf(frame, sizeof frame, "%s%s,\"choices\":[],\"usage\":{\"prompt_tokens\":190,\"completion_tokens\":%d,"
             "\"total_tokens\":%d}}\n\n", begin, common, chunks, 190 + chunks);
    framed(&usage_chunk, frame);
    framed(&ending, "data: [DONE]\n\n");
    ending.length += sprintf(ending.bytes + ending.length, "0\r\n\r\n");
    head.length = sprintf(head.bytes, "HTTP/1.1 200 OK\r\nserver: bench\r\nx-request-id: req_0123456789abcdef\r\n"
                          "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    const char *form = "{\"id\":\"chatcmpl-BenchBenchBenchBenchBenc\",\"object\":\"chat.completion\",%s,"
        "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\",\"refusal\":null},"
        "\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":190,\"completion_tokens\":10,"
        "\"total_tokens\":200,\"prompt_tokens_details\":{\"cached_tokens\":0}},\"service_tier\":\"default\"}";
    int bare = snprintf(body, sizeof body, form, common, "");
    int fill = answer_bytes - bare;
    if (fill < 0) fill = 0;
    if (fill > (int)sizeof filler - 1) fill = sizeof filler - 1;
    for (int i = 0; i < fill; i++) filler[i] = "a plain answer of a few words. "[i % 31];
    filler[fill] = 0;
    int length = snprintf(body, sizeof body, form, common, filler);
    whole.length = sprintf(whole.bytes, "HTTP/1.1 200 OK\r\nserver: bench\r\nx-request-id: req_0123456789abcdef\r\n"
                           "content-type: application/json\r\ncontent-length: %d\r\n\r\n", length);
    memcpy(whole.bytes + whole.length, body, length);
    whole.length += length;
}

static void watch(connection *c, int writing) {
    struct epoll_event event = {.events = EPOLLIN | (writing ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void end(connection *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->queued) return; /* the queue frees it when it comes to it */
    free(c->waiting);
    free(c);
}

/* 0, or -1 when the peer is gone. What the kernel does not take waits. */
static int put(connection *c, const text *t) {
    ssize_t sent = 0;
    if (!c->waiting_length) {
        sent = send(c->fd, t->bytes, t->length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN) return -1;
        if (sent < 0) sent = 0;
    }
    if (sent < t->length) {
        int rest = t->length - sent;
        c->waiting = realloc(c->waiting, c->waiting_length + rest);
        memcpy(c->waiting + c->waiting_length, t->bytes + sent, rest);
        if (!c->waiting_length) watch(c, 1);
        c->waiting_length += rest;
    }
    return 0;
}

static void enqueue(connection *c, int64_t due) {
    c->due = due;
    c->next = NULL;
    c->queued = 1;
    if (last) last->next = c; else first = c;
    last = c;
}

static int answer_requests(connection *c);

/* The next chunk of a stream. -1 when the peer is gone. */
static int step(connection *c) {
    if (c->waiting_length) { /* a slow reader: look again later */
        enqueue(c, now() + delay_ns + 1000000);
        return 0;
    }
    if (c->chunks_left > 0) {
        c->chunks_left--;
        if (put(c, c->usage ? &chunk_null : &chunk)) return -1;
        int64_t due = c->due + delay_ns, t = now();
        enqueue(c, due < t - delay_ns ? t : due);
        return 0;
    }
    c->streaming = 0;
    if (c->usage && put(c, &usage_chunk)) return -1;
    if (put(c, &ending)) return -1;
    return answer_requests(c);
}

/* Answers the whole requests that stand in the buffer. -1 when the peer is gone. */
static int answer_requests(connection *c) {
    while (!c->streaming) {
        c->in[c->in_length] = 0;
        char *body = strstr(c->in, "\r\n\r\n");
        if (!body) return 0;
        body += 4;
        char *length = strcasestr(c->in, "\ncontent-length:");
        int total = body - c->in + (length && length < body ? atoi(length + 16) : 0);
        if (c->in_length < total) return 0;
        char keep = c->in[total];
        c->in[total] = 0;
        c->streaming = strstr(body, "\"stream\":true") != NULL;
        c->usage = strstr(body, "\"include_usage\":true") != NULL;
        c->in[total] = keep;
        c->in_length -= total;
        memmove(c->in, c->in + total, c->in_length);
        if (!c->streaming) {
            if (put(c, &whole)) return -1;
        } else {
            c->chunks_left = chunks;
            if (put(c, &head)) return -1;
            enqueue(c, now() + delay_ns);
        }
    }
    return 0;
}

static void readable(connection *c) {
    ssize_t got = recv(c->fd, c->in + c->in_length, REQUEST_MAX - 1 - c->in_length, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { end(c); return; }
    c->in_length += got;
    if (answer_requests(c)) end(c);
}

static void writable(connection *c) {
    ssize_t sent = send(c->fd, c->waiting, c->waiting_length, MSG_NOSIGNAL);
    if (sent < 0 && errno == EAGAIN) return;
    if (sent < 0) { end(c); return; }
    c->waiting_length -= sent;
    memmove(c->waiting, c->waiting + sent, c->waiting_length);
    if (!c->waiting_length) watch(c, 0);
}

int main(int count, char **args) {
    int port = 0, answer_bytes = 600, one = 1;
    signal(SIGPIPE, SIG_IGN);
    for (int i = 1; i + 1 < count; i += 2) {
        if (!strcmp(args[i], "--port")) port = atoi(args[i + 1]);
        else if (!strcmp(args[i], "--chunks")) chunks = atoi(args[i + 1]);
        else if (!strcmp(args[i], "--delay-ms")) delay_ns = (int64_t)(atof(args[i + 1]) * 1e6);
        else if (!strcmp(args[i], "--bytes")) answer_bytes = atoi(args[i + 1]);
        else { fprintf(stderr, "upstream: %s is no option\n", args[i]); return 2; }
    }
    prepare(answer_bytes);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (bind(listener, (void *)&address, size) || listen(listener, 4096)) { perror("upstream: listen"); return 1; }
    getsockname(listener, (void *)&address, &size);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    int marks[2]; /* their addresses tell the listener and standard input from connections */
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = &marks[0]};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, &event);
    event.data.ptr = &marks[1];
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, 0, &event);
    printf("{\"port\": %d}\n", ntohs(address.sin_port));
    fflush(stdout);
    struct epoll_event events[EVENTS];
    for (;;) {
        int64_t t = now();
        while (first && first->due <= t) {
            connection *c = first;
            first = c->next;
            if (!first) last = NULL;
            c->queued = 0;
            if (c->fd < 0 || step(c)) end(c);
        }
        struct timespec wait = {0}, *timeout = NULL;
        if (first) {
            int64_t left = first->due - now();
            if (left < 0) left = 0;
            wait.tv_sec = left / 1000000000;
            wait.tv_nsec = left % 1000000000;
            timeout = &wait;
        }
        int ready = epoll_pwait2(poll_fd, events, EVENTS, timeout, NULL);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.ptr == &marks[1]) return 0;
            if (events[i].data.ptr == &marks[0]) {
                int fd;
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
                    connection *c = calloc(1, sizeof *c);
                    c->fd = fd;
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                    struct epoll_event read = {.events = EPOLLIN, .data.ptr = c};
                    epoll_ctl(poll_fd, EPOLL_CTL_ADD, fd, &read);
                }
                continue;
            }
            connection *c = events[i].data.ptr;
            if (c->fd >= 0 && (events[i].events & EPOLLOUT)) { writable(c); continue; }
            if (c->fd >= 0) readable(c);
        }
    }
}
