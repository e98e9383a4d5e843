/* random_lanes.c - Philox4x32-10 and Box-Muller, as loops that the compiler turns into vectors.
 *
 *   counter  c0 c1 = block number, c2 c3 = stream      key  k0 k1 = seed      (low word first)
 *   block    four words x0 x1 x2 x3, ten rounds
 *   normal   r = sqrt(-2 ln((x0 + 1/2) / 2^32)), a = 2 pi x1 / 2^32:  z0 = r cos a, z1 = r sin a;
 * x2 x3 give z2 z3 uniform  u = floor(x / 2^8) / 2^24
 *
 * |z| reaches sqrt(-2 ln 2^-33) = 6.76. Logarithm, sine and cosine are short series in float32,
 * written so that no step depends on the instruction set; each is right to about 2 units in the
 * last place. (libm would differ between machines, and these numbers must not.)
 *
 * Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; G. Box and M.
 * Muller, "A note on the generation of random normal deviates", 1958. */
#include "tensor/lanes.h"

#include <math.h>

#define PHILOX_MUL_0 UINT32_C(0xD2511F53)
#define PHILOX_MUL_1 UINT32_C(0xCD9E8D57)
#define PHILOX_KEY_0 UINT32_C(0x9E3779B9) /* golden ratio */
#define PHILOX_KEY_1 UINT32_C(0xBB67AE85) /* sqrt(3) - 1 */
#define PHILOX_ROUNDS 10

/* A word while its block is mixed; only the low 32 bits count. Where 64-bit lanes multiply in one
 * instruction, staying in them saves the shuffles between the two widths: 1.7 times as fast. */
#ifdef __AVX512DQ__
typedef uint64_t mixed_word;
#else
typedef uint32_t mixed_word;
#endif

/* One array per word: neighbors in an array are neighbors in a vector register. */
struct words {
    uint32_t x[4][HEFT__RANDOM_BLOCKS];
};

static inline uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---- Philox ------------------------------------------------------------------------------- */
static void philox(const heft__random *random, const uint64_t *restrict blocks, size_t count,
                   struct words *restrict words)
{
    uint32_t stream_low = (uint32_t)random->stream;
    uint32_t stream_high = (uint32_t)(random->stream >> 32);
    uint32_t seed_low = (uint32_t)random->seed;
    uint32_t seed_high = (uint32_t)(random->seed >> 32);
    for (size_t i = 0; i < count; i++) {
        mixed_word c0 = (mixed_word)blocks[i];
        mixed_word c1 = (mixed_word)(blocks[i] >> 32);
        mixed_word c2 = stream_low;
        mixed_word c3 = stream_high;
        uint32_t k0 = seed_low;
        uint32_t k1 = seed_high;
#pragma GCC unroll 10
        for (int round = 0; round < PHILOX_ROUNDS; round++) {
            uint64_t p0 = (uint64_t)PHILOX_MUL_0 * (uint32_t)c0;
            uint64_t p1 = (uint64_t)PHILOX_MUL_1 * (uint32_t)c2;
            c0 = (mixed_word)(p1 >> 32) ^ c1 ^ k0;
            c1 = (mixed_word)p1;
            c2 = (mixed_word)(p0 >> 32) ^ c3 ^ k1;
            c3 = (mixed_word)p0;
            k0 += PHILOX_KEY_0;
            k1 += PHILOX_KEY_1;
        }
        words->x[0][i] = (uint32_t)c0;
        words->x[1][i] = (uint32_t)c1;
        words->x[2][i] = (uint32_t)c2;
        words->x[3][i] = (uint32_t)c3;
    }
}

/* ---- functions of one number ---------------------------------------------------------------- */
/* ln x for normal x > 0: x = 2^e m with m in [sqrt(1/2), sqrt(2)), and with s = (m - 1) / (m + 1)
 * ln m = 2 (s + s^3/3 + s^5/5 + s^7/7 + s^9/9); |s| < 0.172, the next term is below 2^-28 of the
 * sum. */
static inline float log_of(float x)
{
    uint32_t bits = bits_of(x);
    /* 0x3f3504f3 is sqrt(1/2). The shift is arithmetic, e may be negative. */
    int32_t exponent = (int32_t)(bits - UINT32_C(0x3f3504f3)) >> 23;
    float m = float_of(bits - ((uint32_t)exponent << 23));
    float s = (m - 1.0f) / (m + 1.0f);
    float q = s * s;
    float tail = q * (1.0f / 3 + q * (1.0f / 5 + q * (1.0f / 7 + q * (1.0f / 9))));
    float e = (float)exponent;
    /* ln 2 in two parts, the first short enough for an exact product with e. */
    float small = e * 1.42860677e-6f + (s + s) * tail;
    return e * 0.693145752f + (small + (s + s));
}

/* Radius of a pair from its first word. */
static inline float radius_of(uint32_t word)
{
    /* word + 1/2, rounded once: both halves are exact. Signed, since vectors convert only signed
     * numbers. */
    float high = (float)(int32_t)(word >> 16) * 65536.0f;
    float low = (float)(int32_t)(word & 0xffff) + 0.5f;
    float u = (high + low) * 0x1p-32f;
    return sqrtf(-2.0f * log_of(u));
}

/* cos and sin of 2 pi word / 2^32. The nearest quarter turn is taken off as an integer, exactly;
 * what remains, within an eighth of a turn, goes into the Taylor series. */
static inline void turn_of(uint32_t word, float *cosine, float *sine)
{
    uint32_t quarter = (word + UINT32_C(0x20000000)) >> 30;
    float a = (float)(int32_t)(word - (quarter << 30)) * 1.46291807926715968e-9f; /* 2 pi / 2^32 */
    float q = a * a;
    float s = a + a * q * (-1.0f / 6 + q * (1.0f / 120 + q * (-1.0f / 5040 + q * (1.0f / 362880))));
    float c = 1.0f / 24 + q * (-1.0f / 720 + q * (1.0f / 40320 + q * (-1.0f / 3628800)));
    c = 1.0f + (q * q * c - 0.5f * q);
    /* An odd quarter swaps the two; the signs go round as ++, -+, --, +-. */
    uint32_t swap = (uint32_t)0 - (quarter & 1);
    uint32_t s_bits = bits_of(s);
    uint32_t c_bits = bits_of(c);
    uint32_t differ = (s_bits ^ c_bits) & swap;
    *cosine = float_of((c_bits ^ differ) ^ ((quarter + 1) & 2) << 30);
    *sine = float_of((s_bits ^ differ) ^ (quarter & 2) << 30);
}

/* ---- the table's functions ------------------------------------------------------------------ */
static void random_bits(const heft__random *random, const uint64_t *restrict blocks, size_t count,
                        uint32_t *restrict dst)
{
    struct words words;
    philox(random, blocks, count, &words);
    for (size_t i = 0; i < count; i++) {
        for (size_t lane = 0; lane < 4; lane++) {
            dst[4 * i + lane] = words.x[lane][i];
        }
    }
}

static void random_normal(const heft__random *random, const uint64_t *restrict blocks, size_t count,
                          float mean, float std, float *restrict dst)
{
    struct words words;
    philox(random, blocks, count, &words);
    for (size_t i = 0; i < count; i++) {
        float cosine[2];
        float sine[2];
        float radius_0 = radius_of(words.x[0][i]);
        float radius_1 = radius_of(words.x[2][i]);
        turn_of(words.x[1][i], &cosine[0], &sine[0]);
        turn_of(words.x[3][i], &cosine[1], &sine[1]);
        dst[4 * i] = mean + std * (radius_0 * cosine[0]);
        dst[4 * i + 1] = mean + std * (radius_0 * sine[0]);
        dst[4 * i + 2] = mean + std * (radius_1 * cosine[1]);
        dst[4 * i + 3] = mean + std * (radius_1 * sine[1]);
    }
}

static void random_uniform(const heft__random *random, const uint64_t *restrict blocks,
                           size_t count, float low, float range, float top, float *restrict dst)
{
    struct words words;
    philox(random, blocks, count, &words);
    for (size_t i = 0; i < count; i++) {
        for (size_t lane = 0; lane < 4; lane++) {
            float value = low + (float)(int32_t)(words.x[lane][i] >> 8) * 0x1p-24f * range;
            dst[4 * i + lane] = value < top ? value : top;
        }
    }
}

static void random_log(float *x, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        x[i] = log_of(x[i]);
    }
}

const struct heft__random_lanes HEFT__LANES(heft__random_lanes) = {
    .bits = random_bits,
    .normal = random_normal,
    .uniform = random_uniform,
    .log = random_log,
};
