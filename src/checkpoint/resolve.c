/* resolve.c - from a path to the files of a checkpoint.
 *
 * A path that is not there may be a name in the hub's cache: hub.c. In a folder the formats that are
 * found in folders are tried by precedence, single file before index, as in Transformers; other names: find.c.
 * Source: docs/sharding.md [1], docs/formats/offload.md [3]. */
#include "checkpoint/checkpoint.h"

#include <errno.h>

static bool is_given(const char *text)
{
    return text && *text;
}

const heft__format *heft__format_asked(heft_format asked, size_t i)
{
    const heft__format *format = asked == HEFT_FORMAT_AUTO ? NULL : heft__format_find(asked);
    if (format && !format->precedence) { /* PyTorch's older ones have the names of `.bin` */
        format = heft__format_find(HEFT_FORMAT_TORCH);
    }
    return !format ? heft__format_in_folder(NULL, i) : i == 0 ? format : NULL;
}

/* ---- a folder -------------------------------------------------------------------------------- */
static bool is_there(heft__arena *arena, const char *folder, const char *name)
{
    const char *path = name ? heft__path_join(arena, folder, name) : NULL;
    return path && heft__path_exists(path);
}

#define STALE_SECONDS 2 /* files of one copy, or of one download, are not further apart than this */

/* A folder that held one file and was saved again in shards still has that file. Transformers
 * silently uses it; heft uses the index if that is clearly newer. */
static bool is_stale(heft__arena *arena, const char *folder, const char *single, const char *index)
{
    const char *one = heft__path_join(arena, folder, single);
    const char *other = heft__path_join(arena, folder, index);
    return one && other && heft__path_is_newer(other, one, STALE_SECONDS);
}

/* "neither model.safetensors nor pytorch_model.bin, nor an index of either" */
static heft_status nothing_found(heft__arena *arena, const heft__resolved *out,
                                 const heft_checkpoint_options *options, heft_error *err)
{
    const char *variant = options->variant;
    const heft__format *format;
    const char *names = "";
    for (size_t i = 0; (format = heft__format_asked(options->prefer, i)) != NULL; i++) {
        if (!format->index_name || options->prefer != HEFT_FORMAT_AUTO) {
            const char *single = format->index_name ? format->index_name
                                                    : heft__weights_single(arena, format, variant);
            names = heft__arena_format(arena, "%s%s%s", names, *names ? " nor " : "",
                                       single ? single : "");
            if (!single || !names) {
                return heft__fail_nomem(err, 0);
            }
        }
    }
    names = options->prefer == HEFT_FORMAT_AUTO
                ? heft__arena_format(arena, "neither %s, nor an index for them", names)
                : heft__arena_format(arena, "no %s, and %s was asked for", names,
                                     heft_format_name(options->prefer));
    return names ? heft__describe_folder(arena, out, names, err) : heft__fail_nomem(err, 0);
}

/* Whether the folder has an index of a format that has no variants and always the same name. */
static heft_status try_fixed_index(heft__arena *arena, const heft__format *format,
                                   const heft_checkpoint_options *options, heft__resolved *out,
                                   heft_error *err)
{
    const char *path = heft__path_join(arena, out->folder, format->index_name);
    if (!path) {
        return heft__fail_nomem(err, strlen(out->folder));
    }
    heft_status status = is_given(options->variant)
                             ? HEFT_OK
                             : format->open_index(arena->ctx, path, &out->index_input, err);
    out->index = out->index_input ? format->index_name : NULL;
    return status;
}

heft_status heft__resolve_format(heft__arena *arena, const heft__format *format,
                                 const heft_checkpoint_options *options, heft__resolved *out,
                                 heft_error *err)
{
    if (format->index_name) {
        return try_fixed_index(arena, format, options, out, err);
    }
    const char *single = heft__weights_single(arena, format, options->variant);
    const char *index = heft__weights_index(arena, format, options->variant);
    if (!single || !index) {
        return heft__fail_nomem(err, 0);
    }
    const bool has_single = is_there(arena, out->folder, single);
    const bool has_index = is_there(arena, out->folder, index);
    if (has_single && !(has_index && is_stale(arena, out->folder, single, index))) {
        out->file = single;
        out->shadowed = has_index ? index : NULL;
    } else if (has_index) {
        out->index = index;
        out->shadowed = has_single ? single : NULL;
    }
    return HEFT_OK;
}

/* A file that was looked for and is not there, and would have been taken. */
static heft_status add_rival(heft__arena *arena, const char *name, heft__resolved *out,
                             heft_error *err)
{
    heft__rival *rival = name ? heft__arena_alloc(arena, sizeof *rival) : NULL;
    const char *path = rival ? heft__path_join(arena, out->folder, name) : NULL;
    if (!path) {
        return heft__fail_nomem(err, sizeof *rival);
    }
    *rival = (heft__rival){.path = path, .next = out->rivals};
    out->rivals = rival;
    return HEFT_OK;
}

static heft_status add_rivals(heft__arena *arena, const heft__format *format, const char *variant,
                              heft__resolved *out, heft_error *err)
{
    if (format->index_name) { /* another file of that name is none */
        return HEFT_OK;
    }
    heft_status status = add_rival(arena, heft__weights_single(arena, format, variant), out, err);
    return status == HEFT_OK
               ? add_rival(arena, heft__weights_index(arena, format, variant), out, err)
               : status;
}

static heft_status resolve_folder(heft__arena *arena, const heft_checkpoint_options *options,
                                  heft__resolved *out, heft_error *err)
{
    const heft__format *format;
    for (size_t i = 0; (format = heft__format_asked(options->prefer, i)) != NULL; i++) {
        heft_status status = heft__resolve_format(arena, format, options, out, err);
        if (status != HEFT_OK || out->file || out->index) {
            out->index_format = out->index ? format : NULL;
            return status;
        }
        status = add_rivals(arena, format, options->variant, out, err);
        if (status != HEFT_OK) {
            return status;
        }
    }
    const heft_status status = heft__find_other_weights(arena, options, out, err);
    return status != HEFT_OK || out->file || out->index || out->set_count
               ? status
               : nothing_found(arena, out, options, err);
}

bool heft__has_adapter_beside(heft__arena *arena, const heft__resolved *where)
{
    return *where->folder && !where->lone && !where->stem &&
           is_there(arena, where->folder, "adapter_config.json");
}

bool heft__is_still_first(const heft__resolved *where)
{
    bool first = true;
    for (const heft__rival *rival = where->rivals; rival && first; rival = rival->next) {
        first = !heft__path_exists(rival->path);
    }
    return first;
}

/* Before anything in the folder is opened: an interrupted commit is taken back. */
static heft_status look_at_folder(heft_ctx *ctx, heft__resolved *out, heft_error *err)
{
    const heft_status status = heft__folder_recover(ctx, out->folder, err);
    heft__snapshot_take(out->folder, &out->snapshot);
    return status;
}

/* A path that is a file: a weight file, or an index by its name and, where that is not enough, by its
 * content. */
static heft_status resolve_file(heft__arena *arena, const char *path, heft__resolved *out,
                                heft_error *err)
{
    const char *base = heft__path_base(path);
    const size_t length = (size_t)(base - path);
    const heft__format *format;
    /* "dir/" without its slash; "/" stays, "" is the folder we stand in */
    out->folder = length > 1 ? heft__arena_text(arena, path, length - 1) : length == 1 ? "/" : ".";
    const char *name = heft__arena_text(arena, base, strlen(base));
    if (!out->folder || !name) {
        return heft__fail_nomem(err, strlen(path));
    }
    if (!heft__ends_with(name, ".json")) {
        out->file = name;
        out->lone = true;
        if (strncmp(name, "adapter_model.", strlen("adapter_model.")) == 0 &&
            is_there(arena, out->folder, "adapter_config.json")) {
            out->stem = "adapter_model"; /* the two belong together */
            out->lone = false;
        }
        return look_at_folder(arena->ctx, out, err);
    }
    out->index = name;
    heft_status status = look_at_folder(arena->ctx, out, err);
    for (size_t i = 0; (format = heft__format_in_folder(NULL, i)) != NULL && status == HEFT_OK;
         i++) {
        bool known = !format->index_name && !out->index_format;
        if (format->index_name && strcmp(name, format->index_name) == 0) {
            status = format->open_index(arena->ctx, path, &out->index_input, err);
            known = out->index_input != NULL;
        }
        out->index_format = known ? format : out->index_format;
    }
    return status;
}

heft_status heft__resolve_path(heft__arena *arena, const char *path, const char *subfolder,
                               const char **out, heft_error *err)
{
    const char *at = path;
    if (!heft__path_exists(path) && heft__hub_is_name(path)) { /* what is there wins over a name */
        heft_status status = heft__hub_find(arena, path, &at, err);
        if (status != HEFT_OK) {
            return status;
        }
    }
    if (is_given(subfolder)) {
        at = heft__path_join(arena, at, subfolder);
    }
    if (!at) {
        return heft__fail_nomem(err, strlen(path));
    }
    if (!heft__path_exists(at)) {
        return heft__add_path(heft__fail_errno(err, ENOENT, "cannot open"), err, at);
    }
    *out = at;
    return HEFT_OK;
}

heft_status heft__resolve(heft__arena *arena, const char *path,
                          const heft_checkpoint_options *options, heft__resolved *out,
                          heft_error *err)
{
    heft__resolved found = {0};
    const char *at = NULL;
    heft_status status = heft__resolve_path(arena, path, options->subfolder, &at, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (heft__path_is_folder(at)) {
        found.folder = heft__arena_text(arena, at, strlen(at));
        status = found.folder ? look_at_folder(arena->ctx, &found, err) : heft__fail_nomem(err, 0);
        if (status == HEFT_OK) {
            status = resolve_folder(arena, options, &found, err);
        }
    } else {
        status = resolve_file(arena, at, &found, err);
    }
    if (status == HEFT_OK && found.index) {
        found.index_path = heft__path_join(arena, found.folder, found.index);
        status = found.index_path ? HEFT_OK : heft__fail_nomem(err, strlen(found.index));
    }
    if (status == HEFT_OK && found.index) {
        found.index_identity = found.index_input ? *heft__input_identity(found.index_input)
                                                 : heft__path_identity(found.index_path);
    }
    *out = found; /* what is open in it is the caller's to close, in any case */
    return status;
}
