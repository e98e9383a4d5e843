/* The internal header of the load layer.
 *
 * What it does: binds names to bytes, as the only layer that does so. It matches a checkpoint's
 * keys with a model's parameters, fills the parameters (mapped, copied, cast, or left in their
 * files), ties them, has missing ones initialized, and reports the result; predicts the memory that
 * this needs; and saves a model.
 * May include: base, io, json, tensor, quant, format, checkpoint, model, place.
 * Rules: lists are complete before any tensor is read. Peak memory is the model and a fixed buffer
 * per thread. Bytes of a mapping are copied by a system call that reports faults. On failure the
 * caller's model is unchanged, except after an IO error during heft_model_load_sharded(). */
#ifndef HEFT__LOAD_LOAD_H
#define HEFT__LOAD_LOAD_H

#include <heft/load.h>

#include "checkpoint/checkpoint.h"
#include "model/model.h"
#include "place/place.h"

#define HEFT__NO_TENSOR SIZE_MAX

/* ---- source: what a path names, opened once (source.c) ---------------------------------------- */
struct heft_source {
    heft_ctx *ctx;
    heft__arena arena;
    const char *path, *folder; /* folder: in which the files are; "" without files */
    const char *asked_class;   /* NULL: from the config */
    const char *variant;       /* NULL: none */
    heft_checkpoint *survey;   /* a reference; NULL: nothing was opened */
    heft_checkpoint *ckpt;     /* the survey if it can be read; NULL: no_weights has the reason */
    heft_config *config;       /* owned; NULL: no_config has the reason */
    heft_error no_weights, no_config;
    /* quantization.c: what is quantized. found is of `ckpt`, and empty once that is dequantized. */
    heft__quant_settings quant_settings;
    heft__quant_found quant;
    size_t *quant_first; /* [quant.count] the first tensor of each weight */
    heft_quantization told;
    heft_error no_quant;              /* why it could not be found out */
    heft_config *quanto, *quant_file; /* owned; files beside the weights, or NULL */
    heft_checkpoint *view;            /* owned; `ckpt` where that is dequantized; NULL: it is not */
    const char *machine; /* lent; the root for heft__machine_look_below(): only tests set it */
};

/* HEFT_OK, or the error that it is missing. */
heft_status heft__source_need_weights(const heft_source *source, heft_error *err);
heft_status heft__source_need_config(const heft_source *source, heft_error *err);
/* Whether the model is to be made by the checkpoint's own names. */
bool heft__source_is_unknown(const heft_source *source);
/* Why it is. */
void heft__source_unknown_text(const heft_source *source, char text[200]);

/* ---- count.c: how many parameters tensors stand for --------------------------------------------- */
heft_status heft__source_note_first(heft_source *source, heft_error *err);
/* Of tensor i; `model`: integers that belong to no weight are buffers. UINT64_MAX where there are more than that. */
uint64_t heft__source_elems(const heft_source *source, size_t i, bool model);

/* ---- beside.c: files that a save of a loaded model writes again ---------------------------------- */
heft_status heft__keep_beside(const heft_source *source, heft_model *model,
                              heft__warnings *warnings, heft_error *err);

/* ---- quantization.c: what of a source is quantized ---------------------------------------------- */
/* Find it, for a model of this dtype. What is wrong with tensors or settings is kept for
 * heft__source_check_quantized(); NOMEM is an error at once. With `plain`, make the weights plain, and
 * everything is an error at once. */
heft_status heft__source_find_quantized(heft_source *source, heft_dtype dtype, bool plain,
                                        heft_error *err);
/* Add what does not go together, and what dequantizing leaves out. */
heft_status heft__source_warn_quantized(const heft_source *source, heft__warnings *warnings,
                                        heft_error *err);
/* Whether there is state of a quantization that goes with no quantized weight. */
bool heft__source_has_state(const heft_source *source);
/* Whether weights are stored quantized, and stay so. */
bool heft__source_is_packed(const heft_source *source);
/* FORMAT where it could not be found out; UNSUPPORTED for a method that is not known. */
heft_status heft__source_check_quantized(const heft_source *source, heft_error *err);
/* The dtype of a model's floating-point parameters where NONE is asked for: the config's, else that of
 * the first floating-point tensor (8 bits and fewer do not count), else float32. Both may be NULL. */
heft_dtype heft__choose_dtype(const heft_checkpoint *ckpt, const heft_config *config,
                              heft_dtype asked);

/* ---- match: which tensor of the checkpoint fills which parameter ----------------------------- */
typedef enum heft__lack {
    HEFT__LACKS_NOTHING,
    HEFT__LACKS_KEY,      /* missing */
    HEFT__LACKS_SILENTLY, /* missing, but optional in this family */
    HEFT__LACKS_SHAPE     /* mismatched */
} heft__lack;

typedef struct heft__match {
    heft_ctx *ctx;
    heft__arena *arena; /* of the report: names and lists live there */
    size_t *source;     /* [model->count] number in the checkpoint, or HEFT__NO_TENSOR */
    uint64_t *first;    /* [model->count] element of the source with which the parameter begins */
    heft__lack *lack;   /* [model->count] */
    const char **missing;
    size_t missing_count;
    const char **unexpected;
    size_t unexpected_count;
    heft_mismatch *mismatched;
    size_t mismatched_count;
    const char *unwrapped;    /* the first of the wrappers' parts that were left out; NULL: none */
    size_t unwrapped_count;   /* keys */
    heft__warnings *warnings; /* of the report */
    bool count; /* no tensor is read: of a tie with both names in the checkpoint both count */
    uint64_t doubt_bytes; /* of the second names of these ties */
} heft__match;

/* Transformers' rules (docs/loading.md [2]): renames, prefix added or stripped per key, ignored
 * keys. The model loses a tie whose two names have different values. */
heft_status heft__match_keys(heft_model *model, const heft_checkpoint *ckpt, heft__match *match,
                             heft_error *err);
/* By the same rules, names alone: the parameter that each fills by itself, SIZE_MAX for none. */
heft_status heft__match_names(const heft_model *model, const char *const *names, size_t count,
                              size_t *parameters, heft_error *err);
/* The name without the part that one wrapper of modules adds (DataParallel, torch.compile, PEFT), in the arena
 * or a part of `name`; NULL if it has none. *what is that part. *status: NOMEM, or unchanged. */
const char *heft__match_unwrap(heft__arena *arena, const char *name, const char **what,
                               heft_status *status);
/* Whether the family leaves out keys of such a name silently. */
bool heft__match_ignores(const heft_model *model, const char *name);
/* Names as they are, as load_sharded_checkpoint does. Ties are not settled. */
heft_status heft__match_exactly(const heft_model *model, const heft_checkpoint *ckpt,
                                heft__match *match, heft_error *err);
/* Ties of which the checkpoint has two names: they hold if the bytes are equal, and are given up with a warning
 * otherwise. Of the others, the parameter that is saved takes the value. */
heft_status heft__match_settle(heft_model *model, const heft_checkpoint *ckpt, heft__match *match,
                               heft_error *err);
/* Free what is not in the arena. */
void heft__match_fini(const heft_model *model, heft__match *match);

/* ---- fit: whether what was matched is this model at all (fit.c) -------------------------------- */
struct heft__loading;
/* MISMATCH if no tensor of the checkpoint meets the model, unless allow_missing is set: the message has
 * the first names of both. */
heft_status heft__fit_judge(const struct heft__loading *loading, heft_error *err);
/* After the match: MISMATCH, with the name, for a quantized weight that has no place in the model while weights
 * of the body, or the one it would be, are missing, unless allow_missing is set. NOMEM. */
heft_status heft__fit_judge_packed(const struct heft__loading *loading,
                                   const heft__quant_found *found, heft_error *err);
/* Warnings: of names without wrappers' parts, of missing weights that are not a head's, of tensors without
 * elements in a model of an unknown type. */
heft_status heft__fit_warn(struct heft__loading *loading, heft_error *err);
/* Of floating-point parameters that the checkpoint stores as integers. */
heft_status heft__fit_warn_of_integers(struct heft__loading *loading, heft_error *err);
/* Fill `lacks` if the checkpoint lacks weights of the body of the model that its config describes: MISMATCH
 * if it lacks a layer as a whole, else NOT_FOUND; unchanged if it lacks none, or if that cannot be told. Add
 * to `findings` what contradicts that model.
 * NOMEM; CANCELLED. */
heft_status heft__fit_lacks(const heft_source *source, heft_error *lacks, heft__findings *findings,
                            heft_error *err);

/* ---- unread.c: parameters that lack a value, which the checkpoint has as an object that is not read ------------- */
typedef struct heft__unread {
    const char *name; /* the first in the files; lent by them */
    size_t file, count;
} heft__unread;
#define HEFT__UNREAD_TEXT                                                                          \
    "is stored as a tensor or object of a kind that heft does not read (%zu parameter%s)"
heft_status heft__unread_find(const heft_model *model, const heft_checkpoint *ckpt,
                              const heft__match *match, heft__unread *out, heft_error *err);
/* After the match: UNSUPPORTED for such a parameter, unless allow_missing is set. NOMEM. */
heft_status heft__unread_refuse(const struct heft__loading *loading, heft_error *err);
/* The same as a finding of a checkpoint that is only looked at. */
heft_status heft__unread_tell(const struct heft__loading *loading, heft__findings *findings,
                              heft_error *err);

/* ---- contradict.c: config.json's model against the tensors of its files ------------------------ */
/* Shapes of quantized weights. NOMEM, CANCELLED; nothing is found of a model that cannot be made. */
heft_status heft__contradict_packed(const heft_source *source, heft__findings *findings,
                                    heft_error *err);
/* Shapes of other tensors, and layers that the model does not have. */
heft_status heft__contradict_plain(const heft_model *model, const heft__match *match,
                                   heft__findings *findings, heft_error *err);

/* ---- dtypes.c: other dtypes of parts of a model ------------------------------------------------ */
/* Give the floating-point parameters that names match another dtype, as heft_plan_options.dtypes has it; tied
 * ones get that of the parameter that is saved. Before anything is bound. INVALID_ARG for a dtype that no model
 * can have, MISMATCH for a name that matches nothing. */
/* Which dtype a list gives each parameter; NONE: it says nothing of it. dtypes: [model->count]. */
heft_status heft__model_dtypes(const heft_model *model, const heft_module_dtype *list, size_t count,
                               heft_dtype *dtypes, heft_error *err);
heft_status heft__model_retype(heft_model *model, const heft_module_dtype *list, size_t count,
                               heft_error *err);
/* UNSUPPORTED if a part of a quantized weight would be cast. */
heft_status heft__packed_refuse_casts(const heft_source *source, const heft_model *model,
                                      const heft__match *match, heft_error *err);

/* ---- unknown: a model of a type that heft has no family for ----------------------------------- */
/* Names, shapes and, with dtype NONE, dtypes as the checkpoint has them; lists that repeat are its
 * no-split blocks. Nothing of it can be missing. */
heft_status heft__unknown_model(const heft_checkpoint *ckpt, const heft_config *config,
                                const heft_load_options *options, heft_model **out,
                                heft_error *err);

/* ---- packed_model.c: a model whose weights stay quantized ---------------------------------------------- */
/* The model of a recipe, with what the source has in the place of the weights that it stores quantized.
 * FORMAT for a weight whose shape is not the model's. */
heft_status heft__packed_model(const heft_source *source, const heft__recipe *recipe,
                               heft_model **out, heft_error *err);
/* After the match: FORMAT if a quantized weight is not whole in the model. */
heft_status heft__packed_check(const heft_source *source, const heft_model *model,
                               const heft__match *match, heft_error *err);
/* The same for a model that was not made from the source, whose names are used as they are: UNSUPPORTED if it
 * has a quantized weight plain, or a part of one in another dtype. */
heft_status heft__packed_check_exact(const heft_source *source, const heft_model *model,
                                     const heft__match *match, heft_error *err);

/* ---- conv1d.c: layers whose weight is [in, out], and [out, in] when it is quantized ---------------------- */
/* Whether a quantized weight is one of parameter i of a model in which it is plain. */
bool heft__packed_fits(const heft_model *plain, size_t i, const heft__quant_weight *weight);
/* Whether a weight is one of such a layer, by its name and the model type. config may be NULL. */
bool heft__conv1d_has(const heft_config *config, const char *name);
/* UNSUPPORTED, with the name, for a file that has such layers as [in, out] though they are quantized: layers whose
 * outputs are more than their inputs show it, and square ones do not. */
heft_status heft__conv1d_check(const heft__quant_found *found, heft_error *err);

/* ---- pieces: bytes from files into memory, shared among threads (piece.c) --------------------- */
#define HEFT__READ_BYTES ((uint64_t)16 << 20)   /* of one read, in the file's dtype */
#define HEFT__DISK_THREADS ((size_t)4)          /* that wait for a disk, at least */
#define HEFT__DIRECT_LEAST ((uint64_t)16 << 20) /* smaller files are read through the page cache */
#define HEFT__DIRECT_TENSOR                                                                        \
    ((uint64_t)1 << 20) /* and smaller parameters: HEFT__SPARE_BYTES would be much */
#define HEFT__COLD 0.2  /* of a file, less of which is in the page cache */
#define HEFT__SPARE_BYTES                                                                          \
    ((size_t)3 * HEFT__DIRECT_BLOCK) /* to a block, the phase, what spills over */

typedef struct heft__part { /* a parameter, and the part of a tensor that fills it */
    size_t tensor;
    uint64_t first, elems; /* of the tensor, row by row */
    heft_dtype to;         /* its dtype in memory */
    bool direct;           /* read past the page cache */
    bool spare; /* its memory has HEFT__SPARE_BYTES more, and begins in the phase of the file */
} heft__part;

typedef struct heft__piece {
    size_t owner, tensor;
    uint64_t first, count; /* elements of the owner's memory */
    uint64_t offset; /* of `first` in the file, where not whole; in the tensor where decoded */
    heft_dtype to;
    bool whole;   /* through a tensor reader */
    bool decoded; /* computed: heft__decoder */
    bool direct;
    bool spill; /* the blocks at both ends belong to it alone */
} heft__piece;

typedef struct heft__pieces {
    const heft_checkpoint *ckpt;
    heft__piece *list;
    size_t count, cap;
    uint64_t bytes;               /* to be read */
    heft__decoder_memory *memory; /* of pieces that are computed; NULL: there is none of them yet */
} heft__pieces;

void heft__pieces_init(heft__pieces *pieces, const heft_checkpoint *ckpt);
void heft__pieces_fini(heft__pieces *pieces);
/* owner: the caller's number for the memory. */
heft_status heft__pieces_add(heft__pieces *pieces, const heft__part *part, size_t owner,
                             heft_error *err);
uint64_t heft__piece_bytes(const heft__pieces *pieces, size_t i); /* in the file's dtype */
/* The buffer needed for reading a piece of a part, besides the memory it is read into. */
uint64_t heft__part_scratch(const heft_checkpoint *ckpt, const heft__part *part);
/* The maximum memory of buffers and stacks while this number of threads reads the pieces. */
uint64_t heft__pieces_staging(const heft__pieces *pieces, size_t threads);
/* How many threads read: more where they wait for a disk. */
size_t heft__reading_threads(heft_ctx *ctx, bool disk);
/* memory: the owner's, its beginning. Any number of threads, each with its own pieces. */
heft_status heft__piece_read(const heft__pieces *pieces, size_t i, uint8_t *memory,
                             heft_error *err);
/* Where in its file a part begins; HEFT_NO_OFFSET if it is not stored in the form needed. */
uint64_t heft__part_offset(const heft_checkpoint *ckpt, size_t tensor, uint64_t first);
/* The first place at or after a block's beginning in `base` that has the phase of the offset: the
 * bytes in front of it, back to the block's beginning, are in `base` too. */
uint8_t *heft__in_phase(uint8_t *base, uint64_t offset);
/* Whether a file is read past the page cache: it would only be a second copy, and requests are longer. */
bool heft__file_is_cold(const heft_checkpoint *ckpt, size_t file);
/* Whether two tensors of a checkpoint hold equal bytes; reads both. */
heft_status heft__tensors_equal(const heft_checkpoint *ckpt, size_t a, size_t b, bool *equal,
                                heft_error *err);

/* ---- devices (device.c) ---------------------------------------------------------------------- */
typedef struct heft__device {
    int32_t number;
    /* Memory for a parameter, which this process can write; NULL: weights stay in their files. */
    heft_status (*new_memory)(heft_ctx *ctx, uint64_t bytes, heft_storage **out, heft_error *err);
} heft__device;

/* UNSUPPORTED for a device that this build does not have, and for none. */
heft_status heft__device_find(int32_t number, const heft__device **out, heft_error *err);

/* ---- fill: bytes into parameters ------------------------------------------------------------- */
typedef struct heft__fill_counts {
    uint64_t mapped_bytes, copied_bytes, cast_bytes, shared_bytes, disk_bytes;
    uint64_t own_bytes;       /* of the copied ones: in memory that is yet to be taken */
    uint64_t away_bytes;      /* on devices that this build does not have */
    uint64_t staging_bytes;   /* the most that buffers take meanwhile */
    uint64_t stay_scratch;    /* of one thread that brings in what stays in its file */
    uint64_t unaligned_bytes; /* of the copied and shared ones: only because they are not aligned */
    size_t unaligned_count;
    uint64_t beside_bytes; /* overhead of allocated memory, besides the parameters' bytes */
    bool direct;           /* some were read past the page cache */
    bool joined;           /* the shared copy was there already */
    bool unshared;         /* failed only because there can be no shared copy here */
} heft__fill_counts;

/* Why a model is filled the way it is. */
typedef enum heft__fill_reason {
    HEFT__FILL_AUTO,
    HEFT__FILL_ASKED,    /* by the options */
    HEFT__FILL_EXISTING, /* the model has memory already */
    HEFT__FILL_NETWORK,  /* auto, and a file is on a network file system */
} heft__fill_reason;

typedef struct heft__fill_options {
    heft__fill_reason reason;
    const char *network; /* the file system's name; NULL unless that is the reason */
    bool map;            /* tensors stored in the form needed are mapped */
    heft_map_mode map_mode;
    bool share;             /* the rest is one copy for all processes of the host */
    bool reuse;             /* write over storages that are owned already */
    const bool *anew;       /* [model->count] but not over these; NULL: over all */
    bool count;             /* nothing is taken, read or bound: counts are all that is wanted */
    const int32_t *devices; /* [model->count] by a plan; NULL: by `map` */
    /* Called before a shared copy of so many bytes is built, not if there is one; NULL: not called. */
    heft_status (*may_build)(void *user, uint64_t bytes, heft_error *err);
    void *may_build_user;
} heft__fill_options;

/* Bind every parameter that has a source, or say what that would take. */
heft_status heft__fill(heft_model *model, const heft_checkpoint *ckpt, const heft__match *match,
                       const heft__fill_options *options, heft__fill_counts *counts,
                       heft_error *err);
/* Bring in every mapped byte. */
heft_status heft__fill_touch(const heft_model *model, const heft_checkpoint *ckpt,
                             const heft__match *match, heft_error *err);

/* ---- homes: of parameters that stay in their files (homes.c) --------------------------------- */
typedef struct heft__homes {
    heft_checkpoint *ckpt; /* owned */
    size_t *source;        /* [count] as in heft__match, by number of the parameter */
    uint64_t *first;       /* [count] */
    size_t count;
} heft__homes;

/* Map a tensor. One that can stay in its file is not mapped where address space is limited, which is left
 * to those that need it, and where its elements would not be aligned and the mode does not take that: *out
 * is NULL then. */
heft_status heft__map_or_stay(const heft_checkpoint *ckpt, size_t tensor, heft_map_mode mode,
                              heft_tensor **out, heft_error *err);
/* Let the model keep a reference on the checkpoint, and where its parameters are in it, if any is mapped
 * read-only or on the disk: the match's lists are taken then. Parameters that are mapped privately, or lie
 * in the caller's memory, have no home: their bytes are in memory for good. */
heft_status heft__homes_keep(heft_model *model, heft_checkpoint *ckpt, heft__match *match,
                             heft_error *err);
const heft__homes *heft__model_homes(const heft_model *model); /* NULL: none */
/* Whether any elements of parameter i can be read from its file without the others. */
bool heft__home_is_plain(const heft_model *model, size_t i);
/* Read elements first .. first + elems - 1 of such a parameter, in its dtype. */
heft_status heft__home_read(const heft_model *model, size_t i, uint64_t first, uint64_t elems,
                            void *dst, heft_error *err);

/* ---- disk_reader.c: reading them in order, for a save ------------------------------------------- */
typedef struct heft__disk_reader {
    const heft_model *model;
    heft__tensor_reader *reader; /* of `parameter`; NULL: none */
    size_t parameter;
    uint64_t position; /* of its next byte */
    void *scratch;
} heft__disk_reader;

/* Bytes of parameter i, which is on the disk, in its dtype; from its first on, piece after piece. */
heft_status heft__disk_read(heft__disk_reader *disk, size_t i, uint64_t first, void *dst,
                            size_t length, heft_error *err);
/* IO if one of the files was changed since it was opened. */
heft_status heft__disk_unchanged(const heft_model *model, heft_error *err);
void heft__disk_reader_fini(heft__disk_reader *disk);

/* ---- offload_store.c: what a device map leaves on the disk, as Accelerate's offload folder ----- */
typedef struct heft__store {
    heft_model *model;
    heft_checkpoint *ckpt; /* lent */
    heft__match *match;
    const heft_load_options *options;
    const int32_t *devices; /* [model->count] */
    heft__arena arena;
    heft__offload_entry *entries; /* [count] of the index that is to be there */
    size_t *root;                 /* [count] the parameter that has the bytes of each */
    size_t count, dat_count;
    size_t *source;     /* [model->count] as the match had it */
    bool *taken;        /* [model->count] it is mapped from its .dat */
    const char **paths; /* [ckpt->file_count] absolute; NULL: not needed yet */
    uint64_t dat_bytes, done_bytes;
    const char *index;       /* path of the folder's */
    bool kept;               /* it was there already, and is what would have been written */
    heft_checkpoint *folder; /* when it is there; NULL without entries */
    heft__tensor_reader *reader;
    void *scratch, *raw;
    size_t scratch_bytes, raw_bytes;
} heft__store;

/* Before filling: what goes where. Parameters that cannot stay in the checkpoint's own files lose
 * their source in the match. heft__store_fini() is called whatever comes of it. */
heft_status heft__store_plan(heft__store *store, heft_model *model, heft_checkpoint *ckpt,
                             heft__match *match, const heft_load_options *options,
                             const int32_t *devices, heft_error *err);
/* After filling: write the folder, or hold the one that is there against it, and bind what lives in a
 * .dat. EXISTS for a folder that differs. */
heft_status heft__store_finish(heft__store *store, heft__fill_counts *counts, heft_error *err);
/* The bytes of each of its two buffers. */
size_t heft__store_piece(heft_ctx *ctx);
/* Last: the model's home is the folder, which has all that stays on the disk. Returns its checkpoint,
 * lent; `ckpt` if there is no folder. */
heft_checkpoint *heft__store_move_home(heft__store *store, heft_checkpoint *ckpt,
                                       heft__match *match);
void heft__store_fini(heft__store *store);

/* ---- report ---------------------------------------------------------------------------------- */
typedef struct heft__report_memory {
    heft_load_report report; /* first: the public pointer is this one */
    heft__arena arena;       /* holds a reference on its context */
    heft__warnings warnings;
} heft__report_memory;

heft_status heft__report_new(heft_ctx *ctx, heft__report_memory **out, heft_error *err);
/* Everything but seconds and parameters: from the model and the lists. */
heft_status heft__report_fill(heft__report_memory *memory, const heft_model *model,
                              const heft__match *match, const heft__fill_counts *counts,
                              const heft__fill_options *options, heft_error *err);
/* After what the checkpoint lacks was initialized. */
heft_status heft__report_initialized(heft__report_memory *memory, const heft_model *model,
                                     const heft__match *match, heft_error *err);

/* ---- one load: done by load.c, counted by needs.c -------------------------------------------- */
typedef struct heft__loading {
    heft_ctx *ctx;
    const heft_load_options *options;
    const heft_source *source; /* NULL: into an existing model */
    heft_checkpoint *ckpt;     /* lent; NULL: a config alone */
    heft_model *model;
    const int32_t *devices; /* [model->count] lent by the plan; NULL without */
    heft__report_memory *memory;
    heft__match match;
    heft__fill_counts counts;
    heft__fill_options fill;
    heft__store store; /* of the offload folder, if there is to be one */
} heft__loading;

/* The empty model: of its family; of a type that heft does not know, as the checkpoint has it. */
heft_status heft__loading_make_model(heft__loading *loading, heft_error *err);
/* Take the plan's devices, if there is a plan. */
heft_status heft__loading_take_plan(heft__loading *loading, heft_error *err);
void heft__loading_choose_strategy(heft__loading *loading);
/* Of the model, with quantized weights as what they are when they are plain: after the match. (count.c) */
uint64_t heft__loading_elems(const heft__loading *loading);
/* What the checkpoint lacks gets memory, wherever it is to live: its bytes. After the match. */
uint64_t heft__loading_initialized(const heft__loading *loading);
/* After the match and before the fill: LIMIT if the bytes that the load certainly takes are more than
 * there are, unless over_limit is set; a warning if what it takes at most is more. A shared copy's bytes
 * are judged once it is known that this process builds it: the fill asks. (limit.c) */
heft_status heft__loading_check_limit(heft__loading *loading, heft_error *err);
/* What is about to be taken. Texts: "a device map ..., " or "", and "loading". */
typedef struct heft__memory_need {
    uint64_t certain, most;
    const char *instead, *during;
} heft__memory_need;

#define HEFT__LIMIT_WARNING 256
/* LIMIT if the certain bytes are more than the memory, or the address space, that is left; a line in
 * `warning` if only the most are. It is not touched otherwise. */
heft_status heft__limit_memory(const char *machine, const heft__memory_need *need,
                               char warning[HEFT__LIMIT_WARNING], heft_error *err);
heft_status heft__limit_space(const heft__memory_need *need, char warning[HEFT__LIMIT_WARNING],
                              heft_error *err);
/* MISMATCH for lists that should be empty: shapes always, keys as `strict` says. */
heft_status heft__loading_judge(const heft__loading *loading, heft_error *err);
/* Seconds, for `started`. */
double heft__loading_clock(void);
/* Hand a filled report to who asked for it, also where its lists are the reason to refuse; else free it. memory
 * and report may be NULL. */
void heft__loading_report(heft__report_memory *memory, heft_status status, double started,
                          heft_load_report **report);
/* Hand the model out; the rest is freed by fini. */
heft_model *heft__loading_take_model(heft__loading *loading);
void heft__loading_fini(heft__loading *loading);

#endif
