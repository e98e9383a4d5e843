/* sha256.h - SHA-256 by OpenSSL's libcrypto, linked or opened at run time; private to checkpoint/. */
#ifndef HEFT__CHECKPOINT_SHA256_H
#define HEFT__CHECKPOINT_SHA256_H

#include "checkpoint/checkpoint.h"

#define HEFT__SHA256_HEX_BYTES 65 /* 64 digits and the NUL */

/* A hash in progress. The caller owns it; heft__sha256_fini() takes one that is all zero, too. */
typedef struct heft__sha256 {
    const struct heft__crypto *lib;
    void *state; /* lib's */
} heft__sha256;

/* Errors: UNSUPPORTED if there is no libcrypto, or it has no SHA-256. */
heft_status heft__sha256_init(heft__sha256 *hash, heft_error *err);
heft_status heft__sha256_update(heft__sha256 *hash, const void *data, size_t size, heft_error *err);
/* Fills the digest in lower-case hexadecimal. */
heft_status heft__sha256_finish(heft__sha256 *hash, char hex[HEFT__SHA256_HEX_BYTES],
                                heft_error *err);
void heft__sha256_fini(heft__sha256 *hash);

#endif
