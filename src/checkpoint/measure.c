/* measure.c - how far two arrays of equal length lie apart.
 *
 *   max_abs  the largest |a - b|                     |a - b| is 0 where both are NaN, or both the same
 *   max_rel  the largest |a - b| / max(|a|, |b|)     infinity; complex numbers: the modulus
 *   cosine   sum of a b / sqrt(sum of a^2 * sum of b^2)
 *
 * Values are float64, to which every real dtype but the 64-bit integers converts exactly; two integers are
 * subtracted as such. Sums run in LANES numbers side by side, which compilers make vectors of. The lanes
 * are added up behind each block, so that a sum depends on where blocks begin, and on nothing else. */
#include "checkpoint/measure.h"

#include <math.h>

#define LANES ((size_t)8) /* HEFT__MEASURE_ELEMS is a multiple */

heft__measure_kind heft__measure_kind_of(heft_dtype a, heft_dtype b)
{
    const bool complex = heft__dtype_is_complex(a) || heft__dtype_is_complex(b);
    const heft_dtype wide = complex ? HEFT_DTYPE_C128 : HEFT_DTYPE_F64;
    if (!heft__cast_known(a, wide) || !heft__cast_known(b, wide)) {
        return HEFT__MEASURE_NONE;
    }
    if (complex) {
        return HEFT__MEASURE_COMPLEX;
    }
    return heft__dtype_is_integer(a) && heft__dtype_is_integer(b) &&
                   (heft_dtype_bits(a) == 64 || heft_dtype_bits(b) == 64)
               ? HEFT__MEASURE_INTEGER
               : HEFT__MEASURE_REAL;
}

void heft__distance_add(heft__distance *sum, const heft__distance *more)
{
    sum->max_abs = more->max_abs > sum->max_abs ? more->max_abs : sum->max_abs;
    sum->max_rel = more->max_rel > sum->max_rel ? more->max_rel : sum->max_rel;
    sum->dot += more->dot;
    sum->square_a += more->square_a;
    sum->square_b += more->square_b;
    sum->odd = sum->odd || more->odd;
}

double heft__distance_cosine(const heft__distance *sum)
{
    const double length = sqrt(sum->square_a) * sqrt(sum->square_b);
    if (sum->odd || !(length > 0) || isinf(length)) {
        return (double)NAN;
    }
    const double cosine = sum->max_abs > 0 ? sum->dot / length : 1;
    return cosine > 1 ? 1 : cosine < -1 ? -1 : cosine; /* rounding may lead past them */
}

/* elems: a multiple of LANES. */
static void measure_reals(heft__distance *sum, const double *a, const double *b, size_t elems)
{
    double most[LANES] = {0}, share[LANES] = {0}, dot[LANES] = {0}, squares[2][LANES] = {{0}};
    uint64_t odd[LANES] = {0};
    for (size_t i = 0; i < elems; i += LANES) {
        for (size_t k = 0; k < LANES; k++) {
            const double x = a[i + k], y = b[i + k], wide = fabs(x), high = fabs(y);
            const bool same = (x == y) | ((x != x) & (y != y));
            const double apart = same ? 0 : fabs(x - y);
            const double part = apart / (wide > high ? wide : high); /* 0 / 0 is never larger */
            odd[k] |= (uint64_t)(apart != apart);
            most[k] = apart > most[k] ? apart : most[k];
            share[k] = part > share[k] ? part : share[k];
            dot[k] += x * y;
            squares[0][k] += x * x;
            squares[1][k] += y * y;
        }
    }
    for (size_t k = 0; k < LANES; k++) {
        const heft__distance lane = {most[k],       share[k],      dot[k],
                                     squares[0][k], squares[1][k], odd[k] != 0};
        heft__distance_add(sum, &lane);
    }
}

/* a, b: pairs of real and imaginary part. */
static void measure_complex(heft__distance *sum, const double *a, const double *b, size_t elems)
{
    for (size_t i = 0; i < 2 * elems; i += 2) {
        heft__distance parts[2] = {{0}};
        for (size_t k = 0; k < 2; k++) {
            const double x = a[i + k], y = b[i + k];
            const bool same = x == y || (x != x && y != y);
            parts[k] = (heft__distance){.max_abs = same ? 0 : fabs(x - y),
                                        .dot = x * y,
                                        .square_a = x * x,
                                        .square_b = y * y};
        }
        const double apart = parts[0].max_abs != parts[0].max_abs ? (double)NAN
                             : parts[1].max_abs != parts[1].max_abs
                                 ? (double)NAN
                                 : hypot(parts[0].max_abs, parts[1].max_abs);
        const double wide = hypot(a[i], a[i + 1]), high = hypot(b[i], b[i + 1]);
        const heft__distance one = {.max_abs = apart,
                                    .max_rel = apart > 0 ? apart / (wide > high ? wide : high) : 0,
                                    .dot = parts[0].dot + parts[1].dot,
                                    .square_a = parts[0].square_a + parts[1].square_a,
                                    .square_b = parts[0].square_b + parts[1].square_b,
                                    .odd = apart != apart};
        heft__distance_add(sum, &one);
    }
}

struct integer {
    bool negative;
    uint64_t magnitude;
};

/* Both kinds of 64 bits, which the wide dtype tells apart. */
static struct integer integer_of(heft_dtype wide, const void *block, size_t i)
{
    const uint64_t bits = heft__le64((const uint8_t *)block + 8 * i);
    const bool negative = wide == HEFT_DTYPE_I64 && bits >> 63;
    return (struct integer){negative, negative ? 0 - bits : bits};
}

static void measure_integers(heft__distance *sum, heft_dtype a_wide, const void *a,
                             heft_dtype b_wide, const void *b, size_t elems)
{
    for (size_t i = 0; i < elems; i++) {
        const struct integer x = integer_of(a_wide, a, i), y = integer_of(b_wide, b, i);
        const uint64_t more = x.magnitude > y.magnitude ? x.magnitude : y.magnitude;
        uint64_t exact;
        const double apart =
            x.negative == y.negative
                ? (double)(more - (x.magnitude > y.magnitude ? y.magnitude : x.magnitude))
            : heft__add_u64(x.magnitude, y.magnitude, &exact)
                ? (double)exact
                : (double)x.magnitude + (double)y.magnitude;
        const double left = x.negative ? -(double)x.magnitude : (double)x.magnitude,
                     right = y.negative ? -(double)y.magnitude : (double)y.magnitude;
        const heft__distance one = {.max_abs = apart,
                                    .max_rel = more ? apart / (double)more : 0,
                                    .dot = left * right,
                                    .square_a = left * left,
                                    .square_b = right * right};
        heft__distance_add(sum, &one);
    }
}

static heft_dtype wide_of(heft__measure_kind kind, heft_dtype dtype)
{
    return kind == HEFT__MEASURE_COMPLEX ? HEFT_DTYPE_C128
           : kind == HEFT__MEASURE_REAL  ? HEFT_DTYPE_F64
           : dtype == HEFT_DTYPE_U64     ? HEFT_DTYPE_U64
                                         : HEFT_DTYPE_I64;
}

void heft__measure(heft__distance *sum, heft__measure_kind kind, heft__measured a, heft__measured b,
                   size_t elems, heft__measure_room *room)
{
    const heft_dtype a_wide = wide_of(kind, a.dtype), b_wide = wide_of(kind, b.dtype);
    while (elems > 0) {
        const size_t count = elems < HEFT__MEASURE_ELEMS ? elems : HEFT__MEASURE_ELEMS;
        heft__cast(a_wide, room->a, a.dtype, a.bytes, count);
        heft__cast(b_wide, room->b, b.dtype, b.bytes, count);
        if (kind == HEFT__MEASURE_COMPLEX) {
            measure_complex(sum, room->a, room->b, count);
        } else if (kind == HEFT__MEASURE_INTEGER) {
            measure_integers(sum, a_wide, room->a, b_wide, room->b, count);
        } else {
            size_t padded = count;
            for (; padded % LANES != 0; padded++) { /* zeros change nothing */
                room->a[padded] = room->b[padded] = 0;
            }
            measure_reals(sum, room->a, room->b, padded);
        }
        a.bytes += count * (heft_dtype_bits(a.dtype) / 8);
        b.bytes += count * (heft_dtype_bits(b.dtype) / 8);
        elems -= count;
    }
}
