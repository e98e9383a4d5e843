/* format_registry.c - the list of formats; detection of a file's format by its first bytes; opening
 * and closing.
 *
 * The content determines the format. A file name matters only for a file called .safetensors that looks like
 * nothing else: it is read as safetensors, so that the error says what is wrong with it; and for some files
 * that are none of these (strangers.c).
 * Source: docs/formats/, docs/howto/format.md. */
#include "format/format.h"

/* In the order in which content is looked at: what has a magic number before what has none. */
#define FORMATS(X) X(torch) X(torch_legacy) X(torch_tar) X(safetensors) X(offload)

#define DECLARE(name) extern const heft__format heft__format_##name;
FORMATS(DECLARE)
#undef DECLARE

static const heft__format *const formats[] = {
#define LIST(name) &heft__format_##name,
    FORMATS(LIST)
#undef LIST
};
#define FORMAT_COUNT (sizeof formats / sizeof formats[0])

/* ---- looking up ------------------------------------------------------------------------------ */
const heft__format *heft__format_find(heft_format id)
{
    for (size_t i = 0; i < FORMAT_COUNT; i++) {
        if (formats[i]->id == id) {
            return formats[i];
        }
    }
    return NULL;
}

const char *heft_format_name(heft_format format)
{
    const heft__format *found = heft__format_find(format);
    return found ? found->name : "auto";
}

/* The format that comes after one of this precedence, NULL if it is the last. */
static const heft__format *next_in_folder(unsigned precedence, const heft__format *but)
{
    const heft__format *next = NULL;
    for (size_t i = 0; i < FORMAT_COUNT; i++) {
        if (formats[i]->precedence > precedence && formats[i] != but &&
            (!next || formats[i]->precedence < next->precedence)) {
            next = formats[i];
        }
    }
    return next;
}

const heft__format *heft__format_in_folder(const heft__format *first, size_t i)
{
    const heft__format *but = first && first->precedence ? first : NULL;
    if (but && i-- == 0) {
        return but;
    }
    const heft__format *found = next_in_folder(0, but);
    while (found && i-- > 0) {
        found = next_in_folder(found->precedence, but);
    }
    return found;
}

/* ---- names ----------------------------------------------------------------------------------- */
static bool has_ending(const heft__format *format, const char *name)
{
    for (const char *const *ending = format->endings; ending && *ending; ending++) {
        if (heft__ends_with(name, *ending)) {
            return true;
        }
    }
    return false;
}

const heft__format *heft__format_by_name(const char *name)
{
    for (size_t i = 0; i < FORMAT_COUNT; i++) {
        if (formats[i]->lay_out && has_ending(formats[i], name)) {
            return formats[i];
        }
    }
    return NULL;
}

/* STEM.EXT, STEM.VARIANT.EXT or STEM-00001-of-00002.EXT */
static bool is_named(const char *name, const char *stem, const char *extension)
{
    const size_t length = strlen(stem), end = strlen(extension), whole = strlen(name);
    return strncmp(name, stem, length) == 0 && (name[length] == '.' || name[length] == '-') &&
           whole > length + end && name[whole - end - 1] == '.' &&
           strcmp(name + whole - end, extension) == 0;
}

bool heft__is_weights_ending(const char *name)
{
    static const char *const others[] = {".h5", ".msgpack", ".onnx",  ".gguf",
                                         ".ot", ".npz",     ".tflite"};
    for (size_t i = 0; i < FORMAT_COUNT; i++) {
        if (has_ending(formats[i], name)) {
            return true;
        }
    }
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (heft__ends_with(name, others[i])) {
            return true;
        }
    }
    return false;
}

bool heft__is_weights_name(const char *name)
{
    for (size_t i = 0; i < FORMAT_COUNT; i++) {
        if (formats[i]->stem && is_named(name, formats[i]->stem, formats[i]->extension)) {
            return true;
        }
    }
    return false;
}

bool heft__is_model_name(const char *name)
{
    static const char *const others[][2] = {
        {"tf_model",                "h5"         },
        {"flax_model",              "msgpack"    },
        {"rust_model",              "ot"         },
        {"consolidated",            "safetensors"},
        {"consolidated",            "pth"        },
        {"adapter_model",           "safetensors"},
        {"adapter_model",           "bin"        },
        {"pytorch_lora_weights",    "safetensors"},
        {"pytorch_lora_weights",    "bin"        },
        {"diffusion_pytorch_model", "safetensors"},
        {"diffusion_pytorch_model", "bin"        },
    };
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (is_named(name, others[i][0], others[i][1])) {
            return true;
        }
    }
    return heft__is_weights_name(name);
}

/* ---- content --------------------------------------------------------------------------------- */
static heft_status unknown(const uint8_t *head, size_t length, const char *path, heft_error *err)
{
    if (length == 0) {
        return heft__fail_at(err, HEFT_FORMAT, 0, "the file is empty: 0 bytes");
    }
    const char *what = heft__stranger_by_head(head, length);
    if (!what) {
        what = heft__stranger_by_name(heft__path_base(path), false);
    }
    if (what) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, 0, "not a checkpoint: this is %s", what);
    }
    char shown[3 * 8 + 1] = "";
    for (size_t i = 0; i < length && i < 8; i++) {
        snprintf(shown + 3 * i - (i > 0), 4, "%s%02x", i ? " " : "", head[i]);
    }
    return heft__fail_at(err, HEFT_UNSUPPORTED, 0, "unknown format: the file begins with %s",
                         shown);
}

static const heft__format *recognize(const uint8_t *head, size_t length, const char *path)
{
    for (size_t i = 0; i < FORMAT_COUNT; i++) {
        if (formats[i]->sniff && formats[i]->sniff(head, length)) {
            return formats[i];
        }
    }
    for (size_t i = 0; i < FORMAT_COUNT && !heft__stranger_by_head(head, length); i++) {
        if (formats[i]->insist && heft__ends_with(path, formats[i]->endings[0])) {
            return formats[i];
        }
    }
    return NULL;
}

static heft_status parse_any(heft_ctx *ctx, heft__file *file, heft_error *err)
{
    uint8_t head[HEFT__HEAD_BYTES];
    const uint64_t size = heft__input_size(file->source);
    const size_t length = size < sizeof head ? (size_t)size : sizeof head;
    heft_status status = heft__input_read(file->source, 0, head, length, err);
    if (status != HEFT_OK) {
        return status;
    }
    const char *path = heft__input_path(file->source),
               *what = heft__stranger_by_name(heft__path_base(path), true);
    if (what) {
        return heft__fail(err, HEFT_UNSUPPORTED, "not a checkpoint: this is %s", what);
    }
    const heft__format *format = recognize(head, length, path);
    if (!format) {
        return unknown(head, length, path, err);
    }
    file->format = format->id;
    const bool waits = file->quota && format->one_at_a_time;
    if (waits) {
        pthread_mutex_lock(&file->quota->turn);
    }
    status = format->parse(ctx, file, err);
    if (waits) {
        pthread_mutex_unlock(&file->quota->turn);
    }
    return status;
}

heft__file *heft__file_new(heft_ctx *ctx, heft__input *source, heft_format format)
{
    heft__file *file = heft__alloc_zero(ctx, 1, sizeof *file);
    if (file) {
        file->source = heft__input_ref(source);
        file->format = format;
        heft__arena_init(&file->arena, ctx);
        heft__warnings_init(&file->warnings, &file->arena);
        atomic_init(&file->borrowers, 0);
    }
    return file;
}

void heft__quota_init(heft__quota *quota, const heft_ctx *ctx, uint64_t file_bytes)
{
    quota->most = heft__add_most(heft__limits(ctx)->small_tensors, file_bytes / HEFT__QUOTA_BYTES);
    atomic_init(&quota->tensors, 0);
    pthread_mutex_init(&quota->turn, NULL);
}

void heft__quota_fini(heft__quota *quota)
{
    pthread_mutex_destroy(&quota->turn);
}

heft_status heft__quota_take(heft__quota *quota, uint64_t tensors, uint64_t at, heft_error *err)
{
    if (!quota || quota->most == UINT64_MAX) {
        return HEFT_OK;
    }
    const uint64_t before =
        atomic_fetch_add_explicit(&quota->tensors, tensors, memory_order_relaxed);
    if (tensors <= quota->most && before <= quota->most - tensors) {
        return HEFT_OK;
    }
    return heft__fail_at(
        err, HEFT_LIMIT, at,
        "more than %llu tensors: one for each %d bytes of the files, and the limit "
        "small_tensors",
        (unsigned long long)quota->most, HEFT__QUOTA_BYTES);
}

bool heft__quota_is_exceeded(heft__quota *quota)
{
    return atomic_load_explicit(&quota->tensors, memory_order_relaxed) > quota->most;
}

static heft_status open_alone(heft_ctx *ctx, heft__input *source, bool whole_value,
                              heft__file **out, heft_error *err)
{
    heft__quota quota;
    heft__quota_init(&quota, ctx, heft__input_size(source));
    const heft_status status = heft__file_open_within(ctx, source, &quota, whole_value, out, err);
    heft__quota_fini(&quota);
    return status;
}

heft_status heft__file_open(heft_ctx *ctx, heft__input *source, heft__file **out, heft_error *err)
{
    return open_alone(ctx, source, false, out, err);
}

heft_status heft__file_open_whole(heft_ctx *ctx, heft__input *source, heft__file **out,
                                  heft_error *err)
{
    return open_alone(ctx, source, true, out, err);
}

heft_status heft__file_open_within(heft_ctx *ctx, heft__input *source, heft__quota *quota,
                                   bool whole_value, heft__file **out, heft_error *err)
{
    heft__file *file = heft__file_new(ctx, source, HEFT_FORMAT_AUTO);
    if (!file) {
        return heft__add_path(heft__fail_nomem(err, sizeof *file), err, heft__input_path(source));
    }
    file->quota = quota;
    file->whole_value = whole_value;
    heft_status status = parse_any(ctx, file, err);
    file->quota = NULL;
    if (status != HEFT_OK) {
        heft__file_close(ctx, file);
        return heft__add_path(status, err, heft__input_path(source));
    }
    *out = file;
    return HEFT_OK;
}

heft_status heft__file_share(heft_ctx *ctx, heft__file *file, heft__file **out, heft_error *err)
{
    const size_t count = file->storage_count;
    heft__file *made = heft__file_new(ctx, file->source, file->format);
    heft__file_storage *storages =
        made ? heft__arena_array(&made->arena, count, sizeof *storages) : NULL;
    if (!storages) {
        heft__file_close(ctx, made);
        return heft__add_path(heft__fail_nomem(err, count * sizeof *storages), err,
                              heft__input_path(file->source));
    }
    if (count) {
        memcpy(storages, file->storages, count * sizeof *storages);
    }
    atomic_fetch_add_explicit(&file->borrowers, 1, memory_order_relaxed);
    made->lender = file;
    made->storages = storages;
    made->storage_count = count;
    made->tensors = file->tensors;
    made->tensor_count = file->tensor_count;
    made->metadata = file->metadata;
    made->metadata_count = file->metadata_count;
    made->modules = file->modules;
    made->module_count = file->module_count;
    made->skipped = file->skipped;
    made->skipped_count = file->skipped_count;
    made->big_endian = file->big_endian;
    *out = made;
    return HEFT_OK;
}

void heft__file_close(heft_ctx *ctx, heft__file *file)
{
    while (file && atomic_fetch_sub_explicit(&file->borrowers, 1, memory_order_acq_rel) == 0) {
        heft__file *lender = file->lender;
        heft__arena_fini(&file->arena);
        heft__input_unref(file->source);
        heft__free(ctx, file, sizeof *file);
        file = lender;
    }
}
