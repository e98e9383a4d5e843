/* measure.h - how far two arrays of equal length lie apart, block by block. */
#ifndef HEFT__CHECKPOINT_MEASURE_H
#define HEFT__CHECKPOINT_MEASURE_H

#include "tensor/tensor.h"

#define HEFT__MEASURE_ELEMS ((size_t)2048) /* of one block */

/* How two dtypes are compared. */
typedef enum heft__measure_kind {
    HEFT__MEASURE_NONE,    /* by their bytes */
    HEFT__MEASURE_REAL,    /* as float64 */
    HEFT__MEASURE_INTEGER, /* exactly: integers, of which one has 64 bits */
    HEFT__MEASURE_COMPLEX  /* as complex128 */
} heft__measure_kind;

heft__measure_kind heft__measure_kind_of(heft_dtype a, heft_dtype b);

/* Begins as zeros. */
typedef struct heft__distance {
    double max_abs, max_rel;        /* of what is a number */
    double dot, square_a, square_b; /* sums over all elements */
    bool odd;                       /* NaN meets something else */
} heft__distance;

typedef struct heft__measure_room { /* a block of each side in its wide dtype */
    double a[2 * HEFT__MEASURE_ELEMS], b[2 * HEFT__MEASURE_ELEMS];
} heft__measure_room;

/* One side of a comparison. */
typedef struct heft__measured {
    heft_dtype dtype;
    const uint8_t *bytes; /* any alignment */
} heft__measured;

/* Add `elems` elements, as stored. The sums depend on where calls begin: each but the last of a tensor takes
 * a multiple of HEFT__MEASURE_ELEMS. The kind is that of the two dtypes, and not NONE. */
void heft__measure(heft__distance *sum, heft__measure_kind kind, heft__measured a, heft__measured b,
                   size_t elems, heft__measure_room *room);
/* Add what was measured of further elements. */
void heft__distance_add(heft__distance *sum, const heft__distance *more);
/* The cosine of the angle; NAN where there is none. */
double heft__distance_cosine(const heft__distance *sum);

#endif
