/* skeleton.h - the builder's inside, for skeleton.c and model.c; families see model.h only. */
#ifndef HEFT__MODEL_SKELETON_H
#define HEFT__MODEL_SKELETON_H

#include "model/model.h"

#define HEFT__SKELETON_DEPTH 32              /* nested calls of enter */
#define HEFT__SKELETON_NAME ((64 << 10) + 1) /* bytes of the longest name, NUL included */
#define HEFT__SKELETON_SHAPES 16 /* shapes remembered, so that equal layers share theirs */
#define HEFT__SKELETON_RULES 8   /* rules remembered, for the same reason */
#define HEFT__SKELETON_CLASSES 24
#define HEFT__SKELETON_PARTS 64 /* modules above one another */

typedef struct heft__skeleton_tie {
    const char *target, *source;
} heft__skeleton_tie;

struct heft__skeleton {
    heft_model *model;              /* being built: its arena takes names and shapes */
    const heft_config *config;      /* the model's own copy */
    const void *user;               /* of the recipe */
    const size_t *numbers;          /* of the recipe */
    const heft__packing *packing;   /* of the recipe */
    const heft__json_value *object; /* of the config, that look-ups read; NULL: has no keys */
    heft_status status;
    heft_error error;
    bool natural_order;
    bool has_inner; /* some tensor is different, or has another name, in Transformers' memory */
    bool filling;   /* false: the first run, which only counts */
    float std;
    char path[HEFT__SKELETON_NAME]; /* of the module that is entered */
    size_t path_length, lengths[HEFT__SKELETON_DEPTH], depth;
    size_t parts, part_counts[HEFT__SKELETON_DEPTH]; /* modules above the one that is entered */
    char last[HEFT__SKELETON_NAME];                  /* the module noted last */
    size_t last_length;
    uint32_t chain[HEFT__SKELETON_PARTS + 1]; /* its number and those above it, the root first */
    /* so far in this run */
    size_t saved_count, transient_count, module_count, tie_count, cache_count;
    uint32_t inner_count;
    uint64_t total_bytes, tree_bytes;
    /* what the first run found */
    size_t saved_total;
    heft__skeleton_tie *ties;
    /* a ring */
    const uint64_t *shapes[HEFT__SKELETON_SHAPES];
    uint32_t ranks[HEFT__SKELETON_SHAPES];
    size_t next_shape;
    const heft__init_rule *rules[HEFT__SKELETON_RULES];
    size_t next_rule;
    const char *classes[HEFT__SKELETON_CLASSES][2]; /* as families say them, and in full */
    size_t next_class;
};

/* Returns a key's value, by its own or its other name; NULL if neither is there. (skeleton_config.c) */
const heft__json_value *heft__sk_member(const heft__skeleton *s, const char *key);
/* Make the finished lists of parameters into a tree: ends, parameters, bytes. (modules.c) */
heft_status heft__modules_finish(heft_model *model, heft_error *err);
/* Mark layers and units of a model whose type is not known, by structure. (lists.c) */
heft_status heft__modules_find_lists(heft_model *model, heft_error *err);
/* Put the first `count` parameters, with rules and places, into the natural order of their inner
 * names. Before names are numbered or tied: tied_to is the parameter's own number. (order.c) */
heft_status heft__order_naturally(heft_model *model, size_t count, heft_error *err);

#endif
