/* write.c - writing a folder: side files, weights in shards, the index last; and taking away what
 * would win over them.
 *
 * All of it goes through one folder writer, so the destination changes at commit or not at all. The
 * staging buffer is the only memory that grows with nothing.
 * Source: docs/sharding.md [3], [4]. */
#include "checkpoint/checkpoint.h"

struct session {
    heft_ctx *ctx;
    const heft__write_job *job;
    heft__arena arena;
    heft__folder_writer *folder;
    heft__shard_plan plan;
    heft__out_tensor *shard; /* the tensors of one shard, in order */
    const char **names;      /* [shard_count] files */
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
static heft_status name_files(struct session *s, heft_error *err)
{
    const heft__write_job *job = s->job;
    size_t count = s->plan.shard_count;
    s->names = heft__arena_array(&s->arena, count, sizeof *s->names);
    s->shard = heft__arena_array(&s->arena, job->count, sizeof *s->shard);
    if (!s->names || !s->shard) {
        return heft__fail_nomem(err, job->count * sizeof *s->shard);
    }
    for (size_t i = 0; i < count; i++) {
        s->names[i] = count == 1
                          ? heft__weights_single(&s->arena, job->format, job->variant)
                          : heft__weights_shard(&s->arena, job->format, job->variant, i + 1, count);
        if (!s->names[i]) {
            return heft__fail_nomem(err, 0);
        }
    }
    if (count > 1) {
        s->index_name = heft__weights_index(&s->arena, job->format, job->variant);
        return s->index_name ? HEFT_OK : heft__fail_nomem(err, 0);
    }
    return HEFT_OK;
}

/* A file name's part before its extension: the prefix of a zip's records. */
static const char *stem_of_file(heft__arena *arena, const char *name)
{
    const char *dot = strrchr(name, '.');
    return heft__arena_text(arena, name, dot ? (size_t)(dot - name) : strlen(name));
}

static size_t gather(struct session *s, size_t shard)
{
    size_t count = 0;
    for (size_t i = 0; i < s->job->count; i++) {
        if (s->plan.shard[i] == shard) {
            s->shard[count++] = s->job->tensors[i];
        }
    }
    return count;
}

static heft_status measure(struct session *s, size_t shard, size_t count, uint64_t *bytes,
                           heft_error *err)
{
    if (s->job->format == HEFT_FORMAT_SAFETENSORS) {
        return heft__safetensors_measure(s->ctx, s->shard, count, &pt_format, 1, bytes, err);
    }
    const char *stem = stem_of_file(&s->arena, s->names[shard]);
    return stem ? heft__torch_zip_measure(s->ctx, stem, s->shard, count, s->job->modules,
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
        files[i].tensors = gather(s, i);
        files[i].name = heft__arena_text(arena, s->names[i], strlen(s->names[i]));
        heft_status status = measure(s, i, files[i].tensors, &files[i].size_bytes, err);
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
static bool is_written(const struct session *s, const char *name)
{
    for (size_t i = 0; i < s->job->side_count; i++) {
        if (strcmp(s->job->sides[i].name, name) == 0) {
            return true;
        }
    }
    for (size_t i = 0; i < s->plan.shard_count; i++) {
        if (strcmp(s->names[i], name) == 0) {
            return true;
        }
    }
    return s->index_name && strcmp(s->index_name, name) == 0;
}

static bool is_weights(struct session *s, const char *name, heft_format format)
{
    const char *single = heft__weights_single(&s->arena, format, s->job->variant);
    const char *index = heft__weights_index(&s->arena, format, s->job->variant);
    return (single && strcmp(name, single) == 0) || (index && strcmp(name, index) == 0) ||
           heft__is_shard_name(name, format, s->job->variant);
}

/* Without force nothing that exists is replaced. With it, weights of an earlier save that are not
 * rewritten go: those of our own format, and the safetensors that would win over a .bin. */
static heft_status look_at_destination(struct session *s, heft_error *err)
{
    const char *const *names = NULL;
    size_t count = 0;
    heft_status status = heft__folder_list(s->folder, &names, &count, err);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        bool ours = is_weights(s, names[i], s->job->format);
        bool rival = is_weights(s, names[i], HEFT_FORMAT_SAFETENSORS);
        bool written = is_written(s, names[i]);
        if (!s->job->force &&
            (ours || rival || written || is_weights(s, names[i], HEFT_FORMAT_TORCH))) {
            status = heft__fail(err, HEFT_EXISTS, "holds '%.200s' already; --force replaces it",
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
    heft__source *source = NULL;
    heft_status status = heft__source_open(s->ctx, side->path, &source, err);
    uint64_t size = status == HEFT_OK ? heft__source_size(source) : 0;
    for (uint64_t done = 0; done < size && status == HEFT_OK;) {
        size_t piece = size - done < s->scratch_bytes ? (size_t)(size - done) : s->scratch_bytes;
        status = heft__source_read(source, done, s->scratch, piece, err);
        if (status == HEFT_OK) {
            status = heft__folder_write(s->folder, s->scratch, piece, err);
        }
        done += piece;
    }
    heft__source_unref(source);
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

static heft_status write_weights(struct session *s, size_t shard, heft_error *err)
{
    const heft__write_job *job = s->job;
    size_t count = gather(s, shard);
    const char *name = s->names[shard];
    bool kept = false;
    heft_status status = heft__folder_file_keep(s->folder, name, !s->index_name,
                                                s->report->files[shard].size_bytes, &kept, err);
    if (status == HEFT_OK && kept) {
        heft__log(s->ctx, "%s was finished by an earlier run", name);
        for (size_t i = 0; i < count; i++) {
            s->done_bytes += s->shard[i].size_bytes;
        }
        return HEFT_OK;
    }
    if (status == HEFT_OK) {
        status = heft__folder_file_begin(s->folder, name, !s->index_name, err);
    }
    if (status != HEFT_OK) {
        return status;
    }
    if (job->format == HEFT_FORMAT_SAFETENSORS) {
        status = heft__safetensors_write(s->ctx, s->folder, s->shard, count, &pt_format, 1,
                                         read_counted, s, s->scratch, s->scratch_bytes, err);
    } else {
        const char *stem = stem_of_file(&s->arena, name);
        status = !stem ? heft__fail_nomem(err, 0)
                       : heft__torch_zip_write(s->ctx, s->folder, stem, s->shard, count,
                                               job->modules, job->module_count, read_counted, s,
                                               s->scratch, s->scratch_bytes, err);
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

static heft_status write_index(struct session *s, heft_error *err)
{
    const heft__write_job *job = s->job;
    heft__buffer text;
    heft__buffer_init(&text, s->ctx);
    heft_status status = heft__index_text(&s->arena, job->tensors, job->count, &s->plan, s->names,
                                          job->total_parameters, &text, err);
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
    uint64_t needed = 0,
             limit = job->max_shard_bytes ? job->max_shard_bytes : HEFT__SHARD_BYTES_STANDARD;
    heft__arena_init(&s.arena, ctx);
    heft_status status = heft__shard_plan_make(ctx, job->tensors, job->count, limit, &s.plan, err);
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
    heft__arena_fini(&s.arena);
    return status;
}
