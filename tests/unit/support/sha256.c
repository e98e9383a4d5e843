/* sha256.c - checksums for tests that compare much with a few digits; with OpenSSL only. */
#include "support.h"

#include <openssl/sha.h>

void test_sha256(const void *bytes, size_t length, char hex[65])
{
    unsigned char digest[SHA256_DIGEST_LENGTH];
    SHA256(bytes, length, digest);
    for (size_t i = 0; i < sizeof digest; i++) {
        snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    }
}
