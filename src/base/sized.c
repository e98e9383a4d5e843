/* sized.c - structures that callers allocate and that begin with their size.
 *
 * A caller that was built with an older version of the library has a shorter structure, one that was
 * built with a newer version a longer one. Members are only ever added at the end.
 * Source: docs/api-stability.md. */
#include "base/base.h"

#define SIZE_MOST ((size_t)64 << 10) /* a larger one was never set */

static heft_status check_size(size_t size, heft_error *err)
{
    if (size < sizeof size || size > SIZE_MOST) {
        return heft__fail(
            err, HEFT_INVALID_ARG,
            "struct_size is %zu: initialize the structure with HEFT_OPTIONS or HEFT_SIZED", size);
    }
    return HEFT_OK;
}

heft_status heft__take_options(void *taken, size_t size, const void *options, heft_error *err)
{
    size_t given = size;
    if (options) {
        memcpy(&given, options, sizeof given);
        heft_status status = check_size(given, err);
        const uint8_t *bytes = options;
        for (size_t i = size; i < given && status == HEFT_OK; i++) {
            if (bytes[i] != 0) {
                status = heft__fail(err, HEFT_INVALID_ARG,
                                    "the option at byte %zu is set, but this version of the "
                                    "library does not have it: its options end at byte %zu",
                                    i, size);
            }
        }
        if (status != HEFT_OK) {
            return status;
        }
    }
    memset(taken, 0, size);
    if (options) {
        memcpy(taken, options, given < size ? given : size);
    }
    memcpy(taken, &size, sizeof size);
    return HEFT_OK;
}

heft_status heft__give_sized(void *out, const void *given, size_t size, heft_error *err)
{
    size_t room = 0;
    if (!out) {
        return heft__fail(err, HEFT_INVALID_ARG, "the structure to fill is NULL");
    }
    memcpy(&room, out, sizeof room);
    heft_status status = check_size(room, err);
    if (status == HEFT_OK) {
        memset(out, 0, room);
        memcpy(out, given, room < size ? room : size);
        memcpy(out, &room, sizeof room);
    }
    return status;
}
