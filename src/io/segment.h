/* segment.h - private to the layer: what a process holds at a descriptor. */
#ifndef HEFT__IO_SEGMENT_H
#define HEFT__IO_SEGMENT_H

#include "io/register.h"

typedef struct heft__segment_facts {
    uint64_t bytes, what_bytes, source_bytes; /* one after the other */
    int64_t created;                          /* seconds since 1970 */
} heft__segment_facts;

/* Open the sealed segment that a holder has, after it has proved to be one: -1 otherwise. */
int heft__segment_look(const heft__holder *holder, heft__segment_facts *facts);
/* The same as a heft__register_keep. */
bool heft__segment_is_held(void *user, const heft__holder *holder);

#endif
