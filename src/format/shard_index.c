/* shard_index.c - *.index.json: which file holds which tensor.
 *
 *   {"metadata": {"total_size": 433241088},
 *    "weight_map": {"embeddings.LayerNorm.bias": "model-00001-of-00003.safetensors"}}
 *
 * Trusted: nothing. A file name may not leave the folder; sizes in the metadata are compared and
 * never used. It does not look whether the files exist or hold what is said of them: that is the
 * checkpoint's work.
 * Source: docs/formats/shard_index.md [1], [2], [4]. */
#include "format/format.h"

#include <stdlib.h>

struct parse {
    heft_ctx *ctx;
    heft__shard_index *index;
    const char *folder; /* of the files; NULL: not known */
    uint64_t checked;   /* names up to here were compared with what the files may hold */
    heft__json_reader json;
    heft__map names; /* empty as long as the keys rise */
    heft__map files;
    heft__shard_entry *entries;
    size_t count, cap;
    const char **file_names;
    size_t file_count, file_cap;
    heft__json_token last; /* the file name read last: neighbors often share a file */
    size_t last_file;      /* its number */
    bool whole;            /* the document was read to its end */
    bool has_map, has_metadata, unsorted;
};

/* ---- file names ------------------------------------------------------------------------------ */
static heft_status check_file_name(const heft__json_token *token, const char *name, size_t length,
                                   heft_error *err)
{
    const char *fault = NULL;
    if (length == 0) {
        fault = "is empty";
    } else if (memchr(name, 0, length)) {
        fault = "contains a NUL";
    } else if (name[0] == '/') {
        fault = "is absolute: it must be a name in the index's folder";
    } else if (strchr(name, '/') || strchr(name, '\\') || strcmp(name, ".") == 0 ||
               strcmp(name, "..") == 0) {
        fault = "leaves the index's folder";
    }
    return fault ? heft__fail_at(err, HEFT_REFUSED, token->offset, "file name '%.100s' %s", name,
                                 fault)
                 : HEFT_OK;
}

/* A file name that was not met in this spelling yet. */
static heft_status add_file(struct parse *p, const heft__json_token *token, size_t *number,
                            heft_error *err)
{
    const uint64_t limit = heft__limits(p->ctx)->shards;
    size_t length = 0, found;
    const char *name = NULL;
    heft_status status = heft__json_string(token, &p->index->arena, &name, &length, err);
    if (status == HEFT_OK) {
        status = check_file_name(token, name, length, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (!heft__array_reserve(p->ctx, (void **)&p->file_names, p->file_count, &p->file_cap,
                             sizeof *p->file_names) ||
        !heft__map_put(&p->files, name, length, p->file_count, &found)) {
        return heft__fail_nomem(err, length);
    }
    if (found != HEFT__MAP_NONE) { /* met with other escapes */
        *number = found;
        return HEFT_OK;
    }
    if (p->file_count >= limit) {
        return heft__fail_at(err, HEFT_LIMIT, token->offset, "more than %llu files (limit shards)",
                             (unsigned long long)limit);
    }
    *number = p->file_count;
    p->file_names[p->file_count++] = name;
    return HEFT_OK;
}

/* The number of a file by its name, new or known. */
static heft_status find_file(struct parse *p, const heft__json_token *token, size_t *number,
                             heft_error *err)
{
    heft_status status = HEFT_OK;
    bool same = p->last.text && token->length == p->last.length &&
                memcmp(token->text, p->last.text, token->length) == 0;
    size_t found = p->last_file;
    if (!same) {
        found =
            token->escaped ? HEFT__MAP_NONE : heft__map_get(&p->files, token->text, token->length);
        if (found == HEFT__MAP_NONE) {
            status = add_file(p, token, &found, err);
        }
    }
    if (status == HEFT_OK) {
        p->last = *token;
        p->last_file = found;
        *number = found;
    }
    return status;
}

/* ---- weight_map ------------------------------------------------------------------------------ */
/* Whether the index has a name yet. Writers sort the keys, and what rises cannot repeat: names are
 * hashed only from the first that falls on. *found is the entry, or HEFT__MAP_NONE. */
static heft_status find_twin(struct parse *p, const char *name, size_t length, size_t *found,
                             heft_error *err)
{
    *found = HEFT__MAP_NONE;
    if (!p->unsorted && (p->count == 0 || strcmp(p->entries[p->count - 1].name, name) < 0)) {
        return HEFT_OK;
    }
    for (size_t i = 0; i < p->count && !p->unsorted; i++) {
        const char *known = p->entries[i].name;
        if (!heft__map_put(&p->names, known, strlen(known), i, found)) {
            return heft__fail_nomem(err, strlen(known));
        }
    }
    p->unsorted = true;
    return heft__map_put(&p->names, name, length, p->count, found) ? HEFT_OK
                                                                   : heft__fail_nomem(err, length);
}

/* Bytes of the files that were named so far, each once. */
static heft_status sum_files(struct parse *p, uint64_t *bytes, heft_error *err)
{
    heft__map seen;
    heft__arena arena;
    heft_status status = HEFT_OK;
    heft__map_init(&seen, p->ctx);
    heft__arena_init(&arena, p->ctx);
    *bytes = 0;
    for (size_t i = 0; i < p->file_count && status == HEFT_OK; i++) {
        const char *path = heft__path_join(&arena, p->folder, p->file_names[i]);
        const heft__identity it = path ? heft__path_identity(path) : (heft__identity){0};
        uint64_t *inode = heft__arena_array(&arena, 2, sizeof *inode);
        size_t found = 0;
        if (!path || !inode) {
            status = heft__fail_nomem(err, 0);
            break;
        }
        inode[0] = it.device;
        inode[1] = it.inode;
        if (!heft__map_put(&seen, (const char *)inode, 2 * sizeof *inode, i, &found)) {
            status = heft__fail_nomem(err, sizeof *inode);
        } else if (found == HEFT__MAP_NONE) {
            *bytes = heft__add_most(*bytes, it.bytes);
        }
    }
    heft__map_fini(&seen);
    heft__arena_fini(&arena);
    return status;
}

/* An index may name twice as many tensors as its files may have: more are certainly not there, and
 * would take memory that the files do not account for. Asked rarely: when the names have doubled. */
static heft_status check_count(struct parse *p, uint64_t at, heft_error *err)
{
    const uint64_t limit = heft__limits(p->ctx)->small_tensors;
    uint64_t bytes = 0;
    if (!p->folder || p->count / 2 < limit || p->count / 2 < p->checked) {
        return HEFT_OK;
    }
    heft_status status = sum_files(p, &bytes, err);
    const uint64_t most = heft__add_most(limit, bytes / HEFT__QUOTA_BYTES);
    p->checked = p->count;
    return status != HEFT_OK || p->count / 2 < most
               ? status
               : heft__fail_at(err, HEFT_LIMIT, at,
                               "more than %zu names, but the files have room for %llu tensors: one "
                               "for each %d bytes, and the limit small_tensors",
                               p->count, (unsigned long long)most, HEFT__QUOTA_BYTES);
}

static heft_status read_key(struct parse *p, const heft__json_token *token,
                            heft__shard_entry *entry, heft_error *err)
{
    const heft_limits *limits = heft__limits(p->ctx);
    size_t length, found = HEFT__MAP_NONE;
    heft_status status = heft__json_string(token, &p->index->arena, &entry->name, &length, err);
    if (status != HEFT_OK) {
        return status;
    }
    entry->offset = token->offset;
    if (length > limits->name_bytes) {
        status = heft__fail_at(err, HEFT_LIMIT, token->offset,
                               "tensor name has %zu bytes, the limit is %llu (limit name_bytes)",
                               length, (unsigned long long)limits->name_bytes);
    } else if (p->count >= limits->tensors) {
        status =
            heft__fail_at(err, HEFT_LIMIT, token->offset, "more than %llu tensors (limit tensors)",
                          (unsigned long long)limits->tensors);
    } else if (memchr(entry->name, 0, length)) {
        status = heft__fail_at(err, HEFT_FORMAT, token->offset, "tensor name contains a NUL");
    } else {
        status = check_count(p, token->offset, err);
    }
    if (status == HEFT_OK) {
        status = find_twin(p, entry->name, length, &found, err);
    }
    if (status == HEFT_OK && found != HEFT__MAP_NONE) {
        status =
            heft__fail_at(err, HEFT_FORMAT, token->offset, "key occurs twice, first at byte %llu",
                          (unsigned long long)p->entries[found].offset);
    }
    return heft__add_item(status, err, entry->name);
}

static heft_status read_entry(struct parse *p, const heft__json_token *key, heft_error *err)
{
    heft__shard_entry entry;
    heft__json_token token;
    heft_status status = read_key(p, key, &entry, err);
    if (status != HEFT_OK) {
        return status;
    }
    status = heft__json_next(&p->json, &token, err);
    if (status == HEFT_OK && token.kind != HEFT__JSON_STRING) {
        status =
            heft__fail_at(err, HEFT_FORMAT, token.offset, "file name must be a string, found %s",
                          heft__json_kind_name(token.kind));
    }
    if (status == HEFT_OK) {
        status = find_file(p, &token, &entry.file, err);
    }
    if (status == HEFT_OK &&
        !heft__array_reserve(p->ctx, (void **)&p->entries, p->count, &p->cap, sizeof *p->entries)) {
        status = heft__fail_nomem(err, sizeof entry);
    }
    if (status == HEFT_OK) {
        p->entries[p->count++] = entry;
    }
    return heft__add_item(status, err, entry.name);
}

static heft_status read_map(struct parse *p, heft_error *err)
{
    heft__json_token token;
    heft_status status = heft__json_next(&p->json, &token, err);
    uint64_t at = token.offset;
    if (status == HEFT_OK && token.kind != HEFT__JSON_OBJECT_BEGIN) {
        status = heft__fail_at(err, HEFT_FORMAT, at, "weight_map must be an object, found %s",
                               heft__json_kind_name(token.kind));
    }
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        status = read_entry(p, &token, err);
    }
    if (status == HEFT_OK && p->count == 0) {
        status = heft__fail_at(err, HEFT_FORMAT, at, "weight_map contains no tensor");
    }
    return status;
}

/* ---- metadata -------------------------------------------------------------------------------- */
static heft_status read_metadata(struct parse *p, heft_error *err)
{
    heft__json_token token;
    heft__json_value *tree = NULL;
    heft_status status = heft__json_next(&p->json, &token, err);
    if (status != HEFT_OK || token.kind == HEFT__JSON_NULL) {
        return status;
    }
    if (token.kind != HEFT__JSON_OBJECT_BEGIN) {
        return heft__fail_at(err, HEFT_FORMAT, token.offset, "metadata must be an object, found %s",
                             heft__json_kind_name(token.kind));
    }
    status = heft__json_read_tree(&p->json, &token, &p->index->arena, &tree, err);
    if (status == HEFT_OK) {
        p->index->metadata = tree;
    }
    return status;
}

static heft_status read_member(struct parse *p, const heft__json_token *key, heft_error *err)
{
    heft__json_token token;
    bool map = heft__json_is(key, "weight_map"), metadata = heft__json_is(key, "metadata");
    if ((map && p->has_map) || (metadata && p->has_metadata)) {
        return heft__fail_at(err, HEFT_FORMAT, key->offset, "'%.*s' occurs twice", (int)key->length,
                             key->text);
    }
    p->has_map |= map;
    p->has_metadata |= metadata;
    if (map) {
        return read_map(p, err);
    }
    if (metadata) {
        return read_metadata(p, err);
    }
    heft_status status = heft__json_next(&p->json, &token, err);
    return status == HEFT_OK ? heft__json_skip(&p->json, &token, err) : status;
}

/* ---- all of it ------------------------------------------------------------------------------- */
struct named {
    const char *name;
    size_t number;
};

static int by_name(const void *left, const void *right)
{
    return strcmp(((const struct named *)left)->name, ((const struct named *)right)->name);
}

/* Files in byte order, entries with their new numbers, both in the arena. */
static heft_status publish(struct parse *p, heft_error *err)
{
    heft__shard_index *index = p->index;
    struct named *order = heft__alloc_zero(p->ctx, p->file_count, sizeof *order);
    size_t *moved = heft__alloc_zero(p->ctx, p->file_count, sizeof *moved);
    index->files = heft__arena_array(&index->arena, p->file_count, sizeof *index->files);
    index->entries = heft__arena_array(&index->arena, p->count, sizeof *index->entries);
    heft_status status = HEFT_OK;
    if (!order || !moved || !index->files || !index->entries) {
        status = heft__fail_nomem(err, p->count * sizeof *index->entries);
    } else {
        for (size_t i = 0; i < p->file_count; i++) {
            order[i] = (struct named){p->file_names[i], i};
        }
        qsort(order, p->file_count, sizeof *order, by_name);
        for (size_t i = 0; i < p->file_count; i++) {
            index->files[i] = order[i].name;
            moved[order[i].number] = i;
        }
        for (size_t i = 0; i < p->count; i++) {
            index->entries[i] = p->entries[i];
            index->entries[i].file = moved[p->entries[i].file];
        }
        index->file_count = p->file_count;
        index->entry_count = p->count;
    }
    heft__free(p->ctx, order, p->file_count * sizeof *order);
    heft__free(p->ctx, moved, p->file_count * sizeof *moved);
    return status;
}

static heft_status read_document(struct parse *p, heft_error *err)
{
    heft__json_token token;
    heft_status status =
        heft__json_expect(&p->json, HEFT__JSON_OBJECT_BEGIN, "an object", &token, err);
    uint64_t at = token.offset;
    while (status == HEFT_OK) {
        status = heft__json_next(&p->json, &token, err);
        if (status != HEFT_OK || token.kind == HEFT__JSON_OBJECT_END) {
            break;
        }
        status = read_member(p, &token, err);
    }
    if (status == HEFT_OK) {
        status = heft__json_expect(&p->json, HEFT__JSON_END, "the end of the index", &token, err);
    }
    if (status == HEFT_OK && !p->has_map) {
        p->whole = true;
        status = heft__fail_at(err, HEFT_FORMAT, at, "field 'weight_map' is missing");
    }
    return status == HEFT_OK ? publish(p, err) : status;
}

/* Accelerate also reads an index that is nothing but {name: file}: the whole document is the map. */
static heft_status read_bare(struct parse *p, heft_error *err)
{
    heft__json_token token;
    heft_status status = read_map(p, err);
    if (status == HEFT_OK) {
        status = heft__json_expect(&p->json, HEFT__JSON_END, "the end of the index", &token, err);
    }
    for (size_t i = 0; i < p->file_count && status == HEFT_OK; i++) {
        status = heft__is_weights_ending(p->file_names[i])
                     ? HEFT_OK
                     : heft__fail(err, HEFT_FORMAT, "'%.60s' is no weight file", p->file_names[i]);
    }
    return status == HEFT_OK ? publish(p, err) : status;
}

static heft_status parse_text(heft_ctx *ctx, const char *folder, const void *bytes, size_t length,
                              heft__shard_index *out, heft_error *err)
{
    heft__shard_index index = {0};
    struct parse p = {.ctx = ctx, .index = &index, .folder = folder};
    const uint64_t limit = heft__limits(ctx)->index_bytes;
    if (length > limit) {
        return heft__fail(err, HEFT_LIMIT,
                          "index has %zu bytes, the limit is %llu (limit index_bytes)", length,
                          (unsigned long long)limit);
    }
    heft__arena_init(&index.arena, ctx);
    heft__map_init(&p.names, ctx);
    heft__map_init(&p.files, ctx);
    heft__json_init(&p.json, bytes, length, 0, heft__limits(ctx)->json_depth);
    p.json.python = true;
    heft_error why = {0}, other = {0};
    heft_status status = read_document(&p, &why);
    if (status == HEFT_FORMAT && !p.has_map && !p.has_metadata && p.whole) {
        heft__json_init(&p.json, bytes, length, 0, heft__limits(ctx)->json_depth);
        p.json.python = true;
        const heft_status bare = read_bare(&p, &other);
        status = bare == HEFT_OK || bare == HEFT_NOMEM ? bare : status;
    }
    if (status != HEFT_OK && err) {
        *err = other.status == HEFT_NOMEM ? other : why;
    }
    heft__map_fini(&p.names);
    heft__map_fini(&p.files);
    heft__free(ctx, p.entries, p.cap * sizeof *p.entries);
    heft__free(ctx, p.file_names, p.file_cap * sizeof *p.file_names);
    if (status == HEFT_OK) {
        *out = index;
    } else {
        heft__arena_fini(&index.arena);
    }
    return status;
}

heft_status heft__shard_index_parse(heft_ctx *ctx, const void *bytes, size_t length,
                                    heft__shard_index *out, heft_error *err)
{
    return parse_text(ctx, NULL, bytes, length, out, err);
}

heft_status heft__shard_index_read(heft_ctx *ctx, const char *path, heft__shard_index *out,
                                   heft_error *err)
{
    heft__arena arena; /* of the text, which is not needed afterwards */
    char *text = NULL;
    size_t length = 0;
    heft__arena_init(&arena, ctx);
    heft_status status =
        heft__read_file(&arena, path, heft__limits(ctx)->index_bytes, &text, &length, err);
    heft__add_limit(status, err, "index_bytes");
    if (status == HEFT_OK) {
        const char *base = heft__path_base(path);
        const char *folder =
            base == path ? "." : heft__arena_text(&arena, path, (size_t)(base - path));
        status = folder ? parse_text(ctx, folder, text, length, out, err)
                        : heft__fail_nomem(err, strlen(path));
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, path);
}

void heft__shard_index_fini(heft__shard_index *index)
{
    if (index && index->arena.ctx) {
        heft__arena_fini(&index->arena);
        *index = (heft__shard_index){0};
    }
}

void heft__shard_index_write(heft__buffer *out, const heft__json_value *metadata,
                             const char *const *names, const char *const *files, size_t count)
{
    heft__arena arena;
    heft__arena_init(&arena, out->ctx);
    heft__json_value *root = heft__json_new_object(&arena), *map = heft__json_new_object(&arena);
    heft__json_value *copy =
        heft__arena_alloc(&arena, sizeof *copy); /* set gives it a key of its own */
    heft__json_value *values = heft__arena_array(&arena, count, sizeof *values);
    bool made = root && map && copy && values;
    if (made) {
        *copy = *metadata;
        made = heft__json_set(&arena, root, "metadata", copy) &&
               heft__json_set(&arena, root, "weight_map", map);
    }
    for (size_t i = 0; made && i < count; i++) { /* names are unique: appending keeps this linear */
        values[i] = (heft__json_value){
            .type = HEFT__JSON_TYPE_STRING,
            .key = names[i],
            .key_length = strlen(names[i]),
            .text = files[i],
            .length = strlen(files[i]),
        };
        heft__json_append(map, &values[i]);
    }
    if (made) {
        heft__json_write_python(out, root);
        heft__buffer_byte(out, '\n');
    } else {
        out->failed = true;
    }
    heft__arena_fini(&arena);
}

/* ---- as a format's index --------------------------------------------------------------------- */
heft_status heft__shard_index_open(heft_ctx *ctx, const char *folder, const char *name,
                                   heft__input *opened, heft__index *out, heft_error *err)
{
    (void)opened; /* the name determines what it is, so that it was not opened */
    heft__arena arena;
    heft__shard_index read = {0};
    heft__arena_init(&arena, ctx);
    const char *path = heft__path_join(&arena, folder, name);
    heft_status status = path ? heft__shard_index_read(ctx, path, &read, err)
                              : heft__fail_nomem(err, strlen(folder));
    heft__index_file *files = NULL;
    heft__index index = {0};
    if (status == HEFT_OK) {
        files = heft__arena_array(&read.arena, read.file_count, sizeof *files);
        index = (heft__index){.path = heft__path_join(&read.arena, folder, name),
                              .files = files,
                              .file_count = read.file_count,
                              .entries = read.entries,
                              .entry_count = read.entry_count,
                              .metadata = read.metadata};
        status = files && index.path ? HEFT_OK : heft__fail_nomem(err, strlen(folder));
    }
    for (size_t i = 0; i < read.file_count && status == HEFT_OK; i++) {
        files[i].name = read.files[i];
        files[i].path = heft__path_join(&read.arena, folder, read.files[i]);
        status = files[i].path ? HEFT_OK : heft__fail_nomem(err, strlen(folder));
    }
    heft__arena_fini(&arena);
    if (status != HEFT_OK) {
        heft__shard_index_fini(&read);
        return status;
    }
    index.arena = read.arena; /* everything lies in it */
    *out = index;
    return HEFT_OK;
}

void heft__index_fini(heft__index *index)
{
    if (index->arena.ctx) {
        heft__arena_fini(&index->arena);
    }
    *index = (heft__index){0};
}

heft_status heft__shard_index_text(heft__arena *arena, const heft__out_index *index,
                                   heft__buffer *text, heft_error *err)
{
    const size_t count = index->count;
    const char **names = heft__arena_array(arena, count, sizeof *names);
    const char **places = heft__arena_array(arena, count, sizeof *places);
    heft__json_value *metadata = heft__json_new_object(arena);
    char *total = heft__arena_format(arena, "%llu", (unsigned long long)index->total_size);
    char *elements = heft__arena_format(arena, "%llu", (unsigned long long)index->total_parameters);
    if (!names || !places || !metadata || !total || !elements ||
        !heft__json_set(arena, metadata, "total_size", heft__json_new_number(arena, total)) ||
        (index->total_parameters && !heft__json_set(arena, metadata, "total_parameters",
                                                    heft__json_new_number(arena, elements)))) {
        return heft__fail_nomem(err, count * sizeof *names);
    }
    for (size_t i = 0; i < count; i++) {
        names[i] = index->tensors[i].name;
        places[i] = index->files[index->file_of[i]];
    }
    heft__shard_index_write(text, metadata, names, places, count);
    return heft__buffer_check(text, err);
}
