/* pickle_value.h - private to the layer: what the files share that describe the whole value of a pickle in parts.
 * pickle_value.c walks, pickle_parts.c writes parts and names, pickle_leaves.c knows tensors and calls. */
#ifndef HEFT__FORMAT_PICKLE_VALUE_H
#define HEFT__FORMAT_PICKLE_VALUE_H

#include "format/pickle.h"

#define HEFT__VALUE_NO_PATH SIZE_MAX

enum heft__value_frame_kind {
    HEFT__FRAME_ITEMS,
    HEFT__FRAME_PAIRS,  /* key, value, key, ... */
    HEFT__FRAME_MEMBERS /* a part of a module: its names are keys of the module's dict */
};

/* A value that has begun and not ended. */
typedef struct heft__value_frame {
    heft__pk_object *object;    /* that ends with it; NULL: none, as of most of a module's parts */
    const heft__pk_cell *first; /* a value before the items; NULL: none */
    const heft__pk_cell *items; /* [count] */
    const heft__pk_cell *last;  /* a value after them; NULL: none */
    const heft__pk_object *without; /* of MEMBERS: keys that are passed over; NULL: none */
    uint32_t next, count;
    uint32_t part; /* that begins it; of MEMBERS: the module's */
    uint8_t kind;
    size_t path_bytes;             /* of its own path; NO_PATH: too long to be a name */
    size_t name_first, name_bytes; /* of MEMBERS: where in `names` the names in this module begin */
} heft__value_frame;

/* A class that is not known. */
typedef struct heft__value_class {
    const heft__value_text *name;
    struct heft__pk_left left;
} heft__value_class;

/* What a dict has besides its items; NULL: nothing. */
typedef struct heft__value_note {
    const heft__pk_cell *state, *factory;
} heft__value_note;

typedef struct heft__value_walk {
    heft__pickle_tensors *build;
    heft__value_frame *frames;
    size_t depth, cap;
    heft__buffer path;  /* of the value being visited, as a tensor there is called */
    heft__buffer names; /* prefixes of the modules that are open */
    bool is_nameless;   /* there is no path */
    heft__map notes;    /* a dict -> its entry in `noted` */
    heft__value_note *noted;
    size_t noted_count, noted_cap;
    heft__map known; /* of tar: key of a tensor -> part that begins it */
    heft__map class_names;
    heft__value_class *classes;
    size_t class_count, class_cap;
} heft__value_walk;

static inline uint64_t heft__value_offset(const heft__value_walk *walk, const heft__pk_cell *cell)
{
    return walk->build->pickle->origin + cell->at;
}

/* The next part begins this object: met again, it is the same. */
static inline void heft__value_remember(heft__value_walk *walk, const heft__pk_cell *cell)
{
    cell->as.object->part = (uint32_t)walk->build->part_count;
    cell->as.object->walked = true;
}

/* ---- parts (pickle_parts.c) ------------------------------------------------------------------- */
heft_status heft__value_emit(heft__value_walk *walk, heft__file_value part, heft_error *err);
/* A part that is a run of bytes of the pickle. */
heft_status heft__value_emit_span(heft__value_walk *walk, heft_value_kind kind,
                                  const heft__pk_cell *cell, heft_error *err);
heft_status heft__value_emit_text(heft__value_walk *walk, heft_value_kind kind,
                                  const heft__pk_cell *cell, const heft__value_text *text,
                                  heft_error *err);
/* The value that began with a part, once more. */
heft_status heft__value_emit_same(heft__value_walk *walk, const heft__pk_cell *cell, uint32_t part,
                                  heft_error *err);
/* Text of its own, with room for `length` bytes; NULL: see *status. */
heft__value_text *heft__value_new_text(heft__value_walk *walk, const heft__pk_cell *cell,
                                       size_t length, heft_status *status, heft_error *err);
/* Make walk->path that of an item: ".key" or ".number" behind the container's. */
heft_status heft__value_path(heft__value_walk *walk, const heft__value_frame *frame,
                             const heft__pk_cell *key, heft_error *err);
/* The name of the next tensor: its path if that is a name that no other has, otherwise its number. */
heft_status heft__value_name(heft__value_walk *walk, uint64_t at, const char **name,
                             heft_error *err);
/* The class of an object or what makes it, in the list or not. */
void heft__value_class_name(const heft__pickle *pickle, const heft__pk_cell *cell, char name[128]);
/* An object that is not read, by its class or what makes it (NULL: by its class). */
heft_status heft__value_object(heft__value_walk *walk, const heft__pk_cell *cell, const char *maker,
                               heft_error *err);
/* A line for each class of these. */
heft_status heft__value_warn(heft__value_walk *walk, heft_error *err);

/* ---- values that hold others (pickle_value.c) -------------------------------------------------- */
heft_status heft__value_push(heft__value_walk *walk, heft__value_frame frame, uint64_t at,
                             heft_error *err);
heft_status heft__value_begin_items(heft__value_walk *walk, heft_value_kind kind,
                                    const heft__pk_cell *cell, const heft__pk_object *items,
                                    heft_error *err);

/* ---- tensors and calls (pickle_leaves.c) ------------------------------------------------------- */
heft_status heft__value_tensor(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err);
/* A persistent id: a storage by itself, or a tensor of tar. */
heft_status heft__value_storage(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err);
/* A call of a function in the list that makes no tensor. */
heft_status heft__value_inert(heft__value_walk *walk, const heft__pk_cell *cell, heft_error *err);
/* A call of set or frozenset. */
heft_status heft__value_set(heft__value_walk *walk, const heft__pk_cell *cell,
                            const heft__pk_object *args, heft_value_kind kind, heft_error *err);

#endif
