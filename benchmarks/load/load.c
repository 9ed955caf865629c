/* A load generator for wald, and the same load for Redis and for an echo server.
 *
 *     load wald  SOCKET  CONNECTIONS IN_FLIGHT RECORDS VALUE_BYTES SECONDS
 *     load redis SOCKET  CONNECTIONS IN_FLIGHT 1       VALUE_BYTES SECONDS
 *     load echo  SOCKET                                   serve: answer frames, store nothing
 *
 * One thread, epoll, Unix sockets. Each connection keeps IN_FLIGHT requests of RECORDS records
 * unanswered. Prints one JSON object: requests, records and seconds of the measured part, records
 * per second, and the latency of requests at p50, p99 and the largest, in microseconds.
 *
 * Written from docs/protocol.md. `echo` speaks the same frames and answers without doing anything:
 * what `load wald` reaches against it is the generator's own ceiling.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "protocol.h"

enum { RECEIVE_BYTES = 1 << 18, MAX_CONNECTIONS = 1024, MAX_IN_FLIGHT = 1024, SAMPLES = 1 << 20 };
static const double WARM_UP_S = 0.5;

struct connection {
    int fd;
    uint64_t sent, answered;            /* requests */
    size_t out_from, out_to;            /* unsent part of `out` */
    size_t in_used;
    uint64_t sent_at[MAX_IN_FLIGHT];    /* by request number modulo */
    uint8_t *out, *in;
    uint32_t stream;
    int writable_wanted;
};

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

_Noreturn static void die(const char *what) {
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

_Noreturn static void fail(const char *what) {
    fprintf(stderr, "load: %s\n", what);
    exit(1);
}

static int unix_socket(const char *path, struct sockaddr_un *address) {
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address->sun_path) fail("the socket's path is too long");
    strcpy(address->sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    return fd;
}

static int connect_to(const char *path) {
    struct sockaddr_un address;
    int fd = unix_socket(path, &address);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) die("connect");
    return fd;
}

static void write_all(int fd, const void *data, size_t length) {
    const uint8_t *at = data;
    while (length > 0) {
        ssize_t n = write(fd, at, length);
        if (n < 0) die("write");
        at += n;
        length -= (size_t)n;
    }
}

static void read_all(int fd, void *data, size_t length) {
    uint8_t *at = data;
    while (length > 0) {
        ssize_t n = read(fd, at, length);
        if (n <= 0) die("read");
        at += n;
        length -= (size_t)n;
    }
}

/* ---- what is sent ------------------------------------------------------------------------- */

static uint8_t *request;                /* a whole request, header included */
static size_t request_bytes;
static int speaks_redis;

static uint8_t *put_big_endian(uint8_t *at, unsigned value, int bytes) {
    for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) *at++ = (uint8_t)(value >> shift);
    return at;
}

/* msgpack, in its shortest form, as its libraries write it */
static uint8_t *put_array_head(uint8_t *at, unsigned count) {
    if (count < 16) {
        *at++ = (uint8_t)(0x90 | count);
        return at;
    }
    *at++ = count < 65536 ? 0xdc : 0xdd;
    return put_big_endian(at, count, count < 65536 ? 2 : 4);
}

static uint8_t *put_bin_head(uint8_t *at, unsigned length) {
    *at++ = length < 256 ? 0xc4 : length < 65536 ? 0xc5 : 0xc6;
    return put_big_endian(at, length, length < 256 ? 1 : length < 65536 ? 2 : 4);
}

static void build_wald_request(unsigned records, unsigned value_bytes) {
    size_t room = HEADER_BYTES + 64 + (size_t)records * (value_bytes + 5);
    uint8_t *at = request = malloc(room);
    if (!request) die("malloc");
    memset(at, 0, HEADER_BYTES);
    at += HEADER_BYTES;
    *at++ = 0x95;                       /* array of five: content, values, keys, headers, ids */
    *at++ = 0x00;                       /* content: bytes */
    at = put_array_head(at, records);
    for (unsigned i = 0; i < records; i++) {
        at = put_bin_head(at, value_bytes);
        memset(at, 'v', value_bytes);
        at += value_bytes;
    }
    *at++ = 0xc0;
    *at++ = 0xc0;
    *at++ = 0xc0;
    request_bytes = (size_t)(at - request);
}

static void build_redis_request(unsigned value_bytes) {
    request = malloc(128 + value_bytes);
    if (!request) die("malloc");
    int head = sprintf((char *)request,
                       "*5\r\n$4\r\nXADD\r\n$5\r\nbench\r\n$1\r\n*\r\n$1\r\nv\r\n$%u\r\n",
                       value_bytes);
    memset(request + head, 'v', value_bytes);
    memcpy(request + head + value_bytes, "\r\n", 2);
    request_bytes = (size_t)head + value_bytes + 2;
}

static void greet(struct connection *c) {
    uint8_t frame[512], body[256];
    size_t length = hello_body(body);
    put_header(frame, (uint32_t)length, TYPE_HELLO, 0, 0, 1);
    memcpy(frame + HEADER_BYTES, body, length);
    write_all(c->fd, frame, HEADER_BYTES + length);
    for (int step = 0; step < 2; step++) {
        read_all(c->fd, frame, HEADER_BYTES);
        uint32_t size = get_u32(frame), kind = get_u32(frame + 4);
        c->stream = get_u32(frame + 8);
        uint8_t *answer = malloc(size + 1);
        read_all(c->fd, answer, size);
        free(answer);
        if ((kind & 0xff) != (step == 0 ? TYPE_WELCOME : TYPE_STREAM)) fail("greeting refused");
        if (step == 0) {
            length = open_stream_body(body, "bench");
            put_header(frame, (uint32_t)length, TYPE_OPEN_STREAM, 0, 0, 2);
            memcpy(frame + HEADER_BYTES, body, length);
            write_all(c->fd, frame, HEADER_BYTES + length);
        }
    }
}

/* ---- the loop ----------------------------------------------------------------------------- */

static int poll_fd;
static unsigned in_flight;
static uint32_t *samples_us;
static uint64_t sample_count, answered_total;
static int measuring;

static void watch(struct connection *c, int writable) {
    if (c->writable_wanted == writable) return;
    struct epoll_event event = {.events = EPOLLIN | (writable ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(poll_fd, EPOLL_CTL_MOD, c->fd, &event) < 0) die("epoll_ctl");
    c->writable_wanted = writable;
}

static void flush_out(struct connection *c) {
    while (c->out_from < c->out_to) {
        ssize_t n = write(c->fd, c->out + c->out_from, c->out_to - c->out_from);
        if (n < 0) {
            if (errno == EAGAIN) {
                watch(c, 1);
                return;
            }
            die("write");
        }
        c->out_from += (size_t)n;
    }
    c->out_from = c->out_to = 0;
    watch(c, 0);
}

static void fill(struct connection *c) {
    if (c->out_to > 0) return;          /* the last batch is still leaving */
    uint64_t t = now_ns();
    while (c->sent - c->answered < in_flight) {
        uint8_t *at = c->out + c->out_to;
        memcpy(at, request, request_bytes);
        c->sent++;
        if (!speaks_redis) {
            put_header(at, (uint32_t)(request_bytes - HEADER_BYTES), TYPE_APPEND | APPEND_KIND_BITS,
                       c->stream, (uint32_t)(c->sent - c->answered), c->sent);
        }
        c->sent_at[c->sent % MAX_IN_FLIGHT] = t;
        c->out_to += request_bytes;
    }
    if (c->out_to > 0) flush_out(c);
}

static void answered(struct connection *c, uint64_t through, uint64_t t) {
    if (through > c->sent || through < c->answered) fail("an answer to what was not asked");
    while (c->answered < through) {
        c->answered++;
        answered_total++;
        if (measuring && sample_count < SAMPLES) {
            samples_us[sample_count++] =
                (uint32_t)((t - c->sent_at[c->answered % MAX_IN_FLIGHT]) / 1000);
        }
    }
}

static size_t take_wald(struct connection *c, uint64_t t) {
    size_t at = 0;
    while (c->in_used - at >= HEADER_BYTES) {
        uint32_t size = get_u32(c->in + at), kind = get_u32(c->in + at + 4);
        if (c->in_used - at < HEADER_BYTES + size) break;
        if ((kind & 0xff) != TYPE_ACK) fail("not an acknowledgement");
        answered(c, ack_through(c->in + at), t);
        at += HEADER_BYTES + size;
    }
    return at;
}

static size_t take_redis(struct connection *c, uint64_t t) {
    size_t at = 0;
    while (at < c->in_used) {
        if (c->in[at] != '$') fail("Redis refused");
        uint8_t *eol = memchr(c->in + at, '\n', c->in_used - at);
        if (!eol) break;
        size_t length = (size_t)atoi((char *)c->in + at + 1);
        size_t end = (size_t)(eol - c->in) + 1 + length + 2;
        if (end > c->in_used) break;
        answered(c, c->answered + 1, t);
        at = end;
    }
    return at;
}

static void on_readable(struct connection *c) {
    ssize_t n = read(c->fd, c->in + c->in_used, RECEIVE_BYTES - c->in_used);
    if (n == 0) fail("the server closed the connection");
    if (n < 0) {
        if (errno == EAGAIN) return;
        die("read");
    }
    c->in_used += (size_t)n;
    uint64_t t = now_ns();
    size_t taken = speaks_redis ? take_redis(c, t) : take_wald(c, t);
    memmove(c->in, c->in + taken, c->in_used - taken);
    c->in_used -= taken;
}

static int by_size(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int run_load(int argc, char **argv) {
    if (argc != 8) fail("usage: load wald|redis SOCKET CONNECTIONS IN_FLIGHT RECORDS VALUE_BYTES SECONDS");
    unsigned connections = (unsigned)atoi(argv[3]), records = (unsigned)atoi(argv[5]);
    unsigned value_bytes = (unsigned)atoi(argv[6]);
    double seconds = atof(argv[7]);
    in_flight = (unsigned)atoi(argv[4]);
    speaks_redis = strcmp(argv[1], "redis") == 0;
    if (connections < 1 || connections > MAX_CONNECTIONS || in_flight < 1 || in_flight > MAX_IN_FLIGHT)
        fail("connections and in-flight go from 1 to 1024");
    if (speaks_redis) build_redis_request(value_bytes);
    else build_wald_request(records, value_bytes);
    samples_us = malloc(SAMPLES * sizeof *samples_us);
    struct connection *all = calloc(connections, sizeof *all);
    if (!samples_us || !all) die("malloc");
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (poll_fd < 0) die("epoll_create1");
    for (unsigned i = 0; i < connections; i++) {
        struct connection *c = &all[i];
        c->fd = connect_to(argv[2]);
        c->in = malloc(RECEIVE_BYTES);
        c->out = malloc(request_bytes * in_flight);
        if (!c->in || !c->out) die("malloc");
        if (!speaks_redis) greet(c);
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0) die("epoll_ctl");
    }
    uint64_t start = now_ns(), from = 0, until = start + (uint64_t)(WARM_UP_S * 1e9), before = 0;
    for (unsigned i = 0; i < connections; i++) fill(&all[i]);
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(poll_fd, events, 256, 1000);
        if (n < 0) die("epoll_wait");
        if (n == 0) fail("no answer for a second");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) flush_out(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP)) on_readable(c);
            fill(c);
        }
        uint64_t t = now_ns();
        if (t < until) continue;
        if (measuring) {
            double took = (double)(t - from) / 1e9;
            uint64_t requests = answered_total - before;
            qsort(samples_us, sample_count, sizeof *samples_us, by_size);
            printf("{\"requests\": %llu, \"records\": %llu, \"seconds\": %.3f, "
                   "\"records_per_s\": %.0f, \"p50_us\": %u, \"p99_us\": %u, \"max_us\": %u}\n",
                   (unsigned long long)requests, (unsigned long long)requests * records, took,
                   (double)requests * records / took, samples_us[sample_count / 2],
                   samples_us[sample_count * 99 / 100], samples_us[sample_count - 1]);
            return 0;
        }
        measuring = 1;
        from = t;
        before = answered_total;
        until = t + (uint64_t)(seconds * 1e9);
    }
}

/* ---- the echo server ---------------------------------------------------------------------- */

static void run_echo(const char *path) {
    struct sockaddr_un address;
    int listening = unix_socket(path, &address);
    unlink(path);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) < 0) die("bind");
    if (listen(listening, 512) < 0) die("listen");
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, listening, &event) < 0) die("epoll_ctl");
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(poll_fd, events, 256, -1);
        if (n < 0) die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                c = calloc(1, sizeof *c);
                if (!c) die("calloc");
                c->fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (c->fd < 0) die("accept4");
                c->in = malloc(RECEIVE_BYTES + (4 << 20));
                struct epoll_event more = {.events = EPOLLIN, .data.ptr = c};
                if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &more) < 0) die("epoll_ctl");
                continue;
            }
            ssize_t got = read(c->fd, c->in + c->in_used, RECEIVE_BYTES + (4 << 20) - c->in_used);
            if (got <= 0) {
                close(c->fd);
                free(c->in);
                free(c);
                continue;
            }
            c->in_used += (size_t)got;
            size_t at = 0;
            uint64_t first = 0, through = 0;
            uint8_t answer[512];
            while (c->in_used - at >= HEADER_BYTES) {
                uint32_t size = get_u32(c->in + at), type = get_u32(c->in + at + 4) & 0xff;
                if (c->in_used - at < HEADER_BYTES + size) break;
                if (type == TYPE_APPEND) {
                    through = get_u64(c->in + at + 16);
                    if (!first) first = through;
                } else {
                    int hello = type == TYPE_HELLO;
                    size_t length = hello ? welcome_body(answer + HEADER_BYTES) : 0;
                    put_header(answer, (uint32_t)length, hello ? TYPE_WELCOME : TYPE_STREAM,
                               hello ? 0 : 1, 0, get_u64(c->in + at + 16));
                    write_all(c->fd, answer, HEADER_BYTES + length);
                }
                at += HEADER_BYTES + size;
            }
            memmove(c->in, c->in + at, c->in_used - at);
            c->in_used -= at;
            if (through) {
                size_t length = put_ack(answer, first, through, first, through);
                write_all(c->fd, answer, length);
            }
        }
    }
}

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "echo") == 0) run_echo(argv[2]);
    if (argc > 1 && (strcmp(argv[1], "wald") == 0 || strcmp(argv[1], "redis") == 0))
        return run_load(argc, argv);
    fail("usage: load wald|redis SOCKET ... | load echo SOCKET");
}
