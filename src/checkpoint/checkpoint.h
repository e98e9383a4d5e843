/* checkpoint - the door of the room.
 *
 * What it does: takes a file, an index or a folder as one set of named tensors (resolve, open,
 * read), cuts tensors into shards by the reference's rule, writes a folder of shards with its
 * index, and on top of these converts and verifies. It knows names and bytes, but not which
 * parameters a model has.
 * May open the door of: base, io, json, tensor, format.
 * Rules: opening reads metadata only. Writing streams through one staging buffer. A name in an
 * index never leaves its folder, but for the safetensors files of an offload folder. What would win
 * at the next load and is not of this save is removed at commit, and nothing else is. */
#ifndef HEFT__CHECKPOINT_CHECKPOINT_H
#define HEFT__CHECKPOINT_CHECKPOINT_H

#include <heft/checkpoint.h>

#include "format/format.h"

/* ---- resolve: which files -------------------------------------------------------------------- */
typedef struct heft__resolved {
    const char *folder;
    const char *file;     /* one weight file, base name; NULL if there is an index */
    const char *index;    /* base name; NULL if there is one weight file */
    bool offload;         /* the index is Accelerate's */
    const char *shadowed; /* an entry point that lost against the chosen one: one of the two is
                             stale; base name or NULL */
} heft__resolved;

/* Strings live in the arena. */
heft_status heft__resolve(heft__arena *arena, const char *path,
                          const heft_checkpoint_options *options, heft__resolved *out,
                          heft_error *err);
/* hub.c: whether a path reads as org/name[@revision], and its folder in the hub's cache. */
bool heft__hub_is_name(const char *path);
heft_status heft__hub_find(heft__arena *arena, const char *path, const char **folder,
                           heft_error *err);
/* "model", "model.fp16", "pytorch_model": what the names of weight files begin with. */
const char *heft__weights_stem(heft__arena *arena, heft_format format, const char *variant);
/* "model.safetensors", "model.safetensors.index.fp16.json", "model-00001-of-00003.safetensors".
 * NULL if no memory. */
const char *heft__weights_single(heft__arena *arena, heft_format format, const char *variant);
const char *heft__weights_index(heft__arena *arena, heft_format format, const char *variant);
const char *heft__weights_shard(heft__arena *arena, heft_format format, const char *variant,
                                size_t number, size_t count);
/* Whether a name is that of a shard of this format and variant, whatever its numbers. */
bool heft__is_shard_name(const char *name, heft_format format, const char *variant);

/* ---- offload_open.c: Accelerate's offload folder ----------------------------------------------- */
typedef struct heft__offload_slot { /* a file */
    const char *name, *path;
    const heft__offload_entry **entries; /* [count] in it, in the order of the index */
    size_t count;
} heft__offload_slot;

typedef struct heft__offload {
    heft__offload_index index;
    const char *path; /* of the index */
    heft__offload_slot *slots;
    size_t slot_count;
    heft__offload_dat *dats; /* [slot_count] room for what a .dat is */
} heft__offload;

#define HEFT__OFFLOAD_INDEX "index.json"
/* Whether there is an index of Accelerate's at the path. NOMEM. */
heft_status heft__offload_is_index(heft_ctx *ctx, const char *path, bool *known, heft_error *err);
/* What is not the index's own lives in the arena; heft__offload_index_fini(&out->index) frees that. */
heft_status heft__offload_read(heft__arena *arena, const char *folder, const char *index,
                               heft__offload *out, heft_error *err);
/* Open one of its files and hold it against the index. *source is filled with an owned reference
 * also where the rest fails, NULL where there is none. */
heft_status heft__offload_open(heft_ctx *ctx, const heft__offload *offload, size_t number,
                               heft__input **source, heft__file **out, heft_error *err);

/* ---- the object ------------------------------------------------------------------------------ */
typedef struct heft__checkpoint_file {
    heft_file_info info;
    heft__file *file;
    size_t first_storage; /* number of its storage 0 in the checkpoint */
} heft__checkpoint_file;

struct heft_checkpoint {
    heft_ctx *ctx;
    heft__arena arena;
    heft__resolved where;
    heft__offload offload; /* where.offload */
    heft__checkpoint_file *files;
    size_t file_count;
    heft_tensor_info *infos; /* [count], file after file */
    const heft__file_tensor **entries;
    size_t count;
    heft__map names;
    uint64_t total_bytes;
    heft__warnings warnings;
    bool trust_shards;       /* see heft_checkpoint_options */
    struct heft__maps *maps; /* of map_tensor.c */
};

/* Add the item and the path to an error in tensor i. */
heft_status heft__checkpoint_blame(const heft_checkpoint *ckpt, size_t i, heft_status status,
                                   heft_error *err);

/* open.c: a checkpoint of one file, which is read from `source`. Takes a reference of its own. */
heft_status heft__checkpoint_open_input(heft_ctx *ctx, heft__input *source,
                                        const heft_checkpoint_options *options,
                                        heft_checkpoint **out, heft_error *err);

/* ---- map_tensor.c: storages that are handed out ------------------------------------------------- */
/* A place for the storages of all files, in each map mode. NOMEM. */
heft_status heft__maps_make(heft_checkpoint *ckpt, heft_error *err);
void heft__maps_free(heft_checkpoint *ckpt);

static inline const heft__file *heft__file_of(const heft_checkpoint *ckpt, size_t i)
{
    return ckpt->files[ckpt->infos[i].file_index].file;
}
/* Number of the first tensor that shows the same bytes in the same way (a tied name), its own
 * number if it is that. */
/* The caller frees it with heft__free(ctx, *first, count * sizeof **first). */
heft_status heft__checkpoint_aliases(const heft_checkpoint *ckpt, size_t **first, heft_error *err);

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
void heft__shard_plan_fini(heft_ctx *ctx, heft__shard_plan *plan, size_t count);

/* ---- write: a folder of shards with its index ------------------------------------------------ */
typedef struct heft__side_file { /* config.json and its like, written beside the weights */
    const char *name;
    const char *path; /* copied from here, or NULL: */
    const void *bytes;
    size_t length;
} heft__side_file;

typedef struct heft__write_job {
    const char *dst;
    heft_format format;       /* SAFETENSORS, TORCH or OFFLOAD */
    const char *variant;      /* not with OFFLOAD, as the next */
    uint64_t max_shard_bytes; /* 0: 50 GB */
    bool force, dry_run;
    const char *resume; /* key of heft__folder_begin(), or NULL */
    const heft__out_tensor
        *tensors; /* as they are to be written, in order; aliases already dropped for safetensors */
    size_t count;
    uint64_t total_parameters; /* for the index; 0: leave it out */
    const heft__torch_module *modules;
    size_t module_count;
    const heft__side_file *sides;
    size_t side_count;
    heft__out_read_fn read;
    void *user;
    const char *const *warnings; /* into the report */
    size_t warning_count;
} heft__write_job;

heft_status heft__write_checkpoint(heft_ctx *ctx, const heft__write_job *job,
                                   heft_write_report **report, heft_error *err);
/* What the index says: append it. `files`: by shard. total_parameters 0: left out. */
heft_status heft__index_text(heft__arena *arena, const heft__out_tensor *tensors, size_t count,
                             const heft__shard_plan *plan, const char *const *files,
                             uint64_t total_parameters, heft__buffer *text, heft_error *err);
#define HEFT__SHARD_BYTES_STANDARD UINT64_C(50000000000)
#define HEFT__PIECE_BYTES ((size_t)8 << 20) /* of one read and one write while streaming */

#endif
