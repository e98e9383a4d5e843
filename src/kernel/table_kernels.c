/* table_kernels.c - the table of one instruction set. */
#include "kernel/level.h"

#define NAME_(level) #level
#define NAME(level) NAME_(level)
#if defined(__aarch64__)
#define ISA "neon"
#else
#define ISA NAME(HEFT__KERNEL_LEVEL)
#endif
#if defined(__AVX2__) || defined(__aarch64__)
#define COMPACTS true /* a shuffle looks 16 or more codes up at once */
#else
#define COMPACTS false
#endif

const heft__kernels HEFT__KERNEL(kernels) = {
    .isa = ISA,
    .operand_bytes = HEFT__KERNEL(operand_bytes),
    .operand_pieces = HEFT__KERNEL(operand_pieces),
    .operand_fill = HEFT__KERNEL(operand_fill),
    .product = HEFT__KERNEL(product),
    .product_scratch = HEFT__PANEL_SCRATCH,
    .product_rows = HEFT__PANEL_ROWS,
    .compacts = COMPACTS,
    .compact_survey = HEFT__KERNEL(compact_survey),
    .compact_rows = HEFT__KERNEL(compact_rows),
    .compact_table = HEFT__KERNEL(compact_table),
    .unpack_row = HEFT__KERNEL(unpack_row),
    .attend = HEFT__KERNEL(attend),
    .attend_scratch = HEFT__KERNEL(attend_scratch),
    .widen = HEFT__KERNEL(widen),
    .narrow = HEFT__KERNEL(narrow),
    .rms_norm = HEFT__KERNEL(rms_norm),
    .layer_norm = HEFT__KERNEL(layer_norm),
    .unit = HEFT__KERNEL(unit),
    .rotate = HEFT__KERNEL(rotate),
    .act = HEFT__KERNEL(act),
    .gate = HEFT__KERNEL(gate),
    .add = HEFT__KERNEL(add),
    .add_scaled = HEFT__KERNEL(add_scaled),
    .scale = HEFT__KERNEL(scale),
    .cap = HEFT__KERNEL(cap),
    .softmax = HEFT__KERNEL(softmax),
    .largest = HEFT__KERNEL(largest),
    .finite = HEFT__KERNEL(finite),
};
