/* predict.h - how long a pass takes: what it does, and how fast this machine does it; for predict.c,
 * probe.c, probe_files.c and tests. */
#ifndef HEFT__RUN_PREDICT_H
#define HEFT__RUN_PREDICT_H

#include "run/session_state.h"

/* What a pass does. */
typedef struct heft__effort {
    heft__tally tally;
    uint64_t read_bytes; /* of weights, from files */
    uint64_t used_bytes; /* of all weights that are brought in: these, and those that have stayed */
    size_t blocks;       /* that are read and computed one after the other; at least 1 */
} heft__effort;

typedef struct heft__duration {
    double seconds, read_seconds, compute_seconds;
    heft_bound bound;
} heft__duration;

/* t = max(D / r, s C) + (1 - s) C, where C is the time of products and attention, and s the share of the weights
 * in use that is read. If the two in the maximum are within 25 % of each other, what one block adds before they
 * overlap counts too: the smaller one's share of a block. Reading from the page cache takes the CPUs' time, so it
 * is added to s C. */
heft__duration heft__effort_seconds(const heft__effort *effort, const heft__rates *rates);

/* Bytes that experts add to what a pass reads: those that are used are kept as far as there is room in the
 * budget beside all other units. */
uint64_t heft__steady_experts(uint64_t others, uint64_t budget, const heft__tally *tally);

/* Bytes that the experts of one layer take while they are used: the units of the schedule have the rest of the budget.
 * An expert that was used goes before any of these, and the reader drops them for an expert that comes soon. */
uint64_t heft__experts_in_use(uint64_t budget, const heft__tally *tally);

/* ---- steady.c: bytes that a pass over these units reads in the long run, again and again in this order ----
 * order: [count], units below unit_count; bytes: [unit_count] */
heft_status heft__steady_units(heft_ctx *ctx, const size_t *order, size_t count,
                               const uint64_t *bytes, size_t unit_count, uint64_t budget,
                               uint64_t *read, heft_error *err);

/* ---- probe.c, probe_files.c: this machine ----------------------------------------------------------- */
#define HEFT__PROBE_BYTES ((size_t)64 << 20) /* at most, of memory that is read */

/* What products read: the buffer, or the largest weight that the model has in memory, so that no cache has it. */
typedef struct heft__probe_weights {
    const uint8_t *data;
    size_t bytes;
} heft__probe_weights;

/* How fast products and attention of what the pass has counted are, in a buffer: [bytes], of which each byte has been
 * written. 0.2 s, or 0.4 where weights have both orientations. */
heft_status heft__probe_products(heft__pass *pass, const heft__probe_weights *weights,
                                 uint8_t *memory, size_t bytes, heft__rates *rates,
                                 heft_error *err);
/* How fast the residency reads what it has to bring in, into the same buffer. 0.25 s at most. */
heft_status heft__probe_files(heft_residency *residency, uint8_t *memory, size_t bytes,
                              heft__rates *rates, heft_error *err);
double heft__probe_clock(void);

#endif
