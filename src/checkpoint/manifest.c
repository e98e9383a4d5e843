/* manifest.c - {"files": {NAME: {"bytes": N, "sha256": HEX}}, "version": 1}
 *
 * SHA-256 is what the hub names large files by, so that a manifest can be compared with it by eye.
 * Source: docs/commands/verify.md. */
#include "checkpoint/manifest.h"
#include "checkpoint/sha256.h"

#include <stdio.h>

/* The survey's own input of a file in its folder; NULL if it has none. */
static heft__input *find_input(const heft_checkpoint *survey, const char *name)
{
    for (size_t f = 0; f < survey->file_count; f++) {
        const heft__checkpoint_file *file = &survey->files[f];
        if (file->file && heft__file_is_local(survey, f) && strcmp(file->info.name, name) == 0) {
            return heft__input_ref(file->file->source);
        }
    }
    return NULL;
}

static heft_status hash_file(const heft__hashing *job, const char *path, uint64_t *size,
                             char hex[HEFT__SHA256_HEX_BYTES], heft_error *err)
{
    heft_ctx *ctx = job->survey->ctx;
    heft__input *source = find_input(job->survey, heft__path_base(path));
    heft__sha256 hash = {0};
    heft_status status = source ? HEFT_OK : heft__input_open(ctx, path, &source, err);
    if (status == HEFT_OK) {
        status = heft__add_path(heft__sha256_init(&hash, err), err, path);
    }
    *size = status == HEFT_OK ? heft__input_size(source) : 0;
    for (uint64_t done = 0; done < *size && status == HEFT_OK;) {
        const size_t most = job->scratch_bytes,
                     piece = *size - done < most ? (size_t)(*size - done) : most;
        status = heft__input_read(source, done, job->scratch, piece, err);
        if (status == HEFT_OK) {
            status = heft__sha256_update(&hash, job->scratch, piece, err);
        }
        if (status == HEFT_OK) {
            done += piece;
            status = heft__tell_progress(ctx, "hashing", done, *size, err);
        }
    }
    if (status == HEFT_OK) {
        status = heft__sha256_finish(&hash, hex, err);
    }
    heft__sha256_fini(&hash);
    heft__input_unref(source);
    return status;
}

static heft_status compare_entry(const heft__hashing *job, heft__arena *arena,
                                 const heft__json_value *entry, heft__manifest_fn differs,
                                 void *user, heft_error *err)
{
    const heft__json_value *sha = heft__json_member(entry, "sha256");
    const char *path = heft__path_join(arena, job->survey->where.folder, entry->key);
    char hex[HEFT__SHA256_HEX_BYTES] = "";
    uint64_t size = 0, said = 0;
    if (!path) {
        return heft__fail_nomem(err, 0);
    }
    if (strchr(entry->key, '/') || !sha || sha->type != HEFT__JSON_TYPE_STRING ||
        !heft__json_as_u64(heft__json_member(entry, "bytes"), &said)) {
        return heft__fail_at(err, HEFT_FORMAT, entry->offset, "not a valid manifest entry");
    }
    if (!heft__path_exists(path)) {
        return differs(user, entry->key, "is in the manifest, but the file is missing", err);
    }
    heft_status status = hash_file(job, path, &size, hex, err);
    if (status == HEFT_OK && size != said) {
        return differs(user, entry->key,
                       heft__arena_format(arena, "has %llu bytes, the manifest says %llu",
                                          (unsigned long long)size, (unsigned long long)said),
                       err);
    }
    if (status == HEFT_OK && strcmp(hex, sha->text) != 0) {
        return differs(
            user, entry->key,
            heft__arena_format(arena, "has sha256 %s, the manifest says %.64s", hex, sha->text),
            err);
    }
    return status;
}

heft_status heft__manifest_compare(const heft__hashing *job, const char *manifest,
                                   heft__manifest_fn differs, void *user, heft_error *err)
{
    heft_ctx *ctx = job->survey->ctx;
    heft__arena arena;
    char *text = NULL;
    size_t length = 0;
    heft__json_value *root = NULL;
    heft__arena_init(&arena, ctx);
    heft_status status =
        heft__read_file(&arena, manifest, heft__limits(ctx)->index_bytes, &text, &length, err);
    heft__add_limit(status, err, "index_bytes");
    if (status == HEFT_OK) {
        status = heft__json_parse(&arena, text, length, heft__limits(ctx)->json_depth, &root, err);
    }
    const heft__json_value *files = status == HEFT_OK ? heft__json_member(root, "files") : NULL;
    if (status == HEFT_OK && (!files || files->type != HEFT__JSON_TYPE_OBJECT)) {
        status = heft__fail_at(err, HEFT_FORMAT, 0, "field 'files' is missing or not an object");
    }
    for (const heft__json_value *entry = files ? files->first : NULL; entry && status == HEFT_OK;
         entry = entry->next) {
        status = compare_entry(job, &arena, entry, differs, user, err);
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, manifest);
}

static heft_status add_entry(const heft__hashing *job, heft__arena *arena, heft__json_value *files,
                             const char *name, heft_error *err)
{
    char hex[HEFT__SHA256_HEX_BYTES] = "";
    uint64_t size = 0;
    const char *path = heft__path_join(arena, job->survey->where.folder, name);
    heft_status status = path ? hash_file(job, path, &size, hex, err) : heft__fail_nomem(err, 0);
    if (status != HEFT_OK) {
        return status;
    }
    heft__json_value *entry = heft__json_new_object(arena);
    char *bytes = heft__arena_format(arena, "%llu", (unsigned long long)size);
    bool done = entry && bytes &&
                heft__json_set(arena, entry, "bytes", heft__json_new_number(arena, bytes)) &&
                heft__json_set(arena, entry, "sha256", heft__json_new_string(arena, hex)) &&
                heft__json_set(arena, files, name, entry);
    return done ? HEFT_OK : heft__fail_nomem(err, 0);
}

static heft_status write_text(heft__arena *arena, const char *path, const heft__json_value *root,
                              heft_error *err)
{
    heft__buffer text;
    heft__buffer_init(&text, arena->ctx);
    heft__json_write_python(&text, root);
    heft__buffer_byte(&text, '\n');
    heft_status status = heft__buffer_check(&text, err);
    if (status == HEFT_OK) {
        status = heft__write_file(arena->ctx, path, text.data, text.size, err);
    }
    heft__buffer_fini(&text);
    return status;
}

heft_status heft__manifest_write(const heft__hashing *job, const char *manifest, heft_error *err)
{
    const heft_checkpoint *survey = job->survey;
    heft__arena arena;
    heft__arena_init(&arena, survey->ctx);
    heft__json_value *root = heft__json_new_object(&arena), *files = heft__json_new_object(&arena);
    heft_status status =
        root && files && heft__json_set(&arena, root, "files", files) &&
                heft__json_set(&arena, root, "version", heft__json_new_number(&arena, "1"))
            ? HEFT_OK
            : heft__fail_nomem(err, 0);
    for (size_t f = 0; f < survey->file_count && status == HEFT_OK; f++) {
        if (heft__file_is_local(survey, f)) { /* an index may name others */
            status = add_entry(job, &arena, files, survey->files[f].info.name, err);
        }
    }
    if (status == HEFT_OK) {
        status = write_text(&arena, manifest, root, err);
    }
    heft__arena_fini(&arena);
    return heft__add_path(status, err, manifest);
}
