/* run - the door of the room.
 *
 * What it does: keeps a loaded model's blocks in memory while they are used: brings them in from the
 * checkpoint's files inside a budget, ahead of time, and lets them go. Not yet: forward passes.
 * May open the door of: base, io, json, tensor, format, checkpoint, kernel, model, load, place.
 * Rules: never more memory than the budget, but for a fixed margin; never a page fault that could be
 * a signal where a status can be had; nothing is written. A failure leaves the block as it was, not
 * in memory. */
#ifndef HEFT__RUN_RUN_H
#define HEFT__RUN_RUN_H

#include <heft/run.h>

#include "load/load.h"
#include "place/place.h"

#include <pthread.h>

#define HEFT__NO_BLOCK SIZE_MAX
#define HEFT__NO_SLOT SIZE_MAX

/* A parameter that is brought in with its block; tied ones under one of their names. In the order of the
 * files. */
typedef struct heft__brought {
    size_t parameter; /* the one that others are tied to */
    size_t file;
    uint64_t offset; /* in the file; HEFT_NO_OFFSET behind all that have one */
    uint64_t at;     /* of its room in the block's buffer */
    uint8_t *data;   /* while it is in memory */
} heft__brought;

typedef enum heft__block_state {
    HEFT__BLOCK_AWAY,
    HEFT__BLOCK_COMING,
    HEFT__BLOCK_HERE
} heft__block_state;

typedef struct heft__block {
    heft_block shown; /* first: the public pointer is this one */
    heft__brought *brought;
    size_t brought_count;
    uint64_t room; /* that its buffer needs */
    heft__block_state state;
    size_t users; /* that have acquired it */
    size_t slot;
} heft__block;

typedef struct heft__slot { /* memory of a block that is here or coming */
    uint64_t bytes;         /* that count; 0: the slot is not used */
    heft_storage *storage;  /* NULL: used where the page cache has it, or not yet there */
    size_t block;           /* NO_BLOCK: free to be used again */
} heft__slot;

struct heft_residency {
    heft_ctx *ctx;
    heft__arena arena; /* names and lists */
    const heft_model *model;
    heft__block *blocks;
    size_t block_count;
    size_t *block_of;   /* [model->count] */
    size_t *brought_at; /* [model->count] number in its block's list; SIZE_MAX: has memory */
    heft_tensor *views; /* [model->count] */
    heft__slot *slots;
    size_t slot_count;
    uint64_t budget, held;
    size_t cursor;        /* the block that was acquired last */
    pthread_mutex_t lock; /* guards all that changes: states, users, slots, views, facts */
    pthread_cond_t changed;
    pthread_t reader;   /* reads ahead */
    bool reading, quit; /* the reader is there; is to go */
    bool coming;        /* a block is: one at a time */
    size_t wanting;     /* that wait for a block: the reader lets them go first */
    bool failed;        /* what it read last: it waits for the next acquire */
    heft_residency_facts facts;
};

/* ---- blocks.c: what comes and goes together -------------------------------------------------- */
heft_status heft__blocks_make(heft_residency *residency, heft_error *err);

/* ---- bring.c: one block from its files into memory -------------------------------------------- */
/* Bring it in, into the storage, which is made if there is none; or use it where the page cache has it: then
 * *storage is NULL, and what was there is freed. The block's tensors have data then. No lock is held. */
heft_status heft__block_bring(heft_residency *residency, heft__block *block, heft_storage **storage,
                              heft_error *err);
/* Drop the pages of one that is used in the page cache from the page tables. */
void heft__block_forget(const heft_residency *residency, const heft__block *block);

#endif
