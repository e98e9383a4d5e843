/* needs.c - the model that a load would fill, and what filling it would take; no tensor is read.
 *
 * The fate of each parameter is decided by the code that loads (fill.c, counting). Given only a
 * config, a checkpoint with every tensor in the model's dtype and layout is assumed.
 * Source: docs/placing.md [6]. */
#include "load/load.h"

/* ---- the empty model ------------------------------------------------------------------------- */
heft_status heft_model_skeleton(const heft_source *source, const heft_load_options *options,
                                heft_model **out, heft_error *err)
{
    heft_load_options taken;
    if (!source || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "source or result is NULL");
    }
    heft__loading l = {
        .ctx = source->ctx, .source = source, .ckpt = source->ckpt, .options = &taken};
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = heft__loading_make_model(&l, err);
    }
    if (status == HEFT_OK) {
        *out = heft__loading_take_model(&l);
    }
    heft__loading_fini(&l);
    return heft__add_path(status, err, source->path);
}

/* ---- counting -------------------------------------------------------------------------------- */
/* Match a checkpoint with the empty model, and count what filling it would take. */
static heft_status count_fill(heft__loading *l, heft_error *err)
{
    heft_status status = heft__report_new(l->ctx, &l->memory, err);
    if (status != HEFT_OK) {
        return status;
    }
    l->match =
        (heft__match){.arena = &l->memory->arena, .warnings = &l->memory->warnings, .count = true};
    status = heft__match_keys(l->model, l->ckpt, &l->match, err);
    if (status == HEFT_OK && l->options->offload_folder) {
        status =
            heft__store_plan(&l->store, l->model, l->ckpt, &l->match, l->options, l->devices, err);
    }
    if (status == HEFT_OK) {
        heft__loading_choose_strategy(l);
        l->fill.count = true;
        status = heft__fill(l->model, l->ckpt, &l->match, &l->fill, &l->counts, err);
    }
    return status;
}

/* Without a checkpoint: as if there were one that has everything as the model wants it. */
static void count_alone(heft__loading *l)
{
    const heft_load_options *options = l->options;
    for (size_t i = 0; i < l->model->count; i++) {
        const heft_parameter *parameter = &l->model->parameters[i];
        const int32_t device = l->devices ? l->devices[i] : HEFT_DEVICE_CPU;
        const bool weight = parameter->kind == HEFT_PARAMETER_WEIGHT,
                   transient = parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT;
        const bool maps =
            l->devices ? device == HEFT_DEVICE_DISK && weight : options->mode != HEFT_LOAD_COPY;
        uint64_t *sum = &l->counts.copied_bytes;
        if (!transient && maps) {
            sum = &l->counts.mapped_bytes;
        } else if (!transient && device != HEFT_DEVICE_CPU && device != HEFT_DEVICE_DISK) {
            sum = &l->counts.away_bytes;
        }
        *sum += parameter->tied_to == i ? parameter->size_bytes : 0;
    }
}

uint64_t heft__loading_initialized(const heft__loading *l)
{
    uint64_t bytes = 0;
    for (size_t i = 0; l->ckpt && l->source && l->model->known_family && i < l->model->count; i++) {
        const bool offloaded = l->store.taken && l->store.taken[i];
        if (l->model->parameters[i].tied_to == i && l->match.source[i] == HEFT__NO_TENSOR &&
            !offloaded) {
            bytes += l->model->parameters[i].size_bytes;
        }
    }
    return bytes;
}

/* Room for stacks, page tables and what libraries map, where a process has more address space than it
 * will ever use. */
#define PROGRAM_SPARE ((uint64_t)10 << 20)
#define LISTS_SPARE ((uint64_t)1 << 20) /* that are made when loading, and not here */
/* Of a residency: what large tensors take beside their bytes, and its lists, by parameter. */
#define STREAM_SPARE ((uint64_t)2 << 20)
#define STREAM_LIST ((uint64_t)384)

static void sum_needs(const heft__loading *l, heft_load_needs *out)
{
    uint64_t resident, mapped;
    const uint64_t written = l->store.dat_bytes ? 2 * heft__store_piece(l->ctx) : 0;
    (void)heft__process_memory(&resident, &mapped);
    resident += PROGRAM_SPARE;
    mapped += LISTS_SPARE;
    *out = (heft_load_needs){
        .struct_size = sizeof *out,
        .resident_bytes =
            l->counts.copied_bytes + l->counts.shared_bytes + heft__loading_initialized(l),
        .mapped_bytes = l->counts.mapped_bytes,
        .disk_bytes = l->counts.disk_bytes,
        .away_bytes = l->counts.away_bytes,
        .beside_bytes = l->counts.beside_bytes,
        .staging_bytes = l->counts.staging_bytes > written ? l->counts.staging_bytes : written,
        .stream_staging_bytes =
            (l->counts.stay_scratch + HEFT__THREAD_BYTES) * heft__reading_threads(l->ctx, true),
        .program_bytes = mapped < resident ? mapped : resident,
        .doubt_bytes = l->match.doubt_bytes,
        .unaligned_bytes = l->counts.unaligned_bytes,
    };
    for (size_t i = 0; l->store.taken && i < l->model->count; i++) {
        out->mapped_bytes += l->store.taken[i] ? l->model->parameters[i].size_bytes : 0;
    }
    out->peak_bytes = out->resident_bytes + out->beside_bytes + out->staging_bytes +
                      out->program_bytes + (l->options->touch ? out->mapped_bytes : 0);
    out->least_bytes = out->resident_bytes - out->doubt_bytes;
    /* the buffers of the load are gone by then, and its threads are used again */
    const uint64_t more = out->stream_staging_bytes > out->staging_bytes
                              ? out->stream_staging_bytes - out->staging_bytes
                              : 0;
    out->stream_peak_bytes = out->peak_bytes + more + STREAM_SPARE + l->model->count * STREAM_LIST;
}

heft_status heft_model_needs(const heft_source *source, const heft_load_options *options,
                             heft_load_needs *out, heft_error *err)
{
    heft_load_options taken;
    if (!source || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "source or result is NULL");
    }
    heft__loading l = {
        .ctx = source->ctx, .source = source, .ckpt = source->ckpt, .options = &taken};
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = heft__loading_make_model(&l, err);
    }
    if (status == HEFT_OK) {
        status = heft__loading_take_plan(&l, err);
    }
    if (status == HEFT_OK && l.ckpt) {
        status = count_fill(&l, err);
    } else if (status == HEFT_OK) {
        count_alone(&l);
    }
    if (status == HEFT_OK) {
        heft_load_needs needs;
        sum_needs(&l, &needs);
        status = HEFT__GIVE_SIZED(out, &needs, err);
    }
    heft__loading_fini(&l);
    return heft__add_path(status, err, source->path);
}
