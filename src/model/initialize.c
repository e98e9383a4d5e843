/* initialize.c - initial values by rule, and giving them to every absent parameter of a model.
 *
 * A value is a function of (seed, parameter name, element): whatever the threads, the pieces or the
 * order. Values are made in float32 and then cast to the parameter's dtype, so that models of
 * several dtypes differ by rounding only.
 *
 * Source: docs/models.md. */
#include "model/model.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>

#define PIECE_ELEMS ((uint64_t)1 << 20)  /* of one item of parallel work */
#define SCRATCH_ELEMS ((size_t)64 << 10) /* floats before their cast: stays in the cache */

/* ---- one piece of one parameter -------------------------------------------------------------- */
static uint64_t last_dimension(const heft_parameter *parameter)
{
    return parameter->rank ? parameter->shape[parameter->rank - 1] : 1;
}

/* [rows, width]. Layout 0, as DistilBERT has it: element (p, j) is the sine (even j) or cosine (odd
 * j) of p / 10000^(2 floor(j/2) / width). Layout 1, as Whisper has it: width/2 sines, then as many
 * cosines, of p exp(-j ln(10000) / (width/2 - 1)), in float32 as there. */
static void fill_sinusoid(const heft_parameter *parameter, bool halves, uint64_t first, float *dst,
                          size_t count)
{
    const uint64_t width = last_dimension(parameter), half = width / 2;
    const float step = half > 1 ? (float)(log(10000.0) / (double)(half - 1)) : 0.0F;
    for (size_t i = 0; i < count; i++) {
        uint64_t row = (first + i) / width, j = (first + i) % width;
        double angle;
        bool cosine;
        if (halves) {
            cosine = j >= half;
            angle =
                (double)((float)row * (float)exp((double)(-step * (float)(cosine ? j - half : j))));
        } else {
            cosine = j % 2;
            angle = (double)row / pow(10000.0, 2.0 * (double)(j / 2) / (double)width);
        }
        dst[i] = (float)(cosine ? cos(angle) : sin(angle));
    }
}

static void fill_floats(const heft_parameter *parameter, const heft__init_rule *rule, uint64_t seed,
                        uint64_t first, float *dst, size_t count)
{
    const heft__random random = {seed, heft__stable_hash(parameter->name, strlen(parameter->name))};
    const uint64_t width = last_dimension(parameter);
    switch (rule->kind) {
    case HEFT__INIT_CONSTANT:
        for (size_t i = 0; i < count; i++) {
            dst[i] = rule->a;
        }
        break;
    case HEFT__INIT_NORMAL:
        heft__random_normal(&random, rule->a, rule->b, first, dst, count);
        break;
    case HEFT__INIT_TRUNC_NORMAL:
        heft__random_trunc_normal(&random, rule->a, rule->b, rule->low, rule->high, first, dst,
                                  count);
        break;
    case HEFT__INIT_UNIFORM:
        heft__random_uniform(&random, rule->a, rule->b, first, dst, count);
        break;
    case HEFT__INIT_ARANGE:
        for (size_t i = 0; i < count; i++) {
            dst[i] = (float)((first + i) % width);
        }
        break;
    case HEFT__INIT_SINUSOID:
        fill_sinusoid(parameter, rule->a > 0, first, dst, count);
        break;
    case HEFT__INIT_ROTARY:
        heft__rotary_fill(rule->rotary, first, dst, count);
        break;
    }
}

/* Zero what of the padding row lies in the piece. */
static void zero_row(const heft_parameter *parameter, int64_t row, uint64_t first, float *dst,
                     size_t count)
{
    uint64_t elems, rows = parameter->rank ? parameter->shape[0] : 0;
    if (row < 0 || (uint64_t)row >= rows ||
        !heft__shape_elems(parameter->shape, parameter->rank, &elems)) {
        return;
    }
    uint64_t width = elems / rows, begin = (uint64_t)row * width, end = begin + width;
    begin = begin > first ? begin : first;
    end = end < first + count ? end : first + count;
    for (uint64_t i = begin; i < end; i++) {
        dst[i - first] = 0;
    }
}

static void put_integer(uint8_t *dst, unsigned bytes, int64_t value)
{
    switch (bytes) {
    case 8:
        memcpy(dst, &value, sizeof value);
        break;
    case 4:
        memcpy(dst, &(int32_t){(int32_t)value}, sizeof(int32_t));
        break;
    case 2:
        memcpy(dst, &(int16_t){(int16_t)value}, sizeof(int16_t));
        break;
    default:
        *dst = (uint8_t)value;
    }
}

/* Buffers: constants and counts. false for any other rule. */
static bool fill_integers(const heft_parameter *parameter, const heft__init_rule *rule,
                          uint64_t first, size_t count, uint8_t *dst)
{
    const uint64_t width = last_dimension(parameter);
    const unsigned bytes = heft_dtype_bits(parameter->dtype) / 8;
    const bool counting = rule->kind == HEFT__INIT_ARANGE;
    if (!counting && rule->kind != HEFT__INIT_CONSTANT) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        put_integer(dst + i * bytes, bytes,
                    counting ? (int64_t)((first + i) % width) : (int64_t)rule->a);
    }
    return true;
}

static bool is_integer(heft_dtype dtype)
{
    return dtype == HEFT_DTYPE_BOOL || (dtype >= HEFT_DTYPE_I64 && dtype <= HEFT_DTYPE_U64);
}

heft_status heft__init_fill(const heft_parameter *parameter, const heft__init_rule *rule,
                            uint64_t seed, uint64_t first, size_t count, float *scratch, void *dst,
                            heft_error *err)
{
    const heft_dtype dtype = parameter->dtype;
    if (is_integer(dtype) && fill_integers(parameter, rule, first, count, dst)) {
        return HEFT_OK;
    }
    if (!heft__dtype_is_wide_float(dtype)) {
        heft_status status = heft__fail(err, HEFT_UNSUPPORTED, "no initial values for dtype %s",
                                        heft_dtype_name(dtype));
        return heft__add_item(status, err, parameter->name);
    }
    bool in_place = dtype == HEFT_DTYPE_F32 && (uintptr_t)dst % _Alignof(float) == 0;
    float *values = in_place ? dst : scratch;
    fill_floats(parameter, rule, seed, first, values, count);
    zero_row(parameter, rule->zero_row, first, values, count);
    if (!in_place) {
        heft__cast(dtype, dst, HEFT_DTYPE_F32, values, count);
    }
    return HEFT_OK;
}

/* ---- every absent parameter ------------------------------------------------------------------ */
struct piece {
    size_t parameter;
    uint64_t first, count; /* elements */
};

struct job {
    heft_model *model;
    heft_storage **fresh; /* [model->count]; NULL: not ours */
    struct piece *pieces;
    size_t count, cap;
    uint64_t seed, total_bytes;
    _Atomic uint64_t done_bytes;
    pthread_t caller; /* the only thread that reports progress */
};

static heft_status fill_piece(void *user, size_t item, heft_error *err)
{
    struct job *job = user;
    const struct piece *piece = &job->pieces[item];
    const heft_parameter *parameter = &job->model->parameters[piece->parameter];
    const size_t element = heft_dtype_bits(parameter->dtype) / 8;
    const size_t step = piece->count < SCRATCH_ELEMS ? (size_t)piece->count : SCRATCH_ELEMS;
    uint8_t *dst = heft_storage_data(job->fresh[piece->parameter]);
    float *scratch = heft__alloc(job->model->ctx, step * sizeof *scratch);
    heft_status status = scratch ? HEFT_OK : heft__fail_nomem(err, step * sizeof *scratch);
    for (uint64_t done = 0; done < piece->count && status == HEFT_OK; done += step) {
        uint64_t first = piece->first + done, left = piece->count - done;
        status =
            heft__init_fill(parameter, job->model->rules[piece->parameter], job->seed, first,
                            left < step ? (size_t)left : step, scratch, dst + first * element, err);
    }
    heft__free(job->model->ctx, scratch, step * sizeof *scratch);
    uint64_t done_bytes =
        atomic_fetch_add(&job->done_bytes, piece->count * element) + piece->count * element;
    if (status == HEFT_OK && pthread_equal(pthread_self(), job->caller)) {
        status =
            heft__tell_progress(job->model->ctx, "initializing", done_bytes, job->total_bytes, err);
    }
    return status;
}

static heft_status plan_parameter(struct job *job, size_t i, heft_error *err)
{
    const heft_parameter *parameter = &job->model->parameters[i];
    uint64_t elems;
    (void)heft__shape_elems(parameter->shape, parameter->rank,
                            &elems); /* the builder has checked it */
    heft_status status =
        heft__storage_new(job->model->ctx, parameter->size_bytes, &job->fresh[i], err);
    for (uint64_t first = 0; first < elems && status == HEFT_OK; first += PIECE_ELEMS) {
        if (!heft__array_reserve(job->model->ctx, (void **)&job->pieces, job->count, &job->cap,
                                 sizeof *job->pieces)) {
            return heft__fail_nomem(err, sizeof *job->pieces);
        }
        uint64_t left = elems - first;
        job->pieces[job->count++] =
            (struct piece){i, first, left < PIECE_ELEMS ? left : PIECE_ELEMS};
    }
    job->total_bytes += parameter->size_bytes;
    return heft__add_item(status, err, parameter->name);
}

static heft_status plan(struct job *job, heft_error *err)
{
    heft_model *model = job->model;
    heft_status status = HEFT_OK;
    job->fresh = heft__alloc_zero(model->ctx, model->count, sizeof *job->fresh);
    if (!job->fresh) {
        return heft__fail_nomem(err, model->count * sizeof *job->fresh);
    }
    for (size_t i = 0; i < model->count && status == HEFT_OK; i++) {
        if (model->parameters[i].state == HEFT_PARAMETER_ABSENT &&
            model->parameters[i].tied_to == i) {
            status = plan_parameter(job, i, err);
        }
    }
    return status;
}

/* Hand out what was made, then let tied names share it. Cannot fail. */
static void bind_all(struct job *job)
{
    heft_model *model = job->model;
    for (size_t i = 0; i < model->count; i++) {
        if (job->fresh[i]) {
            heft__model_bind(model, i, job->fresh[i], 0, HEFT_PARAMETER_OWNED);
            job->fresh[i] = NULL;
        }
    }
    for (size_t i = 0; i < model->count; i++) {
        size_t source = model->parameters[i].tied_to;
        if (!model->bindings[i].storage) {
            heft__model_bind(model, i, heft_storage_ref(model->bindings[source].storage),
                             model->bindings[source].byte_offset, model->parameters[source].state);
        }
    }
}

heft_status heft_model_init(heft_model *model, const heft_init_options *options, heft_error *err)
{
    if (!model) {
        return heft__fail(err, HEFT_INVALID_ARG, "model is NULL");
    }
    if (!model->known_family) {
        return heft__fail(err, HEFT_UNSUPPORTED, "no initializer is known for model type '%.60s'",
                          model->model_type);
    }
    heft_init_options taken;
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status != HEFT_OK) {
        return status;
    }
    struct job job = {.model = model, .seed = taken.seed, .caller = pthread_self()};
    status = plan(&job, err);
    if (status == HEFT_OK) {
        status = heft__parallel(model->ctx, job.count, fill_piece, &job, err);
    }
    if (status == HEFT_OK &&
        job.count > 0) { /* the caller's last piece need not have been the last of all */
        status =
            heft__tell_progress(model->ctx, "initializing", job.total_bytes, job.total_bytes, err);
    }
    if (status == HEFT_OK) {
        bind_all(&job);
    }
    for (size_t i = 0; job.fresh && i < model->count; i++) {
        heft_storage_unref(job.fresh[i]);
    }
    heft__free(model->ctx, job.pieces, job.cap * sizeof *job.pieces);
    heft__free(model->ctx, job.fresh, model->count * sizeof *job.fresh);
    return status;
}
