/* session.c - passes over the tokens of several sequences, within one budget.
 *
 *   budget = weights brought in + caches of sequences + scratch of a pass
 *
 * The inputs of a call are packed: all tokens of the first sequence, then those of the next. A decoder's
 * tokens may be split over several passes, an encoder's sequences are kept whole. A dry run of the shape
 * of a pass says what scratch it takes, before anything is computed.
 * Not done here: packing inputs (session_run.c), choosing tokens (sample.c), what a family computes
 * (model/arch). */
#include "run/session_state.h"

/* ---- planning a pass ---------------------------------------------------------------------------- */
/* Positions that the config allows. Rotary embeddings of type "dynamic" have no end. */
static void read_positions(heft__skeleton *s, void *out)
{
    uint64_t *positions = out;
    uint64_t count = heft__sk_count_if(s, "max_position_embeddings", 0);
    count = count ? count : heft__sk_count_if(s, "max_target_positions", 0);
    *positions = count && !heft__sk_rotary_is_dynamic(s) ? count : UINT64_MAX;
}

static heft_status reserve_scratch(heft_session *session, heft_error *err)
{
    const uint64_t bytes = session->pass->tally.scratch_bytes;
    heft_status status = HEFT_OK;
    if (bytes > session->reserved) {
        status = heft_ledger_reserve(session->ledger, bytes - session->reserved, err);
        session->reserved = status == HEFT_OK ? bytes : session->reserved;
    }
    return status;
}

heft_status heft__session_has_room(const heft_session *session, const heft__tally *tally,
                                   uint64_t caches, heft_error *err)
{
    const uint64_t budget = heft__session_budget(session),
                   needed = tally->held_bytes + tally->scratch_bytes + caches;
    return needed <= budget
               ? HEFT_OK
               : heft__add_item(
                     heft__fail(err, HEFT_LIMIT,
                                "a pass takes %llu bytes at once (weights %llu, intermediate "
                                "results %llu, caches %llu), the budget is %llu",
                                (unsigned long long)needed, (unsigned long long)tally->held_bytes,
                                (unsigned long long)tally->scratch_bytes,
                                (unsigned long long)caches, (unsigned long long)budget),
                     err, HEFT__MEMORY_ITEM);
}

/* What sequences have reserved. */
static heft_status count_caches(const heft_session *session, uint64_t *caches, heft_error *err)
{
    heft_ledger_counts ledger = HEFT_SIZED(heft_ledger_counts);
    const heft_status status = heft_ledger_facts(session->ledger, &ledger, err);
    *caches = ledger.reserved_bytes - session->reserved;
    return status;
}

static bool covers(const struct heft__pass_shape *planned, const struct heft__pass_shape *wanted)
{
    return planned->tokens >= wanted->tokens && planned->sequences >= wanted->sequences &&
           planned->wanted >= wanted->wanted && planned->keys >= wanted->keys &&
           planned->encoded >= wanted->encoded;
}

static heft_status dry_run(heft_session *session, const struct heft__pass_shape *shape, bool encode,
                           heft_error *err)
{
    const heft__pass_run run = {
        .inputs = {.tokens = shape->tokens,
                   .sequences = shape->sequences,
                   .wanted_count = shape->wanted,
                   .feature_shape = {session->feature_shape[0], session->feature_shape[1],
                                     session->feature_shape[2]}},
        .encoded_tokens = shape->encoded,
        .most_keys = shape->keys,
        .dry = true,
        .encode = encode
    };
    return heft__pass_run_once(session->pass, &run, err);
}

/* The shape of both. */
static struct heft__pass_shape larger_shape(const struct heft__pass_shape *a,
                                            const struct heft__pass_shape *b)
{
    return (struct heft__pass_shape){
        heft__larger(a->tokens, b->tokens), heft__larger(a->sequences, b->sequences),
        heft__larger(a->wanted, b->wanted), heft__larger(a->keys, b->keys),
        heft__larger(a->encoded, b->encoded)};
}

heft_status heft__session_plan(heft_session *session, const struct heft__pass_shape *wanted,
                               bool encode, heft_error *err)
{
    struct heft__pass_shape *planned = &session->planned[encode];
    heft_status status = HEFT_OK;
    uint64_t caches = 0;
    const bool same = covers(planned, wanted);
    if (same && session->encodes == (int)encode) {
        return HEFT_OK;
    }
    *planned = larger_shape(planned, wanted);
    status = dry_run(session, planned, encode, err);
    if (status == HEFT_OK) {
        status = count_caches(session, &caches, err);
    }
    if (status == HEFT_OK) {
        status = heft__session_has_room(session, &session->pass->tally, caches, err);
    }
    if (status == HEFT_OK) {
        status = reserve_scratch(session, err);
    }
    if (status == HEFT_OK && session->pass->order_count > 0) {
        status =
            heft_residency_set_schedule(session->residency, session->pass->order,
                                        session->pass->order_count, encode ? SIZE_MAX : 0, err);
    }
    session->encodes = status == HEFT_OK ? (int)encode : -1;
    return status;
}

heft_status heft__session_fit(heft_session *session, const struct heft__pass_shape *wanted,
                              size_t *tokens, heft_error *err)
{
    struct heft__pass_shape shape = *wanted;
    uint64_t others = 0;
    if (!session->options.memory_bytes || covers(&session->planned[0], wanted)) {
        return HEFT_OK;
    }
    heft_status status = count_caches(session, &others, err);
    const uint64_t budget = heft__session_budget(session),
                   room = budget > others ? budget - others : 0;
    const size_t scratch = session->pass->scratch_most, lane = session->pass->lane_most;
    bool fits = false;
    session->encodes = -1; /* a dry run leaves another plan */
    while (status == HEFT_OK && !fits && shape.tokens > 0) {
        const struct heft__pass_shape both = larger_shape(&session->planned[0], &shape);
        session->pass->scratch_most = scratch; /* not of what did not fit */
        session->pass->lane_most = lane;
        status = dry_run(session, &both, false, err);
        fits = session->pass->tally.scratch_bytes + session->pass->tally.held_bytes <= room;
        if (!fits) {
            shape.tokens /= 2;
            shape.sequences = shape.sequences < shape.tokens ? shape.sequences : shape.tokens;
            shape.wanted = shape.wanted < shape.tokens ? shape.wanted : shape.tokens;
        }
    }
    *tokens = fits ? shape.tokens : 1;
    return status;
}

/* ---- sessions ------------------------------------------------------------------------------------- */
static heft_status make_residency(heft_session *session, heft_error *err)
{
    heft_status status =
        heft_ledger_new(session->ctx, heft__session_budget(session), &session->ledger, err);
    if (status == HEFT_OK) {
        const heft_residency_options options =
            HEFT_OPTIONS(heft_residency_options, .ledger = session->ledger,
                         .over_limit = session->options.over_limit);
        status = heft__residency_make(session->model, &options, true, &session->residency, err);
    }
    return status;
}

/* Whether the class has an encoder and a decoder behind it, or a model of images beside one of texts: both
 * are modules of their own; and whether it takes images or sound: those go through a convolution first. */
static bool find_encoder(heft_session *session, bool *convolves)
{
    const heft_model *model = session->model;
    bool encoder = false, decoder = false, images = false, texts = false;
    *convolves = false;
    for (size_t i = 0; i < model->module_count; i++) {
        const heft_module *module = &model->modules[i];
        *convolves = *convolves || module->kind == HEFT_MODULE_CONVOLUTION;
        if (module->kind == HEFT_MODULE_MODEL) {
            encoder = encoder || strcmp(module->name, "encoder") == 0;
            decoder = decoder || strcmp(module->name, "decoder") == 0;
            images = images || strcmp(module->name, "vision_model") == 0;
            texts = texts || strcmp(module->name, "text_model") == 0;
        }
    }
    session->dual = model->family->encode && images && texts;
    return session->dual || (model->family->encode && encoder && decoder);
}

static void read_features(heft__skeleton *s, void *out)
{
    heft_session *session = out;
    session->feature_tokens = session->model->family->features(s, session->feature_shape);
}

/* Tokens of a pass of one sequence, in the least one. */
static size_t least_tokens(const heft_session *session, bool encode)
{
    const bool features = session->feature_tokens > 0 && encode == session->has_encoder;
    return features ? session->feature_tokens : 1;
}

/* Learn from a dry run of one token whether there is a cache, and how much the least pass takes. */
static heft_status first_dry_run(heft_session *session, heft_error *err)
{
    struct heft__pass_shape least = {.sequences = 1, .wanted = 1, .keys = 1};
    heft_status status = HEFT_OK;
    bool convolves;
    session->has_encoder = find_encoder(session, &convolves);
    if (session->model->family->features && convolves) {
        status = heft__model_read(session->model, read_features, session, err);
    }
    least.encoded = least_tokens(session, true);
    if (status == HEFT_OK && session->has_encoder) {
        least.tokens = least.encoded;
        status = dry_run(session, &least, true, err);
    }
    least.tokens = least_tokens(session, false);
    if (status == HEFT_OK) {
        status = dry_run(session, &least, false, err);
    }
    session->causal = session->pass->slot_count > 0;
    return status;
}

heft_status heft_session_new(const heft_model *model, const heft_session_options *options,
                             heft_session **out, heft_error *err)
{
    if (!model || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "model or result is NULL");
    }
    heft_session *session = heft__alloc_zero(model->ctx, 1, sizeof *session);
    if (!session) {
        return heft__fail_nomem(err, sizeof *session);
    }
    session->ctx = heft__ctx_ref(model->ctx);
    session->model = model;
    session->encodes = -1;
    heft__arena_init(&session->arena, session->ctx);
    session->positions = UINT64_MAX;
    heft_status status = HEFT__TAKE_OPTIONS(&session->options, options, err);
    if (status == HEFT_OK) {
        status = heft__model_read(model, read_positions, &session->positions, err);
    }
    if (status == HEFT_OK) {
        status = heft__generation_read(model, &session->arena, &session->ids, err);
    }
    if (status == HEFT_OK) {
        status = make_residency(session, err);
    }
    if (status == HEFT_OK) {
        status =
            heft__pass_new(model, session->residency, session->options.exact, &session->pass, err);
    }
    if (status == HEFT_OK) {
        session->pass->expects_compact = session->options.expect_compact;
        status = first_dry_run(session, err);
    }
    if (status == HEFT_OK) {
        *out = session;
    } else {
        heft_session_free(session);
    }
    return status;
}

void heft_session_free(heft_session *session)
{
    if (!session) {
        return;
    }
    heft_ctx *ctx = session->ctx;
    heft__pass_free(session->pass);
    heft_residency_free(session->residency);
    if (session->ledger) {
        heft_ledger_give_back(session->ledger, session->reserved);
    }
    heft_ledger_free(session->ledger);
    heft__arena_fini(&session->arena);
    heft__free(ctx, session, sizeof *session);
    heft_ctx_free(ctx);
}

bool heft_session_numbers_tokens(const heft_session *session)
{
    return session && session->pass->numbering != HEFT__NUMBER_PLACES;
}

bool heft_session_has_encoder(const heft_session *session)
{
    return session->has_encoder;
}

heft_ctx *heft__session_ctx(const heft_session *session)
{
    return session->ctx;
}

const char *heft_session_isa(const heft_session *session)
{
    return session->pass->kernels->isa;
}

const char *heft_session_output_name(const heft_session *session, size_t i)
{
    return i < session->pass->name_count ? session->pass->names[i] : NULL;
}

heft_status heft_session_ids(const heft_session *session, heft_generation_ids *ids, heft_error *err)
{
    if (!session || !ids) {
        return heft__fail(err, HEFT_INVALID_ARG, "session or result is NULL");
    }
    return HEFT__GIVE_SIZED(ids, &session->ids, err);
}

heft_status heft_session_facts(const heft_session *session, heft_session_counts *counts,
                               heft_error *err)
{
    heft_residency_counts residency = HEFT_SIZED(heft_residency_counts);
    heft_ledger_counts ledger = HEFT_SIZED(heft_ledger_counts);
    if (!session || !counts) {
        return heft__fail(err, HEFT_INVALID_ARG, "session or result is NULL");
    }
    heft_status status = heft_residency_facts(session->residency, &residency, err);
    if (status == HEFT_OK) {
        status = heft_ledger_facts(session->ledger, &ledger, err);
    }
    uint64_t own = 0;
    for (size_t i = 0; i < session->model->count; i++) {
        const heft_parameter *parameter = &session->model->parameters[i];
        own += session->residency->brought_at[i] == SIZE_MAX && parameter->tied_to == i
                   ? parameter->size_bytes
                   : 0;
    }
    const heft_session_counts given = {.resident_bytes = own + residency.held_bytes,
                                       .read_bytes = residency.read_bytes,
                                       .peak_bytes = ledger.peak_bytes,
                                       .scratch_bytes = session->reserved,
                                       .passes = session->passes,
                                       .compact_bytes = heft__compact_bytes(session->model),
                                       .tokens = session->tokens};
    return status == HEFT_OK ? HEFT__GIVE_SIZED(counts, &given, err) : status;
}

/* ---- sequences -------------------------------------------------------------------------------------- */
/* An empty one whose bytes are reserved; NULL after a failure. */
static heft_sequence *take_sequence(heft_session *session, uint64_t bytes, heft_status *status,
                                    heft_error *err)
{
    heft_sequence *sequence = heft__alloc_zero(session->ctx, 1, sizeof *sequence);
    if (!sequence) {
        *status = heft__fail_nomem(err, sizeof *sequence);
        return NULL;
    }
    *status =
        heft__add_item(heft_ledger_reserve(session->ledger, bytes, err), err, HEFT__MEMORY_ITEM);
    if (*status != HEFT_OK) {
        heft__free(session->ctx, sequence, sizeof *sequence);
        return NULL;
    }
    sequence->session = session;
    return sequence;
}

/* Give it to the caller if its cache was made. */
static heft_status give_sequence(heft_sequence *sequence, heft_status status, uint64_t bytes,
                                 heft_sequence **out)
{
    if (status == HEFT_OK) {
        *out = sequence;
    } else {
        heft_ledger_give_back(sequence->session->ledger, bytes);
        heft_sequence_free(sequence);
    }
    return status;
}

heft_status heft__session_new_sequence(heft_session *session, size_t capacity, size_t encoded,
                                       heft_sequence **out, heft_error *err)
{
    const heft__sequence_size size = {capacity, heft__session_chunk(session, capacity), encoded};
    heft_status status = HEFT_OK;
    uint64_t bytes = 0;
    if (!heft__sequence_bytes(session->pass, &size, &bytes)) {
        return heft__fail(err, HEFT_LIMIT, "a cache for %zu tokens is larger than memory can be",
                          capacity);
    }
    heft_sequence *sequence = take_sequence(session, bytes, &status, err);
    if (sequence) {
        sequence->encoded = encoded;
        status = heft__sequence_new(session->pass, &size, &sequence->kept, err);
        status = give_sequence(sequence, status, bytes, out);
    }
    return status;
}

heft_status heft_sequence_new(heft_session *session, uint64_t capacity, uint64_t encoded,
                              heft_sequence **out, heft_error *err)
{
    size_t tokens = 0, encoded_tokens = 0;
    if (!session || !out || capacity == 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "session or result is NULL, or the capacity is 0");
    }
    if (capacity > session->positions) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "%llu tokens asked for, the model has %llu positions",
                          (unsigned long long)capacity, (unsigned long long)session->positions);
    }
    if (!heft__to_size(capacity, &tokens) || !heft__to_size(encoded, &encoded_tokens)) {
        return heft__fail(err, HEFT_LIMIT, "too many tokens");
    }
    encoded_tokens =
        session->has_encoder && session->feature_tokens ? session->feature_tokens : encoded_tokens;
    return heft__session_new_sequence(session, tokens, encoded_tokens, out, err);
}

heft_status heft_sequence_fork(const heft_sequence *sequence, heft_sequence **out, heft_error *err)
{
    heft_status status = HEFT_OK;
    if (!sequence || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "sequence or result is NULL");
    }
    heft_session *session = sequence->session;
    const uint64_t bytes = heft__sequence_fork_bytes(session->pass, sequence->kept);
    heft_sequence *fork = take_sequence(session, bytes, &status, err);
    if (fork) {
        fork->encoded = sequence->encoded;
        fork->counted = sequence->counted;
        fork->words = sequence->words;
        fork->broken = sequence->broken;
        status = heft__sequence_fork(session->pass, sequence->kept, &fork->kept, err);
        status = give_sequence(fork, status, bytes, out);
    }
    return status;
}

heft_status heft_sequence_truncate(heft_sequence *sequence, uint64_t tokens, heft_error *err)
{
    if (!sequence) {
        return heft__fail(err, HEFT_INVALID_ARG, "sequence is NULL");
    }
    if (sequence->broken || tokens > heft_sequence_length(sequence)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          sequence->broken ? "a pass with this sequence has failed"
                                           : "the sequence has fewer than %llu tokens",
                          (unsigned long long)tokens);
    }
    const bool counts_words = sequence->session->pass->numbering == HEFT__NUMBER_WORDS;
    if (sequence->counted != sequence->kept->length ||
        (counts_words && sequence->words != sequence->kept->length)) {
        return heft__fail(err, HEFT_UNSUPPORTED, "the sequence has padding");
    }
    const heft_status status =
        heft__sequence_truncate(sequence->session->pass, sequence->kept, (size_t)tokens, err);
    if (status == HEFT_OK) {
        sequence->counted = sequence->words = (int32_t)tokens;
    }
    return status;
}

void heft_sequence_free(heft_sequence *sequence)
{
    if (!sequence) {
        return;
    }
    heft_ledger_give_back(sequence->session->ledger, heft__sequence_free(sequence->kept));
    heft__free(sequence->session->ctx, sequence, sizeof *sequence);
}

uint64_t heft_sequence_length(const heft_sequence *sequence)
{
    return sequence ? (uint64_t)sequence->kept->length : 0;
}

/* ---- results -------------------------------------------------------------------------------------- */
heft_status heft_session_output(const heft_session *session, const char *name, heft_output *output,
                                heft_error *err)
{
    static const heft_output_kind kinds[] = {
        [HEFT__OUT_TOKENS] = HEFT_OUTPUT_TOKENS, [HEFT__OUT_SEQUENCES] = HEFT_OUTPUT_SEQUENCES,
        [HEFT__OUT_WANTED] = HEFT_OUTPUT_LOGITS, [HEFT__OUT_ENCODED] = HEFT_OUTPUT_ENCODED,
        [HEFT__OUT_WHOLE] = HEFT_OUTPUT_WHOLE,   [HEFT__OUT_COLUMNS] = HEFT_OUTPUT_WHOLE,
    };
    if (!session || !name || !output) {
        return heft__fail(err, HEFT_INVALID_ARG, "session, name or result is NULL");
    }
    const heft__result *result = heft__pass_result(session->pass, name);
    if (!result || !result->data) {
        return heft__fail(err, HEFT_NOT_FOUND, "the last pass has no result '%s'", name);
    }
    const heft_output given = {.kind = kinds[result->kind],
                               .data = result->data,
                               .rows = result->count,
                               .width = result->width};
    return HEFT__GIVE_SIZED(output, &given, err);
}
