/* The internal header of the tensor layer.
 *
 * What it does: provides the dtype table, shapes, reference-counted storages, casts between dtypes,
 * and counter-based random numbers. It knows bytes and shapes, but no files and no roles of
 * parameters.
 * May include: base.
 * Rules: element counts and byte counts use the checked helpers; a cast rounds to nearest even, and
 * its result depends neither on the CPU nor on the number of threads. */
#ifndef HEFT__TENSOR_TENSOR_H
#define HEFT__TENSOR_TENSOR_H

#include <heft/tensor.h>

#include "base/base.h"

/* ---- shapes ---------------------------------------------------------------------------------- */
/* Product of the dimensions, left to right; false on overflow of 64 bits. */
bool heft__shape_elems(const uint64_t *shape, uint32_t rank, uint64_t *elems);
/* Bytes of `elems` elements; false on overflow or where they end inside a byte. */
bool heft__dtype_bytes(heft_dtype dtype, uint64_t elems, uint64_t *bytes);
bool heft__shape_bytes(heft_dtype dtype, const uint64_t *shape, uint32_t rank, uint64_t *bytes);
bool heft__shape_equal(const uint64_t *a, uint32_t a_rank, const uint64_t *b, uint32_t b_rank);
/* "[768, 2304]" into dst; truncated with "..." if it does not fit. Returns dst. */
#define HEFT__SHAPE_TEXT 128
char *heft__shape_text(const uint64_t *shape, uint32_t rank, char dst[HEFT__SHAPE_TEXT]);
/* Row-by-row strides in elements into dst[rank]. */
void heft__shape_strides(const uint64_t *shape, uint32_t rank, int64_t *dst);

bool heft__dtype_is_complex(heft_dtype dtype);
bool heft__dtype_is_integer(heft_dtype dtype); /* signed and unsigned ones, and bool */
/* Bytes that byte-swapping treats as one number: 4 for float32 and complex64, 1 for bytes. */
unsigned heft__dtype_swap_bytes(heft_dtype dtype);
/* What an element's address must be a multiple of: its size, and 1 for what is smaller than a byte. */
size_t heft__dtype_alignment(heft_dtype dtype);
/* By safetensors' name exactly; HEFT_DTYPE_NONE if unknown. */
heft_dtype heft__dtype_from_safetensors(const char *name, size_t length);
/* Place in safetensors' order of writing (U64 highest), -1 for dtypes it cannot hold. */
int heft__dtype_safetensors_rank(heft_dtype dtype);

/* ---- storage and tensors --------------------------------------------------------------------- */
heft_ctx *heft__storage_ctx(const heft_storage *storage); /* borrowed */
/* Whether it is a block on the context's heap to which there are so many references and no others. */
bool heft__storage_is_own(const heft_storage *storage, size_t refs);
/* Heap bytes from the context. Not zeroed. */
heft_status heft__storage_new(heft_ctx *ctx, uint64_t bytes, heft_storage **out, heft_error *err);
/* What a storage is made of. Only heap blocks of the context have `heap`. */
typedef struct heft__memory {
    void *data;
    uint64_t bytes;
    uint32_t flags; /* HEFT_TENSOR_ flags */
    bool heap;
    void (*release)(void *user); /* may be NULL */
    void *user;
} heft__memory;

/* A storage of any memory; release is not called on failure. */
heft_status heft__storage_make(heft_ctx *ctx, const heft__memory *memory, heft_storage **out,
                               heft_error *err);

/* ---- instruction set levels -------------------------------------------------------------------
 *
 * A file called *_lanes.c holds loops over plain arrays and is compiled once for each level, with
 * HEFT__LEVEL set to base, avx2 or avx512: lanes.h has the rules. */
#define HEFT__LANES_JOIN(name, level) name##_##level
#define HEFT__LANES_EXPAND(name, level) HEFT__LANES_JOIN(name, level)
/* name_base, name_avx2 or name_avx512, in a *_lanes.c file. */
#define HEFT__LANES(name) HEFT__LANES_EXPAND(name, HEFT__LEVEL)

enum heft__level { HEFT__LEVEL_BASE, HEFT__LEVEL_AVX2, HEFT__LEVEL_AVX512, HEFT__LEVEL_COUNT };

/* The best level of this CPU, determined once. Threads: any. */
int heft__lanes_level(void);
/* Whether this build and this CPU support a level. */
bool heft__lanes_have(int level);
/* For tests: use `level` from now on, -1 for the best again. false and no change if it is absent.
 */
bool heft__lanes_force(int level);

/* ---- casts ----------------------------------------------------------------------------------- */
/* Whether heft__cast knows the pair: integers, bool and the floats of 8 to 64 bits to one another and to
 * complex, complex to complex, and any dtype to itself. */
bool heft__cast_known(heft_dtype from, heft_dtype to);
/* Fail with `refusal`, and say why, if heft__cast does not know the pair. */
heft_status heft__cast_check(heft_dtype from, heft_dtype to, heft_status refusal, heft_error *err);
/* float64, float32, float16 and bfloat16: what models are computed in. */
bool heft__dtype_is_wide_float(heft_dtype dtype);
/* Convert elems elements as heft_cast() says. src and dst must not overlap unless they are equal and
 * the dtypes have one size; any alignment. The pair must be known. */
void heft__cast(heft_dtype to, void *dst, heft_dtype from, const void *src, size_t elems);

/* ---- random numbers: element i of a stream is a function of (seed, stream name, i) and nothing
 * else -------------------- */
typedef struct heft__random {
    uint64_t seed;
    uint64_t stream; /* heft__stable_hash of the parameter's name */
} heft__random;

/* Fill float32 elements first .. first + count - 1 of the stream. Normal by Box-Muller on
 * Philox4x32-10. */
void heft__random_normal(const heft__random *random, float mean, float std, uint64_t first,
                         float *dst, size_t count);
/* Uniform in [low, high). */
void heft__random_uniform(const heft__random *random, float low, float high, uint64_t first,
                          float *dst, size_t count);
/* Normal, values outside [low, high] drawn again (absolute bounds, as PyTorch's trunc_normal_). */
void heft__random_trunc_normal(const heft__random *random, float mean, float std, float low,
                               float high, uint64_t first, float *dst, size_t count);

#endif
