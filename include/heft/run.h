/* heft/run.h - a loaded model's blocks in memory, one after the other, for an engine to run on. */
#ifndef HEFT_RUN_H
#define HEFT_RUN_H

#include <heft/load.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * Brings blocks of a model in from the checkpoint's own files, inside a budget, the next one while the
 * current one is used. Any number of threads may acquire and release; one makes and frees it.
 */
typedef struct heft_residency heft_residency;

typedef struct heft_residency_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    uint64_t
        budget_bytes; /* for the bytes of what is brought in; 0: as much as two neighbors need */
} heft_residency_options;

/** What comes and goes together: the parameters of one unit of the model's tree (heft/model.h), or, outside
 * of all units, those of one module. In the order of modules. */
typedef struct heft_block {
    const char *module;       /* its path */
    const size_t *parameters; /* [parameter_count] numbers in the model */
    size_t parameter_count;
    uint64_t bytes;         /* of all its parameters, tied ones once */
    uint64_t brought_bytes; /* of those that acquiring brings in; 0: it is in memory */
} heft_block;

typedef struct heft_residency_facts {
    size_t struct_size;    /* set by HEFT_SIZED */
    uint64_t budget_bytes; /* with what tensors take beside their bytes */
    uint64_t peak_bytes;   /* the most that was held at once */
    uint64_t read_bytes;   /* of files, into buffers */
    uint64_t mapped_bytes; /* were in the page cache: used where they are */
    uint64_t ahead;        /* blocks that were there, or on their way, when they were acquired */
    uint64_t waited;       /* blocks that had to be begun then */
} heft_residency_facts;

/**
 * Make a residency of a loaded model. Nothing is read yet.
 *
 * @param model    borrowed; not to be changed while the residency lives
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned residency; free it with heft_residency_free()
 * @param err      filled on failure; may be NULL
 *
 * Memory   lists of blocks and tensors; later the budget, and a few KB for each tensor of a block.
 * Errors   LIMIT for a budget in which a block has no room, naming it with both numbers; NOMEM.
 * Source   docs/placing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_new(const heft_model *model,
                                                        const heft_residency_options *options,
                                                        heft_residency **out, heft_error *err);
/** Free a residency, also with blocks acquired: their tensors are gone then. NULL is allowed. */
HEFT_API void heft_residency_free(heft_residency *residency);

/** Return the number of blocks. */
HEFT_API size_t heft_residency_count(const heft_residency *residency);
/** Return block i, NULL past the end; lent by the residency. */
HEFT_API const heft_block *heft_residency_block(const heft_residency *residency, size_t i);
/** Find the block in which a module or parameter is: its number, or SIZE_MAX. */
HEFT_API size_t heft_residency_find(const heft_residency *residency, const char *name);

/**
 * Wait until a block's tensors are in memory, and have the next ones begun, as far as the budget goes;
 * behind the last comes the first again. A block may be acquired many times; each wants a release.
 *
 * @param residency  borrowed
 * @param block      its number
 * @param err        filled on failure; may be NULL
 *
 * Memory   the budget at most. Cold blocks are read past the page cache into buffers, cast and put in
 *          order on the way; what the page cache has is used there.
 * Errors   INVALID_ARG; LIMIT if acquired blocks leave no room for it; IO or FORMAT with file and
 *          tensor; CANCELLED by the context's progress callback.
 * Source   docs/placing.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_acquire(heft_residency *residency, size_t block,
                                                            heft_error *err);
/** Give a block back. Its memory goes to the next ones when they need it. */
HEFT_API void heft_residency_release(heft_residency *residency, size_t block);

/**
 * Return a parameter's tensor, lent while its block is acquired (or as long as the residency lives if
 * the parameter has memory of its own); NULL if it is not in memory. Its `storage` is NULL: the bytes
 * are the residency's or the model's. Read only.
 */
HEFT_API const heft_tensor *heft_residency_tensor(heft_residency *residency, size_t parameter);
/** Fill `facts`, made with HEFT_SIZED, with what was read so far and what it took. INVALID_ARG for a
 * struct_size of 0. */
HEFT_API HEFT_MUST_CHECK heft_status heft_residency_tell(heft_residency *residency,
                                                         heft_residency_facts *facts,
                                                         heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
