/* open_one.c - opening one file that is not in a file system: bytes in memory, or a caller's reader.
 *
 * The parsers are the same; what differs is the input they read from. The input holds the caller's
 * storage or reader until the checkpoint, and every tensor that points into it, is gone. There is no
 * folder, no index and no config beside it. */
#include "checkpoint/checkpoint.h"

static void release_storage(void *user)
{
    heft_storage_unref(user);
}

heft_status heft_checkpoint_open_bytes(heft_ctx *ctx, const char *name, heft_storage *storage,
                                       const heft_checkpoint_options *options,
                                       heft_checkpoint **out, heft_error *err)
{
    heft__input *source = NULL;
    size_t length = 0;
    if (!ctx || !storage || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, storage or result is NULL");
    }
    (void)heft__to_size(heft_storage_bytes(storage), &length); /* it is in memory */
    heft_status status = heft__input_from_bytes(ctx, name ? name : "bytes",
                                                heft_storage_data(storage), length, &source, err);
    if (status == HEFT_OK) {
        heft__input_on_release(source, release_storage, heft_storage_ref(storage));
        status = heft__checkpoint_open_input(ctx, source, options, out, err);
    }
    heft__input_unref(source);
    return status;
}

heft_status heft_checkpoint_open_reader(heft_ctx *ctx, const heft_reader *reader,
                                        const heft_checkpoint_options *options,
                                        heft_checkpoint **out, heft_error *err)
{
    heft_reader taken;
    heft__input *source = NULL;
    if (!ctx || !reader || !out) {
        return heft__fail(err, HEFT_INVALID_ARG, "context, reader or result is NULL");
    }
    heft_status status = HEFT__TAKE_OPTIONS(&taken, reader, err);
    if (status == HEFT_OK && !taken.read_at) {
        status = heft__fail(err, HEFT_INVALID_ARG, "the reader has no read_at");
    }
    if (status == HEFT_OK) {
        const heft__reader inner = {taken.read_at, taken.map, taken.user};
        status = heft__input_from_reader(ctx, taken.name ? taken.name : "reader", &inner,
                                         taken.size, &source, err);
    }
    if (status == HEFT_OK) {
        status = heft__checkpoint_open_input(ctx, source, options, out, err);
    }
    if (status == HEFT_OK) { /* only now is it taken */
        heft__input_on_release(source, taken.release, taken.user);
    }
    heft__input_unref(source);
    return status;
}
