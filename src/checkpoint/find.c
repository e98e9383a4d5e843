/* find.c - the weights of a folder that has none under the names of Transformers' models.
 *
 * In this order: the file that config.json names; diffusers' and PEFT's names; an index with the variant
 * before its extension; the one index of another name; the one variant; shards that are complete without an
 * index; the one weight file that is there. Whatever is not plain is an error that lists what is there.
 * Nothing but names is looked at, and config.json.
 * Source: docs/formats/folders.md. */
#include "checkpoint/checkpoint.h"

#include <ctype.h>
#include <stdlib.h>

static const char *const stems[] = {"diffusion_pytorch_model", "adapter_model",
                                    "pytorch_lora_weights"};
#define STEM_COUNT (sizeof stems / sizeof stems[0])
static const char *const extensions[] = {"safetensors", "bin",     "pt",    "pth",
                                         "ckpt",        "pth.tar", "pt.tar"};
#define EXTENSION_COUNT (sizeof extensions / sizeof extensions[0])

struct search {
    heft__arena *arena;
    const heft_checkpoint_options *options;
    heft__resolved *out;
    const char *const *names; /* of the folder, in order */
    size_t count;
};

static bool is_found(const struct search *s)
{
    return s->out->file || s->out->index || s->out->set_count > 0;
}

static bool has(const struct search *s, const char *name)
{
    for (size_t i = 0; i < s->count; i++) {
        if (strcmp(s->names[i], name) == 0) {
            return true;
        }
    }
    return false;
}

static heft_status fail_here(const struct search *s, heft_error *err)
{
    return heft__add_path(HEFT_NOT_FOUND, err, s->out->folder);
}

/* The format with another stem. */
const heft__format *heft__format_with_stem(heft__arena *arena, const heft__format *format,
                                           const char *stem)
{
    heft__format *made = heft__arena_alloc(arena, sizeof *made);
    if (made) {
        *made = *format;
        made->stem = stem;
    }
    return made;
}

/* The formats whose files have names with a stem, of those that are looked for; NULL past the end. */
static const heft__format *next_format(const struct search *s, size_t *at)
{
    const heft__format *format;
    while ((format = heft__format_asked(s->options->prefer, (*at)++)) && format->index_name) {
    }
    return format;
}

/* Whether files with an extension may be of the format that was asked for. */
static bool is_asked(const struct search *s, const char *name)
{
    const heft_format asked = s->options->prefer;
    return asked == HEFT_FORMAT_AUTO ||
           (asked != HEFT_FORMAT_OFFLOAD &&
            heft__ends_with(name, "safetensors") == (asked == HEFT_FORMAT_SAFETENSORS));
}

bool heft__is_weight_name(const char *name)
{
    for (size_t e = 0; e < EXTENSION_COUNT; e++) {
        const size_t length = strlen(name), tail = strlen(extensions[e]);
        if (length > tail + 1 && name[length - tail - 1] == '.' &&
            heft__ends_with(name, extensions[e]) && name[0] != '.') {
            return !heft__stranger_by_name(name, false) && !heft__is_training_state(name) &&
                   !strstr(name, ".heft-tmp-");
        }
    }
    return false;
}

static bool has_candidate(const struct search *s)
{
    for (size_t i = 0; i < s->count; i++) {
        if (heft__is_weight_name(s->names[i]) || heft__ends_with(s->names[i], ".index.json")) {
            return true;
        }
    }
    return false;
}

/* ---- config.json's transformers_weights ------------------------------------------------------ */
heft_status heft__weights_by_config(heft__arena *arena, const heft__json_value *root,
                                    const char **name, heft_error *err)
{
    const heft__json_value *value = heft__json_member(root, "transformers_weights");
    *name = NULL;
    if (!value || value->type == HEFT__JSON_TYPE_NULL) {
        return HEFT_OK;
    }
    const char *text = value->type == HEFT__JSON_TYPE_STRING
                           ? heft__arena_text(arena, value->text, value->length)
                           : NULL;
    if (!text && value->type == HEFT__JSON_TYPE_STRING) {
        return heft__fail_nomem(err, value->length);
    }
    if (!text || strlen(text) != value->length || strchr(text, '/') || strchr(text, '\\') ||
        !(heft__ends_with(text, ".safetensors") || heft__ends_with(text, ".index.json") ||
          heft__ends_with(text, ".bin"))) {
        return heft__fail(err, HEFT_REFUSED,
                          "transformers_weights must name a weight file or an index of this "
                          "folder, found '%.200s'",
                          text ? text : "no string");
    }
    *name = text;
    return HEFT_OK;
}

static heft_status try_config(struct search *s, heft_error *err)
{
    const char *path = heft__path_join(s->arena, s->out->folder, "config.json"), *name = NULL;
    char *text = NULL;
    size_t length = 0;
    heft__json_value *root = NULL;
    const heft_limits *limits = heft__limits(s->arena->ctx);
    heft__arena arena; /* of the config, which is read again by who needs it */
    if (!has(s, "config.json") || !has_candidate(s)) {
        return HEFT_OK;
    }
    heft__arena_init(&arena, s->arena->ctx);
    heft_status status =
        path ? heft__read_file(&arena, path, limits->config_bytes, &text, &length, NULL)
             : heft__fail_nomem(err, 0);
    if (status == HEFT_OK) {
        status = heft__json_parse(&arena, text, length, limits->json_depth, &root, NULL);
    }
    if (status != HEFT_OK || root->type != HEFT__JSON_TYPE_OBJECT) { /* told by who needs it */
        status = status == HEFT_NOMEM ? heft__fail_nomem(err, 0) : HEFT_OK;
    } else {
        status = heft__weights_by_config(s->arena, root, &name, err);
    }
    heft__arena_fini(&arena);
    if (status == HEFT_OK && name) {
        const bool index = heft__ends_with(name, ".json");
        *(index ? &s->out->index : &s->out->file) = name;
        s->out->index_format = index ? heft__format_find(HEFT_FORMAT_SAFETENSORS) : NULL;
        s->out->by_config = true;
    }
    return heft__add_path(status, err, path);
}

/* ---- other stems ----------------------------------------------------------------------------- */
/* STEM.V.EXT.index.json, which older versions of diffusers wrote. */
static heft_status try_other_index(struct search *s, const heft__format *format,
                                   const char *variant, heft_error *err)
{
    const char *single = heft__weights_single(s->arena, format, variant);
    const char *index = single ? heft__arena_format(s->arena, "%s.index.json", single) : NULL;
    if (!index) {
        return heft__fail_nomem(err, 0);
    }
    if (has(s, index)) {
        s->out->index = index;
        s->out->index_format = format;
    }
    return HEFT_OK;
}

/* All names with a stem (NULL: the formats' own), with a variant. */
static heft_status try_stem(struct search *s, const char *stem, const char *variant,
                            heft_error *err)
{
    heft_checkpoint_options options = *s->options;
    const heft__format *format;
    heft_status status = HEFT_OK;
    options.variant = variant;
    for (size_t i = 0; status == HEFT_OK && !is_found(s) && (format = next_format(s, &i));) {
        format = stem ? heft__format_with_stem(s->arena, format, stem) : format;
        status = format ? heft__resolve_format(s->arena, format, &options, s->out, err)
                        : heft__fail_nomem(err, sizeof *format);
        if (status == HEFT_OK && !is_found(s) && variant && *variant) {
            status = try_other_index(s, format, variant, err);
        }
        if (is_found(s)) {
            s->out->index_format = s->out->index ? format : NULL;
            s->out->stem = stem;
        }
    }
    return status;
}

/* ---- shards without an index ----------------------------------------------------------------- */
struct shard {
    const char *name, *extension;
    size_t stem; /* bytes */
    unsigned long number, total;
};

static bool read_number(const char **at, unsigned long *number)
{
    const char *start = *at;
    *number = 0;
    while (isdigit((unsigned char)**at) && *at - start < 9) {
        *number = *number * 10 + (unsigned long)(*(*at)++ - '0');
    }
    return *at > start && !isdigit((unsigned char)**at);
}

/* STEM-00001-of-00003.EXT */
static bool read_shard(const char *name, struct shard *out)
{
    for (const char *of = strstr(name, "-of-"); of; of = strstr(of + 1, "-of-")) {
        const char *start = of, *at;
        while (start > name && isdigit((unsigned char)start[-1])) {
            start--;
        }
        at = start;
        if (start - name < 2 || (start[-1] != '-' && start[-1] != '_') ||
            !read_number(&at, &out->number) || at != of) {
            continue;
        }
        at = of + 4;
        if (read_number(&at, &out->total) && *at == '.') {
            out->name = name;
            out->extension = at + 1;
            out->stem = (size_t)(start - 1 - name);
            return out->total > 0;
        }
    }
    return false;
}

static bool same_set(const struct shard *a, const struct shard *b)
{
    return a->total == b->total && a->stem == b->stem && memcmp(a->name, b->name, a->stem) == 0 &&
           strcmp(a->extension, b->extension) == 0;
}

static int by_number(const void *left, const void *right)
{
    const unsigned long a = ((const struct shard *)left)->number,
                        b = ((const struct shard *)right)->number;
    return a < b ? -1 : a > b;
}

/* Take the shards of one set; they are in order. An incomplete set is an error. */
static heft_status take_set(struct search *s, const struct shard *shards, size_t count,
                            heft_error *err)
{
    const unsigned long first = shards[0].number ? 1 : 0;
    const int digits = (int)(strstr(shards[0].name + shards[0].stem, "-of-") - shards[0].name -
                             (ptrdiff_t)shards[0].stem - 1);
    for (size_t i = 0; i <= count && i < shards[0].total; i++) {
        if (i < count && shards[i].number == first + i) {
            continue;
        }
        if (i < count && i > 0 && shards[i].number == shards[i - 1].number) {
            heft__fail(err, HEFT_NOT_FOUND,
                       "no index, and two shards have the same number: '%.150s' and '%.150s'",
                       shards[i - 1].name, shards[i].name);
        } else {
            heft__fail(err, HEFT_NOT_FOUND,
                       "shard '%.*s%0*lu%.100s' is missing: found %zu of %lu shards, and no "
                       "index",
                       (int)shards[0].stem + 1, shards[0].name, digits, first + i,
                       strstr(shards[0].name + shards[0].stem, "-of-"), count, shards[0].total);
        }
        return fail_here(s, err);
    }
    if (count > shards[0].total) {
        heft__fail(err, HEFT_NOT_FOUND,
                   "no index, and shard '%.200s' exceeds the number of shards in the names",
                   shards[count - 1].name);
        return fail_here(s, err);
    }
    const char **set = heft__arena_array(s->arena, count, sizeof *set);
    if (!set) {
        return heft__fail_nomem(err, count * sizeof *set);
    }
    for (size_t i = 0; i < count; i++) {
        set[i] = shards[i].name;
    }
    s->out->set = set;
    s->out->set_count = count;
    s->out->note = heft__arena_format(s->arena,
                                      "found no weights index: using all %zu shards, "
                                      "starting with '%.100s'",
                                      count, set[0]);
    for (size_t i = 0; i < STEM_COUNT; i++) {
        if (strlen(stems[i]) == shards[0].stem && memcmp(stems[i], set[0], shards[0].stem) == 0) {
            s->out->stem = stems[i];
        }
    }
    return s->out->note ? HEFT_OK : heft__fail_nomem(err, 0);
}

/* Whether shards of this set are looked for: of the wanted extension, and of the variant if one is given. */
static bool is_wanted(const struct search *s, const struct shard *shard, const char *extension)
{
    const char *variant = s->options->variant;
    const size_t length = variant ? strlen(variant) : 0;
    return strcmp(shard->extension, extension) == 0 &&
           !heft__stranger_by_name(shard->name, false) &&
           (length == 0 ||
            (shard->stem > length + 1 && shard->name[shard->stem - length - 1] == '.' &&
             memcmp(shard->name + shard->stem - length, variant, length) == 0));
}

static heft_status try_sets(struct search *s, heft_error *err)
{
    struct shard *shards = heft__arena_array(s->arena, s->count, sizeof *shards), other;
    heft_status status = shards ? HEFT_OK : heft__fail_nomem(err, s->count * sizeof *shards);
    for (size_t e = 0; e < EXTENSION_COUNT && status == HEFT_OK && !is_found(s); e++) {
        const char *extension = extensions[e];
        size_t found = 0;
        for (size_t i = 0; is_asked(s, extension) && i < s->count && status == HEFT_OK; i++) {
            if (!read_shard(s->names[i], &other) || !is_wanted(s, &other, extension)) {
                continue;
            }
            if (found > 0 && !same_set(&shards[0], &other)) {
                heft__fail(err, HEFT_NOT_FOUND,
                           "shards of several checkpoints without an index: '%.150s' and '%.150s'",
                           shards[0].name, other.name);
                status = fail_here(s, err);
            }
            shards[found++] = other;
        }
        if (status == HEFT_OK && found > 0) {
            qsort(shards, found, sizeof *shards, by_number);
            status = take_set(s, shards, found, err);
        }
    }
    return status;
}

/* ---- the only one of its kind ---------------------------------------------------------------- */
static heft_status note(struct search *s, const char *what, const char *name, heft_error *err)
{
    s->out->note = heft__arena_format(s->arena, "using '%.200s', %s", name, what);
    return s->out->note ? HEFT_OK : heft__fail_nomem(err, 0);
}

static heft_status try_odd_index(struct search *s, heft_error *err)
{
    const char *found = NULL;
    for (size_t i = 0; i < s->count; i++) {
        const bool bin = strstr(s->names[i], ".bin.") != NULL;
        if (heft__ends_with(s->names[i], ".index.json") &&
            is_asked(s, bin ? "bin" : "safetensors")) {
            if (found) {
                return HEFT_OK; /* several: listed at the end */
            }
            found = s->names[i];
        }
    }
    if (!found) {
        return HEFT_OK;
    }
    s->out->index = found;
    s->out->index_format =
        heft__format_find(strstr(found, ".bin.") ? HEFT_FORMAT_TORCH : HEFT_FORMAT_SAFETENSORS);
    return note(s, "the only index in the folder", found, err);
}

/* The variant in STEM.V.EXT, STEM.V-00001-of-00002.EXT or STEM.EXT.index.V.json; NULL: none. */
static const char *variant_of(heft__arena *arena, const char *name, const heft__format *format)
{
    const size_t stem = strlen(format->stem);
    const char *at = name + stem;
    struct shard shard;
    size_t end = 0;
    if (strncmp(name, format->stem, stem) != 0 || *at != '.') {
        return NULL;
    }
    const size_t length = strlen(++at), tail = strlen(format->extension);
    if (read_shard(name, &shard) && strcmp(shard.extension, format->extension) == 0 &&
        shard.stem > stem + 1) {
        end = shard.stem - stem - 1;
    } else if (length > tail + 1 && heft__ends_with(at, format->extension) &&
               at[length - tail - 1] == '.') {
        end = length - tail - 1;
    } else if (strncmp(at, format->extension, tail) == 0 && strncmp(at + tail, ".index.", 7) == 0 &&
               length > tail + 7 + 5 && heft__ends_with(at, ".json")) {
        at += tail + 7;
        end = strlen(at) - 5;
    }
    return end ? heft__arena_text(arena, at, end) : NULL;
}

/* Whether a name is that of a shard of no variant: model-00001-of-00002.safetensors. */
static bool is_plain_shard(const char *name, const heft__format *format)
{
    struct shard shard;
    return read_shard(name, &shard) && strcmp(shard.extension, format->extension) == 0 &&
           shard.stem == strlen(format->stem) && memcmp(name, format->stem, shard.stem) == 0;
}

/* The variants of weights that the folder has (NULL: there are not as many), none where it has shards of no
 * variant. */
static void list_variants(struct search *s, const char *found[2])
{
    const heft__format *format;
    for (size_t k = 0; k <= STEM_COUNT; k++) {
        for (size_t f = 0; (format = next_format(s, &f));) {
            format = k ? heft__format_with_stem(s->arena, format, stems[k - 1]) : format;
            for (size_t i = 0; format && i < s->count; i++) {
                if (is_plain_shard(s->names[i], format)) {
                    found[0] = found[1] = NULL;
                    return;
                }
                const char *variant = variant_of(s->arena, s->names[i], format);
                if (variant && !found[0]) {
                    found[0] = variant;
                } else if (variant && strcmp(variant, found[0]) != 0) {
                    found[1] = variant;
                }
            }
        }
    }
}

/* A variant is taken unasked only where it is the only one: of several, the error names two. */
static heft_status try_only_variant(struct search *s, heft_error *err)
{
    const char *found[2] = {NULL, NULL};
    heft_status status = HEFT_OK;
    list_variants(s, found);
    if (found[1]) {
        heft__fail(err, HEFT_NOT_FOUND,
                   "found only weights of variants: select one with --variant %.60s or "
                   "--variant %.60s",
                   found[0], found[1]);
        return fail_here(s, err);
    }
    for (size_t i = 0; found[0] && i <= STEM_COUNT && status == HEFT_OK && !is_found(s); i++) {
        status = try_stem(s, i ? stems[i - 1] : NULL, found[0], err);
    }
    return status == HEFT_OK && is_found(s) ? note(s, "the only variant in the folder",
                                                   s->out->file ? s->out->file : s->out->index, err)
                                            : status;
}

/* Of the safetensors files, if there are any; else of the others. */
static heft_status try_one_file(struct search *s, heft_error *err)
{
    const char *found[2] = {NULL, NULL};
    size_t counts[2] = {0, 0};
    for (size_t i = 0; i < s->count; i++) {
        if (heft__is_weight_name(s->names[i]) && is_asked(s, s->names[i])) {
            const size_t kind = heft__ends_with(s->names[i], ".safetensors") ? 0 : 1;
            found[kind] = s->names[i];
            counts[kind]++;
        }
    }
    const size_t kind = counts[0] ? 0 : 1;
    if (counts[kind] != 1) {
        return HEFT_OK;
    }
    s->out->file = found[kind];
    return note(s, "the only weight file in the folder", found[kind], err);
}

/* ---- nothing --------------------------------------------------------------------------------- */
#define LISTED_MOST 3

/* What is there that might have been meant; "" if nothing is. NULL without memory. */
static const char *list_there(const struct search *s)
{
    const char *listed[LISTED_MOST], *text = "";
    size_t kinds = 0, files = 0;
    for (size_t i = 0; i < s->count && text; i++) {
        const char *what = heft__stranger_by_name(s->names[i], false);
        bool is_new = what && kinds < LISTED_MOST;
        for (size_t k = 0; k < kinds; k++) {
            is_new = is_new && strcmp(listed[k], what) != 0;
        }
        if (is_new) {
            listed[kinds++] = what;
            text = heft__arena_format(s->arena, "%s%s'%.60s' is %s", text, *text ? "; " : "",
                                      s->names[i], what);
        }
    }
    for (size_t i = 0; i < s->count && text && files <= LISTED_MOST; i++) {
        if (heft__is_weight_name(s->names[i])) {
            const char *before = files++ ? ", "
                                 : *text ? "; weight files: "
                                         : "weight files: ",
                       *more = heft__is_browser_copy(s->names[i])
                                   ? " (a further download of a browser)"
                                   : "";
            text = files <= LISTED_MOST ? heft__arena_format(s->arena, "%s%s'%.60s'%s", text,
                                                             before, s->names[i], more)
                                        : heft__arena_format(s->arena, "%s, ...", text);
        }
    }
    if (text && files) {
        text = heft__arena_format(s->arena, "%s (pass one of them as PATH)", text);
    }
    return text;
}

/* Where huggingface_hub writes what it has not finished: of a local folder, and of a snapshot in its cache. */
static const char *list_unfinished(const struct search *s)
{
    static const char *const places[] = {".cache/huggingface/download", "../../blobs"};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        const char *path = heft__path_join(s->arena, s->out->folder, places[i]), *const *names =
                                                                                     NULL;
        size_t count = 0, found = 0;
        if (!path) {
            return NULL;
        }
        if (!heft__path_is_folder(path) ||
            heft__folder_names(s->arena, path, &names, &count, NULL) != HEFT_OK) {
            continue;
        }
        for (size_t k = 0; k < count; k++) {
            found += heft__ends_with(names[k], ".incomplete");
        }
        if (found > 0) {
            return heft__arena_format(s->arena,
                                      "; %zu unfinished download%s of huggingface_hub in %s", found,
                                      found == 1 ? "" : "s", places[i]);
        }
    }
    return "";
}

/* Whether a folder below this one has weights. */
static bool is_component(const struct search *s, const char *name)
{
    const char *const *names = NULL;
    size_t count = 0;
    const char *path = heft__path_join(s->arena, s->out->folder, name);
    if (name[0] == '.' || !path || !heft__path_is_folder(path) ||
        heft__folder_names(s->arena, path, &names, &count, NULL) != HEFT_OK) {
        return false;
    }
    for (size_t i = 0; i < count; i++) {
        if (heft__is_weight_name(names[i]) || heft__stranger_by_name(names[i], false)) {
            return true;
        }
    }
    return false;
}

#define COMPONENTS_MOST 12

/* "; --subfolder unet, vae, ...". */
static const char *list_components(const struct search *s)
{
    const char *text = "";
    size_t found = 0;
    for (size_t i = 0; i < s->count && text && found < COMPONENTS_MOST; i++) {
        if (is_component(s, s->names[i])) {
            text =
                heft__arena_format(s->arena, "%s%s%.40s", text, found++ ? ", " : "", s->names[i]);
        }
    }
    return text;
}

bool heft__folder_has_weights(heft__arena *arena, const char *folder)
{
    const char *const *names = NULL;
    size_t count = 0;
    bool found = false;
    if (heft__path_is_folder(folder) &&
        heft__folder_names(arena, folder, &names, &count, NULL) == HEFT_OK) {
        for (size_t i = 0; i < count && !found; i++) {
            found = heft__is_weight_name(names[i]) || heft__stranger_by_name(names[i], false) ||
                    strcmp(names[i], "model_index.json") == 0;
        }
    }
    return found;
}

heft_status heft__describe_folder(heft__arena *arena, const heft__resolved *where,
                                  const char *looked_for, heft_error *err)
{
    heft__resolved copy = *where;
    struct search s = {.arena = arena, .out = &copy};
    heft_status status = heft__folder_names(arena, where->folder, &s.names, &s.count, err);
    const char *there = status == HEFT_OK ? list_there(&s) : "",
               *unfinished = there ? list_unfinished(&s) : NULL,
               *components = unfinished ? list_components(&s) : NULL;
    if (status == HEFT_OK && !components) {
        return heft__fail_nomem(err, 0);
    }
    if (status == HEFT_OK) {
        status = heft__fail(err, HEFT_NOT_FOUND, "no weights found: %s%s%s%s%s%s", looked_for,
                            *there ? "; " : "", there, unfinished,
                            !*components ? ""
                            : has(&s, "model_index.json")
                                ? "; a diffusers pipeline: select one of its "
                                  "components with --subfolder: "
                                : "; found weights in subfolders (--subfolder): ",
                            components);
    }
    return heft__add_path(status, err, where->folder);
}

heft_status heft__find_other_weights(heft__arena *arena, const heft_checkpoint_options *options,
                                     heft__resolved *out, heft_error *err)
{
    struct search s = {.arena = arena, .options = options, .out = out};
    const char *variant = options->variant && *options->variant ? options->variant : NULL;
    heft_status status = heft__folder_names(arena, out->folder, &s.names, &s.count, err);
    if (status == HEFT_OK) {
        status = try_config(&s, err);
    }
    for (size_t i = 0; i <= STEM_COUNT && status == HEFT_OK && !is_found(&s); i++) {
        status = try_stem(&s, i ? stems[i - 1] : NULL, variant, err);
    }
    if (status == HEFT_OK && !is_found(&s) && !variant) {
        status = try_odd_index(&s, err);
    }
    if (status == HEFT_OK && !is_found(&s) && !variant) {
        status = try_only_variant(&s, err);
    }
    if (status == HEFT_OK && !is_found(&s)) {
        status = try_sets(&s, err);
    }
    if (status == HEFT_OK && !is_found(&s) && !variant) {
        status = try_one_file(&s, err);
    }
    return status;
}
