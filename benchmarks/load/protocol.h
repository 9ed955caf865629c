/* The frames of docs/protocol.md that the load generator speaks. Little-endian machines only. */
#ifndef WALD_PROTOCOL_H
#define WALD_PROTOCOL_H

#include <stdint.h>
#include <string.h>

enum { HEADER_BYTES = 24 };
enum {
    TYPE_APPEND = 1,
    TYPE_HELLO = 2,
    TYPE_OPEN_STREAM = 3,
    TYPE_ACK = 17,
    TYPE_WELCOME = 18,
    TYPE_STREAM = 19,
    APPEND_KIND_BITS = 1 << 16          /* codec 1 */
};

static inline uint32_t get_u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t get_u64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline void put_header(uint8_t *at, uint32_t length, uint32_t kind, uint32_t stream,
                              uint32_t lag, uint64_t sequence) {
    memcpy(at, &length, 4);
    memcpy(at + 4, &kind, 4);
    memcpy(at + 8, &stream, 4);
    memcpy(at + 12, &lag, 4);
    memcpy(at + 16, &sequence, 8);
}

static inline size_t hello_body(uint8_t *body) {
    memset(body, 0, 24);
    memcpy(body, "wald", 4);
    body[4] = 1;
    return 24;
}

static inline size_t open_stream_body(uint8_t *body, const char *name) {
    size_t length = strlen(name);
    memcpy(body, name, length);
    return length;
}

static inline size_t welcome_body(uint8_t *body) {
    memset(body, 0, 72);
    body[0] = 1;
    body[5] = 1;                        /* window 256 */
    body[16] = 1;                       /* session */
    body[50] = 0x40;                    /* a request: 4 MiB */
    body[54] = 1;                       /* its records: 65,536 */
    body[58] = 0x10;                    /* a value: 1 MiB */
    body[62] = 0x80;                    /* in flight: 8 MiB */
    return 72;
}

static inline size_t put_ack(uint8_t *at, uint64_t first, uint64_t through, uint64_t first_lsn,
                             uint64_t durable_lsn) {
    put_header(at, 24, TYPE_ACK, 0, 0, through);
    memcpy(at + HEADER_BYTES, &first, 8);
    memcpy(at + HEADER_BYTES + 8, &first_lsn, 8);
    memcpy(at + HEADER_BYTES + 16, &durable_lsn, 8);
    return HEADER_BYTES + 24;
}

static inline uint64_t ack_through(const uint8_t *frame) { return get_u64(frame + 16); }

#endif
