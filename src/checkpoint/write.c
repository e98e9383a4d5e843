/* write.c - writing a folder: side files, weights in shards, the index last; and taking away what
 * would win over them. Or one file, of which nothing else is a part.
 *
 * Everything goes through one folder writer, so the destination changes at commit or not at all. Each
 * file is laid out once, before anything is written. The staging buffer is the only memory that grows
 * with nothing.
 * Source: docs/sharding.md [3], [4]; docs/formats/offload.md [4]. */
#include "checkpoint/checkpoint.h"

struct session {
    heft_ctx *ctx;
    const heft__write_job *job;
    const heft__format *format;
    heft__arena arena;
    heft__folder_writer *folder;
    heft__shard_plan plan;
    size_t file_count;
    heft__out_tensor *tensors; /* [job->count] file after file */
    size_t *first;             /* [file_count + 1] the first of each file in `tensors` */
    const char **names;        /* [file_count] */
    heft__layout **layouts;    /* [file_count] NULL where done */
    heft__map written;         /* names of all files that are written */
    heft__map removed;         /* of weights that go */
    const char *stays;         /* the first of the weights that stay, of `staying`; NULL: none */
    size_t staying;
    const char *index_name; /* NULL if there is one file */
    void *scratch;
    size_t scratch_bytes;
    uint64_t done_bytes;             /* for progress: of tensors */
    uint64_t side_bytes, sides_done; /* of the files that are copied */
    heft_write_report *report;
    const char **warnings; /* the report's, with room for one more */
};

struct report_memory { /* the report and the arena that it lives in */
    heft_write_report report;
    heft__arena arena; /* holds a reference on its context */
};

void heft_write_report_free(heft_write_report *report)
{
    struct report_memory *memory = (struct report_memory *)report;
    if (memory) {
        heft__free_with_arena(&memory->arena, memory, sizeof *memory);
    }
}

/* ---- names and plan -------------------------------------------------------------------------- */
static heft_status make_plan(struct session *s, heft_error *err)
{
    const heft__write_job *job = s->job;
    const uint64_t limit = job->single            ? UINT64_MAX
                           : job->max_shard_bytes ? job->max_shard_bytes
                                                  : HEFT__SHARD_BYTES_STANDARD;
    if (s->format->file_each && (job->count == 0 || job->single)) {
        return heft__fail(err, HEFT_INVALID_ARG, "%s %s", s->format->noun,
                          job->single ? "is not a single file" : "must have at least one tensor");
    }
    heft_status status =
        s->format->file_each
            ? heft__shard_plan_each(s->ctx, job->tensors, job->count, &s->plan, err)
            : heft__shard_plan_make(s->ctx, job->tensors, job->count, limit, &s->plan, err);
    s->file_count = s->plan.shard_count ? s->plan.shard_count : 1; /* no tensors are a file too */
    return status;
}

static const char *name_of_file(struct session *s, size_t i)
{
    const heft__write_job *job = s->job;
    const size_t count = s->file_count;
    return job->single ? job->single
           : s->format->file_each
               ? heft__weights_of_tensor(&s->arena, s->format, job->tensors[i].name)
           : count == 1 ? heft__weights_single(&s->arena, s->format, job->variant)
                        : heft__weights_shard(&s->arena, s->format, job->variant, i + 1, count);
}

/* A name that is written twice is a side file in the place of weights. */
static heft_status note_written(struct session *s, const char *name, heft_error *err)
{
    size_t found;
    if (!name || !heft__map_put(&s->written, name, strlen(name), 0, &found)) {
        return heft__fail_nomem(err, 0);
    }
    return found == HEFT__MAP_NONE
               ? HEFT_OK
               : heft__fail(err, HEFT_INVALID_ARG, "two files would have the name '%.200s'", name);
}

static heft_status name_files(struct session *s, heft_error *err)
{
    const heft__write_job *job = s->job;
    const size_t count = s->file_count;
    heft_status status = HEFT_OK;
    s->names = heft__arena_array(&s->arena, count, sizeof *s->names);
    s->layouts = heft__arena_array(&s->arena, count, sizeof(heft__layout *));
    if (!s->names || !s->layouts) {
        return heft__fail_nomem(err, count * sizeof *s->names);
    }
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        s->names[i] = name_of_file(s, i);
        status = note_written(s, s->names[i], err);
    }
    if (status == HEFT_OK && (count > 1 || s->format->file_each)) {
        s->index_name = heft__weights_index(&s->arena, s->format, job->variant);
        status = note_written(s, s->index_name, err);
    }
    for (size_t i = 0; i < job->side_count && status == HEFT_OK; i++) {
        status = note_written(s, job->sides[i].name, err);
    }
    return status;
}

/* The tensors file after file, each file's in their order. */
static heft_status sort_tensors(struct session *s, heft_error *err)
{
    const size_t count = s->job->count;
    s->tensors = heft__arena_array(&s->arena, count, sizeof *s->tensors);
    s->first = heft__arena_array(&s->arena, (uint64_t)s->file_count + 2, sizeof *s->first);
    if (!s->tensors || !s->first) {
        return heft__fail_nomem(err, count * sizeof *s->tensors);
    }
    for (size_t i = 0; i < count; i++) {
        s->first[s->plan.shard[i] + 2]++;
    }
    for (size_t f = 0; f < s->file_count; f++) {
        s->first[f + 2] += s->first[f + 1];
    }
    for (size_t i = 0; i < count;
         i++) { /* moves first[f + 1] from the beginning of file f to its end */
        s->tensors[s->first[s->plan.shard[i] + 1]++] = s->job->tensors[i];
    }
    return HEFT_OK;
}

static size_t count_in(const struct session *s, size_t file)
{
    return s->first[file + 1] - s->first[file];
}

/* Lay every file out: their sizes, for the report and for the disk. */
static heft_status lay_out(struct session *s, heft_written_file *files, uint64_t *total,
                           heft_error *err)
{
    heft_status status = HEFT_OK;
    *total = 0;
    for (size_t i = 0; i < s->file_count && status == HEFT_OK; i++) {
        const heft__out_file file = {.name = s->names[i],
                                     .tensors = s->tensors + s->first[i],
                                     .count = count_in(s, i),
                                     .metadata = s->job->metadata,
                                     .metadata_count =
                                         s->format->metadata ? s->job->metadata_count : 0,
                                     .modules = s->job->modules,
                                     .module_count = s->job->module_count,
                                     .module_versions = s->job->module_versions};
        status = s->format->lay_out(s->ctx, &file, &s->layouts[i], err);
        if (status == HEFT_OK) {
            files[i].tensors = file.count;
            files[i].size_bytes = s->layouts[i]->bytes;
            *total +=
                s->layouts[i]->bytes; /* for a look at the disk: where this wraps, writing fails */
        }
    }
    return status;
}

static heft_status fill_report(struct session *s, uint64_t *total, heft_error *err)
{
    const size_t count = s->file_count;
    heft__arena *arena = &((struct report_memory *)s->report)->arena;
    heft_written_file *files = heft__arena_array(arena, count, sizeof *files);
    const char **warnings = /* and one more: warn_of_staying() */
        heft__arena_array(arena, (uint64_t)s->job->warning_count + 1, sizeof *warnings);
    if (!files || !warnings) {
        return heft__fail_nomem(err, count * sizeof *files);
    }
    heft_status status = lay_out(s, files, total, err);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        files[i].name = heft__arena_text(arena, s->names[i], strlen(s->names[i]));
        status = files[i].name ? HEFT_OK : heft__fail_nomem(err, 0);
    }
    for (size_t i = 0; i < s->job->warning_count && status == HEFT_OK; i++) {
        warnings[i] = heft__arena_text(arena, s->job->warnings[i], strlen(s->job->warnings[i]));
        status = warnings[i] ? HEFT_OK : heft__fail_nomem(err, 0);
    }
    if (status != HEFT_OK) {
        return status;
    }
    s->report->files = files;
    s->report->file_count = count;
    s->report->warnings = s->warnings = warnings;
    s->report->warning_count = s->job->warning_count;
    s->report->total_size = s->plan.total_size;
    s->report->total_parameters = s->job->total_parameters;
    if (s->index_name) {
        s->report->index = heft__arena_text(arena, s->index_name, strlen(s->index_name));
    }
    return s->index_name && !s->report->index ? heft__fail_nomem(err, 0) : HEFT_OK;
}

static heft_status warn_of_staying(struct session *s, heft_error *err)
{
    heft__arena *arena = &((struct report_memory *)s->report)->arena;
    char others[40] = "";
    if (s->staying == 0) {
        return HEFT_OK;
    }
    if (s->staying > 1) {
        snprintf(others, sizeof others, " and %zu more", s->staying - 1);
    }
    const char *line = heft__arena_format(
        arena,
        "'%.200s'%s of another checkpoint %s: a load that selects %s format or variant combines "
        "%s with the new config.json",
        s->stays, others, s->staying > 1 ? "were kept" : "was kept",
        s->staying > 1 ? "their" : "its", s->staying > 1 ? "them" : "it");
    if (!line) {
        return heft__fail_nomem(err, 0);
    }
    s->warnings[s->report->warning_count++] = line;
    return HEFT_OK;
}

/* ---- what is there already ------------------------------------------------------------------- */
struct rival { /* a format that the folder may hold */
    const heft__format *format;
    const char *single, *index; /* by names */
    heft__map listed;           /* by its own list */
};

static heft_status know_rival(struct session *s, struct rival *rival, heft_error *err)
{
    const heft__format *format = rival->format;
    heft__map_init(&rival->listed, s->ctx);
    if (format->list_files) {
        return format->list_files(&s->arena, s->job->dst, &rival->listed, err);
    }
    rival->single = heft__weights_single(&s->arena, format, s->job->variant);
    rival->index = heft__weights_index(&s->arena, format, s->job->variant);
    return rival->single && rival->index ? HEFT_OK : heft__fail_nomem(err, 0);
}

static bool has(const heft__map *map, const char *name)
{
    return heft__map_get(map, name, strlen(name)) != HEFT__MAP_NONE;
}

static bool is_of(const struct session *s, const struct rival *rival, const char *name)
{
    return rival->format->list_files
               ? has(&rival->listed, name)
               : strcmp(name, rival->single) == 0 || strcmp(name, rival->index) == 0 ||
                     heft__is_shard_name(name, rival->format, s->job->variant);
}

/* What a loader finds the weights by. */
static bool is_entry_point(const struct rival *rival, const char *name)
{
    return rival->format->list_files
               ? strcmp(name, rival->format->index_name) == 0
               : strcmp(name, rival->single) == 0 || strcmp(name, rival->index) == 0;
}

/* Without force nothing that exists is replaced. */
static heft_status refuse(const struct session *s, const char *name, heft_error *err)
{
    heft_status status = heft__fail(
        err, HEFT_EXISTS, "already contains '%.200s'; 'force' (--force) replaces it", name);
    return heft__add_path(status, err, s->job->dst);
}

/* Nothing never replaces something, whatever is forced: an empty dict, a scheduler's state. */
static heft_status refuse_empty(const struct session *s, const char *name, heft_error *err)
{
    if (s->job->count > 0) {
        return HEFT_OK;
    }
    return heft__add_path(heft__fail(err, HEFT_EXISTS,
                                     "already contains '%.200s', which is not replaced by a "
                                     "checkpoint without tensors",
                                     name),
                          err, s->job->dst);
}

/* Nor what is read at the same time. */
static heft_status refuse_source(const struct session *s, const char *name, heft_error *err)
{
    if (!s->job->is_source || !s->job->is_source(s->job->user, s->folder, name)) {
        return HEFT_OK;
    }
    return heft__add_path(heft__fail(err, HEFT_INVALID_ARG,
                                     "the destination contains the source file '%.200s'", name),
                          err, s->job->dst);
}

/* With force, what is there of a format and is not written again goes, if the format is ours or would
 * win over it. */
static heft_status look_at_rival(struct session *s, struct rival *rival, const char *const *names,
                                 size_t count, heft_error *err)
{
    const bool goes = rival->format->precedence <= s->format->precedence;
    size_t found;
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        if (!is_of(s, rival, names[i])) {
            continue;
        }
        status = s->job->force ? refuse_empty(s, names[i], err) : refuse(s, names[i], err);
        if (status == HEFT_OK && goes && !has(&s->written, names[i])) {
            status = refuse_source(s, names[i], err);
            if (status != HEFT_OK) {
                break;
            }
            status = heft__folder_remove(s->folder, names[i], is_entry_point(rival, names[i]), err);
            if (status == HEFT_OK &&
                !heft__map_put(&s->removed, names[i], strlen(names[i]), 0, &found)) {
                status = heft__fail_nomem(err, strlen(names[i]));
            }
        }
    }
    return status;
}

static heft_status look_at_format(struct session *s, const heft__format *format,
                                  const char *const *names, size_t count, heft_error *err)
{
    struct rival rival = {.format = format};
    heft_status status = know_rival(s, &rival, err);
    if (status == HEFT_OK) {
        status = look_at_rival(s, &rival, names, count, err);
    }
    heft__map_fini(&rival.listed);
    return status;
}

/* The tree that is written under a name; NULL if that is a file. */
static const heft__subtree *tree_of(const struct session *s, const char *name)
{
    for (size_t i = 0; i < s->job->side_count; i++) {
        const heft__side_file *side = &s->job->sides[i];
        if (side->tree && strcmp(side->name, name) == 0) {
            return side->tree;
        }
    }
    return NULL;
}

/* A folder of the destination's is replaced if nothing is lost with it. link: and what stays is linked. */
static heft_status check_tree(struct session *s, const heft__subtree *tree, bool link,
                              heft_error *err)
{
    const char *extra = NULL;
    heft_status status =
        heft__folder_subtree_extra(s->folder, tree, s->job->keep_side_files, link, &extra, err);
    if (status == HEFT_OK && extra) {
        status =
            heft__fail(err, HEFT_EXISTS,
                       "contains '%.200s', which the new checkpoint does not have; "
                       "write to another folder%s",
                       extra, s->job->keep_side_files ? "" : ", or keep it with 'keep_side_files'");
    }
    return heft__add_path(status, err, s->job->dst);
}

/* A name of the destination that is written anew. */
static heft_status look_at_written(struct session *s, const char *name, heft_error *err)
{
    const heft__subtree *tree = tree_of(s, name);
    if (!s->job->force) {
        return tree && heft__folder_has_subtree(s->folder, tree) ? HEFT_OK : refuse(s, name, err);
    }
    heft_status status = refuse_source(s, name, err);
    if (status == HEFT_OK && tree) {
        status = check_tree(s, tree, false, err);
    } else if (status == HEFT_OK && heft__folder_has_folder(s->folder, name)) {
        status = heft__add_path(
            heft__fail(err, HEFT_EXISTS, "'%.200s' is a folder, expected a file", name), err,
            s->job->dst);
    }
    return status;
}

static heft_status look_at_destination(struct session *s, heft_error *err)
{
    const char *const *names = NULL;
    size_t count = 0;
    const heft__format *format;
    heft_status status = heft__folder_list(s->folder, &names, &count, err);
    for (size_t i = 0; i < count && status == HEFT_OK; i++) {
        const bool written = has(&s->written, names[i]);
        if (heft__is_model_name(names[i]) && (written || !s->job->single)) {
            status = refuse_empty(s, names[i], err);
        }
        if (status == HEFT_OK && written) {
            status = look_at_written(s, names[i], err);
        }
    }
    /* one file alone is part of a checkpoint only under a name by which loaders find weights */
    if (status == HEFT_OK && !s->job->keep_side_files &&
        (!s->job->single || heft__is_weights_name(s->job->single))) {
        status = heft__add_path(
            heft__side_files_check(s->folder, &s->written, s->job->beside, s->job->user, true, err),
            err, s->job->dst);
    }
    if (status == HEFT_OK && !s->job->single && heft__format_find(s->format->id) != s->format) {
        status = look_at_format(s, s->format, names, count, err); /* it has a stem of its own */
    }
    for (size_t i = 0; status == HEFT_OK && !s->job->single; i++) {
        format = heft__format_in_folder(NULL, i);
        if (!format) {
            break;
        }
        status = look_at_format(s, format, names, count, err);
    }
    for (size_t i = 0; i < count && status == HEFT_OK && !s->job->single; i++) {
        if (heft__is_weights_name(names[i]) && !has(&s->written, names[i]) &&
            !has(&s->removed, names[i])) {
            s->stays = s->staying++ == 0 ? names[i] : s->stays;
        }
    }
    return status == HEFT_OK ? warn_of_staying(s, err) : status;
}

/* ---- files ----------------------------------------------------------------------------------- */
static heft_status copy_side(void *user, const char *path, heft_error *err)
{
    struct session *s = user;
    heft__input *source = NULL;
    heft_status status = heft__input_open(s->ctx, path, &source, err);
    uint64_t size = status == HEFT_OK ? heft__input_size(source) : 0;
    for (uint64_t done = 0; done < size && status == HEFT_OK;) {
        size_t piece = size - done < s->scratch_bytes ? (size_t)(size - done) : s->scratch_bytes;
        status = heft__tell_progress(s->ctx, "copying", s->sides_done, s->side_bytes, err);
        if (status == HEFT_OK) {
            status = heft__input_read(source, done, s->scratch, piece, err);
        }
        if (status == HEFT_OK) {
            status = heft__folder_write(s->folder, s->scratch, piece, err);
        }
        done += piece;
        s->sides_done += piece;
    }
    heft__input_unref(source);
    return status;
}

static heft_status write_side(struct session *s, const heft__side_file *side, heft_error *err)
{
    const heft__subtree_copy copy = {.copy = copy_side, .user = s};
    if (side->tree) {
        return heft__folder_subtree(s->folder, side->tree, &copy, err);
    }
    heft_status status =
        heft__folder_file_begin(s->folder, side->name, strcmp(side->name, "config.json") == 0, err);
    if (status == HEFT_OK) {
        status = side->path ? copy_side(s, side->path, err)
                            : heft__folder_write(s->folder, side->bytes, side->length, err);
    }
    return status == HEFT_OK ? heft__folder_file_end(s->folder, err) : status;
}

static heft_status write_sides(struct session *s, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < s->job->side_count && status == HEFT_OK; i++) {
        status = write_side(s, &s->job->sides[i], err);
    }
    return status;
}

/* What the destination has in folders that are replaced, as late as can be. */
static heft_status keep_in_trees(struct session *s, heft_error *err)
{
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < s->job->side_count && status == HEFT_OK; i++) {
        if (s->job->sides[i].tree) {
            status = check_tree(s, s->job->sides[i].tree, true, err);
        }
    }
    return status;
}

/* What side files take: where one cannot be looked at, writing it says why. */
static void measure_sides(struct session *s)
{
    for (size_t i = 0; i < s->job->side_count; i++) {
        const heft__side_file *side = &s->job->sides[i];
        s->side_bytes += side->tree   ? side->tree->bytes
                         : side->path ? heft__path_identity(side->path).bytes
                                      : side->length;
    }
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

static heft_status write_weights(struct session *s, size_t file, heft_error *err)
{
    const heft__out_io io = {.folder = s->folder,
                             .read = read_counted,
                             .user = s,
                             .scratch = s->scratch,
                             .scratch_bytes = s->scratch_bytes};
    const char *name = s->names[file];
    bool kept = false;
    heft_status status = heft__folder_file_keep(s->folder, name, !s->index_name,
                                                s->report->files[file].size_bytes, &kept, err);
    if (status == HEFT_OK && kept) {
        heft__log(s->ctx, "%s was completed by an earlier run", name);
        for (size_t i = s->first[file]; i < s->first[file + 1]; i++) {
            s->done_bytes += s->tensors[i].size_bytes;
        }
    } else if (status == HEFT_OK) {
        status = heft__folder_file_begin(s->folder, name, !s->index_name, err);
        if (status == HEFT_OK) {
            status = s->format->write(s->layouts[file], &io, err);
        }
        if (status == HEFT_OK) {
            status = heft__folder_file_end(s->folder, err);
        }
    }
    s->format->layout_free(s->layouts[file]);
    s->layouts[file] = NULL;
    return status;
}

static heft_status write_index(struct session *s, heft_error *err)
{
    const heft__out_index index = {.tensors = s->job->tensors,
                                   .count = s->job->count,
                                   .file_of = s->plan.shard,
                                   .files = s->names,
                                   .total_size = s->plan.total_size,
                                   .total_parameters = s->job->total_parameters};
    heft__buffer text;
    heft__buffer_init(&text, s->ctx);
    heft_status status = s->format->write_index(&s->arena, &index, &text, err);
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

/* A refusal costs nothing that an earlier run has done. */
static void add_kept(heft_error *err)
{
    if (err) {
        const size_t length = strlen(err->message);
        snprintf(err->message + length, sizeof err->message - length,
                 "; files that an earlier run finished are kept");
    }
}

/* Open the destination; refuse it where something would be lost, or where there is too little room. */
static heft_status begin_folder(struct session *s, uint64_t needed, heft_error *err)
{
    const heft__folder_options options = {.resume = s->job->resume,
                                          .single = s->job->single,
                                          .wait = s->job->wait,
                                          .look = s->job->dry_run,
                                          .file_mode = s->job->file_mode,
                                          .folder_mode = s->job->folder_mode};
    heft_status status = heft__folder_begin(s->ctx, s->job->dst, &options, &s->folder, err);
    if (status == HEFT_OK) {
        status = look_at_destination(s, err);
        if (status == HEFT_EXISTS && heft__folder_has_earlier(s->folder)) {
            add_kept(err);
        }
    }
    if (status == HEFT_OK) {
        measure_sides(s);
        status = heft__folder_need(s->folder, needed + s->side_bytes, err);
    }
    return status;
}

static heft_status write_folder(struct session *s, heft_error *err)
{
    s->scratch_bytes = heft__staging_bytes(s->ctx) / 4;
    s->scratch_bytes = s->scratch_bytes > HEFT__PIECE_BYTES ? HEFT__PIECE_BYTES : s->scratch_bytes;
    s->scratch_bytes -= s->scratch_bytes % HEFT__OUT_GRAIN;
    s->scratch_bytes = s->scratch_bytes ? s->scratch_bytes : HEFT__OUT_GRAIN;
    s->scratch = heft__alloc(s->ctx, s->scratch_bytes);
    if (!s->scratch) {
        return heft__fail_nomem(err, s->scratch_bytes);
    }
    heft_status status = write_sides(s, err);
    for (size_t i = 0; i < s->file_count && status == HEFT_OK; i++) {
        status = write_weights(s, i, err);
    }
    if (status == HEFT_OK && s->index_name) {
        status = write_index(s, err);
    }
    if (status == HEFT_OK) {
        status =
            heft__tell_progress(s->ctx, "writing", s->plan.total_size, s->plan.total_size, err);
    }
    if (status == HEFT_OK && s->job->check) {
        status = s->job->check(s->job->user, err);
    }
    if (status == HEFT_OK) {
        status = keep_in_trees(s, err);
    }
    return status == HEFT_OK ? heft__folder_commit(s->folder, err) : status;
}

static heft_status report_new(struct session *s, heft_error *err)
{
    struct report_memory *memory = heft__alloc_zero(s->ctx, 1, sizeof *memory);
    if (!memory) {
        return heft__fail_nomem(err, sizeof *memory);
    }
    heft__arena_init(&memory->arena, heft__ctx_ref(s->ctx));
    s->report = &memory->report;
    return HEFT_OK;
}

heft_status heft__write_checkpoint(heft_ctx *ctx, const heft__write_job *job,
                                   heft_write_report **report, heft_error *err)
{
    struct session s = {.ctx = ctx, .job = job, .format = job->format};
    uint64_t needed = 0;
    heft__arena_init(&s.arena, ctx);
    heft__map_init(&s.written, ctx);
    heft__map_init(&s.removed, ctx);
    heft_status status = make_plan(&s, err);
    if (status == HEFT_OK) {
        status = name_files(&s, err);
    }
    if (status == HEFT_OK) {
        status = sort_tensors(&s, err);
    }
    if (status == HEFT_OK) {
        status = report_new(&s, err);
    }
    if (status == HEFT_OK) {
        status = fill_report(&s, &needed, err);
    }
    if (status == HEFT_OK) {
        status = begin_folder(&s, needed, err);
    }
    if (status == HEFT_OK && !job->dry_run) {
        status = write_folder(&s, err);
    }
    if (status == HEFT_OK && report) {
        *report = s.report;
    } else {
        heft_write_report_free(s.report);
    }
    for (size_t i = 0; s.layouts && i < s.file_count; i++) {
        job->format->layout_free(s.layouts[i]);
    }
    heft__folder_free(s.folder);
    heft__free(ctx, s.scratch, s.scratch_bytes);
    heft__shard_plan_fini(ctx, &s.plan, job->count);
    heft__map_fini(&s.removed);
    heft__map_fini(&s.written);
    heft__arena_fini(&s.arena);
    return status;
}
