/* verify.c - is a checkpoint whole and sound?
 *
 * What the survey found, what lies beside the files, config.json, and with `deep` every byte (CRC, NaN,
 * infinities) and the manifest: all that is wrong, where opening stops at the first fault. Files are
 * those of the survey; nothing is opened twice.
 * Source: docs/commands/verify.md. */
#include "checkpoint/checkpoint.h"

#include "checkpoint/manifest.h"

struct report_memory {
    heft_verify_report report;
    heft__arena arena; /* holds a reference on its context */
};

struct inspection {
    heft_ctx *ctx;
    const heft_checkpoint *survey;
    const heft_verify_options *options;
    const char *variant;
    const heft__suspicions *beside;
    struct report_memory *memory;
    heft__arena *arena;      /* the report's */
    heft__findings findings; /* beside those of the survey */
    uint8_t *scratch;
    size_t scratch_bytes;
    uint64_t done_bytes, total_bytes;
};

void heft_verify_report_free(heft_verify_report *report)
{
    struct report_memory *memory = (struct report_memory *)report;
    if (memory) {
        heft__free_with_arena(&memory->arena, memory, sizeof *memory);
    }
}

/* ---- beside the weights ---------------------------------------------------------------------- */
/* What is wrong with config.json, if there is one. */
static heft_status check_config(struct inspection *v, heft_error *err)
{
    const bool wrong = v->beside->config && v->beside->config->status != HEFT_OK &&
                       v->beside->config->status != HEFT_NOT_FOUND;
    return wrong ? heft__find_failure(&v->findings, "config", "config.json", v->beside->config, err)
                 : HEFT_OK;
}

/* Quantized weights that contradict each other or the settings. */
static heft_status check_quantized(struct inspection *v, heft_error *err)
{
    const bool wrong = v->beside->quant && v->beside->quant->status != HEFT_OK;
    const heft__finding doubt = {.kind = "quantization",
                                 .severity = v->beside->doubt_is_wrong ? HEFT__FAULT : HEFT__NOTE,
                                 .file = "",
                                 .offset = HEFT_NO_OFFSET};
    return wrong
               ? heft__find_failure(&v->findings, "quantization",
                                    heft__path_base(v->beside->quant->path), v->beside->quant, err)
           : v->beside->doubt ? heft__find(&v->findings, &doubt, err, "%s", v->beside->doubt)
                              : HEFT_OK;
}

/* The config describes a model that needs more than the files have. */
static heft_status check_model(struct inspection *v, heft_error *err)
{
    const bool layers = v->beside->model->status == HEFT_MISMATCH;
    const heft__finding finding = {.kind = "missing_weights",
                                   .severity = layers ? HEFT__FAULT : HEFT__NOTE,
                                   .file = "config.json",
                                   .offset = HEFT_NO_OFFSET};
    heft_status status =
        v->beside->model->status != HEFT_OK
            ? heft__find(&v->findings, &finding, err, "%s", v->beside->model->message)
            : HEFT_OK;
    for (size_t i = 0; i < v->beside->contradicts->count && status == HEFT_OK; i++) {
        const heft__finding *one = &v->beside->contradicts->list[i];
        status = heft__find(&v->findings, one, err, "%s", one->message);
    }
    return status;
}

/* What opening a file warned of, and tensors that are only placeholders for weights. */
static heft_status check_file(struct inspection *v, const heft__checkpoint_file *slot,
                              heft_error *err)
{
    const heft__file *file = slot->file;
    const heft__finding note = {.kind = "left_out",
                                .severity = HEFT__NOTE,
                                .file = slot->info.name,
                                .offset = HEFT_NO_OFFSET};
    heft__finding empty = {.kind = "empty_tensor",
                           .severity = HEFT__NOTE,
                           .file = slot->info.name,
                           .offset = HEFT_NO_OFFSET};
    size_t count = 0;
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < file->warnings.count && status == HEFT_OK; i++) {
        status = heft__find(&v->findings, &note, err, "%s", file->warnings.lines[i]);
    }
    for (size_t i = 0; i < file->tensor_count; i++) {
        const char *name = file->tensors[i].name;
        if (heft__is_placeholder(file->tensors[i].shape, file->tensors[i].rank)) {
            const bool weight = heft__ends_with(name, "weight") || heft__ends_with(name, "bias");
            empty.severity = weight ? HEFT__FAULT : empty.severity;
            empty.tensor = count++ ? empty.tensor : name;
        }
    }
    return count == 0 || status != HEFT_OK
               ? status
               : heft__find(&v->findings, &empty, err,
                            "shape [0] (%zu tensors): placeholders without elements, as DeepSpeed "
                            "ZeRO-3 saves weights that were not gathered",
                            count);
}

static heft_status check_files(struct inspection *v, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < v->survey->file_count && status == HEFT_OK; f++) {
        status = v->survey->files[f].file ? check_file(v, &v->survey->files[f], err) : HEFT_OK;
    }
    return status;
}

/* ---- deep ------------------------------------------------------------------------------------ */
/* How infinities and NaN look: all bits of the exponent set. E4M3FN and
 * E8M0FNU have no infinity, and one pattern of NaN. */
static const struct {
    heft_dtype dtype;
    uint64_t exponent, mantissa;
} floats[] = {
    {HEFT_DTYPE_F64,        0x7FF0000000000000, 0x000FFFFFFFFFFFFF},
    {HEFT_DTYPE_F32,        0x7F800000,         0x007FFFFF        },
    {HEFT_DTYPE_F16,        0x7C00,             0x03FF            },
    {HEFT_DTYPE_BF16,       0x7F80,             0x007F            },
    {HEFT_DTYPE_F8_E5M2,    0x7C,               0x03              },
    {HEFT_DTYPE_F8_E4M3FN,  0x7F,               0x7F              },
    {HEFT_DTYPE_F8_E8M0FNU, 0xFF,               0xFF              },
};

#define SCAN_BYTES ((size_t)4096)
#define ZEROS_LEAST ((uint64_t)1 << 20) /* at the end of a file, and a twentieth of it, are odd */

/* Whether any number has all bits of an exponent set. The loops are such that compilers make vectors of
 * them. */
#define SCAN(width)                                                                                \
    static bool any_odd_##width(const uint8_t *bytes, size_t length, uint64_t exponent)            \
    {                                                                                              \
        const uint##width##_t set = (uint##width##_t)exponent;                                     \
        uint##width##_t any = 0;                                                                   \
        for (size_t i = 0; i < length / sizeof set; i++) {                                         \
            uint##width##_t value;                                                                 \
            memcpy(&value, bytes + i * sizeof value, sizeof value);                                \
            any |= (uint##width##_t)((value & set) == set);                                        \
        }                                                                                          \
        return any != 0;                                                                           \
    }
SCAN(8)
SCAN(16)
SCAN(32)
SCAN(64)
#undef SCAN

static bool any_odd(size_t width, const uint8_t *bytes, size_t length, uint64_t exponent)
{
    return width == 1   ? any_odd_8(bytes, length, exponent)
           : width == 2 ? any_odd_16(bytes, length, exponent)
           : width == 4 ? any_odd_32(bytes, length, exponent)
                        : any_odd_64(bytes, length, exponent);
}

static void count_odd(heft_dtype dtype, const uint8_t *bytes, size_t length, uint64_t *nans,
                      uint64_t *infinities)
{
    const size_t width = heft_dtype_bits(dtype) / 8;
    for (size_t k = 0; k < sizeof floats / sizeof floats[0]; k++) {
        if (floats[k].dtype != dtype) {
            continue;
        }
        for (size_t i = 0; i + width <= length; i += width) {
            const size_t block = length - i < SCAN_BYTES ? length - i : SCAN_BYTES;
            if (i % SCAN_BYTES == 0 && !any_odd(width, bytes + i, block, floats[k].exponent)) {
                i += block - block % width - width; /* most blocks have none */
                continue;
            }
            uint64_t value = 0;
            memcpy(&value, bytes + i, width); /* little-endian, as the reader gives it */
            if ((value & floats[k].exponent) == floats[k].exponent) {
                *((value & floats[k].mantissa) ? nans : infinities) += 1;
            }
        }
    }
}

/* Zeros at the end of a file's tensors, in their order: where they begin, and how many bytes. */
struct tail {
    const heft__file_tensor *first;
    uint64_t bytes;
};

static void count_zeros(struct tail *tail, const heft__file_tensor *tensor, const uint8_t *bytes,
                        size_t length)
{
    size_t zeros = 0;
    while (zeros < length && bytes[length - 1 - zeros] == 0) {
        zeros++;
    }
    if (zeros < length) {
        *tail = (struct tail){.first = zeros > 0 ? tensor : NULL, .bytes = zeros};
    } else if (length > 0) {
        tail->first = tail->first ? tail->first : tensor;
        tail->bytes += zeros;
    }
}

/* Room that a download reserved, and did not fill. */
static heft_status judge_tail(struct inspection *v, const heft__checkpoint_file *slot,
                              const struct tail *tail, heft_error *err)
{
    if (tail->bytes < ZEROS_LEAST || tail->bytes < slot->info.size_bytes / 20) {
        return HEFT_OK;
    }
    const heft__finding finding = {.kind = "zeros",
                                   .severity = HEFT__NOTE,
                                   .file = slot->info.name,
                                   .tensor = tail->first->name,
                                   .offset = HEFT_NO_OFFSET};
    return heft__find(&v->findings, &finding, err,
                      "the tensors of the file end with %llu bytes of zeros, which begin here: a "
                      "download that did not end can look so",
                      (unsigned long long)tail->bytes);
}

static heft_status read_tensor(struct inspection *v, const heft__checkpoint_file *slot,
                               const heft__file_tensor *tensor, struct tail *tail, heft_error *err)
{
    heft__tensor_reader *reader = NULL;
    heft_error failure = {0};
    uint64_t nans = 0, infinities = 0;
    size_t piece = 1;
    heft_status status = heft__tensor_reader_new(v->ctx, slot->file, tensor, &reader, &failure);
    while (status == HEFT_OK && piece > 0) {
        status = heft__tell_progress(v->ctx, "verifying", v->done_bytes, v->total_bytes, &failure);
        if (status == HEFT_OK) {
            status =
                heft__tensor_reader_next(reader, v->scratch, v->scratch_bytes, &piece, &failure);
        }
        if (status == HEFT_OK) {
            count_odd(tensor->dtype, v->scratch, piece, &nans, &infinities);
            count_zeros(tail, tensor, v->scratch, piece);
            v->done_bytes += piece;
        }
    }
    heft__tensor_reader_free(reader);
    if (status != HEFT_OK) {
        heft__add_item(status, &failure, tensor->name);
        return heft__find_failure(&v->findings, "unreadable", slot->info.name, &failure, err);
    }
    if (nans || infinities) {
        const heft__finding finding = {.kind = nans ? "nan" : "infinity",
                                       .severity = nans ? HEFT__FAULT : HEFT__NOTE,
                                       .file = slot->info.name,
                                       .tensor = tensor->name,
                                       .offset = HEFT_NO_OFFSET};
        status = heft__find(&v->findings, &finding, err, "contains %llu NaN and %llu infinities",
                            (unsigned long long)nans, (unsigned long long)infinities);
    }
    return status;
}

static heft_status check_crc(struct inspection *v, const heft__checkpoint_file *slot, size_t i,
                             heft_error *err)
{
    const heft__file_storage *run = &slot->file->storages[i];
    bool checked = false, equal = true;
    uint32_t found = 0;
    heft_error failure = {0};
    if (!run->has_crc) {
        return HEFT_OK;
    }
    heft_status status = heft__storage_check_crc(
        v->ctx, slot->file, i, v->scratch, v->scratch_bytes, &checked, &equal, &found, &failure);
    if (status != HEFT_OK) {
        return heft__find_failure(&v->findings, "unreadable", slot->info.name, &failure, err);
    }
    const heft__finding finding = {.kind = "crc",
                                   .severity = HEFT__FAULT,
                                   .file = slot->info.name,
                                   .tensor = run->record,
                                   .path = slot->info.path,
                                   .offset = run->offset};
    return checked && !equal ? heft__find(&v->findings, &finding, err,
                                          "crc32 is 0x%08x, the file says 0x%08x", found, run->crc)
                             : HEFT_OK;
}

/* A view that many names share is read under the first of them. */
static heft_status read_views(struct inspection *v, const heft__checkpoint_file *slot,
                              heft_error *err)
{
    const size_t count = slot->file->tensor_count;
    heft__view_key *keys = heft__alloc_zero(v->ctx, count, sizeof *keys);
    heft__map views;
    struct tail tail = {0};
    heft_status status = keys ? HEFT_OK : heft__fail_nomem(err, count * sizeof *keys);
    heft__map_init(&views, v->ctx);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const heft__file_tensor *tensor = &slot->file->tensors[i];
        size_t found = HEFT__MAP_NONE;
        keys[i] = heft__view_key_of(tensor, tensor->storage);
        if (!heft__map_put(&views, (const char *)&keys[i], sizeof keys[i], i, &found)) {
            status = heft__fail_nomem(err, sizeof keys[i]);
        } else if (found == HEFT__MAP_NONE ||
                   !heft__same_view(&slot->file->tensors[found], tensor)) {
            status = read_tensor(v, slot, tensor, &tail, err);
        }
    }
    if (status == HEFT_OK) {
        status = judge_tail(v, slot, &tail, err);
    }
    heft__map_fini(&views);
    heft__free(v->ctx, keys, count * sizeof *keys);
    return status;
}

static heft_status check_bytes(struct inspection *v, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t f = 0; f < v->survey->file_count && status == HEFT_OK; f++) {
        const heft__checkpoint_file *slot = &v->survey->files[f];
        if (!slot->file) {
            continue;
        }
        for (size_t i = 0; i < slot->file->storage_count && status == HEFT_OK; i++) {
            status = check_crc(v, slot, i, err);
        }
        if (status == HEFT_OK) {
            status = read_views(v, slot, err);
        }
    }
    v->memory->report.bytes_read = v->done_bytes;
    return status;
}

/* ---- manifest -------------------------------------------------------------------------------- */
static heft_status report_difference(void *user, const char *file, const char *message,
                                     heft_error *err)
{
    struct inspection *v = user;
    const heft__finding finding = {
        .kind = "manifest", .severity = HEFT__FAULT, .file = file, .offset = HEFT_NO_OFFSET};
    return message ? heft__find(&v->findings, &finding, err, "%s", message)
                   : heft__fail_nomem(err, 0);
}

static bool has_fault(const heft__findings *findings)
{
    for (size_t i = 0; i < findings->count; i++) {
        if (findings->list[i].severity != HEFT__NOTE) {
            return true;
        }
    }
    return false;
}

static heft_status check_manifest(struct inspection *v, heft_error *err)
{
    const heft__hashing job = {v->survey, v->scratch, v->scratch_bytes};
    heft_status status = HEFT_OK;
    if (v->options->manifest) {
        status = heft__manifest_compare(&job, v->options->manifest, report_difference, v, err);
    }
    if (status != HEFT_OK || !v->options->write_manifest) {
        return status;
    }
    if (has_fault(&v->survey->findings) || has_fault(&v->findings)) { /* it would vouch for that */
        const heft__finding finding = {.kind = "manifest_not_written",
                                       .severity = HEFT__NOTE,
                                       .file = heft__path_base(v->options->write_manifest),
                                       .offset = HEFT_NO_OFFSET};
        return heft__find(&v->findings, &finding, err, "not written because of the problems found");
    }
    return heft__manifest_write(&job, v->options->write_manifest, err);
}

/* ---- all of it ------------------------------------------------------------------------------- */
static void count(struct inspection *v)
{
    heft_verify_report *report = &v->memory->report;
    report->file_count = v->survey->file_count;
    report->total_bytes = v->survey->total_bytes;
    for (size_t f = 0; f < v->survey->file_count; f++) {
        const heft__file *file = v->survey->files[f].file;
        report->tensor_count += file ? file->tensor_count : 0;
        for (size_t k = 0; file && k < file->storage_count; k++) {
            v->total_bytes += file->storages[k].stored_bytes;
        }
    }
}

static heft_status inspect(struct inspection *v, heft_error *err)
{
    count(v);
    if ((v->options->manifest || v->options->write_manifest) &&
        !heft__checkpoint_has_folder(v->survey)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "a manifest lists the files of a folder: '%.200s' was not opened from a "
                          "path",
                          v->survey->files[0].info.name);
    }
    heft_status status = heft__compare_folder(v->survey, v->variant, &v->findings, err);
    if (status == HEFT_OK) {
        status = check_config(v, err);
    }
    if (status == HEFT_OK) {
        status = check_quantized(v, err);
    }
    if (status == HEFT_OK) {
        status = check_model(v, err);
    }
    if (status == HEFT_OK) {
        status = check_files(v, err);
    }
    if (status == HEFT_OK &&
        (v->options->deep || v->options->manifest || v->options->write_manifest)) {
        v->scratch_bytes = HEFT__PIECE_BYTES;
        v->scratch = heft__alloc(v->ctx, v->scratch_bytes);
        status = v->scratch ? HEFT_OK : heft__fail_nomem(err, v->scratch_bytes);
    }
    if (status == HEFT_OK && v->options->deep && !v->survey->expanded) {
        status = check_bytes(v, err);
    }
    return status == HEFT_OK ? check_manifest(v, err) : status;
}

/* A finding as a problem. An offset counts in the file that is at fault, or it is left out. */
static bool put_problem(struct inspection *v, const heft__finding *finding, heft_problem *out)
{
    const char *const texts[] = {finding->file, finding->tensor, finding->message};
    const char **const copies[] = {&out->file, &out->tensor, &out->message};
    const bool here = strcmp(heft__path_base(finding->path), finding->file) == 0;
    *out = (heft_problem){.kind = finding->kind,
                          .offset = here ? finding->offset : HEFT_NO_OFFSET,
                          .fatal = finding->severity != HEFT__NOTE};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        *copies[i] = heft__arena_text(v->arena, texts[i], strlen(texts[i]));
        if (!*copies[i]) {
            return false;
        }
    }
    return true;
}

static heft_status publish(struct inspection *v, heft_error *err)
{
    const heft__findings *const lists[] = {&v->survey->findings, &v->findings};
    heft_verify_report *report = &v->memory->report;
    const size_t most = lists[0]->count + lists[1]->count;
    heft_problem *problems = heft__arena_array(v->arena, most, sizeof *problems);
    if (!problems) {
        return heft__fail_nomem(err, most * sizeof *problems);
    }
    report->ok = true;
    report->problems = problems;
    for (size_t k = 0; k < 2; k++) {
        for (size_t i = 0; i < lists[k]->count; i++) {
            heft_problem *problem = &problems[report->problem_count++];
            if (!put_problem(v, &lists[k]->list[i], problem)) {
                return heft__fail_nomem(err, 0);
            }
            report->ok = report->ok && !problem->fatal;
        }
    }
    return HEFT_OK;
}

heft_status heft__checkpoint_verify(const heft_checkpoint *survey, const char *variant,
                                    const heft__suspicions *beside,
                                    const heft_verify_options *options, heft_verify_report **report,
                                    heft_error *err)
{
    heft_ctx *ctx = survey->ctx;
    struct inspection v = {
        .ctx = ctx, .survey = survey, .options = options, .variant = variant, .beside = beside};
    v.memory = heft__alloc_zero(ctx, 1, sizeof *v.memory);
    if (!v.memory) {
        return heft__fail_nomem(err, sizeof *v.memory);
    }
    v.arena = v.findings.arena = &v.memory->arena;
    heft__arena_init(v.arena, heft__ctx_ref(ctx));
    heft_status status = inspect(&v, err);
    if (status == HEFT_OK) {
        status = publish(&v, err);
    }
    heft__free(ctx, v.scratch, v.scratch_bytes);
    if (status == HEFT_OK) {
        *report = &v.memory->report;
    } else {
        heft_verify_report_free(&v.memory->report);
    }
    return status;
}
