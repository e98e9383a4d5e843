/* dtype.c - the table of data types: names, sizes, order.
 *
 * Everything comes from HEFT_DTYPE_TABLE. The only things written down here are what the table does
 * not hold: PyTorch's other names, which types are floating, complex or integers, and the order in which
 * safetensors writes types.
 *
 * Source: PyTorch c10/core/ScalarType.h; safetensors src/tensor.rs (enum Dtype, whose derived order
 * decides the layout of a file: largest first). */
#include "tensor/tensor.h"

enum dtype_kind { KIND_OTHER, KIND_FLOATING, KIND_COMPLEX, KIND_INTEGER };

struct dtype_row {
    const char *torch, *brief, *safetensors;
    unsigned bits;
};

#define DTYPE_ROW(name, torch, brief, safetensors, bits)                                           \
    [HEFT_DTYPE_##name] = {torch, brief, safetensors, bits},
static const struct dtype_row dtype_rows[HEFT_DTYPE_COUNT] = {HEFT_DTYPE_TABLE(DTYPE_ROW)};
#undef DTYPE_ROW

static const uint8_t dtype_kinds[HEFT_DTYPE_COUNT] = {
    [HEFT_DTYPE_F64] = KIND_FLOATING,         [HEFT_DTYPE_F32] = KIND_FLOATING,
    [HEFT_DTYPE_F16] = KIND_FLOATING,         [HEFT_DTYPE_BF16] = KIND_FLOATING,
    [HEFT_DTYPE_F8_E4M3FN] = KIND_FLOATING,   [HEFT_DTYPE_F8_E5M2] = KIND_FLOATING,
    [HEFT_DTYPE_F8_E4M3FNUZ] = KIND_FLOATING, [HEFT_DTYPE_F8_E5M2FNUZ] = KIND_FLOATING,
    [HEFT_DTYPE_F8_E8M0FNU] = KIND_FLOATING,  [HEFT_DTYPE_F4_E2M1FN_X2] = KIND_FLOATING,
    [HEFT_DTYPE_F6_E2M3] = KIND_FLOATING,     [HEFT_DTYPE_F6_E3M2] = KIND_FLOATING,
    [HEFT_DTYPE_C32] = KIND_COMPLEX,          [HEFT_DTYPE_C64] = KIND_COMPLEX,
    [HEFT_DTYPE_C128] = KIND_COMPLEX,         [HEFT_DTYPE_I64] = KIND_INTEGER,
    [HEFT_DTYPE_I32] = KIND_INTEGER,          [HEFT_DTYPE_I16] = KIND_INTEGER,
    [HEFT_DTYPE_I8] = KIND_INTEGER,           [HEFT_DTYPE_U8] = KIND_INTEGER,
    [HEFT_DTYPE_U16] = KIND_INTEGER,          [HEFT_DTYPE_U32] = KIND_INTEGER,
    [HEFT_DTYPE_U64] = KIND_INTEGER,          [HEFT_DTYPE_BOOL] = KIND_INTEGER,
};

/* What people write besides the three names of the table. */
static const struct {
    const char *text;
    heft_dtype dtype;
} dtype_aliases[] = {
    {"float",   HEFT_DTYPE_F32 },
    {"fp32",    HEFT_DTYPE_F32 },
    {"double",  HEFT_DTYPE_F64 },
    {"fp64",    HEFT_DTYPE_F64 },
    {"half",    HEFT_DTYPE_F16 },
    {"fp16",    HEFT_DTYPE_F16 },
    {"long",    HEFT_DTYPE_I64 },
    {"int",     HEFT_DTYPE_I32 },
    {"short",   HEFT_DTYPE_I16 },
    {"chalf",   HEFT_DTYPE_C32 },
    {"cfloat",  HEFT_DTYPE_C64 },
    {"cdouble", HEFT_DTYPE_C128},
};

/* Lowest first. */
static const heft_dtype safetensors_order[] = {
    HEFT_DTYPE_BOOL,       HEFT_DTYPE_F4_E2M1FN_X2, HEFT_DTYPE_F6_E2M3,     HEFT_DTYPE_F6_E3M2,
    HEFT_DTYPE_U8,         HEFT_DTYPE_I8,           HEFT_DTYPE_F8_E5M2,     HEFT_DTYPE_F8_E4M3FN,
    HEFT_DTYPE_F8_E8M0FNU, HEFT_DTYPE_F8_E4M3FNUZ,  HEFT_DTYPE_F8_E5M2FNUZ, HEFT_DTYPE_I16,
    HEFT_DTYPE_U16,        HEFT_DTYPE_F16,          HEFT_DTYPE_BF16,        HEFT_DTYPE_I32,
    HEFT_DTYPE_U32,        HEFT_DTYPE_F32,          HEFT_DTYPE_C64,         HEFT_DTYPE_F64,
    HEFT_DTYPE_I64,        HEFT_DTYPE_U64,
};

/* A number that is no dtype reads the row of NONE, which holds zeros. */
static size_t row_of(heft_dtype dtype)
{
    size_t row = (size_t)dtype;
    return row < HEFT_DTYPE_COUNT ? row : (size_t)HEFT_DTYPE_NONE;
}

/* Rows without a name hold NULL. */
static const char *text_or(const char *text, const char *otherwise)
{
    return text != NULL ? text : otherwise;
}

const char *heft_dtype_name(heft_dtype dtype)
{
    return text_or(dtype_rows[row_of(dtype)].torch, "none");
}

const char *heft_dtype_safetensors_name(heft_dtype dtype)
{
    return text_or(dtype_rows[row_of(dtype)].safetensors, "");
}

unsigned heft_dtype_bits(heft_dtype dtype)
{
    return dtype_rows[row_of(dtype)].bits;
}

bool heft_dtype_is_floating(heft_dtype dtype)
{
    return dtype_kinds[row_of(dtype)] == KIND_FLOATING;
}

bool heft__dtype_is_integer(heft_dtype dtype)
{
    return dtype_kinds[row_of(dtype)] == KIND_INTEGER;
}

bool heft__dtype_is_complex(heft_dtype dtype)
{
    return dtype_kinds[row_of(dtype)] == KIND_COMPLEX;
}

unsigned heft__dtype_swap_bytes(heft_dtype dtype)
{
    unsigned bytes = heft_dtype_bits(dtype) / 8;
    if (heft__dtype_is_complex(dtype)) {
        bytes /= 2;
    }
    return bytes > 0 ? bytes : 1;
}

size_t heft__dtype_alignment(heft_dtype dtype)
{
    const unsigned bits = heft_dtype_bits(dtype); /* of whole bytes: a power of two */
    return bits % 8 == 0 && bits > 0 ? bits / 8 : 1;
}

heft_dtype heft__dtype_from_safetensors(const char *name, size_t length)
{
    for (size_t i = HEFT_DTYPE_NONE + 1; i < HEFT_DTYPE_COUNT; i++) {
        const char *known = dtype_rows[i].safetensors;
        if (length > 0 && strlen(known) == length && memcmp(known, name, length) == 0) {
            return (heft_dtype)i;
        }
    }
    return HEFT_DTYPE_NONE;
}

int heft__dtype_safetensors_rank(heft_dtype dtype)
{
    for (size_t i = 0; i < sizeof safetensors_order / sizeof *safetensors_order; i++) {
        if (safetensors_order[i] == dtype) {
            return (int)i;
        }
    }
    return -1;
}

bool heft__dtype_bytes(heft_dtype dtype, uint64_t elems, uint64_t *bytes)
{
    /* Eights of elements are whole bytes: the bits are never counted, so nothing overflows before
     * the bytes do. */
    uint64_t bits = heft_dtype_bits(dtype);
    uint64_t rest_bits = elems % 8 * bits;
    uint64_t eights = 0;
    uint64_t total = 0;
    if (bits == 0 || rest_bits % 8 != 0 || !heft__mul_u64(elems / 8, bits, &eights) ||
        !heft__add_u64(eights, rest_bits / 8, &total)) {
        return false;
    }
    *bytes = total;
    return true;
}

heft_status heft_dtype_parse(const char *text, heft_dtype *dtype, heft_error *err)
{
    if (text == NULL || dtype == NULL) {
        return heft__fail(err, HEFT_INVALID_ARG, "dtype text or destination is NULL");
    }
    bool torch_only = strncmp(text, "torch.", 6) == 0;
    const char *name = torch_only ? text + 6 : text;
    for (size_t i = HEFT_DTYPE_NONE + 1; i < HEFT_DTYPE_COUNT; i++) {
        const struct dtype_row *row = &dtype_rows[i];
        bool match = strcmp(name, row->torch) == 0;
        if (!torch_only && *name != '\0') {
            match = match || strcmp(name, row->brief) == 0 || strcmp(name, row->safetensors) == 0;
        }
        if (match) {
            *dtype = (heft_dtype)i;
            return HEFT_OK;
        }
    }
    for (size_t i = 0; i < sizeof dtype_aliases / sizeof *dtype_aliases; i++) {
        if (strcmp(name, dtype_aliases[i].text) == 0) {
            *dtype = dtype_aliases[i].dtype;
            return HEFT_OK;
        }
    }
    return heft__fail(err, HEFT_INVALID_ARG, "unknown dtype '%s'", text);
}
