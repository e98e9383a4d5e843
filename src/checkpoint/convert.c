/* convert.c - rewriting a checkpoint: reshard, merge, cast, change format.
 *
 * Tensors are read in pieces and written in pieces; nothing is held but the metadata and two
 * buffers. Names that show the same bytes stay one storage in a .bin; a safetensors file cannot say
 * that, so there the name that others read is kept and the others are named in a warning, as Transformers
 * does with tied weights. Where each tensor is a file, every name has its bytes.
 * Source: docs/sharding.md [5]. */
#include "checkpoint/checkpoint.h"

#include <stdlib.h>
#include <sys/stat.h>

struct conversion {
    heft_ctx *ctx;
    const heft_checkpoint *ckpt;
    const heft__names *names;
    const heft_convert_options *options;
    const heft__format *format; /* what is written */
    heft__arena arena;
    heft__out_tensor *tensors;
    size_t count;
    heft__side_file *sides;
    size_t side_count, side_cap;
    heft__warnings warnings;
    heft__metadata metadata;
    /* the tensor being read */
    heft__tensor_reader *reader;
    const heft__out_tensor *reading;
    uint64_t position; /* next byte of the written tensor */
    void *raw;         /* a piece before its cast */
    size_t raw_bytes;
};

static size_t number_of(const heft__out_tensor *tensor)
{
    return (size_t)(uintptr_t)tensor->source;
}

/* ---- reading, with the cast ------------------------------------------------------------------ */
static heft_status start_reading(struct conversion *c, const heft__out_tensor *tensor,
                                 heft_error *err)
{
    size_t i = number_of(tensor);
    heft__tensor_reader_free(c->reader);
    c->reader = NULL;
    c->reading = tensor;
    c->position = 0;
    return heft__tensor_reader_new(c->ctx, heft__file_of(c->ckpt, i), c->ckpt->entries[i],
                                   &c->reader, err);
}

static heft_status read_cast(struct conversion *c, const heft_tensor_info *info, heft_dtype to,
                             uint8_t *dst, size_t length, heft_error *err)
{
    const size_t from_bytes = heft_dtype_bits(info->dtype) / 8, to_bytes = heft_dtype_bits(to) / 8;
    size_t left = length / to_bytes, most = c->raw_bytes / from_bytes;
    heft_status status = HEFT_OK;
    while (left > 0 && status == HEFT_OK) {
        size_t elems = left < most ? left : most;
        status = heft__tensor_reader_fill(c->reader, c->raw, elems * from_bytes, err);
        if (status == HEFT_OK) {
            heft__cast(to, dst, info->dtype, c->raw, elems);
            dst += elems * to_bytes;
            left -= elems;
        }
    }
    return status;
}

static heft_status read_piece(void *user, const heft__out_tensor *tensor, uint64_t first, void *dst,
                              size_t length, heft_error *err)
{
    struct conversion *c = user;
    const heft_tensor_info *info = &c->ckpt->infos[number_of(tensor)];
    heft_status status = HEFT_OK;
    if (c->reading != tensor || first != c->position) {
        status = start_reading(c, tensor, err);
    }
    if (status == HEFT_OK) {
        status = tensor->dtype == info->dtype
                     ? heft__tensor_reader_fill(c->reader, dst, length, err)
                     : read_cast(c, info, tensor->dtype, dst, length, err);
        c->position += length;
    }
    heft__add_item(status, err, info->name);
    return heft__add_path(status, err, c->ckpt->files[info->file_index].info.path);
}

/* ---- order ----------------------------------------------------------------------------------- */
struct ranked {
    size_t rank; /* in the order that was asked for; SIZE_MAX: not named there */
    size_t number;
    const char *name;
};

static int by_rank(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    if (a->rank != b->rank) {
        return a->rank < b->rank ? -1 : 1;
    }
    int order = a->rank == SIZE_MAX ? heft__compare_natural(a->name, b->name) : 0;
    return order ? order : a->number < b->number ? -1 : a->number > b->number;
}

/* A file that holds the state dict's own order keeps it. Else names are taken in the order that the
 * caller gives, and the rest in natural order. */
static void order_tensors(struct conversion *c, struct ranked *order)
{
    const heft_checkpoint *ckpt = c->ckpt;
    bool keep = c->names->count == 0 && !c->options->natural_order;
    for (size_t f = 0; f < ckpt->file_count; f++) {
        keep = keep && heft__format_find(ckpt->files[f].info.format)->has_order;
    }
    for (size_t i = 0; i < ckpt->count; i++) {
        order[i] =
            (struct ranked){.rank = keep ? i : SIZE_MAX, .number = i, .name = ckpt->infos[i].name};
    }
    if (keep) {
        return;
    }
    for (size_t i = 0; i < c->names->count; i++) {
        size_t at = heft_checkpoint_find(ckpt, c->names->list[i]);
        if (at != SIZE_MAX) {
            order[at].rank = i;
        }
    }
    qsort(order, ckpt->count, sizeof *order, by_rank);
}

/* ---- what is written ------------------------------------------------------------------------- */
static heft_status plan_tensor(struct conversion *c, size_t i, size_t storage, heft_error *err)
{
    const heft_tensor_info *info = &c->ckpt->infos[i];
    heft__out_tensor *out = &c->tensors[c->count];
    const heft_dtype own = c->names->dtypes ? c->names->dtypes[i] : HEFT_DTYPE_NONE,
                     wanted = own != HEFT_DTYPE_NONE ? own : c->options->dtype;
    const bool packed = c->names->packed && c->names->packed[i] != HEFT__NO_PART;
    bool cast = wanted != HEFT_DTYPE_NONE && heft_dtype_is_floating(info->dtype) && !packed &&
                wanted != info->dtype && heft__cast_known(info->dtype, wanted);
    *out = (heft__out_tensor){
        .name = info->name,
        .dtype = cast ? wanted : info->dtype,
        .rank = info->rank,
        .shape = info->shape,
        .storage = storage,
        .source = (void *)(uintptr_t)i,
    };
    if (!heft__shape_bytes(out->dtype, out->shape, out->rank, &out->size_bytes)) {
        return heft__add_item(
            heft__fail(err, HEFT_LIMIT, "exceeds 2^64 bytes as %s", heft_dtype_name(out->dtype)),
            err, info->name);
    }
    c->count++;
    return HEFT_OK;
}

static bool same_shape(const heft_checkpoint *ckpt, size_t a, size_t b)
{
    return heft__shape_equal(ckpt->infos[a].shape, ckpt->infos[a].rank, ckpt->infos[b].shape,
                             ckpt->infos[b].rank);
}

struct tie_key { /* no padding: hashed by its bytes */
    size_t first, tied_to;
};

/* Of the names in `first` that are one tensor, those that the family ties: *kept is the number of the first. */
static heft_status group_by_family(const struct conversion *c, const size_t *first, size_t *kept,
                                   struct tie_key *keys, heft_error *err)
{
    heft__map seen;
    heft_status status = HEFT_OK;
    heft__map_init(&seen, c->ctx);
    for (size_t i = 0; i < c->ckpt->count && status == HEFT_OK; i++) {
        size_t found = HEFT__MAP_NONE;
        kept[i] = i;
        keys[i] = (struct tie_key){first[i], c->names->tied_to[i]};
        if (keys[i].tied_to == HEFT__NO_PARAMETER) {
            continue;
        }
        if (!heft__map_put(&seen, (const char *)&keys[i], sizeof keys[i], i, &found)) {
            status = heft__fail_nomem(err, sizeof keys[i]);
        } else if (found != HEFT__MAP_NONE && same_shape(c->ckpt, found, i)) {
            kept[i] = found;
        }
    }
    heft__map_fini(&seen);
    return status;
}

/* The name that the family saves, where it is among those of a group. `own` has room for all. */
static void prefer_saved(const struct conversion *c, size_t *kept, size_t *own)
{
    const size_t count = c->ckpt->count;
    for (size_t i = 0; i < count; i++) {
        own[i] = i;
    }
    for (size_t i = 0; i < count; i++) {
        const size_t parameter = c->names->parameter[i];
        if (parameter != HEFT__NO_PARAMETER && parameter == c->names->tied_to[i]) {
            own[kept[i]] = i;
        }
    }
    for (size_t i = 0; i < count; i++) {
        kept[i] = own[kept[i]];
    }
}

/* Fill kept[i]: the name that stays of those that are one tensor in a file which can have only one of them,
 * or i itself. */
static heft_status choose_names(struct conversion *c, const size_t *first, size_t *kept,
                                heft_error *err)
{
    const size_t count = c->ckpt->count;
    const bool family = c->names->tied_to != NULL;
    const char **names = heft__alloc(c->ctx, count * sizeof *names);
    struct tie_key *keys = heft__alloc(c->ctx, count * sizeof *keys);
    size_t *own = heft__alloc(c->ctx, count * sizeof *own);
    heft_status status =
        names && keys && own ? HEFT_OK : heft__fail_nomem(err, count * sizeof *keys);
    if (status == HEFT_OK && family) {
        status = group_by_family(c, first, kept, keys, err);
    }
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        names[i] = c->ckpt->infos[i].name;
        if (!family) { /* the same bytes in another shape are no tie */
            kept[i] = same_shape(c->ckpt, first[i], i) ? first[i] : i;
        }
    }
    if (status == HEFT_OK) {
        status = heft__aliases_choose(c->ctx, names, count, kept, err);
    }
    if (status == HEFT_OK && family) {
        prefer_saved(c, kept, own);
    }
    heft__free(c->ctx, names, count * sizeof *names);
    heft__free(c->ctx, keys, count * sizeof *keys);
    heft__free(c->ctx, own, count * sizeof *own);
    return status;
}

/* Add tensor i, or a line that says which other name it has. */
static heft_status plan_name(struct conversion *c, size_t i, size_t first, size_t kept,
                             heft_error *err)
{
    if (c->format->ties != HEFT__TIES_DROP) {
        return plan_tensor(c, i, first, err);
    }
    if (kept == i) {
        return plan_tensor(c, i, i, err);
    }
    return heft__warn(&c->warnings, "'%s' is an alias of '%s' and is omitted",
                      c->ckpt->infos[i].name, c->ckpt->infos[kept].name)
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

static heft_status plan_tensors(struct conversion *c, heft_error *err)
{
    const heft_checkpoint *ckpt = c->ckpt;
    size_t *first = NULL;
    size_t *kept = heft__alloc(c->ctx, ckpt->count * sizeof *kept);
    struct ranked *order = heft__alloc_zero(c->ctx, ckpt->count, sizeof *order);
    c->tensors = heft__arena_array(&c->arena, ckpt->count, sizeof *c->tensors);
    heft_status status = order && kept && c->tensors
                             ? heft__checkpoint_aliases(ckpt, &first, err)
                             : heft__fail_nomem(err, ckpt->count * sizeof *order);
    if (status == HEFT_OK) {
        order_tensors(c, order);
        status = choose_names(c, first, kept, err);
    }
    for (size_t k = 0; k < ckpt->count && status == HEFT_OK; k++) {
        const size_t i = order[k].number;
        status = plan_name(c, i, first[i], kept[i], err);
    }
    heft__free(c->ctx, first, ckpt->count * sizeof *first);
    heft__free(c->ctx, kept, ckpt->count * sizeof *kept);
    heft__free(c->ctx, order, ckpt->count * sizeof *order);
    return status;
}

/* ---- side files ------------------------------------------------------------------------------ */
/* Whether a name is that of a file of a format whose files' names say nothing by themselves, which is
 * read or written here, or lies in the source's folder. */
static bool is_beside_index(const char *name, const heft__format *const *formats)
{
    for (; *formats; formats++) {
        if (heft__is_shard_name(name, *formats, NULL) ||
            strcmp(name, (*formats)->index_name) == 0) {
            return true;
        }
    }
    return false;
}

/* The names of the checkpoint's own files. */
static heft_status list_own(const struct conversion *c, heft__map *own, heft_error *err)
{
    const char *index = c->ckpt->where.index;
    size_t found;
    bool good = !index || heft__map_put(own, index, strlen(index), 0, &found);
    for (size_t f = 0; f < c->ckpt->file_count && good; f++) {
        const char *name = c->ckpt->files[f].info.name;
        good = heft__map_put(own, name, strlen(name), 0, &found);
    }
    return good ? HEFT_OK : heft__fail_nomem(err, c->ckpt->file_count);
}

/* What becomes of a file beside the weights. */
enum side {
    SIDE_COPIED,
    SIDE_LEFT,   /* said in a line: the same model in another form */
    SIDE_IGNORED /* the checkpoint itself, and what belongs to a place and not to a model */
};

/* Whether it is a file of an adapter, which its adapter_config.json needs. */
static bool is_adapter(const char *name)
{
    static const char stem[] = "adapter_model";
    const char end = strncmp(name, stem, sizeof stem - 1) == 0 ? name[sizeof stem - 1] : '\0';
    return end == '.' || end == '-';
}

static enum side side_of(const heft__map *own, const char *name, const heft__format *const *formats,
                         bool adapter)
{
    if (heft__subtree_is_passed_over(name) || strcmp(name, "heft-manifest.json") == 0 ||
        heft__map_get(own, name, strlen(name)) != HEFT__MAP_NONE ||
        is_beside_index(name, formats)) {
        return SIDE_IGNORED;
    }
    if (adapter && is_adapter(name)) {
        return SIDE_COPIED;
    }
    return strstr(name, ".index.") || heft__is_model_name(name) ? SIDE_LEFT : SIDE_COPIED;
}

/* What is left behind, in the order of the folder. */
struct leaving {
    struct conversion *c;
    const char **names;
    size_t count, cap;
};

static heft_status leave(void *user, const char *path, bool is_folder, heft_error *err)
{
    struct leaving *job = user;
    const char *name = heft__arena_format(&job->c->arena, "%s%s", path, is_folder ? "/" : "");
    if (!name || !heft__array_reserve(job->c->ctx, (void **)&job->names, job->count, &job->cap,
                                      sizeof *job->names)) {
        return heft__fail_nomem(err, strlen(path));
    }
    job->names[job->count++] = name;
    return HEFT_OK;
}

/* One line for all names; the list goes on in "and N more". */
static heft_status tell(struct conversion *c, const char *what, const char *const *names,
                        size_t count, heft_error *err)
{
    char line[400];
    size_t at = 0, told = 0;
    for (; told < count; told++) {
        const int length =
            snprintf(line + at, sizeof line - at, "%s%.120s", told ? ", " : "", names[told]);
        if (length < 0 || (size_t)length >= sizeof line - at) {
            line[at] = '\0';
            break;
        }
        at += (size_t)length;
    }
    const bool good = count == 0 || (told < count ? heft__warn(&c->warnings, "%s: %s and %zu more",
                                                               what, line, count - told)
                                                  : heft__warn(&c->warnings, "%s: %s", what, line));
    return good ? HEFT_OK : heft__fail_nomem(err, sizeof line);
}

/* Weights among the files that are copied: they are none of the checkpoint's, so nothing is done to them. */
static heft_status tell_strangers(struct conversion *c, heft_error *err)
{
    const char **names = heft__arena_array(&c->arena, c->side_count + 1, sizeof *names);
    size_t count = 0;
    for (size_t i = 0; names && i < c->side_count; i++) {
        if (!c->sides[i].tree && heft__is_weight_name(c->sides[i].name)) {
            names[count++] = c->sides[i].name;
        }
    }
    return names ? tell(c, "copied as they are, not part of the checkpoint", names, count, err)
                 : heft__fail_nomem(err, c->side_count * sizeof *names);
}

static heft_status add_side(struct conversion *c, const char *name, heft_error *err)
{
    heft__side_file side = {.name = heft__arena_text(&c->arena, name, strlen(name)),
                            .path = heft__path_join(&c->arena, c->ckpt->where.folder, name)};
    if (!side.name || !side.path ||
        !heft__array_reserve(c->ctx, (void **)&c->sides, c->side_count, &c->side_cap,
                             sizeof side)) {
        return heft__fail_nomem(err, 0);
    }
    c->sides[c->side_count++] = side;
    return HEFT_OK;
}

static heft_status add_tree(struct conversion *c, const char *name,
                            const heft__subtree_rules *rules, heft_error *err)
{
    heft__subtree *tree = heft__arena_alloc(&c->arena, sizeof *tree);
    heft_status status =
        tree ? heft__subtree_list(&c->arena, c->ckpt->where.folder, name, rules, tree, err)
             : heft__fail_nomem(err, sizeof *tree);
    if (status == HEFT_OK && tree->count > 0) {
        status = add_side(c, name, err);
        if (status == HEFT_OK) {
            c->sides[c->side_count - 1] = (heft__side_file){.name = name, .tree = tree};
        }
    }
    return status;
}

static bool is_wanted(void *user, const char *path, const char *const *names, size_t count)
{
    (void)user;
    return heft__is_model_folder(path, names, count);
}

/* Whether the source is a view in which quantized weights are plain. */
static bool is_dequantized(const struct conversion *c)
{
    return c->ckpt->base != NULL;
}

/* Nothing is computed in 8-bit floats: a config that names one cannot be loaded, so it keeps its dtype. */
static bool records_dtype(const struct conversion *c)
{
    return heft__dtype_is_wide_float(c->options->dtype);
}

/* After a cast the config must say the new dtype, or the next load would cast back; and it must not name
 * the file that the weights were in, or a quantization that is no more. */
static heft_status patch_config(struct conversion *c, heft__side_file *side, heft_error *err)
{
    char *text = NULL;
    size_t length = 0;
    heft__json_value *root = NULL;
    const char *dtype = heft_dtype_name(c->options->dtype);
    heft_status status = heft__read_file(&c->arena, side->path, heft__limits(c->ctx)->config_bytes,
                                         &text, &length, err);
    heft__add_limit(status, err, "config_bytes");
    if (status == HEFT_OK) {
        status =
            heft__json_parse(&c->arena, text, length, heft__limits(c->ctx)->json_depth, &root, err);
    }
    if (status != HEFT_OK || root->type != HEFT__JSON_TYPE_OBJECT) {
        return heft__add_path(status, err, side->path);
    }
    const char *key = heft__json_member(root, "dtype") || !heft__json_member(root, "torch_dtype")
                          ? "dtype"
                          : "torch_dtype";
    heft__buffer out;
    heft__buffer_init(&out, c->ctx);
    if (is_dequantized(c)) {
        heft__quant_drop_settings(root);
    }
    if (c->ckpt->where.by_config) {
        heft__json_remove(root, "transformers_weights");
    }
    if (records_dtype(c) &&
        !heft__json_set(&c->arena, root, key, heft__json_new_string(&c->arena, dtype))) {
        status = heft__fail_nomem(err, 0);
    } else {
        heft__json_write_python(&out, root);
        heft__buffer_byte(&out, '\n');
        status = heft__buffer_check(&out, err);
    }
    char *copy =
        status == HEFT_OK ? heft__arena_text(&c->arena, (const char *)out.data, out.size) : NULL;
    if (status == HEFT_OK && !copy) {
        status = heft__fail_nomem(err, out.size);
    }
    if (copy) {
        *side = (heft__side_file){.name = side->name, .bytes = copy, .length = out.size};
    }
    heft__buffer_fini(&out);
    return status;
}

/* The formats with a fixed index that are in play here: see is_beside_index(). NULL-terminated. */
static heft_status find_fixed(struct conversion *c, const heft__format ***out, heft_error *err)
{
    size_t most = 0, count = 0;
    while (heft__format_in_folder(NULL, most)) {
        most++;
    }
    const heft__format **formats = heft__arena_array(&c->arena, most + 1, sizeof *formats);
    heft_status status = formats ? HEFT_OK : heft__fail_nomem(err, most * sizeof *formats);
    for (size_t i = 0; i < most && status == HEFT_OK; i++) {
        const heft__format *format = heft__format_in_folder(NULL, i);
        bool there =
            format->index_name && (format == c->format || format == c->ckpt->where.index_format);
        if (format->index_name && !there) {
            heft__input *opened = NULL;
            const char *path =
                heft__path_join(&c->arena, c->ckpt->where.folder, format->index_name);
            status =
                path ? format->open_index(c->ctx, path, &opened, err) : heft__fail_nomem(err, 0);
            there = opened != NULL;
            heft__input_unref(opened);
        }
        if (there) {
            formats[count++] = format;
        }
    }
    *out = formats;
    return status;
}

static heft_status list_side(struct conversion *c, const char *name, enum side side,
                             struct leaving *left, const heft__lineage *around, heft_error *err)
{
    const heft__subtree_rules rules = {
        .around = *around, .wanted = is_wanted, .left = leave, .user = left};
    const char *path = heft__path_join(&c->arena, c->ckpt->where.folder, name);
    if (!path) {
        return heft__fail_nomem(err, strlen(name));
    }
    const bool is_folder = heft__path_is_folder(path);
    if (side == SIDE_IGNORED || (is_dequantized(c) && heft__quant_is_settings_file(name))) {
        return HEFT_OK;
    }
    if (side == SIDE_LEFT) {
        return leave(left, name, is_folder, err);
    }
    if (heft__path_is_file(path)) {
        return add_side(c, name, err);
    }
    return add_tree(c, name, &rules, err); /* or a link to nothing, a pipe: left */
}

static heft_status list_sides(struct conversion *c, const char *dst, heft_error *err)
{
    const heft__format **formats = NULL;
    const char *const *names = NULL;
    size_t count = 0;
    struct leaving left = {.c = c};
    heft__lineage around = {0};
    const bool adapter = heft__has_adapter_beside(&c->arena, &c->ckpt->where);
    heft__map own;
    heft__map_init(&own, c->ctx);
    heft_status status = find_fixed(c, &formats, err);
    if (status == HEFT_OK) {
        status = heft__lineage_of(&c->arena, dst, &around, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_names(&c->arena, c->ckpt->where.folder, &names, &count, err);
    }
    if (status == HEFT_OK) {
        status = list_own(c, &own, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        status =
            list_side(c, names[i], side_of(&own, names[i], formats, adapter), &left, &around, err);
    }
    if (status == HEFT_OK) {
        status = tell(c, "not copied", left.names, left.count, err);
    }
    if (status == HEFT_OK) {
        status = tell_strangers(c, err);
    }
    heft__map_fini(&own);
    heft__free(c->ctx, left.names, left.cap * sizeof *left.names);
    return status;
}

static heft_status collect_sides(struct conversion *c, const char *dst, heft_error *err)
{
    if (c->ckpt->where.lone) {
        return HEFT_OK; /* a lone file: what lies beside it is not known to belong to it */
    }
    heft_status status = list_sides(c, dst, err);
    for (size_t i = 0; i < c->side_count && status == HEFT_OK; i++) {
        if ((records_dtype(c) || is_dequantized(c) || c->ckpt->where.by_config) &&
            !c->sides[i].tree && strcmp(c->sides[i].name, "config.json") == 0) {
            status = patch_config(c, &c->sides[i], err);
        }
    }
    return status;
}

/* ---- metadata -------------------------------------------------------------------------------- */
static heft_status gather_metadata(struct conversion *c, heft_error *err)
{
    heft_status status = heft__metadata_gather(&c->metadata, c->ckpt, &c->warnings, err);
    if (status != HEFT_OK || c->format->metadata) {
        return status == HEFT_OK ? heft__metadata_set(&c->metadata, c->options->metadata,
                                                      c->options->metadata_count, err)
                                 : status;
    }
    if (c->options->metadata_count) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s cannot hold metadata", c->format->noun);
    }
    return heft__metadata_is_standard(&c->metadata) ||
                   heft__warn(
                       &c->warnings,
                       "metadata is omitted, because %s cannot hold it: %zu keys, '%.100s' %s",
                       c->format->noun, c->metadata.count, c->metadata.pairs[0].key,
                       c->metadata.count > 1 ? "and others" : "")
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

/* ---- all of it ------------------------------------------------------------------------------- */
/* Only floating-point tensors are cast, and only to what holds weights: float8_e8m0fnu has no sign. */
static heft_status check_dtype(const struct conversion *c, heft_error *err)
{
    const heft_dtype dtype = c->options->dtype;
    if (dtype == HEFT_DTYPE_NONE) {
        return HEFT_OK;
    }
    if (!heft_dtype_is_floating(dtype) || dtype == HEFT_DTYPE_F8_E8M0FNU) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s is not a dtype for weights",
                          heft_dtype_name(dtype));
    }
    return heft__cast_check(HEFT_DTYPE_F32, dtype, HEFT_INVALID_ARG, err);
}

static heft_status check_request(struct conversion *c, const char *dst, heft_error *err)
{
    const heft_format asked = c->options->format;
    const heft__format *source = heft__format_find(c->ckpt->files[0].info.format);
    const heft__format *format =
        heft__format_find(asked == HEFT_FORMAT_AUTO ? source->convert_as : asked);
    if (!format || !format->lay_out) {
        return heft__fail(err, HEFT_INVALID_ARG, "format '%s' is read-only",
                          heft_format_name(asked));
    }
    if (format->file_each && (c->options->variant || c->options->max_shard_bytes)) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s has one file per tensor and no %s",
                          format->noun, c->options->variant ? "variants" : "shards");
    }
    if (c->options->resume && !heft__checkpoint_has_folder(c->ckpt)) {
        return heft__fail(
            err, HEFT_INVALID_ARG,
            "a conversion resumes by the size and time of the source's files: '%.200s' "
            "was not opened from a path",
            c->ckpt->files[0].info.name);
    }
    if (heft__path_same(c->ckpt->where.folder, dst)) {
        return heft__add_path(
            heft__fail(err, HEFT_INVALID_ARG, "destination and source are the same"), err, dst);
    }
    const heft_status status = check_dtype(c, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (c->ckpt->where.stem && !format->file_each) { /* an adapter stays one */
        format = heft__format_with_stem(&c->arena, format, c->ckpt->where.stem);
    }
    c->format = format;
    return format ? HEFT_OK : heft__fail_nomem(err, sizeof *format);
}

/* ---- what ties it to its source ------------------------------------------------------------------ */
static heft__input *input_of(const struct conversion *c, size_t file)
{
    return c->ckpt->files[file].file ? c->ckpt->files[file].file->source : NULL;
}

/* Every file of the source as it was when it was opened. */
static heft_status check_sources(void *user, heft_error *err)
{
    const struct conversion *c = user;
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < c->ckpt->file_count && status == HEFT_OK; i++) {
        status = heft__input_unchanged(input_of(c, i), err);
    }
    return status;
}

/* Whether a file that the destination is about to lose is the only place of a file of the source: through
 * a link, or an offload folder's entry. A hard link of the source's is not. */
static bool is_source(void *user, const heft__folder_writer *folder, const char *name)
{
    const struct conversion *c = user;
    const heft__identity above = heft__path_identity(c->ckpt->where.folder);
    if (above.inode && heft__folder_holds(folder, name, above.device, above.inode)) {
        return true; /* its folder itself */
    }
    for (size_t i = 0; i < c->ckpt->file_count; i++) {
        const heft__identity *identity = heft__input_identity(input_of(c, i));
        if (identity && heft__folder_holds(folder, name, identity->device, identity->inode) &&
            heft__folder_has_path(folder, heft__input_path(input_of(c, i)))) {
            return true;
        }
    }
    return false;
}

static const char *source_folder(void *user)
{
    const struct conversion *c = user;
    return heft__checkpoint_has_folder(c->ckpt) ? c->ckpt->where.folder : NULL;
}

static void append_identity(heft__buffer *text, const heft__input *input)
{
    const heft__identity *identity = heft__input_identity(input);
    if (identity) {
        heft__buffer_append(text, identity, sizeof *identity);
    }
}

/* The names, dtypes, shapes and places of all tensors, as the headers have them. */
static void append_headers(heft__buffer *text, const struct conversion *c)
{
    for (size_t i = 0; i < c->count; i++) {
        const heft_tensor_info *info = &c->ckpt->infos[number_of(&c->tensors[i])];
        heft__buffer_format(text, "%s %zu %d %d %zu %llu", c->tensors[i].name,
                            c->tensors[i].storage, (int)info->dtype, (int)c->tensors[i].dtype,
                            info->file_index, (unsigned long long)info->offset);
        heft__buffer_append(text, info->shape, info->rank * sizeof *info->shape);
        heft__buffer_byte(text, '\n');
    }
}

/* What decides the bytes of every shard, as a key: another source, order or option is another key.
 */
static const char *resume_key(struct conversion *c, const heft__write_job *job, heft_error *err)
{
    heft__buffer text;
    const char *key = NULL;
    heft__buffer_init(&text, c->ctx);
    heft__buffer_format(&text, "%d %llu %d %s\n", (int)c->format->id,
                        (unsigned long long)c->options->max_shard_bytes, (int)c->options->dtype,
                        c->options->variant ? c->options->variant : "");
    for (size_t i = 0; i < c->ckpt->file_count; i++) {
        heft__buffer_format(&text, "%s\n", c->ckpt->files[i].info.name);
        append_identity(&text, input_of(c, i));
    }
    append_headers(&text, c);
    heft__buffer_append(&text, &c->ckpt->computed, sizeof c->ckpt->computed);
    for (size_t i = 0; i < job->metadata_count; i++) {
        heft__buffer_append(&text, job->metadata[i].key, job->metadata[i].key_length);
        heft__buffer_byte(&text, '\n');
        heft__buffer_append(&text, job->metadata[i].value, job->metadata[i].value_length);
        heft__buffer_byte(&text, '\n');
    }
    if (heft__buffer_check(&text, err) == HEFT_OK) {
        uint64_t hash = heft__stable_hash((const char *)text.data, text.size);
        heft__buffer_format(&text, "%llu", (unsigned long long)hash); /* the second half */
        if (heft__buffer_check(&text, err) == HEFT_OK) {
            key = heft__arena_format(
                &c->arena, "%016llx%016llx", (unsigned long long)hash,
                (unsigned long long)heft__stable_hash((const char *)text.data, text.size));
        }
    }
    heft__buffer_fini(&text);
    return key;
}

static heft_status plan(struct conversion *c, const char *dst, heft_error *err)
{
    heft_status status = check_request(c, dst, err);
    if (status == HEFT_OK) {
        status = plan_tensors(c, err);
    }
    if (status == HEFT_OK) {
        status = collect_sides(c, dst, err);
    }
    for (size_t i = 0; i < c->ckpt->warnings.count && status == HEFT_OK; i++) {
        if (!heft__warn(&c->warnings, "%s", c->ckpt->warnings.lines[i])) {
            status = heft__fail_nomem(err, 0);
        }
    }
    if (status == HEFT_OK) {
        status = gather_metadata(c, err);
    }
    if (status == HEFT_OK) {
        c->raw_bytes = HEFT__PIECE_BYTES < heft__staging_bytes(c->ctx) / 4
                           ? HEFT__PIECE_BYTES
                           : heft__staging_bytes(c->ctx) / 4;
        c->raw = heft__alloc(c->ctx, c->raw_bytes);
        status = c->raw ? HEFT_OK : heft__fail_nomem(err, c->raw_bytes);
    }
    return status;
}

/* What was not everybody's to read does not become so. */
static void find_modes(const struct conversion *c, heft__write_job *job)
{
    struct stat facts;
    for (size_t i = 0; i < c->ckpt->file_count; i++) {
        if (stat(c->ckpt->files[i].info.path, &facts) == 0) {
            job->file_mode |= facts.st_mode & 0777;
        }
    }
    if (*c->ckpt->where.folder && stat(c->ckpt->where.folder, &facts) == 0) {
        job->folder_mode = facts.st_mode & 0777;
    }
}

/* The versions of modules that the first file with any notes, for formats that hold them. */
static heft_status take_modules(struct conversion *c, heft__write_job *job, heft_error *err)
{
    const heft__file *file = NULL;
    for (size_t i = 0; i < c->ckpt->file_count && !(file && file->module_count); i++) {
        file = c->ckpt->files[i].file;
    }
    const size_t count = file ? file->module_count : 0;
    if (count == 0) {
        return HEFT_OK;
    }
    const char **paths = heft__arena_array(&c->arena, count, sizeof *paths);
    uint32_t *versions = heft__arena_array(&c->arena, count, sizeof *versions);
    for (size_t i = 0; paths && versions && i < count; i++) {
        paths[i] = file->modules[i].path;
        versions[i] = file->modules[i].version;
    }
    job->modules = paths;
    job->module_versions = versions;
    job->module_count = count;
    return paths && versions ? HEFT_OK : heft__fail_nomem(err, count * sizeof *paths);
}

static heft_status convert(struct conversion *c, const char *dst, heft_write_report **report,
                           heft_error *err)
{
    heft__write_job job = {
        .dst = dst,
        .format = c->format,
        .variant = c->options->variant,
        .max_shard_bytes = c->options->max_shard_bytes,
        .force = c->options->force,
        .wait = c->options->wait,
        .dry_run = c->options->dry_run,
        .tensors = c->tensors,
        .count = c->count,
        .total_parameters = c->names->total_parameters,
        .sides = c->sides,
        .side_count = c->side_count,
        .keep_side_files = c->options->keep_side_files,
        .beside = source_folder,
        .read = read_piece,
        .check = check_sources,
        .is_source = is_source,
        .user = c,
        .warnings = c->warnings.lines,
        .warning_count = c->warnings.count,
    };
    find_modes(c, &job);
    const heft_status status = take_modules(c, &job, err);
    if (status != HEFT_OK) {
        return status;
    }
    job.metadata = heft__metadata_list(&c->metadata, &job.metadata_count);
    if (!job.metadata) {
        return heft__fail_nomem(err, 0);
    }
    if (c->options->resume) {
        job.resume = resume_key(c, &job, err);
        if (!job.resume) {
            return heft__fail_nomem(err, 0);
        }
    }
    return heft__write_checkpoint(c->ctx, &job, report, err);
}

heft_status heft__checkpoint_convert(const heft_checkpoint *ckpt, const char *dst,
                                     const heft__names *names, const heft_convert_options *options,
                                     heft_write_report **report, heft_error *err)
{
    const heft__names none = {0};
    struct conversion c = {
        .ctx = ckpt->ctx, .ckpt = ckpt, .names = names ? names : &none, .options = options};
    heft__arena_init(&c.arena, c.ctx);
    heft__warnings_init(&c.warnings, &c.arena);
    heft__metadata_init(&c.metadata, &c.arena);
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < c.names->note_count && status == HEFT_OK; i++) {
        status =
            heft__warn(&c.warnings, "%s", c.names->notes[i]) ? HEFT_OK : heft__fail_nomem(err, 0);
    }
    if (status == HEFT_OK) {
        status = plan(&c, dst, err);
    }
    if (status == HEFT_OK) {
        status = convert(&c, dst, report, err);
    }
    heft__tensor_reader_free(c.reader);
    heft__free(c.ctx, c.raw, c.raw_bytes);
    heft__free(c.ctx, c.sides, c.side_cap * sizeof *c.sides);
    heft__metadata_fini(&c.metadata);
    heft__arena_fini(&c.arena);
    return status;
}
