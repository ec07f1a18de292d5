/* Keyed BLAKE2b by RFC 7693, for short messages under a key that seldom changes.
 *
 * hashlib spends more on building its object than on the hash. Here the state after the key block is kept by the
 * caller, so that a message of up to 128 bytes costs one compression.
 */
#ifndef WEIR_BLAKE2B_H
#define WEIR_BLAKE2B_H

#include <stdint.h>
#include <string.h>

#define WEIR_BLAKE2B_BLOCK 128

typedef struct {
    uint64_t h[8];         /* chain value after the key block */
    uint8_t key_block[WEIR_BLAKE2B_BLOCK]; /* needed again for an empty message, whose only block is the key's */
    unsigned key_bytes;    /* 1 to 64 */
    unsigned digest_bytes; /* 1 to 64 */
} weir_blake2b;

static const uint64_t weir_blake2b_iv[8] = {
    0x6a09e667f3bcc908ull, 0xbb67ae8584caa73bull, 0x3c6ef372fe94f82bull, 0xa54ff53a5f1d36f1ull,
    0x510e527fade682d1ull, 0x9b05688c2b3e6c1full, 0x1f83d9abfb41bd6bull, 0x5be0cd19137e2179ull,
};

static inline uint64_t weir_load64(const uint8_t *from) {
    uint64_t word;
    memcpy(&word, from, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

static inline void weir_store64(uint8_t *to, uint64_t word) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    memcpy(to, &word, 8);
}

#define WEIR_ROTR(x, n) (((x) >> (n)) | ((x) << (64 - (n))))

/* The mixing function G of RFC 7693, section 3.1. */
#define WEIR_G(a, b, c, d, x, y)      \
    do {                              \
        a = a + b + (x);              \
        d = WEIR_ROTR(d ^ a, 32);     \
        c = c + d;                    \
        b = WEIR_ROTR(b ^ c, 24);     \
        a = a + b + (y);              \
        d = WEIR_ROTR(d ^ a, 16);     \
        c = c + d;                    \
        b = WEIR_ROTR(b ^ c, 63);     \
    } while (0)

/* One round, its message schedule (SIGMA, section 2.7) written out so that every index is a constant. */
#define WEIR_ROUND(s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, s10, s11, s12, s13, s14, s15) \
    do {                                                                                 \
        WEIR_G(v0, v4, v8, v12, m[s0], m[s1]);                                           \
        WEIR_G(v1, v5, v9, v13, m[s2], m[s3]);                                           \
        WEIR_G(v2, v6, v10, v14, m[s4], m[s5]);                                          \
        WEIR_G(v3, v7, v11, v15, m[s6], m[s7]);                                          \
        WEIR_G(v0, v5, v10, v15, m[s8], m[s9]);                                          \
        WEIR_G(v1, v6, v11, v12, m[s10], m[s11]);                                        \
        WEIR_G(v2, v7, v8, v13, m[s12], m[s13]);                                         \
        WEIR_G(v3, v4, v9, v14, m[s14], m[s15]);                                         \
    } while (0)

/* The compression function F, section 3.2. The high half of the byte counter is always 0 here: no message is 2^64 long. */
static void weir_blake2b_compress(uint64_t h[8], const uint8_t block[WEIR_BLAKE2B_BLOCK], uint64_t bytes, int last) {
    uint64_t m[16];
    for (int i = 0; i < 16; i++) m[i] = weir_load64(block + 8 * i);
    uint64_t v0 = h[0], v1 = h[1], v2 = h[2], v3 = h[3], v4 = h[4], v5 = h[5], v6 = h[6], v7 = h[7];
    uint64_t v8 = weir_blake2b_iv[0], v9 = weir_blake2b_iv[1], v10 = weir_blake2b_iv[2], v11 = weir_blake2b_iv[3];
    uint64_t v12 = weir_blake2b_iv[4] ^ bytes, v13 = weir_blake2b_iv[5];
    uint64_t v14 = last ? ~weir_blake2b_iv[6] : weir_blake2b_iv[6], v15 = weir_blake2b_iv[7];
    WEIR_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    WEIR_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3);
    WEIR_ROUND(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4);
    WEIR_ROUND(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8);
    WEIR_ROUND(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13);
    WEIR_ROUND(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9);
    WEIR_ROUND(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11);
    WEIR_ROUND(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10);
    WEIR_ROUND(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5);
    WEIR_ROUND(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0);
    WEIR_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    WEIR_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3);
    h[0] ^= v0 ^ v8;
    h[1] ^= v1 ^ v9;
    h[2] ^= v2 ^ v10;
    h[3] ^= v3 ^ v11;
    h[4] ^= v4 ^ v12;
    h[5] ^= v5 ^ v13;
    h[6] ^= v6 ^ v14;
    h[7] ^= v7 ^ v15;
}

/* Parameter block of section 2.5: digest length, key length, fanout 1, depth 1. Key 1 to 64 bytes. */
static void weir_blake2b_start(weir_blake2b *state, unsigned digest_bytes, const uint8_t *key, unsigned key_bytes) {
    memcpy(state->h, weir_blake2b_iv, sizeof state->h);
    state->h[0] ^= 0x01010000u ^ (key_bytes << 8) ^ digest_bytes;
    state->digest_bytes = digest_bytes;
    state->key_bytes = key_bytes;
    memset(state->key_block, 0, sizeof state->key_block);
    memcpy(state->key_block, key, key_bytes);
    weir_blake2b_compress(state->h, state->key_block, WEIR_BLAKE2B_BLOCK, 0);
}

/* The digest of one message under the state's key; the state is not changed. `out` takes digest_bytes. */
static void weir_blake2b_digest(const weir_blake2b *state, const uint8_t *message, size_t bytes, uint8_t *out) {
    uint64_t h[8];
    uint64_t done = WEIR_BLAKE2B_BLOCK; /* the key block counts */
    if (bytes == 0) {
        memcpy(h, weir_blake2b_iv, sizeof h);
        h[0] ^= 0x01010000u ^ (state->key_bytes << 8) ^ state->digest_bytes;
        weir_blake2b_compress(h, state->key_block, done, 1);
    } else {
        memcpy(h, state->h, sizeof h);
        while (bytes > WEIR_BLAKE2B_BLOCK) {
            done += WEIR_BLAKE2B_BLOCK;
            weir_blake2b_compress(h, message, done, 0);
            message += WEIR_BLAKE2B_BLOCK;
            bytes -= WEIR_BLAKE2B_BLOCK;
        }
        uint8_t tail[WEIR_BLAKE2B_BLOCK] = {0};
        memcpy(tail, message, bytes);
        weir_blake2b_compress(h, tail, done + bytes, 1);
    }
    uint8_t full[64];
    for (int i = 0; i < 8; i++) weir_store64(full + 8 * i, h[i]);
    memcpy(out, full, state->digest_bytes);
}

#endif
