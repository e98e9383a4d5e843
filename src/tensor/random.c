/* random.c - arrays of random numbers: element i of a stream is a function of (seed, stream, i).
 *
 * Element i is lane i % 4 of Philox block i / 4, so any piece of a tensor can be drawn alone, by
 * any thread, in any order. Streams are names of parameters, hashed; two of them share numbers only
 * if all 64 bits of the hash agree.
 *
 * The truncated normal draws an element again and again until it lies inside, with the attempt in
 * the upper 8 bits of the block number (a tensor has fewer than 2^56 elements). Where that would
 * hardly ever succeed, a narrow interval or one outside of one sigma, candidates are drawn
 * uniformly from the interval instead and kept with the probability that their density has over the
 * highest one in it. The distribution is the same.
 *
 * Source: random_lanes.c for the numbers; C. Robert, "Simulation of truncated normal variables",
 * 1995, for the uniform candidates. */
#include "tensor/lanes.h"

#include <assert.h>
#include <math.h>

#define LANES 4
#define BATCH_ELEMS (HEFT__RANDOM_BLOCKS * LANES)
#define ATTEMPTS 256
#define ATTEMPT_SHIFT 56

const struct heft__random_lanes *heft__random_lanes(void)
{
    static const struct heft__random_lanes *const tables[HEFT__LEVEL_COUNT] = {
        [HEFT__LEVEL_BASE] = &heft__random_lanes_base,
#ifdef HEFT_LANES_X86
        [HEFT__LEVEL_AVX2] = &heft__random_lanes_avx2,
        [HEFT__LEVEL_AVX512] = &heft__random_lanes_avx512,
#endif
    };
    return tables[heft__lanes_level()];
}

/* ---- in batches --------------------------------------------------------------------------- */
/* What is drawn: normal with (a, b) = (mean, std), or uniform with (low, range) and the largest
 * value allowed. */
struct draw {
    const struct heft__random_lanes *lanes;
    const heft__random *random;
    bool uniform;
    float a, b, top;
};

static void draw_blocks(const struct draw *draw, const uint64_t *blocks, size_t count, float *dst)
{
    if (draw->uniform) {
        draw->lanes->uniform(draw->random, blocks, count, draw->a, draw->b, draw->top, dst);
    } else {
        draw->lanes->normal(draw->random, blocks, count, draw->a, draw->b, dst);
    }
}

static void draw_elems(const struct draw *draw, uint64_t first, float *dst, size_t count)
{
    uint64_t blocks[HEFT__RANDOM_BLOCKS];
    float batch[BATCH_ELEMS];
    while (count > 0) {
        size_t skip = (size_t)(first % LANES);
        size_t take = count < BATCH_ELEMS - skip ? count : BATCH_ELEMS - skip;
        size_t block_count = (skip + take + LANES - 1) / LANES;
        for (size_t i = 0; i < block_count; i++) {
            blocks[i] = first / LANES + i;
        }
        if (take == BATCH_ELEMS) {
            draw_blocks(draw, blocks, block_count, dst);
        } else {
            draw_blocks(draw, blocks, block_count, batch);
            memcpy(dst, batch + skip, take * sizeof *dst);
        }
        first += take;
        dst += take;
        count -= take;
    }
}

static void fill(float *dst, size_t count, float value)
{
    for (size_t i = 0; i < count; i++) {
        dst[i] = value;
    }
}

void heft__random_normal(const heft__random *random, float mean, float std, uint64_t first,
                         float *dst, size_t count)
{
    struct draw draw = {heft__random_lanes(), random, false, mean, std, 0.0f};
    draw_elems(&draw, first, dst, count);
}

void heft__random_uniform(const heft__random *random, float low, float high, uint64_t first,
                          float *dst, size_t count)
{
    assert(low <= high && isfinite(high - low));
    if (!(low < high)) {
        fill(dst, count, low);
        return;
    }
    /* low + u * range may round up to high, so the largest float below it is the cap. */
    struct draw draw = {heft__random_lanes(), random, true, low, high - low, nextafterf(high, low)};
    draw_elems(&draw, first, dst, count);
}

/* ---- truncated normal ----------------------------------------------------------------------- */
struct truncation {
    const struct heft__random_lanes *lanes;
    const heft__random *random;
    float mean, std, low, high;
};

static float clamp(const struct truncation *t, float value)
{
    float at_least = value > t->low ? value : t->low;
    return at_least < t->high ? at_least : t->high;
}

static bool inside(const struct truncation *t, float value)
{
    return value >= t->low && value <= t->high;
}

/* Elements dst[index[i]] for i < count, each of stream element first + index[i], are drawn again:
 * attempt after attempt for all that are still outside, a batch at a time. */
static void draw_again(const struct truncation *t, uint64_t first, float *dst, uint16_t *index,
                       size_t count)
{
    uint64_t blocks[HEFT__RANDOM_BLOCKS];
    float batch[BATCH_ELEMS];
    for (uint64_t attempt = 1; attempt < ATTEMPTS && count > 0; attempt++) {
        size_t left = 0;
        for (size_t done = 0; done < count; done += HEFT__RANDOM_BLOCKS) {
            size_t some = count - done < HEFT__RANDOM_BLOCKS ? count - done : HEFT__RANDOM_BLOCKS;
            for (size_t i = 0; i < some; i++) {
                blocks[i] = (first + index[done + i]) / LANES | attempt << ATTEMPT_SHIFT;
            }
            t->lanes->normal(t->random, blocks, some, t->mean, t->std, batch);
            for (size_t i = 0; i < some; i++) {
                uint16_t at = index[done + i];
                dst[at] = batch[LANES * i + (first + at) % LANES];
                if (!inside(t, dst[at])) {
                    index[left++] = at;
                }
            }
        }
        count = left;
    }
    for (size_t i = 0; i < count; i++) {
        dst[index[i]] = clamp(t, dst[index[i]]);
    }
}

static void trunc_by_normal(const struct truncation *t, uint64_t first, float *dst, size_t count)
{
    uint16_t index[BATCH_ELEMS];
    for (size_t done = 0; done < count; done += BATCH_ELEMS) {
        size_t some = count - done < BATCH_ELEMS ? count - done : BATCH_ELEMS;
        size_t outside = 0;
        heft__random_normal(t->random, t->mean, t->std, first + done, dst + done, some);
        for (size_t i = 0; i < some; i++) {
            index[outside] = (uint16_t)i;
            outside += !inside(t, dst[done + i]);
        }
        draw_again(t, first + done, dst + done, index, outside);
    }
}

/* The interval in sigmas, mirrored if need be so that `near` is its end closer to 0 wherever 0 is
 * not inside. */
struct candidates {
    float near, width, sign;
};

static struct candidates candidates_of(float low, float high)
{
    struct candidates c = {low, high - low, 1.0f};
    if (high < 0.0f) {
        c = (struct candidates){-high, high - low, -1.0f};
    }
    /* The density falls at least like exp(-near * t): beyond 14 / near less than a millionth is
     * left. */
    float enough = 14.0f / (c.near > 1.0f ? c.near : 1.0f);
    if (c.near > 0.0f && c.width > enough) {
        c.width = enough;
    }
    return c;
}

/* Words 0 and 1 of a block give a candidate and its trial. The block is the element's own: no lane
 * is shared. */
static float trunc_by_uniform_one(const struct truncation *t, const struct candidates *c,
                                  uint64_t elem)
{
    float value = t->mean;
    for (uint64_t attempt = 0; attempt < ATTEMPTS; attempt++) {
        uint32_t words[LANES];
        uint64_t block = elem | attempt << ATTEMPT_SHIFT;
        t->lanes->bits(t->random, &block, 1, words);
        float step = (float)(words[0] >> 8) * 0x1p-24f * c->width;
        float x = c->near + step;
        float trial = ((float)(words[1] >> 8) + 0.5f) * 0x1p-24f;
        t->lanes->log(&trial, 1);
        /* x^2/2 above its least value in the interval; the first form does not cancel where near is
         * large. */
        float fall = c->near > 0.0f ? step * (c->near + 0.5f * step) : 0.5f * x * x;
        value = t->mean + t->std * (c->sign * x);
        if (trial <= -fall) {
            break;
        }
    }
    return clamp(t, value);
}

void heft__random_trunc_normal(const heft__random *random, float mean, float std, float low,
                               float high, uint64_t first, float *dst, size_t count)
{
    assert(low <= high && std >= 0.0f);
    struct truncation t = {heft__random_lanes(), random, mean, std, low, high};
    if (!(std > 0.0f) || !(low < high)) {
        fill(dst, count, clamp(&t, mean));
        return;
    }
    float low_sigmas = (low - mean) / std;
    float high_sigmas = (high - mean) / std;
    if (low_sigmas <= 1.0f && high_sigmas >= -1.0f && high_sigmas - low_sigmas >= 0.5f) {
        trunc_by_normal(&t, first, dst, count);
        return;
    }
    struct candidates candidates = candidates_of(low_sigmas, high_sigmas);
    for (size_t i = 0; i < count; i++) {
        dst[i] = trunc_by_uniform_one(&t, &candidates, first + i);
    }
}
