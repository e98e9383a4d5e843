/* manifest.h - a sidecar with the size and the SHA-256 of every weight file; private to
 * checkpoint/. */
#ifndef HEFT__CHECKPOINT_MANIFEST_H
#define HEFT__CHECKPOINT_MANIFEST_H

#include "checkpoint/checkpoint.h"

typedef struct heft__hashing {
    const heft_checkpoint *survey; /* whose files are hashed */
    void *scratch;
    size_t scratch_bytes;
} heft__hashing;

/* Called for each file that differs from the manifest. */
typedef heft_status (*heft__manifest_fn)(void *user, const char *file, const char *message,
                                         heft_error *err);

/* Errors: UNSUPPORTED without OpenSSL; FORMAT for a malformed manifest. */
heft_status heft__manifest_compare(const heft__hashing *job, const char *manifest,
                                   heft__manifest_fn differs, void *user, heft_error *err);
/* Of the files in the checkpoint's folder. */
heft_status heft__manifest_write(const heft__hashing *job, const char *manifest, heft_error *err);

#endif
