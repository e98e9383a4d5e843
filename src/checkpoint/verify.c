/* verify.c - is a checkpoint whole and sound?
 *
 * Where opening stops at the first fault, verifying goes on and lists them: every file for itself,
 * the index against the files both ways, sizes, what lies beside them, and with `deep` every byte
 * (CRC, NaN, infinities) and the manifest.
 * Source: docs/commands/verify.md. */
#include "checkpoint/checkpoint.h"

#include "checkpoint/manifest.h"

#include <dirent.h>
#include <stdlib.h>

struct report_memory {
    heft_verify_report report;
    heft__arena arena;
    heft_ctx *ctx;
};

struct inspection {
    heft_ctx *ctx;
    const heft_verify_options *options;
    struct report_memory *memory;
    heft__arena *arena; /* the report's */
    heft__resolved where;
    heft__shard_index index; /* with where.index */
    bool has_index;
    heft__offload offload; /* with where.offload */
    const char **names;    /* weight files */
    heft__file **files;    /* NULL where it did not open */
    size_t count;
    heft_problem *problems;
    size_t problem_count, problem_cap;
    uint8_t *scratch;
    size_t scratch_bytes;
    uint64_t done_bytes, total_bytes;
};

void heft_verify_report_free(heft_verify_report *report)
{
    struct report_memory *memory = (struct report_memory *)report;
    if (memory) {
        heft_ctx *ctx = memory->ctx;
        heft__arena_fini(&memory->arena);
        heft__free(ctx, memory, sizeof *memory);
        heft_ctx_free(ctx);
    }
}

/* ---- problems -------------------------------------------------------------------------------- */
static heft_status add_problem(struct inspection *v, const heft_problem *problem, heft_error *err)
{
    heft_problem copy = *problem;
    const char **texts[] = {&copy.file, &copy.tensor, &copy.message};
    for (size_t i = 0; i < 3; i++) {
        const char *text = *texts[i] ? *texts[i] : "";
        *texts[i] = heft__arena_text(v->arena, text, strlen(text));
        if (!*texts[i]) {
            return heft__fail_nomem(err, strlen(text));
        }
    }
    if (!heft__array_reserve(v->ctx, (void **)&v->problems, v->problem_count, &v->problem_cap,
                             sizeof copy)) {
        return heft__fail_nomem(err, sizeof copy);
    }
    v->problems[v->problem_count++] = copy;
    return HEFT_OK;
}

/* An error of the library as a problem of the checkpoint; what is no fault of the checkpoint stays
 * an error. */
static heft_status add_failure(struct inspection *v, const char *kind, const char *file,
                               const heft_error *failure, heft_error *err)
{
    if (failure->status == HEFT_NOMEM || failure->status == HEFT_CANCELLED ||
        failure->status == HEFT_INVALID_ARG) {
        if (err) {
            *err = *failure;
        }
        return failure->status;
    }
    heft_problem problem = {.kind = kind,
                            .file = file,
                            .tensor = failure->item,
                            .offset = failure->offset,
                            .message = failure->message,
                            .fatal = true};
    return add_problem(v, &problem, err);
}

static heft_status add_text(struct inspection *v, const char *kind, const char *file,
                            const char *tensor, bool fatal, const char *message, heft_error *err)
{
    heft_problem problem = {.kind = kind,
                            .file = file,
                            .tensor = tensor,
                            .offset = HEFT_NO_OFFSET,
                            .message = message ? message : "",
                            .fatal = fatal};
    return message ? add_problem(v, &problem, err) : heft__fail_nomem(err, 0);
}

/* ---- files ----------------------------------------------------------------------------------- */
static heft_status open_one(struct inspection *v, size_t i, heft_error *err)
{
    heft__input *source = NULL;
    heft_error failure = {0};
    const char *path = heft__path_join(v->arena, v->where.folder, v->names[i]);
    if (!path) {
        return heft__fail_nomem(err, 0);
    }
    heft_status status = v->where.offload ? heft__offload_open(v->ctx, &v->offload, i, &source,
                                                               &v->files[i], &failure)
                                          : heft__input_open(v->ctx, path, &source, &failure);
    if (status == HEFT_OK && !v->where.offload) {
        status = heft__file_open(v->ctx, source, &v->files[i], &failure);
    }
    const char *kind = status == HEFT_NOT_FOUND ? "missing_file" : "malformed_file";
    const char *file = v->names[i];
    if (source) {
        heft__input_park(source);
    }
    heft__input_unref(source);
    if (v->where.offload && source && strcmp(failure.path, v->offload.path) == 0) {
        kind = "index_wrong"; /* both can be read, and disagree */
        file = v->where.index;
    }
    return status == HEFT_OK ? HEFT_OK : add_failure(v, kind, file, &failure, err);
}

static heft_status open_all(struct inspection *v, heft_error *err)
{
    v->files = heft__arena_array(v->arena, v->count, sizeof *v->files);
    heft_status status = v->files ? HEFT_OK : heft__fail_nomem(err, v->count * sizeof *v->files);
    for (size_t i = 0; i < v->count && status == HEFT_OK; i++) {
        status = open_one(v, i, err);
        if (status == HEFT_OK && v->files[i]) {
            v->memory->report.tensor_count += v->files[i]->tensor_count;
            for (size_t k = 0; k < v->files[i]->storage_count; k++) {
                v->total_bytes += v->files[i]->storages[k].stored_bytes;
            }
        }
    }
    return status;
}

/* ---- names ----------------------------------------------------------------------------------- */
struct place {
    size_t file;
    bool listed;
};

/* Every tensor of every file into one map; one that is in two files is a problem. */
static heft_status gather_names(struct inspection *v, heft__map *map, struct place *places,
                                heft_error *err)
{
    size_t at = 0;
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < v->count; f++) {
        for (size_t i = 0; v->files[f] && i < v->files[f]->tensor_count && status == HEFT_OK; i++) {
            const char *name = v->files[f]->tensors[i].name;
            size_t found;
            if (!heft__map_put(map, name, strlen(name), at, &found)) {
                return heft__fail_nomem(err, 0);
            }
            if (found != HEFT__MAP_NONE) {
                status = add_text(
                    v, "duplicate_tensor", v->names[f], name, true,
                    heft__arena_format(v->arena, "is in '%s' too", v->names[places[found].file]),
                    err);
            }
            places[at++] = (struct place){.file = f};
        }
    }
    return status;
}

static heft_status compare_index(struct inspection *v, const heft__map *map, struct place *places,
                                 heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < v->index.entry_count && status == HEFT_OK; i++) {
        const heft__shard_entry *entry = &v->index.entries[i];
        const char *wanted = v->index.files[entry->file];
        size_t at = heft__map_get(map, entry->name, strlen(entry->name));
        heft_problem problem = {.kind = "index_wrong",
                                .file = v->where.index,
                                .tensor = entry->name,
                                .offset = entry->offset,
                                .fatal = true};
        if (at != HEFT__MAP_NONE) {
            places[at].listed = true;
            if (places[at].file != entry->file) {
                problem.message =
                    heft__arena_format(v->arena, "the index has it in '%s', it is in '%s'", wanted,
                                       v->names[places[at].file]);
                status = add_problem(v, &problem, err);
            }
        } else if (v->files[entry->file]) { /* else the file itself is the problem */
            problem.message =
                heft__arena_format(v->arena, "the index has it in '%s', it is not there", wanted);
            status = add_problem(v, &problem, err);
        }
    }
    return status;
}

static heft_status compare_unlisted(struct inspection *v, const struct place *places,
                                    heft_error *err)
{
    size_t at = 0;
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < v->count; f++) {
        for (size_t i = 0; v->files[f] && i < v->files[f]->tensor_count && status == HEFT_OK;
             i++, at++) {
            if (!places[at].listed) {
                status = add_text(v, "not_in_index", v->names[f], v->files[f]->tensors[i].name,
                                  true, "the index does not have it", err);
            }
        }
    }
    return status;
}

/* metadata.total_size against the storages, each once. Without every file there is nothing to
 * compare. */
static heft_status compare_total(struct inspection *v, const char *path, heft_error *err)
{
    double said;
    heft_checkpoint *ckpt = NULL;
    const heft__json_value *total = heft__json_member(v->index.metadata, "total_size");
    if (!total || !heft__json_as_double(total, &said) || v->problem_count > 0 ||
        heft_checkpoint_open(v->ctx, path, v->options->source, &ckpt, NULL) != HEFT_OK) {
        return HEFT_OK;
    }
    heft_status status = HEFT_OK;
    unsigned long long bytes = heft_checkpoint_total_bytes(ckpt);
    if (said != (double)bytes) {
        status =
            add_text(v, "total_size", v->where.index, "", true,
                     heft__arena_format(v->arena, "total_size is %s, the tensors have %llu bytes",
                                        total->text, bytes),
                     err);
    }
    heft_checkpoint_close(ckpt);
    return status;
}

static heft_status check_names(struct inspection *v, const char *path, heft_error *err)
{
    heft__map map;
    size_t count = v->memory->report.tensor_count;
    struct place *places = heft__alloc_zero(v->ctx, count, sizeof *places);
    heft_status status = places ? HEFT_OK : heft__fail_nomem(err, count * sizeof *places);
    heft__map_init(&map, v->ctx);
    if (status == HEFT_OK) {
        status = gather_names(v, &map, places, err);
    }
    if (status == HEFT_OK && v->has_index) {
        status = compare_index(v, &map, places, err);
        if (status == HEFT_OK) {
            status = compare_unlisted(v, places, err);
        }
        if (status == HEFT_OK) {
            status = compare_total(v, path, err);
        }
    }
    heft__map_fini(&map);
    heft__free(v->ctx, places, count * sizeof *places);
    return status;
}

/* ---- what lies beside ------------------------------------------------------------------------ */
/* Names of the weight files that lie in the folder; an offload folder's index names others too. */
static heft_status list_local(const struct inspection *v, const char ***names, size_t *count,
                              heft_error *err)
{
    *count = 0;
    *names = heft__arena_array(v->arena, v->count, sizeof **names);
    for (size_t i = 0; *names && i < v->count; i++) {
        if (!v->where.offload || !v->offload.slots[i].entries[0]->file) {
            (*names)[(*count)++] = v->names[i];
        }
    }
    return *names ? HEFT_OK : heft__fail_nomem(err, v->count * sizeof **names);
}

/* Whether a name is one that only a checkpoint's weights have. */
static bool is_weights(const struct inspection *v, const char *name)
{
    const char *variant = v->options->source->variant;
    const size_t length = strlen(name);
    return heft__is_shard_name(name, HEFT_FORMAT_SAFETENSORS, variant) ||
           heft__is_shard_name(name, HEFT_FORMAT_TORCH, variant) ||
           (v->where.offload && length > 4 && strcmp(name + length - 4, ".dat") == 0);
}

/* Every file that looks like weights and is not used, and what a save left. */
static heft_status check_strays(struct inspection *v, const heft__map *used, heft_error *err)
{
    heft_status status = HEFT_OK;
    DIR *folder = opendir(v->where.folder);
    for (struct dirent *entry = folder ? readdir(folder) : NULL; entry && status == HEFT_OK;
         entry = readdir(folder)) {
        const char *name = entry->d_name;
        if (is_weights(v, name) && heft__map_get(used, name, strlen(name)) == HEFT__MAP_NONE) {
            status = add_text(v, "stale_file", name, "", false,
                              v->where.offload ? "weights that the index does not name"
                                               : "a shard that this checkpoint does not use",
                              err);
        } else if (strstr(name, ".heft-tmp-")) {
            status =
                add_text(v, "stale_file", name, "", false, "left by a save that did not end", err);
        }
    }
    if (folder) {
        closedir(folder);
    }
    return status;
}

static heft_status check_beside(struct inspection *v, heft_error *err)
{
    heft__map used;
    const char **names = NULL;
    size_t count = 0, found;
    heft_status status = list_local(v, &names, &count, err);
    heft__map_init(&used, v->ctx);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        if (!heft__map_put(&used, names[i], strlen(names[i]), i, &found)) {
            status = heft__fail_nomem(err, strlen(names[i]));
        }
    }
    if (status == HEFT_OK) {
        status = check_strays(v, &used, err);
    }
    heft__map_fini(&used);
    if (status == HEFT_OK && v->where.shadowed) {
        const char *kind = v->where.index ? "stale_file" : "shadowed_index";
        const char *winner = v->where.index ? v->where.index : v->where.file;
        status = add_text(
            v, kind, v->where.shadowed, "", true,
            heft__arena_format(v->arena, "'%s' wins over it: one of them is stale", winner), err);
    }
    return status;
}

/* config.json, if there is one, must be a JSON object. */
static heft_status check_config(struct inspection *v, heft_error *err)
{
    heft__arena arena;
    heft_error failure = {0};
    char *text = NULL;
    size_t length = 0;
    heft__json_value *root = NULL;
    heft__arena_init(&arena, v->ctx);
    const char *path = heft__path_join(&arena, v->where.folder, "config.json");
    heft_status status = path ? HEFT_OK : heft__fail_nomem(err, strlen(v->where.folder));
    if (path && heft__path_exists(path)) {
        status = heft__read_file(&arena, path, heft__limits(v->ctx)->config_bytes, &text, &length,
                                 &failure);
        if (status == HEFT_OK) {
            status = heft__json_parse(&arena, text, length, heft__limits(v->ctx)->json_depth, &root,
                                      &failure);
        }
        if (status == HEFT_OK && root->type != HEFT__JSON_TYPE_OBJECT) {
            status = heft__fail_at(&failure, HEFT_FORMAT, root->offset, "is not a JSON object");
        }
        status =
            status == HEFT_OK ? HEFT_OK : add_failure(v, "config", "config.json", &failure, err);
    }
    heft__arena_fini(&arena);
    return status;
}

/* ---- deep ------------------------------------------------------------------------------------ */
/* How infinities and NaN look: all bits of the exponent set. E4M3FN has no infinity, and one
 * pattern of NaN. */
static const struct {
    heft_dtype dtype;
    uint64_t exponent, mantissa;
} floats[] = {
    {HEFT_DTYPE_F64,       0x7FF0000000000000, 0x000FFFFFFFFFFFFF},
    {HEFT_DTYPE_F32,       0x7F800000,         0x007FFFFF        },
    {HEFT_DTYPE_F16,       0x7C00,             0x03FF            },
    {HEFT_DTYPE_BF16,      0x7F80,             0x007F            },
    {HEFT_DTYPE_F8_E5M2,   0x7C,               0x03              },
    {HEFT_DTYPE_F8_E4M3FN, 0x7F,               0x7F              },
};

static void count_odd(heft_dtype dtype, const uint8_t *bytes, size_t length, uint64_t *nans,
                      uint64_t *infinities)
{
    const size_t width = heft_dtype_bits(dtype) / 8;
    for (size_t k = 0; k < sizeof floats / sizeof floats[0]; k++) {
        if (floats[k].dtype != dtype) {
            continue;
        }
        for (size_t i = 0; i + width <= length; i += width) {
            uint64_t value = 0;
            memcpy(&value, bytes + i, width); /* little-endian, as the reader gives it */
            if ((value & floats[k].exponent) == floats[k].exponent) {
                *((value & floats[k].mantissa) ? nans : infinities) += 1;
            }
        }
    }
}

static heft_status read_tensor(struct inspection *v, size_t f, const heft__file_tensor *tensor,
                               heft_error *err)
{
    heft__tensor_reader *reader = NULL;
    heft_error failure = {0};
    uint64_t nans = 0, infinities = 0;
    size_t piece = 1;
    heft_status status = heft__tensor_reader_new(v->ctx, v->files[f], tensor, &reader, &failure);
    while (status == HEFT_OK && piece > 0) {
        status = heft__tell_progress(v->ctx, "verifying", v->done_bytes, v->total_bytes, &failure);
        if (status == HEFT_OK) {
            status =
                heft__tensor_reader_next(reader, v->scratch, v->scratch_bytes, &piece, &failure);
        }
        if (status == HEFT_OK) {
            count_odd(tensor->dtype, v->scratch, piece, &nans, &infinities);
            v->done_bytes += piece;
        }
    }
    heft__tensor_reader_free(reader);
    if (status != HEFT_OK) {
        heft__add_item(status, &failure, tensor->name);
        return add_failure(v, "unreadable", v->names[f], &failure, err);
    }
    if (nans || infinities) {
        status =
            add_text(v, nans ? "nan" : "infinity", v->names[f], tensor->name, nans > 0,
                     heft__arena_format(v->arena, "holds %llu NaN and %llu infinities",
                                        (unsigned long long)nans, (unsigned long long)infinities),
                     err);
    }
    return status;
}

static heft_status check_crcs(struct inspection *v, size_t f, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < v->files[f]->storage_count && status == HEFT_OK; i++) {
        const heft__file_storage *run = &v->files[f]->storages[i];
        bool checked = false, equal = true;
        uint32_t found = 0;
        heft_error failure = {0};
        if (!run->has_crc) {
            continue;
        }
        heft_status read =
            heft__storage_check_crc(v->ctx, v->files[f], i, v->scratch, v->scratch_bytes, &checked,
                                    &equal, &found, &failure);
        if (read != HEFT_OK) {
            status = add_failure(v, "unreadable", v->names[f], &failure, err);
        } else if (checked && !equal) {
            heft_problem problem = {.kind = "crc",
                                    .file = v->names[f],
                                    .tensor = run->record,
                                    .offset = run->offset,
                                    .fatal = true};
            problem.message = heft__arena_format(v->arena, "crc32 is 0x%08x, the file says 0x%08x",
                                                 found, run->crc);
            status = add_problem(v, &problem, err);
        }
    }
    return status;
}

static heft_status check_bytes(struct inspection *v, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < v->count && status == HEFT_OK; f++) {
        if (!v->files[f]) {
            continue;
        }
        status = check_crcs(v, f, err);
        for (size_t i = 0; i < v->files[f]->tensor_count && status == HEFT_OK; i++) {
            status = read_tensor(v, f, &v->files[f]->tensors[i], err);
        }
    }
    v->memory->report.bytes_read = v->done_bytes;
    return status;
}

/* ---- manifest -------------------------------------------------------------------------------- */
static heft_status report_difference(void *user, const char *file, const char *message,
                                     heft_error *err)
{
    return add_text(user, "manifest", file, "", true, message, err);
}

static heft_status check_manifest(struct inspection *v, heft_error *err)
{
    heft_error failure = {0};
    heft_status status = HEFT_OK;
    if (v->options->manifest) {
        status = heft__manifest_compare(v->ctx, v->options->manifest, v->where.folder, v->scratch,
                                        v->scratch_bytes, report_difference, v, &failure);
    }
    if (status == HEFT_OK && v->options->write_manifest) {
        const char **names = NULL;
        size_t count = 0;
        status = list_local(v, &names, &count, &failure);
        if (status == HEFT_OK) {
            status = heft__manifest_write(v->ctx, v->options->write_manifest, v->where.folder,
                                          names, count, v->scratch, v->scratch_bytes, &failure);
        }
    }
    if (status != HEFT_OK && err) {
        *err = failure;
    }
    return status;
}

/* ---- all of it ------------------------------------------------------------------------------- */
static heft_status list_offload(struct inspection *v, heft_error *err)
{
    heft_error failure = {0};
    heft_status status =
        heft__offload_read(v->arena, v->where.folder, v->where.index, &v->offload, &failure);
    if (status != HEFT_OK) {
        return add_failure(v, "index", v->where.index, &failure, err);
    }
    const size_t count = v->offload.slot_count;
    v->names = heft__arena_array(v->arena, count, sizeof *v->names);
    if (!v->names) {
        return heft__fail_nomem(err, count * sizeof *v->names);
    }
    for (size_t i = 0; i < count; i++) {
        v->names[i] = v->offload.slots[i].name;
    }
    v->count = count;
    return HEFT_OK;
}

static heft_status list_files(struct inspection *v, heft_error *err)
{
    if (v->where.offload) {
        return list_offload(v, err);
    }
    heft_error failure = {0};
    if (!v->where.index) {
        v->names = &v->where.file;
        v->count = 1;
        return HEFT_OK;
    }
    const char *path = heft__path_join(v->arena, v->where.folder, v->where.index);
    heft_status status = path ? heft__shard_index_read(v->ctx, path, &v->index, &failure)
                              : heft__fail_nomem(&failure, 0);
    if (status != HEFT_OK) {
        return add_failure(v, "index", v->where.index, &failure, err);
    }
    v->has_index = true;
    v->names = v->index.files;
    v->count = v->index.file_count;
    return HEFT_OK;
}

static heft_status inspect(struct inspection *v, const char *path, heft_error *err)
{
    heft_status status = list_files(v, err);
    if (status == HEFT_OK) {
        status = open_all(v, err);
    }
    if (status == HEFT_OK) {
        status = check_names(v, path, err);
    }
    if (status == HEFT_OK) {
        status = check_beside(v, err);
    }
    if (status == HEFT_OK) {
        status = check_config(v, err);
    }
    if (status == HEFT_OK &&
        (v->options->deep || v->options->manifest || v->options->write_manifest)) {
        v->scratch_bytes = HEFT__PIECE_BYTES;
        v->scratch = heft__alloc(v->ctx, v->scratch_bytes);
        status = v->scratch ? HEFT_OK : heft__fail_nomem(err, v->scratch_bytes);
    }
    if (status == HEFT_OK && v->options->deep) {
        status = check_bytes(v, err);
    }
    return status == HEFT_OK ? check_manifest(v, err) : status;
}

static heft_status publish(struct inspection *v, heft_error *err)
{
    heft_verify_report *report = &v->memory->report;
    heft_problem *kept = heft__arena_array(v->arena, v->problem_count, sizeof *kept);
    if (!kept) {
        return heft__fail_nomem(err, v->problem_count * sizeof *kept);
    }
    report->ok = true;
    for (size_t i = 0; i < v->problem_count; i++) {
        kept[i] = v->problems[i];
        report->ok = report->ok && !kept[i].fatal;
    }
    report->problems = kept;
    report->problem_count = v->problem_count;
    report->file_count = v->count;
    return HEFT_OK;
}

heft_status heft_checkpoint_verify(heft_ctx *ctx, const char *path,
                                   const heft_verify_options *options, heft_verify_report **report,
                                   heft_error *err)
{
    heft_verify_options taken;
    heft_checkpoint_options source;
    if (!ctx || !path || !report) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, path or report is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, options, err);
    if (status == HEFT_OK) {
        status = HEFT__TAKE_OPTIONS(&source, taken.source, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    taken.source = &source;
    struct inspection v = {.ctx = ctx, .options = &taken};
    v.memory = heft__alloc_zero(ctx, 1, sizeof *v.memory);
    if (!v.memory) {
        return heft__fail_nomem(err, sizeof *v.memory);
    }
    v.memory->ctx = heft__ctx_ref(ctx);
    v.arena = &v.memory->arena;
    heft__arena_init(v.arena, ctx);
    status = heft__resolve(v.arena, path, v.options->source, &v.where, err);
    if (status == HEFT_OK) {
        status = inspect(&v, path, err);
    }
    if (status == HEFT_OK) {
        status = publish(&v, err);
    }
    for (size_t i = 0; v.files && i < v.count; i++) {
        heft__file_close(ctx, v.files[i]);
    }
    if (v.has_index) {
        heft__shard_index_fini(&v.index);
    }
    heft__offload_index_fini(&v.offload.index);
    heft__free(ctx, v.problems, v.problem_cap * sizeof *v.problems);
    heft__free(ctx, v.scratch, v.scratch_bytes);
    if (status == HEFT_OK) {
        *report = &v.memory->report;
    } else {
        heft_verify_report_free(&v.memory->report);
    }
    return heft__add_path(status, err, path);
}
