/* The internal header of the quant layer.
 *
 * What it does: knows how quantized weights are stored. From a table of tensors and the settings in a
 * config it finds the weights that are stored quantized, tells which tensors each is made of and
 * which shape and dtype it has when it is dequantized; and it computes rows of it from the bytes of
 * those tensors. It knows neither files nor models: callers read the bytes.
 * May include: base, json, tensor.
 * Rules: a weight is quantized because its tensors are there, not because a list says so. Shapes and
 * settings that contradict each other are FORMAT, with tensor, expected and found; nothing is
 * guessed. Every number that a kernel uses as an index was checked. A method is one file and one
 * line in methods.c: docs/howto/quantization.md; layouts: docs/formats/quantized.md. */
#ifndef HEFT__QUANT_QUANT_H
#define HEFT__QUANT_QUANT_H

#include <heft/checkpoint.h>

#include "tensor/tensor.h"
#include "json/json.h"

#define HEFT__NO_PART SIZE_MAX
#define HEFT__QUANT_STATE (SIZE_MAX - 1) /* in the place of a weight: state that none of them has */

/* ---- what is looked at ----------------------------------------------------------------------- */
/* The tensors of a checkpoint. Lent. */
typedef struct heft__quant_table {
    const heft_tensor_info *infos; /* [count] */
    size_t count;
    const heft__map *names; /* name -> number */
    /* The first `length` bytes of a tensor's elements, row by row, little-endian: for small tensors whose
     * values decide what the weight is (a shape, a text, a scale of the whole tensor). */
    heft_status (*read)(const void *user, size_t i, void *dst, size_t length, heft_error *err);
    /* The text under a key in the metadata of the files; NULL: there is none. The function may be NULL. */
    const char *(*metadata)(const void *user, const char *key);
    const void *user;
} heft__quant_table;

/* What the files beside the weights say. NULL: there is no such thing. Lent. */
typedef struct heft__quant_settings {
    const heft__json_value *config; /* the object `quantization_config` or its like */
    const heft__json_value *quanto; /* the object of quanto_qmap.json */
    const char *path;               /* of the file that holds it, for errors */
    heft_dtype model_dtype;         /* of the model that is made; never NONE */
    /* The shape [out, in] of a plain weight, where only the model has it. NULL: no weight's is known. */
    heft_status (*shape_of)(void *user, const char *name, uint64_t shape[2], bool *known,
                            heft_error *err);
    /* What a plain weight is called in memory, where that is not its name in files; *out is NULL if it is. NULL: no
     * weight's is known. */
    heft_status (*inner_name)(void *user, const char *name, const char **out, heft_error *err);
    /* Whether a plain weight is [in, out], where the stored one is [out, in]. NULL: none is. */
    bool (*is_turned)(void *user, const char *name);
    void *user;
} heft__quant_settings;

/* ---- settings.c ------------------------------------------------------------------------------- */
/* The object in a config.json, also in that of its language model; NULL if there is none. */
const heft__json_value *heft__quant_settings_in(const heft__json_value *config);
/* Take it out, wherever it is. */
void heft__quant_drop_settings(heft__json_value *config);

/* Files beside the weights that hold it instead; an entry without a name ends the list. The first is
 * quanto's list of modules. */
typedef struct heft__quant_file {
    const char *name;
    const char *key; /* under which it is; NULL: the file is the object */
} heft__quant_file;
extern const heft__quant_file heft__quant_files[];
bool heft__quant_is_settings_file(const char *name);

/* ---- layouts: computing values ---------------------------------------------------------------- */
#define HEFT__QUANT_PARTS 8
#define HEFT__QUANT_REGIONS 8

typedef struct heft__quant_layout heft__quant_layout;

/* A weight that is stored quantized. */
typedef struct heft__quant_weight {
    const char *name;                 /* of the plain weight, "model.layers.0.mlp.up_proj.weight" */
    const heft__quant_layout *layout; /* NULL: cannot be dequantized, `why` has the reason */
    const char *why;
    bool turned;   /* the plain weight is the transpose of what the parts give; the rank is 2 */
    uint32_t rank; /* of the plain weight, or of its transpose; 0: not known */
    uint64_t shape[4];
    heft_dtype dtype;   /* of the dequantized values: what the method's own library yields */
    heft_dtype through; /* values are rounded to it first, then to dtype; NONE: at once */
    uint32_t bits;      /* of a stored value */
    uint64_t group;     /* elements of a row that share a scale, for messages; 0: a row or more */
    uint64_t lines;     /* rows that share it, where that is a block; 0: it is none */
    /* Numbers in the table, each in the place that the layout gives it; HEFT__NO_PART: absent. */
    size_t part[HEFT__QUANT_PARTS];
    const void *detail; /* of the layout, in the finder's arena; may be NULL */
} heft__quant_weight;

/* Bytes of a part, counted from its first element: `runs` runs of `length` bytes, the next `stride` bytes
 * after the one before. They are handed over one after the other without gaps. */
typedef struct heft__quant_region {
    uint32_t part; /* index into heft__quant_weight.part */
    uint64_t offset, length, stride, runs;
} heft__quant_region;

/* Of a region: its first run, and how far the next one is behind it. */
typedef struct heft__quant_bytes {
    const uint8_t *at; /* at any address */
    uint64_t line;     /* at least the length of a run; any number for a region of one run */
} heft__quant_bytes;

/* A row is what runs along the last dimension of the dequantized weight; rows are numbered through all
 * leading dimensions. The rows of one call never cross the matrices of a weight of rank 3. */
struct heft__quant_layout {
    const char *name;
    /* Calls begin at multiples of so many rows of the matrix (at least 1). */
    uint32_t row_step;
    bool is_cast; /* decode() heeds `through`, where that is F16 and dtype is BF16 */
    /* Runs may be far apart: whole cache lines of each are used at once. Else they are copied to be near. */
    bool in_place;
    /* The bytes that rows first .. first + rows - 1 need; returns how many regions. */
    size_t (*regions)(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                      heft__quant_region regions[HEFT__QUANT_REGIONS]);
    /* Compute these rows. bytes[k]: of region k. dst: rows * columns elements of
     * weight->dtype, aligned for it. stream: a wish, whole cache lines are stored around the caches; then the
     * caller settles them (heft__nibble_lanes). FORMAT for a value that is out of range (item is set by the
     * caller). */
    heft_status (*decode)(const heft__quant_weight *weight, uint64_t first, uint64_t rows,
                          const heft__quant_bytes bytes[HEFT__QUANT_REGIONS], void *dst,
                          bool stream, heft_error *err);
};

/* ---- finding ---------------------------------------------------------------------------------- */
typedef struct heft__quant_found {
    const char *method;          /* "gptq"; NULL: nothing is quantized */
    bool known;                  /* false: a method of this name is declared, but heft has none */
    bool declared;               /* by settings; false: recognized by the tensors alone */
    uint32_t bits;               /* of most weights; 0: no weights */
    uint64_t group, lines;       /* of the same */
    heft__quant_weight *weights; /* [count] in the order of their first tensors */
    size_t count;
    /* [table count] the weight that a tensor is a part or a companion of; HEFT__QUANT_STATE: it goes with none
     * of them; HEFT__NO_PART: it is a plain tensor */
    size_t *owner;
    /* [state_count] names of tensors that no weight needs for its values: scales of inputs, outputs and the
     * key/value cache; lent by the table */
    const char **state;
    size_t state_count;
    size_t loose; /* how many of them go with no weight */
    const char
        *doubt; /* what makes the settings look wrong, one line in the arena; NULL: nothing */
    /* Why plain weights alone would not be the model, one line, and the tensor or setting that says so; NULL: they
     * are. */
    const char *bar, *bar_item;
} heft__quant_found;

/* Find what is quantized. Lists live in the arena, which outlives *out. FORMAT with item and path for
 * tensors that contradict each other or the settings; LIMIT, NOMEM. */
heft_status heft__quant_find(heft__arena *arena, const heft__quant_table *table,
                             const heft__quant_settings *settings, heft__quant_found *out,
                             heft_error *err);

/* UNSUPPORTED, with its name, for a method that is declared and not known. */
heft_status heft__quant_check_known(const heft__quant_found *found, heft_error *err);
/* UNSUPPORTED where the weights are not to be dequantized: the same, and what stands in the way of all of them. */
heft_status heft__quant_check_plain(const heft__quant_found *found, heft_error *err);

/* Whether metadata of the files say how weights are stored, and which of them by their keys; is_tensor: the key is the
 * name of a tensor. */
bool heft__quant_has_metadata(const heft__quant_found *found);
bool heft__quant_owns_metadata(const heft__quant_found *found, const char *key, bool is_tensor);

/* ---- for methods ------------------------------------------------------------------------------ */
typedef struct heft__quant_finder {
    heft__arena *arena;
    const heft__quant_table *table;
    const heft__quant_settings *settings;
    heft__quant_found *found;
    size_t cap;
} heft__quant_finder;

typedef struct heft__quant_method {
    const char *name;         /* for users */
    const char *const *names; /* values of `quant_method` that mean it, NULL at the end */
    /* Whether tensor i can only come from this method: asked where nothing is declared, of names that do not
     * end in ".weight" or ".bias". */
    bool (*is_marked)(const heft__quant_table *table, size_t i);
    /* Called for each tensor in turn: if it is the one by which a weight of this method is known, look
     * up its companions, check them, and add the weight. A tensor that is a weight's only through
     * another one is passed over. What is left of the method's state without a weight is FORMAT. */
    heft_status (*find)(heft__quant_finder *finder, size_t i, heft_error *err);
} heft__quant_method;

/* state.c: take what is state and belongs to no weight yet. FORMAT for what should be a part of a weight and is
 * none. other: the name of another method that alone has such a tensor, or NULL. */
heft_status heft__quant_find_state(heft__quant_finder *finder,
                                   const char *(*other)(const heft__quant_finder *finder, size_t i),
                                   heft_error *err);
/* Whether tensors of such a name are state of a quantization. */
bool heft__quant_is_state(const char *name);
/* Whether tensor i holds what no model computes with: float8 of rank 2 or more, integers in the place of a weight,
 * or of a name that packed weights have beside scales. */
bool heft__quant_looks_packed(const heft__quant_table *table, size_t i);
/* The same, where nothing says how: integers with a scale beside them. */
bool heft__quant_has_codes(const heft__quant_table *table, size_t i);
/* comfy.c: weights of which ComfyUI says that they are in another layout are not computed. */
heft_status heft__quant_heed_comfy(heft__quant_finder *finder, heft_error *err);
/* Whether it ends in ".weight" or ".bias", as most do: no method is known by it. (methods.c) */
bool heft__quant_is_plain_name(const char *name);

extern const heft__quant_method heft__quant_awq, heft__quant_bitsandbytes, heft__quant_compressed,
    heft__quant_fp8, heft__quant_gptq, heft__quant_modelopt, heft__quant_mxfp4, heft__quant_quanto,
    heft__quant_torchao;

/* The length of the name in front of a suffix (".qweight"); SIZE_MAX if it does not end so. */
size_t heft__quant_prefix(const char *name, const char *suffix);
/* Number of the tensor whose name is the first `prefix` bytes of tensor i's and the suffix. */
size_t heft__quant_sibling(const heft__quant_table *table, size_t i, size_t prefix,
                           const char *suffix);
/* The same, where it must be there: FORMAT says what is missing. */
heft_status heft__quant_need(const heft__quant_finder *finder, size_t i, size_t prefix,
                             const char *suffix, size_t *out, heft_error *err);
/* FORMAT unless tensor i has this dtype (or one of two; NONE: any) and this shape. */
heft_status heft__quant_expect(const heft__quant_finder *finder, size_t i, heft_dtype dtype,
                               heft_dtype other, const uint64_t *shape, uint32_t rank,
                               heft_error *err);
/* FORMAT about tensor i: adds item and path. */
heft_status heft__quant_fail(const heft__quant_finder *finder, size_t i, heft_error *err,
                             const char *format, ...) __attribute__((format(printf, 4, 5)));
/* A weight whose name is the first `prefix` bytes of tensor i's name and the suffix; parts all absent,
 * dtype that of the model, float32 where it is none of 16 bits. */
heft_status heft__quant_weight_init(const heft__quant_finder *finder, heft__quant_weight *weight,
                                    size_t i, size_t prefix, const char *suffix, heft_error *err);
/* The only element of tensor i, which must be float32: a scale of the whole weight. FORMAT for one that would make
 * all values infinite or NaN: by which they are divided, 0 or NaN; by which they are multiplied, what is not finite. */
heft_status heft__quant_read_factor(const heft__quant_finder *finder, size_t i, bool divides,
                                    float *out, heft_error *err);
/* Take the weight with its parts. FORMAT if a part belongs to another weight. */
heft_status heft__quant_add(heft__quant_finder *finder, const heft__quant_weight *weight,
                            heft_error *err);
/* The same with its companions: tensors whose names are the first `prefix` bytes of tensor i's name and one of the
 * suffixes, the last of which is NULL. */
heft_status heft__quant_add_with(heft__quant_finder *finder, const heft__quant_weight *weight,
                                 size_t i, size_t prefix, const char *const *companions,
                                 heft_error *err);
/* Tensor i, if it is there, goes with the weight that was added last, but is not needed for its values. */
void heft__quant_companion(heft__quant_finder *finder, size_t i);
/* A member of an object that must be an integer from low to high; `standard` if it is absent or null. */
heft_status heft__quant_integer(const heft__quant_finder *finder, const heft__json_value *object,
                                const char *key, int64_t low, int64_t high, int64_t standard,
                                int64_t *out, heft_error *err);
/* A member that is text; `standard` if it is absent or null. */
heft_status heft__quant_text(const heft__quant_finder *finder, const heft__json_value *object,
                             const char *key, const char *standard, const char **out,
                             heft_error *err);
bool heft__quant_flag(const heft__json_value *object, const char *key, bool standard);

/* Elements of one row and rows of one matrix of a weight whose rank is known. */
static inline uint64_t heft__quant_columns(const heft__quant_weight *weight)
{
    return weight->shape[weight->rank - 1];
}
static inline uint64_t heft__quant_matrix_rows(const heft__quant_weight *weight)
{
    return weight->rank > 1 ? weight->shape[weight->rank - 2] : 1;
}

/* ---- layouts that several methods have -------------------------------------------------------- */
/* scaled.c: 8-bit values [out, in], or [matrices, out, in], with a grid of scales for each matrix, each scale of a
 * block of values; parts: values, scales, zero points (may be absent).
 *
 *   W[o][i] = (value - zero[o / bm][i / bn]) * scale[o / bm][i / bn], in float32, rounded to weight->dtype
 *
 * block_rows, block_columns: 0 is the whole side. Takes name and dtype as they are; sets the rest. Scales
 * of the whole matrix may have the shape [], [1] or [1, 1]; of whole rows also [out]; of several matrices they
 * are [matrices, lines, columns], or [matrices]. */
heft_status heft__quant_scaled(const heft__quant_finder *finder, heft__quant_weight *weight,
                               size_t values, size_t scales, size_t zeros, uint64_t block_rows,
                               uint64_t block_columns, heft_error *err);

/* grouped4.c: half-byte E2M1 values [out, in / 2] of type U8 or I8, the even column in the low half, with 8-bit
 * scales [out, in / group]; parts: values, scales.
 *
 *   W[o][i] = value * (scale / divisor * factor), in float32, rounded to weight->dtype
 *
 * scales: F8_E4M3, or U8 or F8_E8M0 as exponents. Takes name and dtype as they are; sets the rest. */
heft_status heft__quant_grouped4(const heft__quant_finder *finder, heft__quant_weight *weight,
                                 size_t values, size_t scales, uint64_t group, float divisor,
                                 float factor, heft_error *err);

/* packed.c: compressed-tensors' integers of 1 to 8 bits in 32-bit words, marked by P.weight_packed, which
 * is tensor i. arguments: the object `weights` of its group. */
heft_status heft__quant_find_packed(heft__quant_finder *finder, size_t i, size_t prefix,
                                    const heft__json_value *arguments, heft_error *err);
/* `count` unsigned values of `bits` bits from a little-endian bit stream, from value `first` on. */
void heft__quant_unpack(const uint8_t *stream, uint64_t first, size_t count, unsigned bits,
                        uint8_t *dst);

/* ---- loops over plain arrays: *_lanes.c ------------------------------------------------------- */
/* Results that nobody reads soon are stored around the caches, with instructions that do not read the line first
 * ("streaming"): whole lines, so only to places that begin one. */
#define HEFT__STREAM_LINE 64
static inline bool heft__can_stream(const void *dst)
{
    return (uintptr_t)dst % HEFT__STREAM_LINE == 0;
}

/* Look up half-byte values: dst[k] = table[value k] for k < count. Value k is in byte k / 2 of src, in
 * the low half for even k (in the high half for even k where high_first is set). 16-bit entries of any
 * dtype. Here and below, stream: what fills whole cache lines is stored around the caches, if dst allows it. */
typedef void (*heft__lookup4_fn)(uint16_t *restrict dst, const uint16_t table[16],
                                 const uint8_t *restrict src, size_t count, bool high_first,
                                 bool stream);

struct heft__nibble_lanes {
    heft__lookup4_fn lookup16;
    /* Blocks of a multiple of 32 values, each by map[value] * factors[b], rounded to bfloat16, or to float16
     * where `half` is set; the high half of a byte first. */
    void (*lookup_blocks)(uint16_t *restrict dst, const float map[16],
                          const float *restrict factors, bool half, const uint8_t *restrict src,
                          size_t blocks, size_t block, bool stream);
    /* Groups of an even number of values, each by tables[scales[g]]; the low half of a byte first. */
    void (*lookup_groups)(uint16_t *restrict dst, const uint16_t tables[][16],
                          const uint8_t *restrict scales, const uint8_t *restrict src,
                          size_t groups, size_t group, bool stream);
    /* dst[k] = table[src[k] >> shift & mask], mask at most 15. */
    void (*lookup_bits)(uint16_t *restrict dst, const uint16_t table[16],
                        const uint8_t *restrict src, size_t count, unsigned shift, uint8_t mask);
    /* Eight columns of 16 outputs to 16 rows of eight: dst[o * stride + i] = src[i * 16 + o]. */
    void (*turn16)(uint16_t *restrict dst, size_t stride, const uint16_t *restrict src);
    /* One column of 16 outputs: dst[o] = (((words[o] >> shift) & mask) - zeros[o]) * scales[o], words little-
     * endian and of 32 bits. Where a value crosses words its upper bits are the lowest of more[o]; else
     * more is NULL. */
    void (*unpack16)(float *restrict dst, const uint8_t *restrict words,
                     const uint8_t *restrict more, unsigned shift, uint32_t mask,
                     const float *restrict zeros, const float *restrict scales);
    /* Eight columns of 16 outputs of 4 bits, rounded to float16: dst[i * 16 + o]. zeros and scales: of 16
     * outputs, for each column. Along `in`: 16 words, each with the eight columns of an output. Along `out`:
     * for each column two words, `stride` bytes after those of the column before, each with eight outputs,
     * of which output o is in half-byte order[o]. */
    void (*along_in)(uint16_t *restrict dst, const uint8_t *restrict words,
                     const float *const zeros[8], const float *const scales[8]);
    void (*along_out)(uint16_t *restrict dst, const uint8_t *restrict words, size_t stride,
                      const uint8_t order[8], const float *const zeros[8],
                      const float *const scales[8]);
    /* Whatever a thread has stored around the caches becomes visible to others before what it stores next. */
    void (*settle)(void);
};
extern const struct heft__nibble_lanes heft__nibble_lanes_base;
extern const struct heft__nibble_lanes heft__nibble_lanes_avx2;
extern const struct heft__nibble_lanes heft__nibble_lanes_avx512;
const struct heft__nibble_lanes *heft__nibble_lanes(void); /* the one in use */

/* What results are rounded to; the last one first to float16, and that to bfloat16. */
enum heft__turned_result { HEFT__AS_BF16, HEFT__AS_F16, HEFT__AS_BF16_OF_F16 };

/* Loops over half-bytes that are stored the other way round, many columns of some rows at once; row o begins at
 * dst + o * stride. All NULL: this level has no such loops. */
struct heft__turned_lanes {
    /* 16 rows of (value - zeros[o]) * scales[o], rounded.
     * Along `in`: a multiple of 64 columns; eight columns of all rows are in 16 words, `line` bytes after the
     * eight before. Along `out`: a multiple of 32 columns; a column of all rows is in two words, `line` bytes
     * after that before; row o is in half-byte order[o % 8]. */
    void (*rows_along_in)(uint16_t *restrict dst, size_t stride, const uint8_t *restrict words,
                          size_t line, size_t columns, const float zeros[16],
                          const float scales[16], enum heft__turned_result as, bool stream);
    void (*rows_along_out)(uint16_t *restrict dst, size_t stride, const uint8_t *restrict words,
                           size_t line, size_t columns, const uint8_t order[8],
                           const float zeros[16], const float scales[16],
                           enum heft__turned_result as, bool stream);
    /* Blocks of 32 E2M1 values with exponents from HEFT__E2M1_LEAST to HEFT__E2M1_MOST as bfloat16: block k,
     * which is at blocks + k * line, becomes column k of 32 rows. columns: a multiple of 32, at most
     * HEFT__E2M1_COLUMNS. */
    void (*turn_e2m1)(uint16_t *restrict dst, size_t stride, const uint8_t *restrict blocks,
                      size_t line, const uint8_t *restrict scales, size_t columns, bool stream);
};
#define HEFT__E2M1_COLUMNS 128
#define HEFT__E2M1_LEAST 2 /* with these, results are neither subnormal nor infinite */
#define HEFT__E2M1_MOST 252
extern const struct heft__turned_lanes heft__turned_lanes_base;
extern const struct heft__turned_lanes heft__turned_lanes_avx2;
extern const struct heft__turned_lanes heft__turned_lanes_avx512;
const struct heft__turned_lanes *heft__turned_lanes(void);

/* Loops over scaled 8-bit values: dst[k] = (src[k] - zero) * scale, rounded to the type in the name. The
 * scale is not NaN; float8 has no zero. NULL: this level has no such loop. */
typedef void (*heft__scaled_fn)(void *restrict dst, const uint8_t *restrict src, size_t count,
                                float scale, float zero, bool stream);

struct heft__scaled_lanes {
    heft__scaled_fn e4m3_bf16, e4m3_f16, e4m3_f32, i8_bf16, i8_f16, i8_f32;
};
extern const struct heft__scaled_lanes heft__scaled_lanes_base;
extern const struct heft__scaled_lanes heft__scaled_lanes_avx2;
extern const struct heft__scaled_lanes heft__scaled_lanes_avx512;

/* The values of E2M1, the 4-bit float of NVFP4 and MXFP4, by code. */
extern const float heft__e2m1_values[16];

#endif
