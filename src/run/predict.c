/* predict.c - how long a call takes, before it is made.
 *
 *   t(B) = max(D / r, s C(B)) + (1 - s) C(B),  C(B) = products + attention + what each job takes
 *
 * D is the number of bytes that are read from files, r the bytes that can be read in a second. The reader is one unit
 * ahead at most, so reading overlaps only with the computing of units that are read: the share s of C. The rest of C,
 * units that stay in memory, is added.
 *
 * A dry run of each kind of pass counts what it does (tally.c); the residency's units and the budget give D; probes
 * give the rates. A long input takes several passes, whose time grows evenly with the tokens before them: only the
 * first and the last one are counted.
 * What is not counted: norms and activations, 1 or 2 % of a pass.
 * Source: docs/running.md [6]. */
#include "run/predict.h"

#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

#define NEAR 0.25        /* of the larger one: reading and computing do not fully overlap */
#define BEST_MORE 1.1    /* of the time of one sequence */
#define MEMORY_MORE 1.25 /* of the time of products of one token: more is computing */

/* ---- arithmetic ---------------------------------------------------------------------------------- */
heft__duration heft__effort_seconds(const heft__effort *effort, const heft__rates *rates)
{
    const heft__tally *tally = &effort->tally;
    const double read_bytes = (double)effort->read_bytes + (double)tally->row_bytes;
    const double of_byte = rates->memory > 0 ? 1 / rates->memory : 0;
    const double memory = (double)(tally->weight_bytes + tally->cache_bytes) * of_byte;
    heft__duration d = {.read_seconds = rates->read > 0 ? read_bytes / rates->read : 0};
    double attend = 0;
    for (size_t f = 0; f < HEFT__FORMS; f++) {
        for (size_t i = 0; i < HEFT__KNOTS; i++) {
            d.compute_seconds += tally->weight_at[f][i] * rates->weight[f][i];
        }
    }
    for (size_t i = 0; i < 2; i++) {
        attend += rates->attend[i] > 0 ? (double)tally->attend_flops[i] / rates->attend[i] : 0;
    }
    const double caches = (double)tally->cache_bytes * of_byte;
    d.compute_seconds += attend > caches ? attend : caches;
    d.compute_seconds += tally->products * rates->product + tally->splits * rates->split;
    const double beside = effort->read_bytes >= effort->used_bytes
                              ? effort->read_bytes > 0
                              : (double)effort->read_bytes / (double)effort->used_bytes;
    const double computing = d.compute_seconds * beside;
    const double busy = computing + d.read_seconds * rates->cached;
    const double most = d.read_seconds > busy ? d.read_seconds : busy;
    const double least = d.read_seconds > busy ? busy : d.read_seconds;
    d.seconds = most + d.compute_seconds - computing;
    if (least > (1 - NEAR) * most && effort->blocks > 0 && rates->cached < 1) {
        d.seconds += least * (1 - rates->cached) / (double)effort->blocks;
    }
    d.bound = d.read_seconds > d.compute_seconds         ? HEFT_BOUND_DISK
              : d.compute_seconds > MEMORY_MORE * memory ? HEFT_BOUND_COMPUTE
                                                         : HEFT_BOUND_MEMORY;
    return d;
}

uint64_t heft__steady_experts(uint64_t others, uint64_t budget, const heft__tally *tally)
{
    const double experts = (double)tally->expert_bytes;
    const double room = others < budget ? (double)(budget - others) : 0;
    return room >= experts ? 0 : (uint64_t)(tally->expert_read_bytes * (1 - room / experts));
}

uint64_t heft__experts_in_use(uint64_t budget, const heft__tally *tally)
{
    if (tally->routes == 0 || tally->expert_bytes == 0) {
        return 0;
    }
    const double chosen = tally->expert_read_bytes / (double)tally->routes;
    const uint64_t one = tally->expert_bytes / tally->experts, layer = (uint64_t)chosen;
    uint64_t ahead = one;
    while (ahead < layer && heft__is_near(budget, one, ahead)) {
        ahead += one;
    }
    ahead += one; /* the one that is being used */
    return ahead < layer ? ahead : layer > one ? layer : one;
}

/* ---- what a pass does ------------------------------------------------------------------------------ */
struct kind { /* of passes: the tokens of each sequence, and those that it has before */
    uint64_t sequences, tokens, kept, encoded;
    bool encode; /* the encoder's */
    bool ends;   /* it has the last tokens */
    heft_logits logits;
};

struct predicting {
    heft_session *session;
    heft__pass *pass;
    uint64_t scratch,
        caches; /* bytes that the call takes of the budget; the most of any of its passes */
    uint64_t all, experts; /* bytes that its passes bring in */
    heft_prediction sum;
};

static heft_status dry(struct predicting *work, const struct kind *kind, heft_error *err)
{
    const heft_session *session = work->session;
    const uint64_t wanted = kind->logits == HEFT_LOGITS_ALL                  ? kind->tokens
                            : kind->logits == HEFT_LOGITS_LAST && kind->ends ? 1
                                                                             : 0;
    const bool behind = session->has_encoder && !session->dual && !kind->encode;
    heft__pass_run run = {
        .inputs = {.tokens = (size_t)(kind->sequences * kind->tokens),
                   .sequences = (size_t)kind->sequences,
                   .wanted_count = (size_t)(kind->sequences * wanted)},
        .encoded_tokens = (size_t)(kind->sequences * kind->encoded),
        .most_keys = (size_t)(kind->kept + kind->tokens),
        .dry = true,
        .cross_kept = behind && kind->kept > 0,
        .encode = kind->encode
    };
    memcpy(run.inputs.feature_shape, session->feature_shape, sizeof session->feature_shape);
    work->pass->scratch_most = work->pass->lane_most = 0;
    return heft__pass_run_once(work->pass, &run, err);
}

struct units {             /* of a pass, that are brought in */
    uint64_t all, largest; /* bytes: of all, of one */
    size_t count;
    uint64_t *bytes; /* [unit_count of the residency] of all that there are; owned */
};

static heft_status measure_units(struct predicting *work, struct units *out, heft_error *err)
{
    const heft__pass *p = work->pass;
    const heft_residency *r = p->residency;
    *out = (struct units){0};
    out->bytes = heft__alloc(p->ctx, r->unit_count * sizeof *out->bytes);
    bool *counted = heft__alloc_zero(p->ctx, r->unit_count, sizeof *counted);
    heft_status status =
        out->bytes && counted ? HEFT_OK : heft__fail_nomem(err, r->unit_count * sizeof *out->bytes);
    for (size_t i = 0; i < r->unit_count && status == HEFT_OK; i++) {
        out->bytes[i] = r->units[i].shown.brought_bytes;
    }
    for (size_t i = 0; i < p->order_count && status == HEFT_OK; i++) {
        const size_t unit = p->order[i];
        if (!counted[unit] && out->bytes[unit] > 0) {
            counted[unit] = true;
            out->all += out->bytes[unit];
            out->largest = heft__larger_u64(out->largest, out->bytes[unit]);
            out->count++;
        }
    }
    heft__free(p->ctx, counted, r->unit_count * sizeof *counted);
    return status;
}

static void drop_units(const struct predicting *work, struct units *units)
{
    heft__free(work->pass->ctx, units->bytes,
               work->pass->residency->unit_count * sizeof *units->bytes);
}

/* Add what `times` passes do to the prediction. */
static void add_effort(struct predicting *work, const struct units *units,
                       const heft__effort *effort, uint64_t left, uint64_t times)
{
    const heft__tally *tally = &effort->tally;
    heft__effort whole = *effort;
    whole.read_bytes += heft__steady_experts(units->all, left, tally);
    whole.used_bytes = units->all + (uint64_t)tally->expert_read_bytes;
    const heft__duration d = heft__effort_seconds(&whole, &work->session->rates);
    heft_prediction *sum = &work->sum;
    const uint64_t everything = units->all + tally->expert_bytes;
    const uint64_t stays = everything < left   ? everything
                           : units->all > left ? units->all - effort->read_bytes
                                               : left;
    sum->ready_bytes = heft__larger_u64(sum->ready_bytes, stays);
    sum->peak_bytes = heft__larger_u64(
        sum->peak_bytes, work->scratch + work->caches + (everything < left ? everything : left));
    sum->seconds += d.seconds * (double)times;
    sum->read_seconds += d.read_seconds * (double)times;
    sum->compute_seconds += d.compute_seconds * (double)times;
    sum->bound = d.bound;
    sum->read_bytes += (whole.read_bytes + tally->row_bytes) * times;
    sum->weight_bytes += tally->weight_bytes * times;
    sum->cache_bytes += tally->cache_bytes * times;
    sum->operations += (tally->flops + tally->attend_flops[0] + tally->attend_flops[1]) * times;
    sum->passes += times;
}

/* What is read in the long run, where weights may take `left` of the budget. */
static heft_status count_reads(const struct predicting *work, const struct units *units,
                               uint64_t left, uint64_t *read, heft_error *err)
{
    const heft__pass *p = work->pass;
    const uint64_t experts = heft__experts_in_use(left, &p->tally);
    *read = 0;
    left = left > experts && left - experts > units->largest ? left - experts : units->largest;
    return units->all <= left ? HEFT_OK
                              : heft__steady_units(p->ctx, p->order, p->order_count, units->bytes,
                                                   p->residency->unit_count, left, read, err);
}

static heft_status add_measured(struct predicting *work, const struct units *units, uint64_t times,
                                heft_error *err)
{
    heft__effort effort = {.tally = work->pass->tally, .blocks = units->count ? units->count : 1};
    work->scratch = effort.tally.scratch_bytes =
        heft__larger_u64(work->scratch, effort.tally.scratch_bytes);
    const uint64_t budget = heft__session_budget(work->session),
                   taken = work->scratch + work->caches, left = budget > taken ? budget - taken : 0;
    heft_status status = heft__session_has_room(work->session, &effort.tally, work->caches, err);
    if (status == HEFT_OK) {
        status = count_reads(work, units, left, &effort.read_bytes, err);
    }
    if (status == HEFT_OK) {
        add_effort(work, units, &effort, left, times);
    }
    return status;
}

static heft_status add_passes(struct predicting *work, const struct kind *kind, uint64_t times,
                              heft_error *err)
{
    struct units units = {0};
    heft_status status = dry(work, kind, err);
    if (status == HEFT_OK) {
        status = measure_units(work, &units, err);
        if (status == HEFT_OK) {
            status = add_measured(work, &units, times, err);
        }
        drop_units(work, &units);
    }
    return status;
}

/* The full passes of long sequences: they differ in what is kept before them, so the first and the last one are
 * counted, each for half of them. */
static heft_status add_full(struct predicting *work, struct kind kind, uint64_t full, bool ends,
                            uint64_t sequences, heft_error *err)
{
    const uint64_t kept = kind.kept;
    heft_status status = HEFT_OK;
    kind.ends = false;
    if (full > 1 || !ends) {
        const uint64_t first = ends ? full / 2 : (full + 1) / 2;
        status = add_passes(work, &kind, first * sequences, err);
    }
    if (status == HEFT_OK && (ends || full > 1)) {
        const uint64_t last = ends ? full - full / 2 : full / 2;
        kind.kept = kept + (full - 1) * kind.tokens;
        kind.ends = ends;
        status = add_passes(work, &kind, last * sequences, err);
    }
    return status;
}

/* Sequences that are longer than a pass, one after the other. */
static heft_status add_long(struct predicting *work, struct kind kind, heft_error *err)
{
    const uint64_t room = heft__session_pass_tokens(work->session), sequences = kind.sequences;
    const uint64_t full = kind.tokens / room, rest = kind.tokens % room;
    kind.sequences = 1;
    kind.tokens = room;
    heft_status status = add_full(work, kind, full, rest == 0, sequences, err);
    if (status == HEFT_OK && rest > 0) {
        kind.tokens = rest;
        kind.kept += full * room;
        kind.ends = true;
        status = add_passes(work, &kind, sequences, err);
    }
    return status;
}

/* All passes for `sequences` of so many tokens, packed as session_run.c does. */
static heft_status add_call(struct predicting *work, struct kind kind, heft_error *err)
{
    const heft_session *session = work->session;
    const uint64_t room = heft__session_pass_tokens(session), tokens = kind.tokens;
    const uint64_t sequences = kind.sequences;
    heft_status status = HEFT_OK;
    if (tokens > room && session->causal && !session->pass->whole && !kind.encode) {
        return add_long(work, kind, err);
    }
    const uint64_t together = tokens < room ? room / tokens : 1;
    const uint64_t full = sequences / together, rest = sequences % together;
    kind.ends = true;
    kind.sequences = together;
    if (full > 0) {
        status = add_passes(work, &kind, full, err);
    }
    kind.sequences = rest;
    if (status == HEFT_OK && rest > 0) {
        status = add_passes(work, &kind, 1, err);
    }
    return status;
}

/* The caches of all sequences, by what the last dry run has found to be kept. */
static heft_status count_caches(struct predicting *work, const struct kind *kind, heft_error *err)
{
    const heft__sequence_size size = {(size_t)(kind->kept + kind->tokens),
                                      heft__session_chunk(work->session, (size_t)kind->tokens),
                                      (size_t)kind->encoded};
    uint64_t bytes = 0, all = 0;
    if (!heft__sequence_bytes(work->pass, &size, &bytes) ||
        !heft__mul_u64(bytes, kind->sequences, &all)) {
        return heft__fail(err, HEFT_LIMIT, "caches for %llu sequences are too large",
                          (unsigned long long)kind->sequences);
    }
    work->caches = all;
    return HEFT_OK;
}

/* Predict one call; the dry run of the encoder comes first, as the decoder's depends on it. */
static heft_status predict(struct predicting *work, const struct kind *shape, heft_error *err)
{
    const heft_session *session = work->session;
    const bool encodes = session->has_encoder;
    struct kind kind = *shape, encoder = *shape,
                least = {.sequences = 1, .tokens = 1, .ends = true};
    heft_status status = HEFT_OK;
    work->scratch = 0;
    work->sum = (heft_prediction){0};
    encoder.encode = true;
    encoder.kept = 0;
    encoder.tokens = least.encoded = kind.encoded;
    if (encodes) {
        least.tokens = kind.encoded;
        least.encode = true;
        status = dry(work, &least, err);
        least.tokens = 1;
        least.encode = false;
    }
    if (status == HEFT_OK) {
        least.tokens = session->causal ? 1 : kind.tokens;
        status = dry(work, &least, err); /* what is kept is known then */
    }
    if (status == HEFT_OK) {
        status = count_caches(work, &kind, err);
    }
    if (status == HEFT_OK && encodes && kind.kept == 0) {
        status = add_call(work, encoder, err);
    }
    return status == HEFT_OK ? add_call(work, kind, err) : status;
}

/* ---- the machine ------------------------------------------------------------------------------------ */
/* Whether most of the weights lie in blocks that are too small for a huge page: reading them takes longer. */
static bool lies_in_small_blocks(const heft_session *session)
{
    const heft_residency *r = session->residency;
    const uint64_t huge = heft__huge_page_bytes(heft__page_bytes());
    uint64_t small = 0, all = 0;
    for (size_t i = 0; i < session->model->count; i++) {
        const heft_parameter *parameter = &session->model->parameters[i];
        const bool brought = r->brought_at[i] != SIZE_MAX;
        const uint64_t block = brought ? r->units[r->unit_of[i]].room : parameter->size_bytes;
        if (parameter->tied_to == i) {
            all += parameter->size_bytes;
            small += block < huge ? parameter->size_bytes : 0;
        }
    }
    return small > all / 2;
}

/* The largest weight in memory of the model's own, or the buffer if that is larger. */
static heft__probe_weights largest_weight(const heft_session *session, const uint8_t *memory,
                                          size_t size)
{
    heft__probe_weights found = {memory, size};
    for (size_t i = 0; i < session->model->count; i++) {
        const heft_parameter *parameter = &session->model->parameters[i];
        const heft__binding *binding = &session->model->bindings[i];
        if (parameter->state == HEFT_PARAMETER_OWNED && parameter->size_bytes > found.bytes &&
            parameter->dtype == session->model->dtype && binding->storage) {
            found.data =
                (const uint8_t *)heft_storage_data(binding->storage) + binding->byte_offset;
            found.bytes = (size_t)parameter->size_bytes;
        }
    }
    return found;
}

/* A buffer of what products use in a pass, within what is left of the budget. */
static heft_status probe(struct predicting *work, heft_error *err)
{
    heft_session *session = work->session;
    heft_ledger_counts counts = HEFT_SIZED(heft_ledger_counts);
    heft__rates rates = {0};
    const uint64_t used = work->pass->tally.weight_bytes;
    const size_t least = (size_t)256 << 10;
    heft_status status = heft_ledger_facts(session->ledger, &counts, err);
    if (status != HEFT_OK) {
        return status;
    }
    const uint64_t taken = counts.held_bytes + counts.reserved_bytes;
    const uint64_t left = counts.budget_bytes > taken ? (counts.budget_bytes - taken) / 2 : 0;
    uint64_t bytes = used < HEFT__PROBE_BYTES ? used : HEFT__PROBE_BYTES;
    bytes = left < bytes ? left : bytes;
    const size_t size = bytes > least ? (size_t)bytes : least;
    uint8_t *memory = heft__alloc(session->ctx, size);
    if (!memory) {
        return heft__fail_nomem(err, size);
    }
    if (lies_in_small_blocks(session)) {
        const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
        const uintptr_t start = ((uintptr_t)memory + page - 1) / page * page;
        (void)madvise((void *)start, ((uintptr_t)memory + size - start) / page * page,
                      MADV_NOHUGEPAGE);
    }
    memset(memory, 0x3c, size); /* a small number in each dtype; and the pages are there */
    const heft__probe_weights weights = largest_weight(session, memory, size);
    status = heft__probe_products(work->pass, &weights, memory, size, &rates, err);
    if (status == HEFT_OK) {
        status = heft__probe_files(session->residency, memory, size, &rates, err);
    }
    heft__free(session->ctx, memory, size);
    if (status == HEFT_OK) {
        rates.known = true;
        session->rates = rates;
    }
    return status;
}

/* ---- the best batch ----------------------------------------------------------------------------------- */
/* Whether a batch takes hardly longer than one sequence; false where it does not fit. */
static bool is_free(struct predicting *work, const struct kind *one, uint64_t batch, double limit,
                    double *seconds)
{
    struct kind kind = *one;
    heft_error ignored;
    kind.sequences = batch;
    if (predict(work, &kind, &ignored) != HEFT_OK || work->sum.seconds > limit) {
        return false;
    }
    *seconds = work->sum.seconds;
    return true;
}

/* By doubling, then by halves. */
static void find_best(struct predicting *work, const struct kind *one, heft_prediction *out)
{
    const uint64_t most = heft__session_pass_tokens(work->session);
    uint64_t low = 1, high = 2;
    double first = 0, best = 0;
    out->best_batch = 1;
    if (!is_free(work, one, 1, HUGE_VAL, &first)) {
        return;
    }
    best = first;
    while (high <= most && is_free(work, one, high, first * BEST_MORE, &best)) {
        low = high;
        high *= 2;
    }
    while (high <= most && high - low > 1) {
        const uint64_t middle = low + (high - low) / 2;
        if (is_free(work, one, middle, first * BEST_MORE, &best)) {
            low = middle;
        } else {
            high = middle;
        }
    }
    out->best_batch = low;
    out->best_batch_seconds = best;
}

/* ---- public --------------------------------------------------------------------------------------------- */
static heft_status take_shape(const heft_session *session, const heft_pass_shape *shape,
                              struct kind *kind, heft_error *err)
{
    const uint64_t most = (uint64_t)INT32_MAX;
    heft_pass_shape taken = HEFT_SIZED(heft_pass_shape);
    heft_status status = HEFT__TAKE_OPTIONS(&taken, shape, err);
    if (status != HEFT_OK) {
        return status;
    }
    *kind = (struct kind){.sequences = taken.sequences ? taken.sequences : 1,
                          .tokens = taken.tokens ? taken.tokens : 1,
                          .kept = session->causal ? taken.kept : 0,
                          .logits = taken.logits,
                          .encoded = taken.encoded ? taken.encoded : 1};
    if (session->feature_tokens > 0) {
        uint64_t *tokens = session->has_encoder ? &kind->encoded : &kind->tokens;
        *tokens = session->dual ? *tokens : session->feature_tokens;
        kind->encoded = session->dual ? session->feature_tokens : kind->encoded;
    }
    if (kind->sequences > most || kind->tokens > most || kind->kept > most - kind->tokens ||
        kind->encoded > most ||
        (session->feature_tokens == 0 && kind->tokens + kind->kept > session->positions)) {
        return heft__fail(
            err, HEFT_INVALID_ARG, "%llu tokens asked for, the model has %llu positions",
            (unsigned long long)(kind->tokens + kind->kept),
            (unsigned long long)(session->positions < most ? session->positions : most));
    }
    return HEFT_OK;
}

static void give_rates(const heft_session *session, heft_prediction *out)
{
    const heft__rates *rates = &session->rates;
    out->continues = session->causal;
    out->disk_rate = rates->read;
    out->cached = rates->cached;
    out->memory_rate = rates->memory;
    out->compute_rate = rates->operations;
    out->ready_seconds = rates->read > 0 ? (double)out->ready_bytes / rates->read : 0;
    const double first = out->ready_seconds + out->read_seconds;
    out->first_seconds = first > out->seconds ? first : out->seconds;
}

heft_status heft_session_predict(heft_session *session, const heft_pass_shape *shape,
                                 heft_prediction *out, heft_error *err)
{
    struct predicting work = {.session = session};
    struct kind kind;
    if (!session || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "session or result is NULL");
    }
    heft_status status = take_shape(session, shape, &kind, err);
    if (status == HEFT_OK) {
        status = heft__pass_new(session->model, session->residency, session->options.exact,
                                &work.pass, err);
    }
    if (status == HEFT_OK && !session->rates.known) {
        struct kind one = {.sequences = 1, .tokens = 1, .encoded = kind.encoded, .ends = true};
        one.tokens = session->causal ? 1 : kind.tokens;
        status = predict(&work, &one, err);
        if (status == HEFT_OK) {
            status = probe(&work, err);
        }
    }
    if (status == HEFT_OK) {
        status = predict(&work, &kind, err);
    }
    if (status == HEFT_OK) {
        heft_prediction given = work.sum;
        find_best(&work, &kind, &given);
        give_rates(session, &given);
        status = HEFT__GIVE_SIZED(out, &given, err);
    }
    heft__pass_free(work.pass);
    return status;
}
