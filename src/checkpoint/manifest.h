/* manifest.h - a sidecar with the size and the SHA-256 of every weight file; private to
 * checkpoint/. */
#ifndef HEFT__CHECKPOINT_MANIFEST_H
#define HEFT__CHECKPOINT_MANIFEST_H

#include "checkpoint/checkpoint.h"

/* Called for each file that differs from the manifest. */
typedef heft_status (*heft__manifest_fn)(void *user, const char *file, const char *message,
                                         heft_error *err);

/* Errors: UNSUPPORTED if heft was built without OpenSSL; FORMAT for a manifest that is none. */
heft_status heft__manifest_compare(heft_ctx *ctx, const char *manifest, const char *folder,
                                   void *scratch, size_t scratch_bytes, heft__manifest_fn differs,
                                   void *user, heft_error *err);
/* Written under a temporary name and renamed. */
heft_status heft__manifest_write(heft_ctx *ctx, const char *manifest, const char *folder,
                                 const char *const *names, size_t count, void *scratch,
                                 size_t scratch_bytes, heft_error *err);

#endif
