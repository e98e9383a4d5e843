/* resolve.c - from a path to the files of a checkpoint, and the names that files have.
 *
 *   model[.V].safetensors   model.safetensors.index[.V].json   model[.V]-00001-of-00003.safetensors
 *   pytorch_model[.V].bin   pytorch_model.bin.index[.V].json   pytorch_model[.V]-00001-of-00003.bin
 *
 * A path that is not there may be a name in the hub's cache: hub.c. In a folder the first of the four
 * entry points wins, safetensors before .bin, single before index, as in the reference; without any of
 * them, an index.json that is Accelerate's makes it an offload folder.
 * Source: docs/sharding.md [1], docs/formats/offload.md [3]. */
#include "checkpoint/checkpoint.h"

#include <ctype.h>
#include <errno.h>

static const char *stem_of(heft_format format)
{
    return format == HEFT_FORMAT_TORCH ? "pytorch_model" : "model";
}

static const char *extension_of(heft_format format)
{
    return format == HEFT_FORMAT_TORCH ? "bin" : "safetensors";
}

static bool is_given(const char *text)
{
    return text && *text;
}

const char *heft__weights_stem(heft__arena *arena, heft_format format, const char *variant)
{
    bool given = is_given(variant);
    return heft__arena_format(arena, "%s%s%s", stem_of(format), given ? "." : "",
                              given ? variant : "");
}

const char *heft__weights_single(heft__arena *arena, heft_format format, const char *variant)
{
    const char *stem = heft__weights_stem(arena, format, variant);
    return stem ? heft__arena_format(arena, "%s.%s", stem, extension_of(format)) : NULL;
}

const char *heft__weights_index(heft__arena *arena, heft_format format, const char *variant)
{
    bool given = is_given(variant);
    return heft__arena_format(arena, "%s.%s.index%s%s.json", stem_of(format), extension_of(format),
                              given ? "." : "", given ? variant : "");
}

const char *heft__weights_shard(heft__arena *arena, heft_format format, const char *variant,
                                size_t number, size_t count)
{
    const char *stem = heft__weights_stem(arena, format, variant);
    return stem ? heft__arena_format(arena, "%s-%05zu-of-%05zu.%s", stem, number, count,
                                     extension_of(format))
                : NULL;
}

/* At least five digits at p, as "%05zu" prints them; NULL if not, else where they end. */
static const char *number_at(const char *p)
{
    const char *start = p;
    while (isdigit((unsigned char)*p)) {
        p++;
    }
    return p - start >= 5 ? p : NULL;
}

bool heft__is_shard_name(const char *name, heft_format format, const char *variant)
{
    const char *p = name, *stem = stem_of(format);
    if (strncmp(p, stem, strlen(stem)) != 0) {
        return false;
    }
    p += strlen(stem);
    if (is_given(variant)) {
        if (*p != '.' || strncmp(p + 1, variant, strlen(variant)) != 0) {
            return false;
        }
        p += 1 + strlen(variant);
    }
    p = *p == '-' ? number_at(p + 1) : NULL;
    p = p && strncmp(p, "-of-", 4) == 0 ? number_at(p + 4) : NULL;
    return p && *p == '.' && strcmp(p + 1, extension_of(format)) == 0;
}

/* ---- a folder -------------------------------------------------------------------------------- */
static bool is_there(heft__arena *arena, const char *folder, const char *name)
{
    const char *path = name ? heft__path_join(arena, folder, name) : NULL;
    return path && heft__path_exists(path);
}

#define STALE_SECONDS 2 /* files of one copy, or of one download, are not further apart than this */

/* A folder that held one file and was saved again in shards still has that file. The reference
 * takes it in silence; where the index is clearly newer, it is the index that is meant. */
static bool is_stale(heft__arena *arena, const char *folder, const char *single, const char *index)
{
    const char *one = heft__path_join(arena, folder, single);
    const char *other = heft__path_join(arena, folder, index);
    return one && other && heft__path_is_newer(other, one, STALE_SECONDS);
}

static heft_status nothing_found(const heft__resolved *out, const char *variant, heft_error *err)
{
    bool given = is_given(variant);
    heft_status status = heft__fail(
        err, HEFT_NOT_FOUND,
        "no weights here: neither model%s%s.safetensors nor pytorch_model%s%s.bin, nor an index of "
        "either",
        given ? "." : "", given ? variant : "", given ? "." : "", given ? variant : "");
    return heft__add_path(status, err, out->folder);
}

/* Whether the folder has an index of Accelerate's, which knows no variants. */
static heft_status try_offload(heft__arena *arena, const heft_checkpoint_options *options,
                               heft__resolved *out, heft_error *err)
{
    const char *path = heft__path_join(arena, out->folder, HEFT__OFFLOAD_INDEX);
    if (!path) {
        return heft__fail_nomem(err, strlen(out->folder));
    }
    heft_status status = is_given(options->variant)
                             ? HEFT_OK
                             : heft__offload_is_index(arena->ctx, path, &out->offload, err);
    out->index = out->offload ? HEFT__OFFLOAD_INDEX : NULL;
    return status;
}

static heft_status resolve_folder(heft__arena *arena, const heft_checkpoint_options *options,
                                  heft__resolved *out, heft_error *err)
{
    heft_format order[2] = {HEFT_FORMAT_SAFETENSORS, HEFT_FORMAT_TORCH};
    if (options->prefer == HEFT_FORMAT_TORCH) {
        order[0] = HEFT_FORMAT_TORCH;
        order[1] = HEFT_FORMAT_SAFETENSORS;
    }
    heft_status status = HEFT_OK;
    if (options->prefer == HEFT_FORMAT_OFFLOAD) {
        status = try_offload(arena, options, out, err);
        if (status != HEFT_OK || out->offload) {
            return status;
        }
    }
    for (size_t i = 0; i < 2; i++) {
        const char *single = heft__weights_single(arena, order[i], options->variant);
        const char *index = heft__weights_index(arena, order[i], options->variant);
        if (!single || !index) {
            return heft__fail_nomem(err, 0);
        }
        bool has_single = is_there(arena, out->folder, single);
        bool has_index = is_there(arena, out->folder, index);
        if (has_single && !(has_index && is_stale(arena, out->folder, single, index))) {
            out->file = single;
            out->shadowed = has_index ? index : NULL;
            return HEFT_OK;
        }
        if (has_index) {
            out->index = index;
            out->shadowed = has_single ? single : NULL;
            return HEFT_OK;
        }
    }
    status = try_offload(arena, options, out, err);
    return status != HEFT_OK || out->offload ? status : nothing_found(out, options->variant, err);
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

heft_status heft__resolve(heft__arena *arena, const char *path,
                          const heft_checkpoint_options *options, heft__resolved *out,
                          heft_error *err)
{
    heft__resolved found = {0};
    const char *at = path;
    if (!heft__path_exists(path) && heft__hub_is_name(path)) { /* what is there wins over a name */
        heft_status status = heft__hub_find(arena, path, &path, err);
        if (status != HEFT_OK) {
            return status;
        }
        at = path;
    }
    if (is_given(options->subfolder)) {
        at = heft__path_join(arena, path, options->subfolder);
    }
    if (!at) {
        return heft__fail_nomem(err, strlen(path));
    }
    heft_status status = HEFT_OK;
    if (!heft__path_exists(at)) {
        status = heft__add_path(heft__fail_errno(err, ENOENT, "cannot open"), err, at);
    } else if (heft__path_is_folder(at)) {
        found.folder = heft__arena_text(arena, at, strlen(at));
        status =
            found.folder ? resolve_folder(arena, options, &found, err) : heft__fail_nomem(err, 0);
    } else {
        const char *base = heft__path_base(at);
        size_t length = (size_t)(base - at);
        /* "dir/" without its slash; "/" stays, "" is the folder we stand in */
        found.folder = length > 1    ? heft__arena_text(arena, at, length - 1)
                       : length == 1 ? "/"
                                     : ".";
        const char *name = heft__arena_text(arena, base, strlen(base));
        if (!found.folder || !name) {
            return heft__fail_nomem(err, strlen(at));
        }
        *(ends_with(name, ".json") ? &found.index : &found.file) = name;
        found.lone = found.file != NULL;
        if (strcmp(name, HEFT__OFFLOAD_INDEX) == 0) {
            status = heft__offload_is_index(arena->ctx, at, &found.offload, err);
        }
    }
    if (status == HEFT_OK) {
        *out = found;
    }
    return status;
}
