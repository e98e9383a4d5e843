/* The internal header of the checkpoint layer.
 *
 * What it does: treats a file, an index or a folder as one set of named tensors (resolve, survey,
 * open, read); splits tensors into shards by the rule of Transformers; writes a folder of shards
 * with its index, or one file; converts, verifies and compares checkpoints. It knows names and bytes, but not
 * which parameters a model has. It knows about formats only what their tables say (heft__format).
 * May include: base, io, json, tensor, quant, format.
 * Rules: opening reads metadata only, and each file once. Writing streams through one staging
 * buffer. A name in an index never leads outside the index's folder, unless the format allows it.
 * The commit removes stale files, which the next load would prefer to those of this save, and
 * nothing else. */
#ifndef HEFT__CHECKPOINT_CHECKPOINT_H
#define HEFT__CHECKPOINT_CHECKPOINT_H

#include <heft/checkpoint.h>

#include "format/format.h"

#include <stdatomic.h>

/* ---- resolve: which files -------------------------------------------------------------------- */
typedef struct heft__rival { /* a path that names nothing */
    const char *path;
    const struct heft__rival *next;
} heft__rival;

typedef struct heft__resolved {
    const char *folder;
    const char *file;                 /* one weight file, base name; NULL if there is an index */
    const char *index;                /* base name; NULL if there is one weight file */
    const heft__format *index_format; /* how the index is read */
    heft__input *index_input;         /* owned; the index, if its content had to be read; or NULL */
    const char *shadowed;   /* an entry point that lost against the chosen one: one of the two is
                             stale; base name or NULL */
    const char *const *set; /* [set_count] shards without an index, base names; NULL: none */
    size_t set_count;
    const char *stem; /* of the files' names, where it is not the format's and a conversion keeps it
                         ("adapter_model"); or NULL */
    const char *note; /* a line on how they were found; or NULL */
    bool by_config;   /* config.json names the file or the index */
    bool lone;        /* the path named the weight file itself: nothing is known to belong to it */
    heft__snapshot snapshot;       /* of the folder before anything in it was looked at */
    const heft__rival *rivals;     /* files that would have been taken before what was found */
    const char *index_path;        /* NULL without an index */
    heft__identity index_identity; /* of the index before it was read */
} heft__resolved;

/* The formats that are looked for in a folder, the first one first: all, or only the one that was asked for; NULL
 * past the end. */
const heft__format *heft__format_asked(heft_format asked, size_t i);
/* What a path names, through the hub's cache and with the subfolder (NULL or "": none): a file or folder
 * that is there; the path itself, or in the arena. */
heft_status heft__resolve_path(heft__arena *arena, const char *path, const char *subfolder,
                               const char **out, heft_error *err);
/* Strings live in the arena. */
heft_status heft__resolve(heft__arena *arena, const char *path,
                          const heft_checkpoint_options *options, heft__resolved *out,
                          heft_error *err);
/* resolve.c: the single file or the index of a format; *out is filled if there is one. */
heft_status heft__resolve_format(heft__arena *arena, const heft__format *format,
                                 const heft_checkpoint_options *options, heft__resolved *out,
                                 heft_error *err);
/* find.c: weights of a folder under other names than those of Transformers' models; *out stays without a
 * file, an index and a set if there is nothing that is plain. NOT_FOUND for what is not complete or not
 * unambiguous. */
heft_status heft__find_other_weights(heft__arena *arena, const heft_checkpoint_options *options,
                                     heft__resolved *out, heft_error *err);
/* NOT_FOUND: what was looked for, what is there instead, and what would open it. */
heft_status heft__describe_folder(heft__arena *arena, const heft__resolved *where,
                                  const char *looked_for, heft_error *err);
/* Whether a folder has weights of any kind, for heft or not: it is not a config alone. */
bool heft__folder_has_weights(heft__arena *arena, const char *folder);
/* The file that a config's transformers_weights names; NULL: none. REFUSED for a name that is not one of
 * the folder's. */
heft_status heft__weights_by_config(heft__arena *arena, const heft__json_value *root,
                                    const char **name, heft_error *err);
/* A copy of a format whose files have another stem. NULL without memory. */
const heft__format *heft__format_with_stem(heft__arena *arena, const heft__format *format,
                                           const char *stem);
/* Whether nothing in the folder was replaced since heft__resolve() began to look at it. */
bool heft__checkpoint_is_current(const heft_checkpoint *ckpt);
/* Whether an adapter of PEFT lies beside a model, which Transformers applies to it. */
bool heft__has_adapter_beside(heft__arena *arena, const heft__resolved *where);
/* Whether none of the files that would have been taken before what was found is there now. */
bool heft__is_still_first(const heft__resolved *where);
#define HEFT__OPEN_TRIES 20 /* of opening a folder that is being replaced */
/* hub.c: whether a path reads as org/name[@revision], and its folder in the hub's cache. */
bool heft__hub_is_name(const char *path);
heft_status heft__hub_find(heft__arena *arena, const char *path, const char **folder,
                           heft_error *err);
/* ---- findings: where an index and its files, or a folder and its checkpoint, do not fit together - */
typedef enum heft__severity {
    HEFT__NOTE,          /* of no consequence for the checkpoint */
    HEFT__DOUBT,         /* everything can be read, but deserves attention: opening warns */
    HEFT__CONTRADICTION, /* an index and its shards: opening fails unless the shards are trusted */
    HEFT__FAULT          /* something cannot be read: opening fails */
} heft__severity;

typedef struct heft__finding {
    const char *kind; /* as heft_problem.kind; a literal */
    heft__severity severity;
    heft_status status; /* of the error that it is, where it is one */
    int sys_errno;
    const char *file;   /* base name of the file at fault, "" if none */
    const char *tensor; /* "" if none */
    const char *path;   /* of the file that `offset` is a byte of */
    uint64_t offset;    /* or HEFT_NO_OFFSET */
    const char *message;
} heft__finding;

typedef struct heft__findings { /* texts and list live in the arena */
    heft__arena *arena;
    heft__finding *list;
    size_t count, cap;
    size_t more; /* that are not in the list, which is full; a line at its end says so */
} heft__findings;

/* Copies the finding and its texts; the message is formatted. NOMEM. */
heft_status heft__find(heft__findings *findings, const heft__finding *finding, heft_error *err,
                       const char *format, ...) __attribute__((format(printf, 4, 5)));
/* An error of the library as a fault of `file`. What is no fault of the checkpoint (NOMEM, CANCELLED,
 * INVALID_ARG) stays an error. */
heft_status heft__find_failure(heft__findings *findings, const char *kind, const char *file,
                               const heft_error *failure, heft_error *err);

/* ---- the object ------------------------------------------------------------------------------ */
typedef struct heft__checkpoint_file {
    heft_file_info info;
    heft__file *file;     /* NULL: it cannot be opened, a finding has the reason */
    size_t first_storage; /* number of its storage 0 in the checkpoint */
    bool again;           /* an earlier one is the same file under another name */
} heft__checkpoint_file;

/* A survey is a checkpoint that may have defects, which `findings` lists: files
 * that cannot be opened are NULL, and the table has the tensors of the others. Everything but
 * heft__checkpoint_verify() takes checkpoints that were judged. */
struct heft_checkpoint {
    heft_ctx *ctx;
    atomic_size_t refs;
    heft__arena arena;
    heft__resolved where;
    heft__index index; /* kept where tensors lend from it, else empty */
    heft__checkpoint_file *files;
    size_t file_count;
    size_t storage_count;    /* of all files */
    bool whole_value;        /* of its one file, if that is a pickle, was asked for */
    bool expanded;           /* the tensors exceed the limit: they must not be read */
    heft_tensor_info *infos; /* [count], file after file; of one name in several files: doubled.c */
    const heft__file_tensor **entries;
    bool *
        doubled; /* [count] several files have this name, and the index does not choose; NULL: none */
    size_t count;
    heft__map names;
    uint64_t total_bytes;
    const heft__text_pair *metadata; /* [metadata_count] of all files */
    size_t metadata_count;
    heft__warnings warnings;
    heft__findings findings;
    const struct heft_checkpoint
        *beside;            /* lent, while it is surveyed: has some of the files open; NULL: none */
    heft__map beside_paths; /* what they are called -> number in `beside` */
    struct heft__maps *maps; /* of map_tensor.c */
    heft__digest computed;   /* of what decides the values that a view computes; 0: nothing does */
    heft_checkpoint *base;   /* owned; what this is a view of, which lends it texts; NULL: none */
};

/* Open everything that can be opened. Errors: of finding the files (NOT_FOUND), NOMEM, INVALID_ARG; anything
 * else is a finding. options: of this version; trust_shards is ignored. */
heft_status heft__checkpoint_survey(heft_ctx *ctx, const char *path,
                                    const heft_checkpoint_options *options, heft_checkpoint **out,
                                    heft_error *err);
/* The same, where `other` has some of the files open already: paths[i] is what an index with claims calls
 * its file i, NULL for none. Those are shared and not read again. */
heft_status heft__checkpoint_survey_beside(heft_ctx *ctx, const char *path,
                                           const heft_checkpoint_options *options,
                                           const heft_checkpoint *other, const char *const *paths,
                                           heft_checkpoint **out, heft_error *err);
/* The first finding that is an error, faults always and contradictions unless the shards are trusted:
 * what heft_checkpoint_open() fails with. */
heft_status heft__checkpoint_judge(const heft_checkpoint *ckpt, bool trust_shards, heft_error *err);
/* Make the other findings into warnings, once. NOMEM. */
heft_status heft__checkpoint_warn(heft_checkpoint *ckpt, heft_error *err);
heft_checkpoint *heft__checkpoint_ref(heft_checkpoint *ckpt); /* for heft_checkpoint_close() */

/* Whether there is a folder: a checkpoint that was opened from bytes or through a reader has none. The
 * name and path of its one file are the caller's text and refer to nothing on disk. */
static inline bool heft__checkpoint_has_folder(const heft_checkpoint *ckpt)
{
    return *ckpt->where.folder != '\0';
}
/* Whether file f is in the checkpoint's folder, under its own name. */
bool heft__file_is_local(const heft_checkpoint *ckpt, size_t f);

/* ---- views: another table of names over the files of a checkpoint (open.c) --------------------- */
/* An empty view, for finish_view(). Its arena may be used. */
heft_status heft__checkpoint_begin_view(heft_checkpoint *base, heft_checkpoint **out,
                                        heft_error *err);
/* Takes the files, [base->file_count] or NULL, of which each may be NULL after a failure. With a status that
 * is not OK the view is closed, and the status is returned. */
heft_status heft__checkpoint_finish_view(heft_checkpoint *view, heft__file *const *files,
                                         heft_status status, heft_checkpoint **out,
                                         heft_error *err);

/* ---- quantized.c: weights that are stored quantized --------------------------------------------- */
/* heft__quant_find() over a checkpoint that was judged; lists live in the arena. */
heft_status heft__checkpoint_find_quantized(const heft_checkpoint *ckpt, heft__arena *arena,
                                            const heft__quant_settings *settings,
                                            heft__quant_found *out, heft_error *err);
/* UNSUPPORTED, by the name of the first, if an object of a pickle stands where a weight or a bias would. */
heft_status heft__checkpoint_check_unread(const heft_checkpoint *ckpt, heft_error *err);
/* Find what is quantized, and make a view in which those weights are plain and their state is left out. Keeps
 * the base open. *found lives as long as the view; where nothing is quantized, *out stays as it is.
 * UNSUPPORTED for a method or a layout that is not known. */
heft_status heft__checkpoint_dequantized(heft_checkpoint *base,
                                         const heft__quant_settings *settings,
                                         heft__quant_found *found, heft_checkpoint **out,
                                         heft_error *err);

/* Add the item and the path to an error in tensor i. */
heft_status heft__checkpoint_blame(const heft_checkpoint *ckpt, size_t i, heft_status status,
                                   heft_error *err);

/* open.c: a checkpoint of one file, which is read from `source`. Takes its own reference. */
heft_status heft__checkpoint_open_input(heft_ctx *ctx, heft__input *source,
                                        const heft_checkpoint_options *options,
                                        heft_checkpoint **out, heft_error *err);

/* ---- map_tensor.c: storages that are handed out ------------------------------------------------- */
/* A place for the storages of all files, in each map mode. NOMEM. */
static inline bool heft__map_is_private(heft_map_mode mode)
{
    return mode == HEFT_MAP_PRIVATE || mode == HEFT_MAP_PRIVATE_UNALIGNED;
}

static inline bool heft__map_takes_unaligned(heft_map_mode mode)
{
    return mode == HEFT_MAP_READ_ONLY_UNALIGNED || mode == HEFT_MAP_PRIVATE_UNALIGNED;
}

/* Whether the elements of a tensor whose file can be mapped stand where C can read them, or are none. */
bool heft__checkpoint_is_aligned(const heft_checkpoint *ckpt, size_t i);
heft_status heft__maps_make(heft_checkpoint *ckpt, heft_error *err);
void heft__maps_free(heft_checkpoint *ckpt);

static inline const heft__file *heft__file_of(const heft_checkpoint *ckpt, size_t i)
{
    return ckpt->files[ckpt->infos[i].file_index].file;
}
/* Whether a shape is [0]: DeepSpeed's ZeRO-3 saves such tensors for weights that it did not gather. */
static inline bool heft__is_placeholder(const uint64_t *shape, uint32_t rank)
{
    return rank == 1 && shape[0] == 0;
}
/* What tells one view of a storage from another, as plain bytes: a hostile file may have very many views
 * of one storage, so they are found by hash. The storage's number is the caller's. Views of one key can
 * still differ. */
typedef struct heft__view_key {
    uint64_t storage, start, bytes, shape, strides; /* the last two: 0 where it is row by row */
} heft__view_key;
heft__view_key heft__view_key_of(const heft__file_tensor *tensor, size_t storage);
/* Whether two tensors of one storage show the same bytes in the same order. Row by row, their shapes may
 * differ. */
bool heft__same_view(const heft__file_tensor *left, const heft__file_tensor *right);
/* Whether a file of that name may hold weights, of a model or of anything else; not the states of training. (find.c) */
bool heft__is_weight_name(const char *name);
/* aliases.c: number of the first tensor that shows the same bytes in the same way (a tied name), its
 * own number if it is that. The caller frees it with heft__free(ctx, *first, count * sizeof **first). */
heft_status heft__checkpoint_aliases(const heft_checkpoint *ckpt, size_t **first, heft_error *err);
/* alias_names.c: first[i] is the number of the first name of the tensor that name i is one of; make it that of
 * the name that stays where a file, or a model of no known family, can have but one. */
heft_status heft__aliases_choose(heft_ctx *ctx, const char *const *list, size_t count,
                                 size_t *first, heft_error *err);

/* ---- compare: an index against its files, in one place ---------------------------------------- */
/* Before the table is made: keep what an index with claims names, under its names, and compare what it
 * says of each. */
heft_status heft__compare_claims(heft_checkpoint *ckpt, heft_error *err);
/* After it: of a name in several files, the tensor that the index lists. The others are findings. (doubled.c) */
heft_status heft__settle_doubled(heft_checkpoint *ckpt, heft_error *err);
/* Then, of names about which the index says nothing: copies must have equal values. Reads them. */
heft_status heft__compare_doubled(heft_checkpoint *ckpt, heft_error *err);
/* Whether two tensors have the same dtype and bytes, row by row. */
heft_status heft__file_tensors_equal(heft_ctx *ctx, const heft__file *const files[2],
                                     const heft__file_tensor *const tensors[2], bool *equal,
                                     heft_error *err);
/* Tensor `at` of the table is this one of file f. (open.c) */
void heft__checkpoint_place(heft_checkpoint *ckpt, size_t at, size_t f,
                            const heft__file_tensor *tensor);
/* What is listed, what is not, the total. */
heft_status heft__compare_index(heft_checkpoint *ckpt, const heft__index *index, heft_error *err);
/* Files in the folder that look like weights or remains of a save, and do not belong to this checkpoint. */
heft_status heft__compare_folder(const heft_checkpoint *ckpt, const char *variant,
                                 heft__findings *findings, heft_error *err);

/* ---- shard: the greedy rule ------------------------------------------------------------------ */
typedef struct heft__shard_plan {
    size_t *shard; /* [count] number of each tensor's shard, 0-based */
    size_t shard_count;
    uint64_t total_size; /* each storage once */
} heft__shard_plan;

/* Tensors in order; equal `storage` numbers are one storage, counted once and kept together.
 * docs/sharding.md [2]. */
heft_status heft__shard_plan_make(heft_ctx *ctx, const heft__out_tensor *tensors, size_t count,
                                  uint64_t max_bytes, heft__shard_plan *out, heft_error *err);
/* Every tensor in a separate shard. */
heft_status heft__shard_plan_each(heft_ctx *ctx, const heft__out_tensor *tensors, size_t count,
                                  heft__shard_plan *out, heft_error *err);
void heft__shard_plan_fini(heft_ctx *ctx, heft__shard_plan *plan, size_t count);

/* ---- metadata.c: pairs of text for formats that hold them -------------------------------------- */
typedef struct heft__metadata {
    heft__arena *arena; /* lent; texts are borrowed */
    heft__map keys;
    heft__text_pair *pairs; /* a value of NULL: the key was taken out */
    size_t count, cap;
} heft__metadata;

void heft__metadata_init(heft__metadata *metadata, heft__arena *arena);
void heft__metadata_fini(heft__metadata *metadata);
/* {"format": "pt"}, as Transformers writes it. */
heft_status heft__metadata_standard(heft__metadata *metadata, heft_error *err);
/* The union of what the files hold, the standard where they hold nothing; a key with two values is a
 * warning. */
heft_status heft__metadata_gather(heft__metadata *metadata, const heft_checkpoint *ckpt,
                                  heft__warnings *warnings, heft_error *err);
/* The same union as the checkpoint's own list, in its arena; empty where files hold nothing. Values that
 * differ are no warning here: reading is not affected. */
heft_status heft__metadata_of_files(heft_checkpoint *ckpt, heft_error *err);
/* Set pairs of a file on top; texts are borrowed. */
heft_status heft__metadata_add(heft__metadata *metadata, const heft__text_pair *pairs, size_t count,
                               heft_error *err);
/* Set a caller's pairs on top: a value of NULL takes the key out. INVALID_ARG for what is not UTF-8. */
heft_status heft__metadata_set(heft__metadata *metadata, const heft_metadata_pair *pairs,
                               size_t count, heft_error *err);
heft_status heft__metadata_check(const char *key, const char *value, heft_error *err);
bool heft__metadata_is_standard(const heft__metadata *metadata); /* nothing is lost without it */
/* The pairs as they are now, in the arena; NULL without memory. */
const heft__text_pair *heft__metadata_list(const heft__metadata *metadata, size_t *count);

/* ---- write: a folder of shards with its index ------------------------------------------------ */
typedef struct heft__side_file { /* config.json and its like, written next to the weights */
    const char *name;
    const char *path; /* copied from here, or NULL: */
    const void *bytes;
    size_t length;
    const heft__subtree *tree; /* a folder, of which the above is nothing; NULL: a file */
} heft__side_file;

/* A folder whose side files belong to the new checkpoint as well, so that the same ones in the destination are
 * no other checkpoint's; NULL: there is none. Called if the destination has any. */
typedef const char *(*heft__beside_fn)(void *user);

typedef struct heft__write_job {
    const char *dst;    /* a folder */
    const char *single; /* NULL; or the base name of the one file that is written there, of which
                                   nothing else is a part: no shards, no variant, nothing removed */
    const heft__format *format; /* one that is written */
    const char *variant;        /* not with file_each, as the next */
    uint64_t max_shard_bytes;   /* 0: 50 GB */
    bool force, dry_run;
    const char *resume;            /* key of heft__folder_begin(), or NULL */
    bool wait;                     /* for another process that writes to dst */
    mode_t file_mode, folder_mode; /* as heft__folder_options */
    const heft__out_tensor
        *tensors; /* as they are to be written, in order; aliases as the format's `ties` has them */
    size_t count;
    uint64_t total_parameters;       /* for the index; 0: leave it out */
    const heft__text_pair *metadata; /* of formats that hold it */
    size_t metadata_count;
    const char *const *modules; /* as heft__out_file */
    size_t module_count;
    const uint32_t *module_versions; /* NULL: 1 for each */
    const heft__side_file *sides;
    size_t side_count;
    bool keep_side_files;   /* of the destination, whatever they are: side_files.c */
    heft__beside_fn beside; /* NULL: none */
    heft__out_read_fn read;
    heft_status (*check)(void *user, heft_error *err); /* called before the commit; NULL: nothing */
    /* A file of the destination that is to be replaced or removed is the source's; NULL: none is. */
    bool (*is_source)(void *user, const heft__folder_writer *folder, const char *name);
    void *user;
    const char *const *warnings; /* into the report */
    size_t warning_count;
} heft__write_job;

/* Whether a folder beside weights is part of the model, by its path and the names in it; not if it is a run's
 * state or the model for another runtime (subfolders.c). */
bool heft__is_model_folder(const char *path, const char *const *names, size_t count);
/* Whether a loader looks for a file or folder of this name beside weights. */
bool heft__is_side_file_name(const char *name);
/* EXISTS if the destination has side files that are not in `written` (NULL: none is written), nor the same
 * in the folder that `beside` (NULL: none) gives. may_keep: the message names the option that allows it. */
heft_status heft__side_files_check(heft__folder_writer *folder, const heft__map *written,
                                   heft__beside_fn beside, void *user, bool may_keep,
                                   heft_error *err);
heft_status heft__write_checkpoint(heft_ctx *ctx, const heft__write_job *job,
                                   heft_write_report **report, heft_error *err);
#define HEFT__SHARD_BYTES_STANDARD UINT64_C(50000000000)
#define HEFT__PIECE_BYTES ((size_t)8 << 20) /* of one read and one write while streaming */

/* ---- convert, verify, diff: of what is open already -------------------------------------------- */
typedef struct heft__names { /* in the order in which they are to be written, where it is known */
    const char *const *list;
    size_t count;
    uint64_t total_parameters; /* for the index's metadata; 0: leave it out */
    /* [ckpt->count] for each tensor the weight that it is a quantized part of, or HEFT__NO_PART: parts
     * are not cast; NULL: there are none */
    const size_t *packed;
    const char *const *notes; /* [note_count] lines for the report's warnings */
    size_t note_count;
    /* [ckpt->count] the dtype that a floating-point tensor gets, whatever is asked for of all; NONE: what is
     * asked for; NULL: that for all */
    const heft_dtype *dtypes;
    /* [ckpt->count] Where the family is known: the parameter that a name stands for, and the one that this is
     * tied to, whose name stays; HEFT__NO_PARAMETER for none. Names that are one tensor but are not tied
     * there are all written. NULL: the names decide (alias_names.c). */
    const size_t *parameter, *tied_to;
} heft__names;
#define HEFT__NO_PARAMETER SIZE_MAX

/* As heft_source_convert(), of a checkpoint that was judged; options of this version. */
heft_status heft__checkpoint_convert(const heft_checkpoint *ckpt, const char *dst,
                                     const heft__names *names, const heft_convert_options *options,
                                     heft_write_report **report, heft_error *err);
/* What a source knows of a checkpoint beside its files; each with status OK if there is nothing to say. */
typedef struct heft__suspicions {
    const heft_error *config;          /* of config.json */
    const heft_error *quant;           /* of quantized weights */
    const char *doubt;                 /* about their settings, which is no error; NULL: none */
    bool doubt_is_wrong;               /* it is that settings and tensors contradict each other */
    const heft_error *model;           /* what of the config's model is missing */
    const heft__findings *contradicts; /* that model and the tensors contradict each other */
} heft__suspicions;
/* As heft_source_verify(), for a survey with any findings; options of this version. variant: of the
 * names beside which nothing stale may lie; NULL for none. config: the error of reading config.json;
 * quant: of looking for quantized weights; NULL or HEFT_OK for none. */
heft_status heft__checkpoint_verify(const heft_checkpoint *survey, const char *variant,
                                    const heft__suspicions *beside,
                                    const heft_verify_options *options, heft_verify_report **report,
                                    heft_error *err);
/* As heft_source_diff(), of checkpoints that were judged; options of this version. */
heft_status heft__checkpoint_diff(const heft_checkpoint *a, const heft_checkpoint *b,
                                  const heft_diff_options *options, heft_diff_report **report,
                                  heft_error *err);
/* `beyond` and twice the bytes of the files; UINT64_MAX if it is more. (open.c) */
uint64_t heft__checkpoint_allowance(const heft_checkpoint *ckpt, uint64_t beyond);

#endif
