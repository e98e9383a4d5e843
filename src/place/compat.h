/* compat.h - the parts of Accelerate's first fit: what is still to be placed, and what is tied.
 *
 * Private to the layer: compat.c has the loop, compat_queue.c the queue with its largest layer,
 * compat_ties.c the items that must stay together. */
#ifndef HEFT__PLACE_COMPAT_H
#define HEFT__PLACE_COMPAT_H

#include "place/place.h"

/* ---- the queue
 *
 * A ring of nodes through two arrays, so that taking out and putting between cost the same however
 * long it is. A layer is a tensor, or a module that is not split any further. Of each module it is
 * known beforehand how large its largest layer is and how many it has of that size; a counting tree
 * over all such sizes has the largest of the modules that wait. */
typedef struct heft__queue {
    const heft__tree *tree;
    uint32_t head;         /* of the ring: after all nodes */
    uint32_t *next, *prev; /* [head + 1]; NO_NODE: does not wait */
    double *most;          /* [modules] bytes of the largest layer */
    uint32_t *layers;      /* [modules] how many of that size */
    uint32_t *rank;        /* [modules] that size among sizes */
    double *sizes;         /* [size_count] ascending */
    uint32_t size_count, leaves;
    uint32_t *waiting; /* [2 * leaves] modules below a place of the counting tree, 1 is its root */
    uint64_t *by_rank; /* [size_count] layers of the waiting modules that have this size */
    uint32_t *seen;    /* [head] the round in which its layers were taken from `left` */
    uint32_t round;    /* of looking for the largest */
    double reserve;    /* the size of the largest layer to come, when it was last looked for */
    uint64_t left;     /* layers of that size that are still to come */
} heft__queue;

/* With the root's parameters, children and buffers waiting, and its largest layer looked for. */
bool heft__queue_init(heft__queue *queue, const heft__tree *tree, heft__arena *arena);
/* NO_NODE if nothing waits. */
uint32_t heft__queue_first(const heft__queue *queue);
/* Put a node that does not wait before one that does, or before `head`: last. */
void heft__queue_add(heft__queue *queue, uint32_t node, uint32_t before);
void heft__queue_remove(heft__queue *queue, uint32_t node);
/* Put a module's parameters, children and buffers before a node, in this order. */
void heft__queue_expand(heft__queue *queue, uint32_t module, uint32_t before);
/* Of the modules that wait, tensors not counted. */
void heft__queue_find_largest(heft__queue *queue);
/* An item is being placed and does not wait: layers in it are no longer to come. */
void heft__queue_forget(heft__queue *queue, uint32_t item);
/* The node that waits and is this one or above it; NO_NODE if none does. */
uint32_t heft__queue_holder(const heft__queue *queue, uint32_t node);
static inline bool heft__queue_waits(const heft__queue *queue, uint32_t node)
{
    return queue->next[node] != HEFT__NO_NODE;
}

/* ---- ties
 *
 * Accelerate regards a tied tensor as part of an item if the item's name occurs anywhere in the tensor's
 * name, followed by a dot or the end. So every prefix of a tensor's name that ends before a dot, and the
 * whole name, are sorted by their last letters first: those that end with a given name are adjacent. */
typedef struct heft__tie_end {
    const char *text; /* of the tensor's name */
    size_t length;    /* of the beginning */
    uint32_t tie;
} heft__tie_end;

typedef struct heft__tie_group {
    uint32_t begin, live_end, end; /* in ties; those in `live` end at live_end */
    uint32_t round, claimed;       /* members in the item of this round */
} heft__tie_group;

typedef struct heft__tie_index {
    const heft__tree *tree;
    heft__tie_end *ends;     /* [end_count] */
    heft__tie_group *groups; /* [group_count] */
    size_t end_count, group_count;
    uint32_t *group_of;    /* [tie_count] */
    uint32_t *live;        /* [tie_count] ties, group by group, without those that are placed */
    uint32_t *claimed_in;  /* [tie_count] the last round in which the item claimed it */
    uint32_t *touched;     /* [group_count] groups of the round's item */
    uint32_t *owner_at;    /* [tensors] position of a tensor in `tied`, if in this round */
    uint32_t *owner_round; /* [tensors] */
    uint32_t *owners; /* [owner_count] waiting items that hold what is tied to the round's item */
    uint32_t *tied;   /* [owner_count] the tensor of each */
    uint32_t owner_count, round;
    uint32_t split_from; /* no owner before this one can be split */
    double owner_bytes;  /* of the owners without what the item has already */
} heft__tie_index;

bool heft__tie_index_init(heft__tie_index *index, const heft__tree *tree, heft__arena *arena);
/* Fill owners with the items that must be on the device of `item`. `held`: an item that does not wait and
 * is not placed, or NO_NODE. */
void heft__tie_index_find(heft__tie_index *index, const heft__queue *queue, uint32_t item,
                          uint32_t held);
/* The first owner that can be split, NO_NODE if none can. */
uint32_t heft__tie_index_splits(heft__tie_index *index);
/* An owner was split: its parts are owners now. */
void heft__tie_index_resettle(heft__tie_index *index, const heft__queue *queue, uint32_t owner);

#endif
