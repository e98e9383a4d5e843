/* report.c - how loading went: lists, sums and one line on the strategy. All of it lives in the
 * report's own arena. */
#include "load/load.h"

heft_status heft__report_new(heft_ctx *ctx, heft__report_memory **out, heft_error *err)
{
    heft__report_memory *memory = heft__alloc_zero(ctx, 1, sizeof *memory);
    if (!memory) {
        return heft__fail_nomem(err, sizeof *memory);
    }
    heft__arena_init(&memory->arena, heft__ctx_ref(ctx));
    heft__warnings_init(&memory->warnings, &memory->arena);
    *out = memory;
    return HEFT_OK;
}

void heft_load_report_free(heft_load_report *report)
{
    heft__report_memory *memory = (heft__report_memory *)report;
    if (memory) {
        heft__free_with_arena(&memory->arena, memory, sizeof *memory);
    }
}

/* Groups of names on one storage: the one that is saved first. */
static heft_status list_ties(heft__report_memory *memory, const heft_model *model, heft_error *err)
{
    heft__arena *arena = &memory->arena;
    size_t *members = heft__alloc_zero(model->ctx, model->count, sizeof *members), groups = 0;
    if (!members) {
        return heft__fail_nomem(err, model->count * sizeof *members);
    }
    for (size_t i = 0; i < model->count; i++) {
        size_t source = model->parameters[i].tied_to;
        groups += source != i && members[source] == 0;
        members[source] += source != i;
    }
    heft_status status = HEFT_OK;
    heft_name_group *list = heft__arena_array(arena, groups, sizeof *list);
    size_t at = 0;
    for (size_t i = 0; list && i < model->count && status == HEFT_OK; i++) {
        if (members[i] == 0) {
            continue;
        }
        const char **names = heft__arena_array(arena, members[i] + 1, sizeof *names);
        if (!names) {
            status = heft__fail_nomem(err, 0);
            break;
        }
        list[at++] = (heft_name_group){.names = names, .count = members[i] + 1};
        for (size_t k = i; k < model->count && status == HEFT_OK; k++) {
            /* the source comes first in the model's order, or is put first */
            if (k == i || model->parameters[k].tied_to == i) {
                const char *name = model->parameters[k].name;
                *names = heft__arena_text(arena, name, strlen(name));
                status = *names++ ? HEFT_OK : heft__fail_nomem(err, 0);
            }
        }
        for (size_t k = 0; k < i && status == HEFT_OK; k++) {
            if (model->parameters[k].tied_to == i) {
                const char *name = model->parameters[k].name;
                *names = heft__arena_text(arena, name, strlen(name));
                status = *names++ ? HEFT_OK : heft__fail_nomem(err, 0);
            }
        }
    }
    heft__free(model->ctx, members, model->count * sizeof *members);
    memory->report.tied = list;
    memory->report.tied_count = groups;
    return list || status != HEFT_OK ? status : heft__fail_nomem(err, 0);
}

/* What the checkpoint lacks: missing first, then mismatched. */
heft_status heft__report_initialized(heft__report_memory *memory, const heft_model *model,
                                     const heft__match *match, heft_error *err)
{
    heft_load_report *report = &memory->report;
    size_t count = 0, at = 0;
    for (size_t i = 0; i < model->count; i++) {
        count += match->lack[i] != HEFT__LACKS_NOTHING;
    }
    const char **names = heft__arena_array(&memory->arena, count, sizeof *names);
    if (!names) {
        return heft__fail_nomem(err, count * sizeof *names);
    }
    for (int mismatched = 0; mismatched < 2; mismatched++) {
        for (size_t i = 0; i < model->count; i++) {
            const heft_parameter *parameter = &model->parameters[i];
            if (match->lack[i] == HEFT__LACKS_NOTHING ||
                (match->lack[i] == HEFT__LACKS_SHAPE) != (mismatched == 1)) {
                continue;
            }
            names[at] = heft__arena_text(&memory->arena, parameter->name, strlen(parameter->name));
            if (!names[at++]) {
                return heft__fail_nomem(err, 0);
            }
            report->initialized_bytes += parameter->size_bytes;
        }
    }
    report->initialized = names;
    report->initialized_count = count;
    return HEFT_OK;
}

/* "; N tensors of B bytes are copied because ..."; "" where there are none, NULL without memory. */
static const char *describe_unaligned(heft__arena *arena, const heft__fill_counts *counts)
{
    const size_t count = counts->unaligned_count;
    return count == 0
               ? ""
               : heft__arena_format(arena,
                                    "; %zu tensor%s of %llu bytes %s copied because the elements "
                                    "are not aligned in the file",
                                    count, count == 1 ? "" : "s",
                                    (unsigned long long)counts->unaligned_bytes,
                                    count == 1 ? "is" : "are");
}

/* One line: what was done, and why. */
static const char *describe(heft__report_memory *memory, const heft__fill_counts *counts,
                            const heft__fill_options *options)
{
    unsigned long long mapped = counts->mapped_bytes, cast = counts->cast_bytes,
                       rest = counts->copied_bytes + counts->shared_bytes;
    heft__arena *arena = &memory->arena;
    const char *unaligned = describe_unaligned(arena, counts);
    const char *casts = cast ? ", cast while reading" : "",
               *direct = counts->direct
                             ? ", with direct reads, since little of it is in the page cache"
                             : "";
    if (!unaligned) {
        return NULL;
    }
    if (mapped + rest + counts->disk_bytes + counts->away_bytes == 0) {
        return "none: no tensor was loaded";
    }
    if (options->devices) {
        return heft__arena_format(arena,
                                  "placed by a device map: %llu bytes are in memory%s%s, %llu stay "
                                  "on disk and are read when they are used",
                                  rest, casts, direct, mapped + counts->disk_bytes);
    }
    if (!options->map) {
        if (options->reason == HEFT__FILL_NETWORK) {
            return heft__arena_format(arena,
                                      "copied with large parallel reads%s: the files are on %s, "
                                      "where every page fault would cost a round trip",
                                      casts, options->network);
        }
        const char *reason =
            options->reason == HEFT__FILL_EXISTING ? "into an existing model" : "as requested";
        return heft__arena_format(arena, "copied into memory%s%s: %s", casts, direct, reason);
    }
    if (rest == 0) {
        return heft__arena_format(
            arena,
            "mapped: every tensor is stored in the dtype and layout needed, so nothing is copied");
    }
    if (options->share) {
        return heft__arena_format(
            arena,
            "mapped %llu bytes; %llu bytes%s are in one copy that all processes share, %s%s%s",
            mapped, rest, cast ? " (cast)" : "",
            counts->joined ? "which already existed" : "created by this process", direct,
            unaligned);
    }
    return heft__arena_format(arena,
                              "mapped %llu bytes; copied %llu bytes (%llu of them cast)%s, "
                              "which are stored in another dtype or layout%s",
                              mapped, rest, cast, direct, unaligned);
}

heft_status heft__report_fill(heft__report_memory *memory, const heft_model *model,
                              const heft__match *match, const heft__fill_counts *counts,
                              const heft__fill_options *options, heft_error *err)
{
    heft_load_report *report = &memory->report;
    heft__arena *arena = &memory->arena;
    report->class_name = heft__arena_text(arena, model->class_name, strlen(model->class_name));
    report->model_type = heft__arena_text(arena, model->model_type, strlen(model->model_type));
    report->dtype = model->dtype;
    report->mode = options->share ? "shared" : options->map ? "map" : "copy";
    report->strategy = describe(memory, counts, options);
    if (!report->class_name || !report->model_type || !report->strategy) {
        return heft__fail_nomem(err, 0);
    }
    report->bytes = heft_model_bytes(model);
    report->missing = match->missing;
    report->missing_count = match->missing_count;
    report->unexpected = match->unexpected;
    report->unexpected_count = match->unexpected_count;
    report->mismatched = match->mismatched;
    report->mismatched_count = match->mismatched_count;
    report->mapped_bytes = counts->mapped_bytes;
    report->copied_bytes = counts->copied_bytes;
    report->shared_bytes = counts->shared_bytes;
    report->disk_bytes = counts->disk_bytes;
    report->unaligned_bytes = counts->unaligned_bytes;
    report->unaligned_count = counts->unaligned_count;
    report->warnings = memory->warnings.lines;
    report->warning_count = memory->warnings.count;
    return list_ties(memory, model, err);
}
