/* session.c - passes over the tokens of several sequences, within one budget.
 *
 *   budget = weights brought in + caches of sequences + scratch of a pass
 *
 * The inputs of a call are packed: all tokens of the first sequence, then those of the next. A decoder's
 * tokens may be split over several passes, an encoder's sequences are kept whole. A dry run of the shape
 * of a pass says what scratch it takes, before anything is computed.
 * Not done here: choosing tokens (sample.c), what a family computes (model/arch). */
#include "run/pass_state.h"

#include <heft/session.h>

#define STANDARD_PASS_TOKENS 512
#define NO_BUDGET (UINT64_MAX / 4)

struct pass_shape { /* what scratch has been planned for */
    size_t tokens, sequences, wanted, keys, encoded;
};

struct heft_session {
    heft_ctx *ctx;
    const heft_model *model;
    heft_ledger *ledger;
    heft_residency *residency;
    heft__pass *pass;
    heft_session_options options;
    bool causal; /* some attention keeps what it has seen: tokens may be split */
    bool has_encoder;
    int encodes; /* the schedule in use: 1 the encoder's, 0 the decoder's, -1 none yet */
    struct pass_shape planned[2]; /* of the decoder, and of the encoder */
    uint64_t reserved;            /* of the ledger, for scratch */
    uint64_t positions;           /* that a sequence can have; UINT64_MAX: no limit is known */
    uint64_t passes, tokens;
    heft__arena arena; /* of `ids` */
    heft_generation_ids ids;
};

struct heft_sequence {
    heft_session *session;
    heft__sequence *kept;
    size_t encoded;
    uint64_t reserved;
    int32_t counted; /* tokens so far that are not masked */
    bool broken;     /* a pass has failed with it */
};

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

static size_t larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static bool covers(const struct pass_shape *planned, const struct pass_shape *wanted)
{
    return planned->tokens >= wanted->tokens && planned->sequences >= wanted->sequences &&
           planned->wanted >= wanted->wanted && planned->keys >= wanted->keys &&
           planned->encoded >= wanted->encoded;
}

static heft_status dry_run(heft_session *session, const struct pass_shape *shape, bool encode,
                           heft_error *err)
{
    const heft__pass_run run = {
        .inputs = {.tokens = shape->tokens,
                   .sequences = shape->sequences,
                   .wanted_count = shape->wanted},
        .encoded_tokens = shape->encoded,
        .most_keys = shape->keys,
        .dry = true,
        .encode = encode
    };
    return heft__pass_run_once(session->pass, &run, err);
}

/* Have scratch memory for a pass of this shape, and the schedule of its units. */
static heft_status plan_pass(heft_session *session, const struct pass_shape *wanted, bool encode,
                             heft_error *err)
{
    struct pass_shape *planned = &session->planned[encode];
    heft_status status = HEFT_OK;
    const bool same = covers(planned, wanted);
    if (same && session->encodes == (int)encode) {
        return HEFT_OK;
    }
    *planned = (struct pass_shape){
        larger(planned->tokens, wanted->tokens), larger(planned->sequences, wanted->sequences),
        larger(planned->wanted, wanted->wanted), larger(planned->keys, wanted->keys),
        larger(planned->encoded, wanted->encoded)};
    status = dry_run(session, planned, encode, err);
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

/* ---- sessions ------------------------------------------------------------------------------------- */
static heft_status make_residency(heft_session *session, heft_error *err)
{
    const uint64_t budget =
        session->options.memory_bytes ? session->options.memory_bytes : NO_BUDGET;
    heft_status status = heft_ledger_new(session->ctx, budget, &session->ledger, err);
    if (status == HEFT_OK) {
        const heft_residency_options options =
            HEFT_OPTIONS(heft_residency_options, .ledger = session->ledger,
                         .over_limit = session->options.over_limit);
        status = heft_residency_new(session->model, &options, &session->residency, err);
    }
    return status;
}

/* Whether the class has an encoder and a decoder behind it: both are modules of their own. */
static bool find_encoder(const heft_model *model)
{
    bool encoder = false, decoder = false;
    for (size_t i = 0; i < model->module_count; i++) {
        const heft_module *module = &model->modules[i];
        if (module->kind == HEFT_MODULE_MODEL) {
            encoder = encoder || strcmp(module->name, "encoder") == 0;
            decoder = decoder || strcmp(module->name, "decoder") == 0;
        }
    }
    return model->family->encode && encoder && decoder;
}

/* Learn from a dry run of one token whether there is a cache, and how much the least pass takes. */
static heft_status first_dry_run(heft_session *session, heft_error *err)
{
    const struct pass_shape least = {
        .tokens = 1, .sequences = 1, .wanted = 1, .keys = 1, .encoded = 1};
    heft_status status = HEFT_OK;
    session->has_encoder = find_encoder(session->model);
    if (session->has_encoder) {
        status = dry_run(session, &least, true, err);
    }
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
        const heft__pass_options pass = {.exact = session->options.exact};
        status = heft__pass_new(model, session->residency, &pass, &session->pass, err);
    }
    if (status == HEFT_OK) {
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
                                       .tokens = session->tokens};
    return status == HEFT_OK ? HEFT__GIVE_SIZED(counts, &given, err) : status;
}

/* ---- sequences -------------------------------------------------------------------------------------- */
static size_t pass_tokens(const heft_session *session)
{
    return session->options.pass_tokens ? (size_t)session->options.pass_tokens
                                        : STANDARD_PASS_TOKENS;
}

static heft_status new_sequence(heft_session *session, size_t capacity, size_t encoded,
                                heft_sequence **out, heft_error *err)
{
    const heft__pass *p = session->pass;
    size_t bytes = 0;
    if (!heft__sequence_bytes(p->slots, p->slot_count, p->cache_dtype, capacity,
                              pass_tokens(session), encoded, &bytes)) {
        return heft__fail(err, HEFT_LIMIT, "a cache for %zu tokens is larger than memory can be",
                          capacity);
    }
    heft_sequence *sequence = heft__alloc_zero(session->ctx, 1, sizeof *sequence);
    if (!sequence) {
        return heft__fail_nomem(err, sizeof *sequence);
    }
    *sequence = (heft_sequence){.session = session, .encoded = encoded};
    heft_status status = heft_ledger_reserve(session->ledger, bytes, err);
    if (status == HEFT_OK) {
        sequence->reserved = bytes;
        status = heft__sequence_new(session->ctx, p->slots, p->slot_count, p->cache_dtype, capacity,
                                    pass_tokens(session), encoded, &sequence->kept, err);
    }
    if (status == HEFT_OK) {
        *out = sequence;
    } else {
        heft_sequence_free(sequence);
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
    return new_sequence(session, tokens, encoded_tokens, out, err);
}

heft_status heft_sequence_fork(const heft_sequence *sequence, heft_sequence **out, heft_error *err)
{
    heft_sequence *copy = NULL;
    if (!sequence || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "sequence or result is NULL");
    }
    heft_status status =
        new_sequence(sequence->session, sequence->kept->capacity, sequence->encoded, &copy, err);
    if (status == HEFT_OK) {
        status = heft__sequence_copy(copy->kept, sequence->kept, sequence->session->pass, err);
    }
    if (status != HEFT_OK) {
        heft_sequence_free(copy);
        return status;
    }
    copy->counted = sequence->counted;
    copy->broken = sequence->broken;
    *out = copy;
    return HEFT_OK;
}

void heft_sequence_free(heft_sequence *sequence)
{
    if (!sequence) {
        return;
    }
    heft__sequence_free(sequence->kept);
    heft_ledger_give_back(sequence->session->ledger, sequence->reserved);
    heft__free(sequence->session->ctx, sequence, sizeof *sequence);
}

uint64_t heft_sequence_length(const heft_sequence *sequence)
{
    return sequence ? (uint64_t)sequence->kept->length : 0;
}

/* ---- packing ------------------------------------------------------------------------------------------ */
/* The inputs of a call, or of one pass of it, as a pass takes them. */
struct packed {
    int32_t *ids, *at, *counted, *types, *seen_at, *first, *last, *wanted;
    heft__span *spans;
    size_t tokens, sequences, wanted_count;
    size_t most_keys, encoded; /* of a sequence; of all */
};

static heft_status make_packed(heft__arena *arena, size_t tokens, size_t sequences,
                               struct packed *out, heft_error *err)
{
    int32_t **arrays[] = {&out->ids,     &out->at,    &out->counted, &out->types,
                          &out->seen_at, &out->first, &out->last,    &out->wanted};
    *out = (struct packed){0};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        const bool of_sequences = arrays[i] == &out->first || arrays[i] == &out->last;
        *arrays[i] = heft__arena_array(arena, of_sequences ? sequences : tokens, sizeof(int32_t));
        if (!*arrays[i]) {
            return heft__fail_nomem(err, tokens * sizeof(int32_t));
        }
    }
    out->spans = heft__arena_array(arena, sequences, sizeof *out->spans);
    return out->spans ? HEFT_OK : heft__fail_nomem(err, sequences * sizeof *out->spans);
}

/* One part of a sequence's new tokens. */
struct portion {
    const heft_input *input;
    heft_sequence *sequence;
    const int32_t *ids;
    size_t first, count; /* of its tokens */
    int32_t reach;       /* the largest position of all tokens + 1 */
    bool plain;          /* without mask, positions and types: a decoder behind an encoder */
    bool last;           /* its last tokens are among these */
    bool drops_masked;   /* a decoder does not compute padding */
};

static bool is_seen(const struct portion *portion, size_t i)
{
    return portion->plain || !portion->input->mask || portion->input->mask[i];
}

static void add_token(struct packed *out, const struct portion *portion, size_t i)
{
    const heft_input *input = portion->input;
    const size_t t = out->tokens++;
    const bool seen = is_seen(portion, i), given = !portion->plain && input->positions;
    const int32_t place = portion->sequence->kept->length + (int32_t)i;
    out->ids[t] = portion->ids ? portion->ids[i] : 0;
    out->at[t] = given ? input->positions[i] : place;
    out->counted[t] = given ? input->positions[i] : portion->sequence->counted;
    portion->sequence->counted += seen;
    out->types[t] = !portion->plain && input->types ? input->types[i] : 0;
    out->seen_at[t] = seen ? out->at[t] : -1;
    if (input->logits == HEFT_LOGITS_ALL) {
        out->wanted[out->wanted_count++] = (int32_t)t;
    }
}

static void add_portion(struct packed *out, const struct portion *portion)
{
    const size_t first = out->tokens, s = out->sequences++;
    size_t last = first;
    for (size_t i = portion->first; i < portion->first + portion->count; i++) {
        if (!portion->drops_masked || is_seen(portion, i)) {
            last = is_seen(portion, i) ? out->tokens : last;
            add_token(out, portion, i);
        }
    }
    if (out->tokens == first) { /* padding only */
        out->sequences--;
        return;
    }
    out->first[s] = (int32_t)first;
    out->last[s] = (int32_t)last;
    out->spans[s] = (heft__span){.sequence = portion->sequence->kept,
                                 .first = first,
                                 .count = out->tokens - first,
                                 .reach = portion->reach,
                                 .ends = portion->last};
    if (portion->input->logits == HEFT_LOGITS_LAST && portion->last) {
        out->wanted[out->wanted_count++] = (int32_t)last;
    }
    out->most_keys = larger(out->most_keys, (size_t)portion->sequence->kept->length +
                                                portion->first + portion->count);
    out->encoded += portion->sequence->kept->encoded_count;
}

static heft_status run_packed(heft_session *session, const struct packed *in,
                              const heft_input *features, bool encode, bool appends,
                              heft_error *err)
{
    const struct pass_shape wanted = {in->tokens, in->sequences, in->wanted_count, in->most_keys,
                                      in->encoded};
    heft__pass_run run = {
        .inputs = {.tokens = in->tokens,
                   .sequences = in->sequences,
                   .ids = in->ids,
                   .at = in->at,
                   .counted = in->counted,
                   .types = in->types,
                   .first = in->first,
                   .last = in->last,
                   .wanted = in->wanted,
                   .wanted_count = in->wanted_count},
        .seen_at = in->seen_at,
        .spans = in->spans,
        .appends = appends,
        .encode = encode
    };
    if (features && features->features) {
        run.inputs.features = features->features;
        for (int d = 0; d < 3; d++) {
            run.inputs.feature_shape[d] = (size_t)features->feature_shape[d];
        }
    }
    heft_status status = plan_pass(session, &wanted, encode, err);
    if (status == HEFT_OK) {
        status = heft__pass_run_once(session->pass, &run, err);
    }
    session->passes += status == HEFT_OK;
    session->tokens += status == HEFT_OK ? in->tokens : 0;
    return status;
}

/* ---- running ------------------------------------------------------------------------------------------- */
struct call {
    heft_session *session;
    const heft_input *inputs; /* [count] */
    size_t count;
    heft_sequence **sequences; /* [count] */
    bool *made;                /* [count] for this call only */
    heft__arena arena;
};

static size_t tokens_of(const heft_input *input, bool encode, bool has_encoder)
{
    return has_encoder && !encode && input->decoder_ids ? input->decoder_count : input->count;
}

/* Tokens up to the last one that is not masked: a decoder's passes end there. */
static size_t seen_tokens(const heft_input *input)
{
    size_t count = input->count;
    while (input->mask && count > 0 && !input->mask[count - 1]) {
        count--;
    }
    return count;
}

/* The largest position of an input's tokens + 1, padding included. */
static int32_t reach_of(const heft_input *input, const heft_sequence *sequence, size_t tokens,
                        bool plain)
{
    int32_t reach = sequence->kept->length + (int32_t)tokens;
    if (input->positions && !plain) {
        reach = 0;
        for (size_t i = 0; i < tokens; i++) {
            reach = input->positions[i] >= reach ? input->positions[i] + 1 : reach;
        }
    }
    return reach;
}

static heft_status check_input(const heft_session *session, const heft_input *input,
                               heft_error *err)
{
    if (input->struct_size == 0 || (!input->ids && !input->features && !input->decoder_ids)) {
        return heft__fail(err, HEFT_INVALID_ARG, "an input has neither ids nor features");
    }
    if (input->count == 0 && !input->features) {
        return heft__fail(err, HEFT_INVALID_ARG, "an input has no tokens");
    }
    if (input->decoder_ids && !session->has_encoder) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s has no encoder: decoder_ids are not its input",
                          session->model->class_name);
    }
    for (size_t i = 0; input->positions && i < input->count; i++) {
        if (input->positions[i] < 0 || input->positions[i] == INT32_MAX) {
            return heft__fail(err, HEFT_INVALID_ARG, "position %d is negative or too large",
                              (int)input->positions[i]);
        }
    }
    if (session->causal && !session->has_encoder && seen_tokens(input) == 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "all tokens of an input are masked");
    }
    if (!session->causal && input->sequence && input->sequence->kept->length > 0) {
        return heft__fail(err, HEFT_UNSUPPORTED,
                          "%s keeps nothing of earlier tokens: a sequence cannot go on",
                          session->model->class_name);
    }
    const heft_sequence *sequence = input->sequence;
    if (sequence && (sequence->session != session || sequence->broken)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          sequence->broken ? "a pass with this sequence has failed"
                                           : "the sequence belongs to another session");
    }
    const bool encodes = session->has_encoder && input->decoder_ids;
    const size_t tokens = encodes ? input->decoder_count : input->count;
    if (sequence && tokens > sequence->kept->capacity - (size_t)sequence->kept->length) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "%zu tokens after %d, the sequence has room for %zu", tokens,
                          (int)sequence->kept->length, sequence->kept->capacity);
    }
    if (session->has_encoder && !encodes && (!sequence || !sequence->kept->encoded)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "the first pass of a sequence needs the decoder's ids too");
    }
    return HEFT_OK;
}

static heft_status take_sequences(struct call *call, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < call->count && status == HEFT_OK; i++) {
        const heft_input *input = &call->inputs[i];
        status = check_input(call->session, input, err);
        call->sequences[i] = input->sequence;
        if (status == HEFT_OK && !input->sequence) {
            const size_t tokens = tokens_of(input, false, call->session->has_encoder);
            if (tokens > call->session->positions) {
                return heft__fail(err, HEFT_INVALID_ARG, "%zu tokens, the model has %llu positions",
                                  tokens, (unsigned long long)call->session->positions);
            }
            status = new_sequence(call->session, tokens ? tokens : 1, input->count,
                                  &call->sequences[i], err);
            call->made[i] = status == HEFT_OK;
        }
    }
    return status;
}

/* The encoder's pass of those inputs that have the decoder's ids too. */
static heft_status run_encoder(struct call *call, heft_error *err)
{
    size_t tokens = 0, sequences = 0;
    struct packed in;
    const heft_input *features = NULL;
    for (size_t i = 0; i < call->count; i++) {
        tokens += call->inputs[i].decoder_ids ? call->inputs[i].count : 0;
        sequences += call->inputs[i].decoder_ids != NULL;
        features = call->inputs[i].features ? &call->inputs[i] : features;
    }
    if (sequences == 0) {
        return HEFT_OK;
    }
    heft_status status = make_packed(&call->arena, tokens, sequences, &in, err);
    for (size_t i = 0; i < call->count && status == HEFT_OK; i++) {
        const heft_input *input = &call->inputs[i];
        if (input->decoder_ids) {
            const struct portion portion = {.input = input,
                                            .sequence = call->sequences[i],
                                            .ids = input->ids,
                                            .count = input->count,
                                            .reach = (int32_t)input->count,
                                            .last = true};
            add_portion(&in, &portion);
            call->sequences[i]->counted = 0;
        }
    }
    in.wanted_count = 0;
    return status == HEFT_OK ? run_packed(call->session, &in, features, true, false, err) : status;
}

/* The next tokens, as many as one pass takes: *input and *token say where they begin, and then where the
 * next ones do. */
static heft_status run_next(struct call *call, size_t *input, size_t *token, bool appends,
                            heft_error *err)
{
    const heft_session *session = call->session;
    size_t tokens = 0, room = pass_tokens(session);
    const heft_input *features = NULL;
    struct packed in;
    for (size_t i = 0; i < call->count; i++) {
        tokens += tokens_of(&call->inputs[i], false, session->has_encoder);
    }
    heft_status status = make_packed(&call->arena, tokens, call->count, &in, err);
    while (status == HEFT_OK && *input < call->count) {
        const heft_input *one = &call->inputs[*input];
        const bool behind = session->has_encoder && one->decoder_ids;
        const size_t given = tokens_of(one, false, session->has_encoder),
                     all = session->causal && !behind ? seen_tokens(one) : given,
                     left = all - *token;
        if (in.tokens > 0 && (session->causal ? room == 0 : left > room)) {
            break;
        }
        const size_t count = session->causal && left > room ? room : left;
        const struct portion portion = {.input = one,
                                        .sequence = call->sequences[*input],
                                        .ids = behind ? one->decoder_ids : one->ids,
                                        .first = *token,
                                        .count = count,
                                        .reach =
                                            reach_of(one, call->sequences[*input], given, behind),
                                        .plain = behind,
                                        .last = count == left,
                                        .drops_masked = session->causal};
        add_portion(&in, &portion);
        features = one->features ? one : features;
        room -= count < room ? count : room;
        *token += count;
        if (*token == all) {
            (*input)++;
            *token = 0;
        }
    }
    return status == HEFT_OK && in.tokens > 0 /* else it was padding only */
               ? run_packed(call->session, &in, session->has_encoder ? NULL : features, false,
                            appends, err)
               : status;
}

static heft_status run_call(struct call *call, heft_error *err)
{
    size_t input = 0, token = 0;
    bool appends = false;
    heft_status status = take_sequences(call, err);
    if (status == HEFT_OK && call->session->has_encoder) {
        status = run_encoder(call, err);
        appends = true; /* the encoder's results stay */
    }
    while (status == HEFT_OK && input < call->count) {
        status = run_next(call, &input, &token, appends, err);
        appends = true;
    }
    for (size_t i = 0; status == HEFT_OK && i < call->count; i++) {
        const heft_input *one = &call->inputs[i];
        heft__sequence *kept = call->sequences[i]->kept;
        const size_t tokens = tokens_of(one, false, call->session->has_encoder);
        const int32_t reach = reach_of(one, call->sequences[i], tokens,
                                       call->session->has_encoder && one->decoder_ids);
        kept->reach = reach > kept->reach ? reach : kept->reach;
        kept->length += (int32_t)tokens;
    }
    return status;
}

/* Results that were asked for must be there, and logits finite. */
static heft_status check_results(const heft_session *session, heft_error *err)
{
    const heft__pass *p = session->pass;
    for (size_t i = 0; i < p->result_count; i++) {
        const heft__result *result = &p->results[i];
        if (!result->data) {
            return heft__fail(err, HEFT_NOT_FOUND, "class %s has no output '%s'",
                              session->model->class_name, result->name);
        }
        if (result->data && !p->kernels->finite(result->data, result->count * result->width)) {
            return heft__fail(err, HEFT_FORMAT,
                              "%s are not finite numbers; the first block whose "
                              "output is not finite is '%s'",
                              result->name, p->bad_block ? p->bad_block : "the head");
        }
    }
    return HEFT_OK;
}

heft_status heft_session_run(heft_session *session, const heft_input *inputs, size_t count,
                             const char *const *outputs, size_t output_count, heft_error *err)
{
    if (!session || !inputs || count == 0 || (output_count > 0 && !outputs)) {
        return heft__fail(err, HEFT_INVALID_ARG, "session or inputs are NULL");
    }
    struct call call = {.session = session, .inputs = inputs, .count = count};
    heft__arena_init(&call.arena, session->ctx);
    call.sequences = heft__arena_array(&call.arena, count, sizeof *call.sequences);
    call.made = heft__arena_array(&call.arena, count, sizeof *call.made);
    heft_status status = call.sequences && call.made ? HEFT_OK : heft__fail_nomem(err, count);
    if (status == HEFT_OK) {
        status = heft__pass_ask(session->pass, outputs, output_count, err);
    }
    if (status == HEFT_OK) {
        status = run_call(&call, err);
    }
    if (status == HEFT_OK) {
        status = check_results(session, err);
    }
    for (size_t i = 0; call.sequences && call.made && i < count; i++) {
        if (call.made[i]) {
            heft_sequence_free(call.sequences[i]);
        } else if (call.sequences[i] && status != HEFT_OK) {
            call.sequences[i]->broken = true;
        }
    }
    heft__arena_fini(&call.arena);
    return status;
}

heft_status heft_session_output(const heft_session *session, const char *name, heft_output *output,
                                heft_error *err)
{
    static const heft_output_kind kinds[] = {
        [HEFT__OUT_TOKENS] = HEFT_OUTPUT_TOKENS, [HEFT__OUT_SEQUENCES] = HEFT_OUTPUT_SEQUENCES,
        [HEFT__OUT_WANTED] = HEFT_OUTPUT_LOGITS, [HEFT__OUT_ENCODED] = HEFT_OUTPUT_ENCODED,
        [HEFT__OUT_WHOLE] = HEFT_OUTPUT_WHOLE,
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
