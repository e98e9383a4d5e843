/* sha256.c - SHA-256 by OpenSSL's libcrypto.
 *
 *   HEFT_HAVE_OPENSSL          libcrypto is linked
 *   HEFT_OPENSSL_AT_RUN_TIME   libcrypto is opened at the first hash: one binary runs beside OpenSSL
 *                              1.1, 3 and 4, and where there is none, only manifests are missing
 *   neither                    every hash is UNSUPPORTED
 *
 * The functions have had the same names and arguments since OpenSSL 1.1.0. An opened libcrypto stays
 * open until the process ends.
 * Source: OpenSSL's manual, EVP_DigestInit(3). */
#include "checkpoint/sha256.h"

#include <stdio.h>

#ifdef HEFT_HAVE_OPENSSL
#include <openssl/evp.h>
#elif defined HEFT_OPENSSL_AT_RUN_TIME
#include <dlfcn.h>
#include <pthread.h>
#endif

#define DIGEST_BYTES 32

/* What is used of libcrypto. */
struct heft__crypto {
    void *(*context_new)(void);
    void (*context_free)(void *context);
    const void *(*sha256)(void);
    int (*init)(void *context, const void *type, void *engine);
    int (*update)(void *context, const void *data, size_t size);
    int (*final)(void *context, unsigned char *digest, unsigned *size);
};

#ifdef HEFT_HAVE_OPENSSL
static void *linked_new(void)
{
    return EVP_MD_CTX_new();
}

static void linked_free(void *context)
{
    EVP_MD_CTX_free(context);
}

static const void *linked_sha256(void)
{
    return EVP_sha256();
}

static int linked_init(void *context, const void *type, void *engine)
{
    return EVP_DigestInit_ex(context, type, engine);
}

static int linked_update(void *context, const void *data, size_t size)
{
    return EVP_DigestUpdate(context, data, size);
}

static int linked_final(void *context, unsigned char *digest, unsigned *size)
{
    return EVP_DigestFinal_ex(context, digest, size);
}

static const struct heft__crypto *find_crypto(void)
{
    static const struct heft__crypto linked = {linked_new,  linked_free,   linked_sha256,
                                               linked_init, linked_update, linked_final};
    return &linked;
}
#elif defined HEFT_OPENSSL_AT_RUN_TIME
static struct heft__crypto opened;
static bool is_open;

/* dlsym() returns functions as objects: POSIX allows the conversion, C has no cast for it. */
static bool look_up(void *library, const char *name, void *function, size_t size)
{
    void *found = dlsym(library, name);
    memcpy(function, &found, size);
    return found != NULL;
}

static void open_crypto(void)
{
    static const char *const names[] = {"libcrypto.so.3", "libcrypto.so.4", "libcrypto.so.1.1",
                                        "libcrypto.so"};
    _Static_assert(sizeof(void *) == sizeof(opened.init), "functions are as large as objects");
    for (size_t i = 0; i < sizeof names / sizeof *names && !is_open; i++) {
        void *library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        if (!library) {
            continue;
        }
        const size_t size = sizeof(void *);
        is_open = look_up(library, "EVP_MD_CTX_new", &opened.context_new, size) &&
                  look_up(library, "EVP_MD_CTX_free", &opened.context_free, size) &&
                  look_up(library, "EVP_sha256", &opened.sha256, size) &&
                  look_up(library, "EVP_DigestInit_ex", &opened.init, size) &&
                  look_up(library, "EVP_DigestUpdate", &opened.update, size) &&
                  look_up(library, "EVP_DigestFinal_ex", &opened.final, size);
        if (!is_open) {
            dlclose(library);
        }
    }
}

static const struct heft__crypto *find_crypto(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_crypto);
    return is_open ? &opened : NULL;
}
#else
static const struct heft__crypto *find_crypto(void)
{
    return NULL;
}
#endif

#ifdef HEFT_OPENSSL_AT_RUN_TIME
#define NO_CRYPTO "manifests require OpenSSL: libcrypto.so.3, .4 or .1.1 could not be opened"
#else
#define NO_CRYPTO "manifests require heft to be built with OpenSSL"
#endif

heft_status heft__sha256_init(heft__sha256 *hash, heft_error *err)
{
    const struct heft__crypto *lib = find_crypto();
    if (!lib) {
        return heft__fail(err, HEFT_UNSUPPORTED, NO_CRYPTO);
    }
    void *state = lib->context_new();
    if (!state) {
        return heft__fail_nomem(err, 0);
    }
    if (lib->init(state, lib->sha256(), NULL) != 1) {
        lib->context_free(state);
        return heft__fail(err, HEFT_UNSUPPORTED, "OpenSSL does not provide SHA-256");
    }
    *hash = (heft__sha256){lib, state};
    return HEFT_OK;
}

heft_status heft__sha256_update(heft__sha256 *hash, const void *data, size_t size, heft_error *err)
{
    return hash->lib->update(hash->state, data, size) == 1
               ? HEFT_OK
               : heft__fail(err, HEFT_UNSUPPORTED, "OpenSSL failed to hash");
}

heft_status heft__sha256_finish(heft__sha256 *hash, char hex[HEFT__SHA256_HEX_BYTES],
                                heft_error *err)
{
    unsigned char digest[64] = {0}; /* OpenSSL's EVP_MAX_MD_SIZE */
    unsigned size = 0;
    if (hash->lib->final(hash->state, digest, &size) != 1 || size != DIGEST_BYTES) {
        return heft__fail(err, HEFT_UNSUPPORTED, "OpenSSL failed to hash");
    }
    for (size_t i = 0; i < DIGEST_BYTES; i++) {
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    }
    return HEFT_OK;
}

void heft__sha256_fini(heft__sha256 *hash)
{
    if (hash->state) {
        hash->lib->context_free(hash->state);
        *hash = (heft__sha256){0};
    }
}
