/* write.c - writing a folder: side files, weights in shards, the index last; and taking away what
 * would win over them. In Accelerate's offload folder every tensor is a shard of its own.
 *
 * All of it goes through one folder writer, so the destination changes at commit or not at all. The
 * staging buffer is the only memory that grows with nothing.
 * Source: docs/sharding.md [3], [4]; docs/formats/offload.md [4]. */
#include "checkpoint/checkpoint.h"

struct session {
    heft_ctx *ctx;
    const heft__write_job *job;
    heft__arena arena;
    heft__folder_writer *folder;
    heft__shard_plan plan;
    heft__out_tensor *room;  /* [job->count] for the tensors of one shard */
    const char **names;      /* [shard_count] files */
    heft__map written;       /* names of all files that are written */
    heft__map stale;         /* of the offload folder that is there already */
    heft__offload_index old; /* its index */
    const char *index_name;  /* NULL if there is one file */
    void *scratch;
    size_t scratch_bytes;
    uint64_t done_bytes; /* for progress */
    heft_write_report *report;
};

struct report_memory { /* the report and the arena that it lives in */
    heft_write_report report;
    heft__arena arena;
    heft_ctx *ctx;
};

void heft_write_report_free(heft_write_report *report)
{
    struct report_memory *memory = (struct report_memory *)report;
    if (memory) {
        heft_ctx *ctx = memory->ctx;
        heft__arena_fini(&memory->arena);
        heft__free(ctx, memory, sizeof *memory);
        heft_ctx_free(ctx);
    }
}

static const heft__text_pair pt_format = {"format",
                                          "pt"}; /* what the reference puts into every file */

/* ---- names and plan -------------------------------------------------------------------------- */
static bool is_offload(const struct session *s)
{
    return s->job->format == HEFT_FORMAT_OFFLOAD;
}

/* Every tensor is a file. */
static heft_status plan_each(struct session *s, heft_error *err)
{
    const heft__write_job *job = s->job;
    s->plan.shard = heft__alloc_zero(s->ctx, job->count, sizeof *s->plan.shard);
    heft_status status =
        s->plan.shard ? HEFT_OK : heft__fail_nomem(err, job->count * sizeof *s->plan.shard);
    for (size_t i = 0; i < job->count && status == HEFT_OK; i++) {
        const heft__out_tensor *tensor = &job->tensors[i];
        status = heft__offload_check_writable(tensor->name, tensor->dtype, err);
        s->plan.shard[i] = i;
        if (status == HEFT_OK &&
            !heft__add_u64(s->plan.total_size, tensor->size_bytes, &s->plan.total_size)) {
            status = heft__fail(err, HEFT_LIMIT, "the tensors have over 2^64 bytes");
        }
    }
    s->plan.shard_count = job->count;
    return status;
}

static heft_status make_plan(struct session *s, heft_error *err)
{
    const heft__write_job *job = s->job;
    const uint64_t limit = job->max_shard_bytes ? job->max_shard_bytes : HEFT__SHARD_BYTES_STANDARD;
    return is_offload(s)
               ? plan_each(s, err)
               : heft__shard_plan_make(s->ctx, job->tensors, job->count, limit, &s->plan, err);
}

static const char *name_of_file(struct session *s, size_t i)
{
    const heft__write_job *job = s->job;
    const size_t count = s->plan.shard_count;
    return is_offload(s) ? heft__arena_format(&s->arena, "%s.dat", job->tensors[i].name)
           : count == 1  ? heft__weights_single(&s->arena, job->format, job->variant)
                         : heft__weights_shard(&s->arena, job->format, job->variant, i + 1, count);
}

static heft_status note_written(struct session *s, const char *name, heft_error *err)
{
    size_t found;
    return name && heft__map_put(&s->written, name, strlen(name), 0, &found)
               ? HEFT_OK
               : heft__fail_nomem(err, 0);
}

static heft_status name_files(struct session *s, heft_error *err)
{
    const heft__write_job *job = s->job;
    size_t count = s->plan.shard_count;
    heft_status status = HEFT_OK;
    s->names = heft__arena_array(&s->arena, count, sizeof *s->names);
    s->room = heft__arena_array(&s->arena, job->count, sizeof *s->room);
    if (!s->names || !s->room) {
        return heft__fail_nomem(err, job->count * sizeof *s->room);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        s->names[i] = name_of_file(s, i);
        status = note_written(s, s->names[i], err);
    }
    for (size_t i = 0; i < job->side_count && status == HEFT_OK; i++) {
        status = note_written(s, job->sides[i].name, err);
    }
    if (status == HEFT_OK && (count > 1 || is_offload(s))) {
        s->index_name = is_offload(s) ? HEFT__OFFLOAD_INDEX
                                      : heft__weights_index(&s->arena, job->format, job->variant);
        status = note_written(s, s->index_name, err);
    }
    return status;
}

/* A file name's part before its extension: the prefix of a zip's records. */
static const char *stem_of_file(heft__arena *arena, const char *name)
{
    const char *dot = strrchr(name, '.');
    return heft__arena_text(arena, name, dot ? (size_t)(dot - name) : strlen(name));
}

/* The tensors of a shard, in order. */
static const heft__out_tensor *gather(struct session *s, size_t shard, size_t *count)
{
    *count = 0;
    if (is_offload(s)) {
        *count = 1;
        return &s->job->tensors[shard];
    }
    for (size_t i = 0; i < s->job->count; i++) {
        if (s->plan.shard[i] == shard) {
            s->room[(*count)++] = s->job->tensors[i];
        }
    }
    return s->room;
}

static heft_status measure(struct session *s, size_t shard, const heft__out_tensor *tensors,
                           size_t count, uint64_t *bytes, heft_error *err)
{
    if (is_offload(s)) {
        *bytes = heft__offload_dat_bytes(tensors->size_bytes);
        return HEFT_OK;
    }
    if (s->job->format == HEFT_FORMAT_SAFETENSORS) {
        return heft__safetensors_measure(s->ctx, tensors, count, &pt_format, 1, bytes, err);
    }
    const char *stem = stem_of_file(&s->arena, s->names[shard]);
    return stem ? heft__torch_zip_measure(s->ctx, stem, tensors, count, s->job->modules,
                                          s->job->module_count, bytes, err)
                : heft__fail_nomem(err, 0);
}

/* Every file's size, for the report and for the disk. */
static heft_status fill_report(struct session *s, uint64_t *total, heft_error *err)
{
    const size_t count = s->plan.shard_count;
    heft__arena *arena = &((struct report_memory *)s->report)->arena;
    heft_written_file *files = heft__arena_array(arena, count, sizeof *files);
    const char **warnings = heft__arena_array(arena, s->job->warning_count, sizeof *warnings);
    if (!files || !warnings) {
        return heft__fail_nomem(err, count * sizeof *files);
    }
    *total = 0;
    for (size_t i = 0; i < count; i++) {
        const heft__out_tensor *tensors = gather(s, i, &files[i].tensors);
        files[i].name = heft__arena_text(arena, s->names[i], strlen(s->names[i]));
        heft_status status = measure(s, i, tensors, files[i].tensors, &files[i].size_bytes, err);
        if (status != HEFT_OK || !files[i].name) {
            return status != HEFT_OK ? status : heft__fail_nomem(err, 0);
        }
        *total += files[i].size_bytes;
    }
    for (size_t i = 0; i < s->job->warning_count; i++) {
        warnings[i] = heft__arena_text(arena, s->job->warnings[i], strlen(s->job->warnings[i]));
        if (!warnings[i]) {
            return heft__fail_nomem(err, 0);
        }
    }
    s->report->files = files;
    s->report->file_count = count;
    s->report->warnings = warnings;
    s->report->warning_count = s->job->warning_count;
    s->report->total_size = s->plan.total_size;
    if (s->index_name) {
        s->report->index = heft__arena_text(arena, s->index_name, strlen(s->index_name));
    }
    return s->index_name && !s->report->index ? heft__fail_nomem(err, 0) : HEFT_OK;
}

/* ---- what is there already ------------------------------------------------------------------- */
struct entry_points { /* of a format */
    heft_format format;
    const char *single, *index;
};

static heft_status name_entry_points(struct session *s, heft_format format,
                                     struct entry_points *out, heft_error *err)
{
    *out = (struct entry_points){format, heft__weights_single(&s->arena, format, s->job->variant),
                                 heft__weights_index(&s->arena, format, s->job->variant)};
    return out->single && out->index ? HEFT_OK : heft__fail_nomem(err, 0);
}

static bool is_weights(const struct session *s, const char *name, const struct entry_points *points)
{
    return strcmp(name, points->single) == 0 || strcmp(name, points->index) == 0 ||
           heft__is_shard_name(name, points->format, s->job->variant);
}

/* Note which files the offload folder that is there already consists of. */
static heft_status look_at_offload(struct session *s, heft_error *err)
{
    const char *path = heft__path_join(&s->arena, s->job->dst, HEFT__OFFLOAD_INDEX);
    bool known = false;
    size_t found;
    heft_error reason = {0}; /* an index that cannot be read says nothing of other files */
    heft_status status = path ? heft__offload_is_index(s->ctx, path, &known, err)
                              : heft__fail_nomem(err, strlen(s->job->dst));
    if (status != HEFT_OK || !known) {
        return status;
    }
    status = heft__offload_index_read(s->ctx, path, &s->old, &reason);
    bool good = status != HEFT_NOMEM && heft__map_put(&s->stale, HEFT__OFFLOAD_INDEX,
                                                      strlen(HEFT__OFFLOAD_INDEX), 0, &found);
    for (size_t i = 0; i < s->old.count && good; i++) {
        const char *name = heft__arena_format(&s->arena, "%s.dat", s->old.entries[i].name);
        good = name &&
               (s->old.entries[i].file || heft__map_put(&s->stale, name, strlen(name), 0, &found));
    }
    return good ? HEFT_OK : heft__fail_nomem(err, 0);
}

static bool has(const heft__map *map, const char *name)
{
    return heft__map_get(map, name, strlen(name)) != HEFT__MAP_NONE;
}

/* Without force nothing that exists is replaced. With it, weights of an earlier save that are not
 * rewritten go: those of our own format, and what would win over it. */
static heft_status look_at_destination(struct session *s, heft_error *err)
{
    const char *const *names = NULL;
    size_t count = 0;
    struct entry_points torch_points, safetensors_points;
    heft_status status = heft__folder_list(s->folder, &names, &count, err);
    if (status == HEFT_OK) {
        status = name_entry_points(s, HEFT_FORMAT_TORCH, &torch_points, err);
    }
    if (status == HEFT_OK) {
        status = name_entry_points(s, HEFT_FORMAT_SAFETENSORS, &safetensors_points, err);
    }
    if (status == HEFT_OK) {
        status = look_at_offload(s, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const bool stale = has(&s->stale, names[i]), written = has(&s->written, names[i]),
                   torch = is_weights(s, names[i], &torch_points),
                   safetensors = is_weights(s, names[i], &safetensors_points);
        const bool ours = is_offload(s)                         ? stale
                          : s->job->format == HEFT_FORMAT_TORCH ? torch
                                                                : safetensors;
        const bool rival = safetensors || (is_offload(s) && torch);
        if (!s->job->force && (ours || rival || written || torch || stale)) {
            status = heft__fail(err, HEFT_EXISTS, "holds '%.200s' already; 'force' replaces it",
                                names[i]);
            heft__add_path(status, err, s->job->dst);
        } else if ((ours || rival) && !written) {
            status = heft__folder_remove(s->folder, names[i], err);
        }
    }
    return status;
}

/* ---- files ----------------------------------------------------------------------------------- */
static heft_status copy_side(struct session *s, const heft__side_file *side, heft_error *err)
{
    heft__input *source = NULL;
    heft_status status = heft__input_open(s->ctx, side->path, &source, err);
    uint64_t size = status == HEFT_OK ? heft__input_size(source) : 0;
    for (uint64_t done = 0; done < size && status == HEFT_OK;) {
        size_t piece = size - done < s->scratch_bytes ? (size_t)(size - done) : s->scratch_bytes;
        status = heft__input_read(source, done, s->scratch, piece, err);
        if (status == HEFT_OK) {
            status = heft__folder_write(s->folder, s->scratch, piece, err);
        }
        done += piece;
    }
    heft__input_unref(source);
    return status;
}

static heft_status write_sides(struct session *s, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < s->job->side_count && status == HEFT_OK; i++) {
        const heft__side_file *side = &s->job->sides[i];
        status = heft__folder_file_begin(s->folder, side->name, false, err);
        if (status == HEFT_OK) {
            status = side->path ? copy_side(s, side, err)
                                : heft__folder_write(s->folder, side->bytes, side->length, err);
        }
        if (status == HEFT_OK) {
            status = heft__folder_file_end(s->folder, err);
        }
    }
    return status;
}

static heft_status read_counted(void *user, const heft__out_tensor *tensor, uint64_t first,
                                void *dst, size_t length, heft_error *err)
{
    struct session *s = user;
    heft_status status =
        heft__tell_progress(s->ctx, "writing", s->done_bytes, s->plan.total_size, err);
    if (status == HEFT_OK) {
        status = s->job->read(s->job->user, tensor, first, dst, length, err);
        s->done_bytes += length;
    }
    return status;
}

/* The bytes of one open file. */
static heft_status write_format(struct session *s, const char *name,
                                const heft__out_tensor *tensors, size_t count, heft_error *err)
{
    const heft__write_job *job = s->job;
    if (is_offload(s)) {
        return heft__offload_dat_write(s->folder, tensors, read_counted, s, s->scratch,
                                       s->scratch_bytes, err);
    }
    if (job->format == HEFT_FORMAT_SAFETENSORS) {
        return heft__safetensors_write(s->ctx, s->folder, tensors, count, &pt_format, 1,
                                       read_counted, s, s->scratch, s->scratch_bytes, err);
    }
    const char *stem = stem_of_file(&s->arena, name);
    return !stem ? heft__fail_nomem(err, 0)
                 : heft__torch_zip_write(s->ctx, s->folder, stem, tensors, count, job->modules,
                                         job->module_count, read_counted, s, s->scratch,
                                         s->scratch_bytes, err);
}

static heft_status write_weights(struct session *s, size_t shard, heft_error *err)
{
    size_t count = 0;
    const heft__out_tensor *tensors = gather(s, shard, &count);
    const char *name = s->names[shard];
    bool kept = false;
    heft_status status = heft__folder_file_keep(s->folder, name, !s->index_name,
                                                s->report->files[shard].size_bytes, &kept, err);
    if (status == HEFT_OK && kept) {
        heft__log(s->ctx, "%s was finished by an earlier run", name);
        for (size_t i = 0; i < count; i++) {
            s->done_bytes += tensors[i].size_bytes;
        }
        return HEFT_OK;
    }
    if (status == HEFT_OK) {
        status = heft__folder_file_begin(s->folder, name, !s->index_name, err);
    }
    if (status == HEFT_OK) {
        status = write_format(s, name, tensors, count, err);
    }
    return status == HEFT_OK ? heft__folder_file_end(s->folder, err) : status;
}

heft_status heft__index_text(heft__arena *arena, const heft__out_tensor *tensors, size_t count,
                             const heft__shard_plan *plan, const char *const *files,
                             uint64_t total_parameters, heft__buffer *text, heft_error *err)
{
    const char **names = heft__arena_array(arena, count, sizeof *names);
    const char **places = heft__arena_array(arena, count, sizeof *places);
    heft__json_value *metadata = heft__json_new_object(arena);
    char *total = heft__arena_format(arena, "%llu", (unsigned long long)plan->total_size);
    char *elements = heft__arena_format(arena, "%llu", (unsigned long long)total_parameters);
    if (!names || !places || !metadata || !total || !elements ||
        !heft__json_set(arena, metadata, "total_size", heft__json_new_number(arena, total)) ||
        (total_parameters && !heft__json_set(arena, metadata, "total_parameters",
                                             heft__json_new_number(arena, elements)))) {
        return heft__fail_nomem(err, count * sizeof *names);
    }
    for (size_t i = 0; i < count; i++) {
        names[i] = tensors[i].name;
        places[i] = files[plan->shard[i]];
    }
    heft__shard_index_write(text, metadata, names, places, count);
    return heft__buffer_check(text, err);
}

static heft_status offload_text(struct session *s, heft__buffer *text, heft_error *err)
{
    const heft__write_job *job = s->job;
    heft__offload_entry *entries = heft__arena_array(&s->arena, job->count, sizeof *entries);
    if (!entries) {
        return heft__fail_nomem(err, job->count * sizeof *entries);
    }
    for (size_t i = 0; i < job->count; i++) {
        const heft__out_tensor *tensor = &job->tensors[i];
        entries[i] = (heft__offload_entry){.name = tensor->name,
                                           .dtype = tensor->dtype,
                                           .rank = tensor->rank,
                                           .shape = tensor->shape};
    }
    heft__offload_index_write(text, entries, job->count);
    return heft__buffer_check(text, err);
}

static heft_status write_index(struct session *s, heft_error *err)
{
    const heft__write_job *job = s->job;
    heft__buffer text;
    heft__buffer_init(&text, s->ctx);
    heft_status status = is_offload(s)
                             ? offload_text(s, &text, err)
                             : heft__index_text(&s->arena, job->tensors, job->count, &s->plan,
                                                s->names, job->total_parameters, &text, err);
    if (status == HEFT_OK) {
        status = heft__folder_file_begin(s->folder, s->index_name, true, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_write(s->folder, text.data, text.size, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_file_end(s->folder, err);
    }
    heft__buffer_fini(&text);
    return status;
}

static heft_status write_folder(struct session *s, uint64_t needed, heft_error *err)
{
    s->scratch_bytes = heft__staging_bytes(s->ctx) / 4;
    s->scratch_bytes = s->scratch_bytes > HEFT__PIECE_BYTES ? HEFT__PIECE_BYTES : s->scratch_bytes;
    s->scratch = heft__alloc(s->ctx, s->scratch_bytes);
    if (!s->scratch) {
        return heft__fail_nomem(err, s->scratch_bytes);
    }
    heft_status status = heft__folder_begin(s->ctx, s->job->dst, s->job->resume, &s->folder, err);
    if (status == HEFT_OK) {
        status = look_at_destination(s, err);
    }
    if (status == HEFT_OK) {
        status = heft__folder_need(s->folder, needed, err);
    }
    if (status == HEFT_OK) {
        status = write_sides(s, err);
    }
    for (size_t i = 0; i < s->plan.shard_count && status == HEFT_OK; i++) {
        status = write_weights(s, i, err);
    }
    if (status == HEFT_OK && s->index_name) {
        status = write_index(s, err);
    }
    if (status == HEFT_OK) {
        status =
            heft__tell_progress(s->ctx, "writing", s->plan.total_size, s->plan.total_size, err);
    }
    return status == HEFT_OK ? heft__folder_commit(s->folder, err) : status;
}

static heft_status report_new(struct session *s, heft_error *err)
{
    struct report_memory *memory = heft__alloc_zero(s->ctx, 1, sizeof *memory);
    if (!memory) {
        return heft__fail_nomem(err, sizeof *memory);
    }
    memory->ctx = heft__ctx_ref(s->ctx);
    heft__arena_init(&memory->arena, s->ctx);
    s->report = &memory->report;
    return HEFT_OK;
}

heft_status heft__write_checkpoint(heft_ctx *ctx, const heft__write_job *job,
                                   heft_write_report **report, heft_error *err)
{
    struct session s = {.ctx = ctx, .job = job};
    uint64_t needed = 0;
    heft__arena_init(&s.arena, ctx);
    heft__map_init(&s.written, ctx);
    heft__map_init(&s.stale, ctx);
    heft_status status = make_plan(&s, err);
    if (status == HEFT_OK) {
        status = name_files(&s, err);
    }
    if (status == HEFT_OK) {
        status = report_new(&s, err);
    }
    if (status == HEFT_OK) {
        status = fill_report(&s, &needed, err);
    }
    if (status == HEFT_OK && !job->dry_run) {
        status = write_folder(&s, needed, err);
    }
    if (status == HEFT_OK && report) {
        *report = s.report;
    } else {
        heft_write_report_free(s.report);
    }
    heft__folder_free(s.folder);
    heft__free(ctx, s.scratch, s.scratch_bytes);
    heft__shard_plan_fini(ctx, &s.plan, job->count);
    heft__offload_index_fini(&s.old);
    heft__map_fini(&s.written);
    heft__map_fini(&s.stale);
    heft__arena_fini(&s.arena);
    return status;
}
