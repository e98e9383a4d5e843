/* session_run.c - one call: inputs of several sequences, packed into passes.
 *
 * Each input has up to two jobs: one for the encoder (or the model of images), one for the rest. All tokens
 * of the first job are packed, then those of the next. A decoder's tokens may be split over several
 * passes, unless a result needs all of a sequence at once; the tokens of one job of an encoder are kept
 * together. Padding has no job in a decoder. */
#include "run/session_state.h"

/* The tokens of one sequence that a kind of pass adds. */
struct job {
    const heft_input *input;
    heft_sequence *sequence;
    const int32_t *ids; /* [count] NULL: tokens are made of features */
    size_t count;
    size_t seen;   /* tokens up to the last one that is computed: a decoder's passes end there */
    int32_t reach; /* the largest position of all tokens + 1, padding included */
    bool plain;    /* without mask, positions and types: a decoder behind an encoder, or features */
};

struct call {
    heft_session *session;
    const heft_input *inputs; /* [count] */
    size_t count;
    heft_sequence **sequences; /* [count] */
    bool *made;                /* [count] for this call only */
    struct job *jobs[2];       /* [job_count] of the decoder, or all there is; of the encoder */
    size_t job_count[2];
    size_t room[2]; /* tokens of a pass of each */
    bool splits;    /* a decoder's sequences, over several passes */
    heft__arena arena;
};

/* ---- jobs ----------------------------------------------------------------------------------------- */
static bool is_first(const heft_session *session, const heft_input *input)
{
    return !session->has_encoder || !input->sequence || !input->sequence->kept->encoded;
}

/* A sequence goes on behind its encoder's input, by the decoder's ids under their own name. */
static bool continues_alone(const heft_session *session, const heft_input *input)
{
    return session->has_encoder && !session->dual && !is_first(session, input) && !input->ids &&
           !input->features && input->decoder_ids && input->decoder_count > 0;
}

/* The decoder's ids where none are given: the encoder's, one place later. */
static heft_status shift_ids(struct call *call, const heft_input *input, const int32_t **ids,
                             heft_error *err)
{
    const int32_t start = call->session->ids.decoder_start;
    if (start < 0 || !input->ids) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          start < 0 ? "the decoder's ids are not given, and the config has no "
                                      "decoder_start_token_id"
                                    : "%s needs decoder_input_ids",
                          call->session->model->class_name);
    }
    int32_t *shifted = heft__arena_array(&call->arena, input->count, sizeof *shifted);
    if (!shifted) {
        return heft__fail_nomem(err, input->count * sizeof *shifted);
    }
    shifted[0] = start;
    memcpy(shifted + 1, input->ids, (input->count - 1) * sizeof *shifted);
    *ids = shifted;
    return HEFT_OK;
}

/* Tokens up to the last one that is not masked. */
static size_t seen_tokens(const heft_input *input)
{
    size_t count = input->count;
    while (input->mask && count > 0 && !input->mask[count - 1]) {
        count--;
    }
    return count;
}

static int32_t reach_of(const struct job *job, const heft_sequence *sequence)
{
    int32_t reach = (sequence ? sequence->kept->length : 0) + (int32_t)job->count;
    if (!job->plain && job->input->positions) {
        reach = 0;
        for (size_t i = 0; i < job->count; i++) {
            reach = job->input->positions[i] >= reach ? job->input->positions[i] + 1 : reach;
        }
    }
    return reach;
}

static void add_job(struct call *call, bool encode, struct job job)
{
    const bool drops_padding = call->session->causal && !encode && !job.plain;
    job.seen = drops_padding ? seen_tokens(job.input) : job.count;
    job.reach = reach_of(&job, encode ? NULL : job.input->sequence);
    call->jobs[encode][call->job_count[encode]++] = job;
}

static heft_status make_jobs(struct call *call, size_t i, heft_error *err)
{
    const heft_session *session = call->session;
    const heft_input *input = &call->inputs[i];
    const bool first = is_first(session, input), featured = input->features != NULL;
    struct job job = {.input = input,
                      .ids = featured ? NULL : input->ids,
                      .count = featured ? session->feature_tokens : input->count,
                      .plain = featured};
    heft_status status = HEFT_OK;
    if (session->dual) {
        add_job(call, featured, job);
        return HEFT_OK;
    }
    if (!first && continues_alone(session, input)) {
        job.ids = input->decoder_ids;
        job.count = input->decoder_count;
        job.plain = true;
    }
    if (session->has_encoder && first) {
        add_job(call, true, job);
        job.ids = input->decoder_ids;
        job.count = input->decoder_ids ? input->decoder_count : input->count;
        job.plain = true;
        if (!job.ids) {
            status = shift_ids(call, input, &job.ids, err);
        }
    }
    add_job(call, false, job);
    return status;
}

/* ---- checks --------------------------------------------------------------------------------------- */
static heft_status check_features(const heft_session *session, const heft_input *input,
                                  heft_error *err)
{
    const size_t *expected = session->feature_shape;
    if (session->feature_tokens == 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s takes neither pixel_values nor input_features",
                          session->model->class_name);
    }
    for (int d = 0; d < 3; d++) {
        if (input->feature_shape[d] != expected[d]) {
            return heft__fail(
                err, HEFT_INVALID_ARG,
                "features of shape [%llu, %llu, %llu], the model takes [%zu, %zu, %zu]",
                (unsigned long long)input->feature_shape[0],
                (unsigned long long)input->feature_shape[1],
                (unsigned long long)input->feature_shape[2], expected[0], expected[1], expected[2]);
        }
    }
    return HEFT_OK;
}

static heft_status check_input(const heft_session *session, const heft_input *input,
                               heft_error *err)
{
    const heft_sequence *sequence = input->sequence;
    const bool continues = session->has_encoder && !is_first(session, input);
    const bool must_have = session->feature_tokens > 0 && !session->dual && !continues;
    const bool alone = continues_alone(session, input);
    if (input->struct_size == 0 ||
        (!alone && !input->features && (!input->ids || input->count == 0))) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          must_have ? "%s needs pixel_values or input_features"
                                    : "an input of %s has no ids",
                          session->model->class_name);
    }
    if (must_have && !input->features) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s needs pixel_values or input_features",
                          session->model->class_name);
    }
    if (input->decoder_ids && !alone && (!session->has_encoder || session->dual || continues)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          continues ? "the sequence has its encoder's input already: it goes on "
                                      "with decoder_input_ids alone"
                                    : "%s has no encoder: decoder_ids are not its input",
                          session->model->class_name);
    }
    if (input->positions && session->pass->numbering == HEFT__NUMBER_FIXED) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s takes no position_ids",
                          session->model->class_name);
    }
    for (size_t i = 0; input->positions && i < input->count; i++) {
        if (input->positions[i] < 0 || input->positions[i] == INT32_MAX) {
            return heft__fail(err, HEFT_INVALID_ARG, "position %d is negative or too large",
                              (int)input->positions[i]);
        }
    }
    if (session->causal && !session->has_encoder && input->ids && seen_tokens(input) == 0) {
        return heft__fail(err, HEFT_INVALID_ARG, "all tokens of an input are masked");
    }
    if (!session->causal && sequence && sequence->kept->length > 0) {
        return heft__fail(err, HEFT_UNSUPPORTED,
                          "%s keeps nothing of earlier tokens: a sequence cannot go on",
                          session->model->class_name);
    }
    if (sequence && (sequence->session != session || sequence->broken)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          sequence->broken ? "a pass with this sequence has failed"
                                           : "the sequence belongs to another session");
    }
    return input->features ? check_features(session, input, err) : HEFT_OK;
}

/* A sequence of the caller's has room; one for this call is made with it. */
static heft_status take_sequence(struct call *call, size_t i, size_t tokens, size_t encoded,
                                 heft_error *err)
{
    const heft_session *session = call->session;
    heft_sequence *sequence = call->inputs[i].sequence;
    if (sequence && sequence->running) {
        return heft__fail(err, HEFT_INVALID_ARG, "two inputs have the same sequence");
    }
    if (sequence && tokens > sequence->kept->capacity - (size_t)sequence->kept->length) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "%zu tokens after %d, the sequence has room for %zu", tokens,
                          (int)sequence->kept->length, sequence->kept->capacity);
    }
    if (sequence && encoded > sequence->encoded) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "%zu tokens for the encoder, the sequence has room for %zu", encoded,
                          sequence->encoded);
    }
    if (!sequence && session->feature_tokens == 0 && tokens > session->positions) {
        return heft__fail(err, HEFT_INVALID_ARG, "%zu tokens, the model has %llu positions", tokens,
                          (unsigned long long)session->positions);
    }
    call->sequences[i] = sequence;
    if (sequence) {
        sequence->running = true;
        return HEFT_OK;
    }
    heft_status status = heft__session_new_sequence(call->session, tokens ? tokens : 1, encoded,
                                                    &call->sequences[i], err);
    call->made[i] = status == HEFT_OK;
    return status;
}

static heft_status take_inputs(struct call *call, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < call->count && status == HEFT_OK; i++) {
        const size_t mains = call->job_count[0], encodes = call->job_count[1];
        status = check_input(call->session, &call->inputs[i], err);
        if (status == HEFT_OK) {
            status = make_jobs(call, i, err);
        }
        if (status == HEFT_OK) {
            const size_t tokens = call->job_count[0] > mains ? call->jobs[0][mains].count : 0;
            const size_t encoded = call->job_count[1] > encodes ? call->jobs[1][encodes].count : 0;
            status = take_sequence(call, i, tokens, encoded, err);
        }
        for (size_t k = mains; k < call->job_count[0]; k++) {
            call->jobs[0][k].sequence = call->sequences[i];
        }
        for (size_t k = encodes; k < call->job_count[1]; k++) {
            call->jobs[1][k].sequence = call->sequences[i];
        }
    }
    return status;
}

/* ---- packing -------------------------------------------------------------------------------------- */
/* Some jobs, or sections of them, as a pass takes them. */
struct packed {
    int32_t *ids, *at, *counted, *types, *places, *seen_at, *first, *last, *wanted;
    bool *typed;
    float *features;
    heft__span *spans;
    size_t tokens, sequences, wanted_count, featured;
    size_t most_keys, encoded; /* that a sequence has room for; of all */
};

static size_t numbers_of_features(const heft_session *session)
{
    return session->feature_shape[0] * session->feature_shape[1] * session->feature_shape[2];
}

static heft_status make_packed(const heft_session *session, heft__arena *arena, size_t tokens,
                               size_t sequences, struct packed *out, heft_error *err)
{
    int32_t **arrays[] = {&out->ids,     &out->at,     &out->counted, &out->types, &out->places,
                          &out->seen_at, &out->wanted, &out->first,   &out->last};
    *out = (struct packed){0};
    for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) {
        const size_t count = i < 7 ? tokens : sequences;
        *arrays[i] = heft__arena_array(arena, count, sizeof(int32_t));
        if (!*arrays[i]) {
            return heft__fail_nomem(err, count * sizeof(int32_t));
        }
    }
    out->spans = heft__arena_array(arena, sequences, sizeof *out->spans);
    out->typed = heft__arena_array(arena, sequences, sizeof *out->typed);
    if (session->feature_tokens > 0) {
        out->features =
            heft__arena_array(arena, sequences, numbers_of_features(session) * sizeof(float));
    }
    return out->spans && out->typed && (out->features || session->feature_tokens == 0)
               ? HEFT_OK
               : heft__fail_nomem(err, sequences * sizeof *out->spans);
}

static bool is_typed(const struct job *job)
{
    return !job->plain && job->input->types;
}

static bool is_seen(const struct job *job, size_t i)
{
    return job->plain || !job->input->mask || job->input->mask[i];
}

/* The number of a token, by the pass's heft__number(), where none is given; and one more for the next one. */
static int32_t count_token(const heft__pass *p, const struct job *job, size_t i)
{
    heft_sequence *sequence = job->sequence;
    const bool is_word = !job->ids || job->ids[i] != p->padding;
    const int32_t counted = p->numbering != HEFT__NUMBER_WORDS ? sequence->counted
                            : is_word                          ? p->padding + 1 + sequence->words
                                                               : p->padding;
    sequence->counted += is_seen(job, i);
    sequence->words += is_word;
    return counted;
}

static void add_token(const heft__pass *p, struct packed *out, const struct job *job, size_t i,
                      int32_t counted)
{
    const heft_input *input = job->input;
    const size_t t = out->tokens++;
    const bool given = !job->plain && input->positions;
    out->ids[t] = job->ids ? job->ids[i] : 0;
    const int32_t place = job->sequence->kept->length + (int32_t)i;
    out->at[t] = given ? input->positions[i] : place;
    out->places[t] = p->numbering == HEFT__NUMBER_ALIBI ? counted : place;
    out->counted[t] = given ? input->positions[i] : counted;
    out->types[t] = is_typed(job) ? input->types[i] : 0;
    out->seen_at[t] = is_seen(job, i) ? out->places[t] : -1;
    if (input->logits == HEFT_LOGITS_ALL) {
        out->wanted[out->wanted_count++] = (int32_t)t;
    }
}

/* Tokens from `first` on, of which at most `room` are computed. */
static size_t section_length(const struct job *job, size_t first, size_t room)
{
    size_t end = first;
    for (; end < job->seen && (room > 0 || !is_seen(job, end)); end++) {
        room -= is_seen(job, end);
    }
    return end - first;
}

/* Tokens first .. first + count - 1 of a job. A decoder does not compute padding. */
static void add_section(struct packed *out, const heft_session *session, const struct job *job,
                        size_t first, size_t count, bool drops_padding)
{
    const size_t begin = out->tokens, s = out->sequences++;
    size_t last = begin;
    for (size_t i = first; i < first + count; i++) {
        const int32_t counted = count_token(session->pass, job, i);
        if (!drops_padding || is_seen(job, i)) {
            last = is_seen(job, i) ? out->tokens : last;
            add_token(session->pass, out, job, i, counted);
        }
    }
    const bool ends = first + count == job->seen;
    for (size_t i = job->seen; ends && i < job->count; i++) { /* masked ones may be words, too */
        (void)count_token(session->pass, job, i);
    }
    out->first[s] = (int32_t)begin;
    out->last[s] = (int32_t)last;
    out->typed[s] = is_typed(job);
    out->spans[s] = (heft__span){.sequence = job->sequence->kept,
                                 .first = begin,
                                 .count = out->tokens - begin,
                                 .reach = job->reach,
                                 .ends = ends};
    if (job->input->logits == HEFT_LOGITS_LAST && ends) {
        out->wanted[out->wanted_count++] = (int32_t)last;
    }
    if (job->input->features && !job->ids) {
        const size_t numbers = numbers_of_features(session);
        memcpy(out->features + out->featured++ * numbers, job->input->features,
               numbers * sizeof(float));
    }
    out->most_keys = heft__larger(out->most_keys, job->sequence->kept->capacity);
    out->encoded += job->sequence->kept->encoded ? job->sequence->kept->encoded->count : 0;
}

static heft_status run_packed(heft_session *session, const struct packed *in, bool encode,
                              bool appends, heft_error *err)
{
    const struct heft__pass_shape wanted = {in->tokens, in->sequences, in->wanted_count,
                                            in->most_keys, in->encoded};
    heft__pass_run run = {
        .inputs = {.tokens = in->tokens,
                   .sequences = in->sequences,
                   .ids = in->ids,
                   .at = in->at,
                   .counted = in->counted,
                   .types = in->types,
                   .typed = in->typed,
                   .first = in->first,
                   .last = in->last,
                   .wanted = in->wanted,
                   .wanted_count = in->wanted_count,
                   .features = in->featured > 0 ? in->features : NULL},
        .places = in->places,
        .seen_at = in->seen_at,
        .spans = in->spans,
        .appends = appends,
        .encode = encode
    };
    memcpy(run.inputs.feature_shape, session->feature_shape, sizeof session->feature_shape);
    heft_status status = heft__session_plan(session, &wanted, encode, err);
    for (size_t s = 0; !encode && status == HEFT_OK && s < in->sequences; s++) {
        const heft__span *span = &in->spans[s];
        status = heft__sequence_prepare(session->pass, span->sequence, span->count, err);
    }
    if (status == HEFT_OK) {
        status = heft__pass_run_once(session->pass, &run, err);
    }
    session->passes += status == HEFT_OK;
    session->tokens += status == HEFT_OK ? in->tokens : 0;
    return status;
}

/* ---- running -------------------------------------------------------------------------------------- */
/* What one pass can hold of the jobs from `job` on: a decoder's is full, an encoder's takes at least one
 * whole. */
static size_t most_tokens(const struct call *call, bool encode, size_t job)
{
    const size_t room = call->room[encode];
    size_t tokens = 0;
    for (size_t i = job; i < call->job_count[encode] && tokens < room; i++) {
        const size_t count = call->jobs[encode][i].count;
        tokens = tokens == 0 || count <= room - tokens ? tokens + count : room;
    }
    return call->splits && !encode && tokens > room ? room : tokens;
}

/* Whether a decoder's sequences may be split: no result needs a token that another part of it has. */
static bool may_split(const struct call *call)
{
    const heft__pass *p = call->session->pass;
    bool whole = p->whole;
    for (size_t i = 0; p->whole_behind_id && !whole && i < call->job_count[0]; i++) {
        const struct job *job = &call->jobs[0][i];
        whole = job->ids && job->seen > 0 && job->ids[job->seen - 1] == p->behind_id;
    }
    return call->session->causal && !whole;
}

/* In a tight budget, a decoder's passes have fewer tokens. */
static heft_status fit_passes(struct call *call, heft_error *err)
{
    heft_session *session = call->session;
    if (!call->splits || session->has_encoder) {
        return HEFT_OK;
    }
    const size_t tokens = most_tokens(call, false, 0);
    struct heft__pass_shape shape = {.tokens = tokens};
    for (size_t i = 0; i < call->count; i++) {
        const size_t all = call->inputs[i].logits == HEFT_LOGITS_ALL ? tokens : 1;
        shape.wanted = heft__larger(shape.wanted, all);
        shape.keys = heft__larger(shape.keys, call->sequences[i]->kept->capacity);
    }
    shape.sequences = call->count < tokens ? call->count : tokens;
    shape.wanted = heft__larger(shape.wanted, shape.sequences);
    return heft__session_fit(session, &shape, &call->room[false], err);
}

/* Fill a pass with the next tokens of a kind of jobs: *job and *token say where they begin, and then where
 * the next ones do. */
static heft_status pack_next(const struct call *call, bool encode, heft__arena *arena, size_t *job,
                             size_t *token, struct packed *out, heft_error *err)
{
    const heft_session *session = call->session;
    const bool splits = call->splits && !encode, drops_padding = session->causal && !encode;
    size_t room = call->room[encode];
    heft_status status = make_packed(session, arena, most_tokens(call, encode, *job),
                                     call->job_count[encode] - *job, out, err);
    while (status == HEFT_OK && *job < call->job_count[encode]) {
        const struct job *one = &call->jobs[encode][*job];
        const size_t left = one->seen - *token;
        if (out->tokens > 0 && (splits ? room == 0 : left > room)) {
            break;
        }
        const size_t count = splits ? section_length(one, *token, room) : left;
        const size_t before = out->tokens;
        add_section(out, session, one, *token, count, drops_padding);
        room -= out->tokens - before < room ? out->tokens - before : room;
        *token += count;
        if (*token == one->seen) {
            (*job)++;
            *token = 0;
        }
    }
    return status;
}

static heft_status run_next(const struct call *call, bool encode, size_t *job, size_t *token,
                            bool appends, heft_error *err)
{
    heft__arena arena; /* of this pass */
    struct packed in;
    heft__arena_init(&arena, call->session->ctx);
    heft_status status = pack_next(call, encode, &arena, job, token, &in, err);
    if (status == HEFT_OK) {
        status = run_packed(call->session, &in, encode, appends, err);
    }
    heft__arena_fini(&arena);
    return status;
}

static heft_status run_call(struct call *call, heft_error *err)
{
    bool appends = false;
    heft_status status = take_inputs(call, err);
    call->splits = may_split(call);
    if (status == HEFT_OK) {
        status = fit_passes(call, err);
    }
    for (int encode = 1; encode >= 0; encode--) {
        size_t job = 0, token = 0;
        while (status == HEFT_OK && job < call->job_count[encode]) {
            status = run_next(call, encode, &job, &token, appends, err);
            appends = true;
        }
        for (size_t i = 0; encode && status == HEFT_OK && i < call->job_count[1]; i++) {
            call->jobs[1][i].sequence->counted = 0; /* the decoder's tokens are counted anew */
            call->jobs[1][i].sequence->words = 0;
        }
    }
    for (size_t i = 0; status == HEFT_OK && i < call->job_count[0]; i++) {
        const struct job *job = &call->jobs[0][i];
        heft__sequence *kept = job->sequence->kept;
        kept->reach = job->reach > kept->reach ? job->reach : kept->reach;
        kept->length += (int32_t)job->count;
    }
    return status;
}

static heft_status no_output(const heft_session *session, const char *name, heft_error *err)
{
    char list[256] = "";
    const char *known;
    for (size_t i = 0, used = 0; (known = heft_session_output_name(session, i)) != NULL; i++) {
        const int more = snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "", known);
        if (more < 0 || (size_t)more >= sizeof list - used) {
            break;
        }
        used += (size_t)more;
    }
    return heft__fail(err, HEFT_NOT_FOUND, "class %s has no output '%s'; it has %s",
                      session->model->class_name, name, list);
}

/* Results that were asked for must be there, and finite. */
static heft_status check_results(const heft_session *session, heft_error *err)
{
    const heft__pass *p = session->pass;
    for (size_t i = 0; i < p->result_count; i++) {
        const heft__result *result = &p->results[i];
        if (!result->data) {
            return no_output(session, result->name, err);
        }
        if (!p->kernels->finite(result->data, result->count * result->width)) {
            return heft__fail(
                err, HEFT_FORMAT,
                "output '%s' has numbers that are not finite; the first block that made "
                "such numbers is '%s'",
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
    const size_t room = heft__session_pass_tokens(session);
    struct call call = {
        .session = session, .inputs = inputs, .count = count, .room = {room, room}
    };
    heft__arena_init(&call.arena, session->ctx);
    call.sequences = heft__arena_array(&call.arena, count, sizeof *call.sequences);
    call.made = heft__arena_array(&call.arena, count, sizeof *call.made);
    call.jobs[0] = heft__arena_array(&call.arena, count, sizeof *call.jobs[0]);
    call.jobs[1] = heft__arena_array(&call.arena, count, sizeof *call.jobs[1]);
    const bool good = call.sequences && call.made && call.jobs[0] && call.jobs[1];
    heft_status status = good ? HEFT_OK : heft__fail_nomem(err, count * sizeof *call.jobs[0]);
    if (status == HEFT_OK) {
        status = heft__pass_ask(session->pass, outputs, output_count, err);
    }
    if (status == HEFT_OK) {
        status = run_call(&call, err);
    }
    if (status == HEFT_OK) {
        status = check_results(session, err);
    }
    for (size_t i = 0; good && i < count; i++) {
        heft_sequence *sequence = call.sequences[i];
        if (call.made[i]) {
            heft_sequence_free(sequence);
        } else if (sequence) {
            sequence->running = false;
            sequence->broken = sequence->broken || status != HEFT_OK;
        }
    }
    heft__arena_fini(&call.arena);
    return status;
}
