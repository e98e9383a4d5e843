/* bench_open.c - how long opening a checkpoint takes: all names and shapes, no tensor byte.
 *
 *   bench_open PATH [RUNS]             prints the minimum milliseconds of RUNS (9), the tensors, and the heap's peak
 *   bench_open INDEX.index.json [RUNS] the same for reading the index alone: names and files, no shapes */
#include "format/format.h"

#include <heft/heft.h>

#include <stdlib.h>
#include <time.h>

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static heft_status open_once(heft_ctx *ctx, const char *path, size_t *count, size_t *dims,
                             heft_error *err)
{
    heft_checkpoint *ckpt = NULL;
    heft_status status = heft_checkpoint_open(ctx, path, NULL, &ckpt, err);
    *count = status == HEFT_OK ? heft_checkpoint_count(ckpt) : 0;
    for (size_t k = 0; k < *count; k++) { /* look at each, as a caller would */
        *dims += heft_checkpoint_info(ckpt, k)->rank;
    }
    heft_checkpoint_close(ckpt);
    return status;
}

static heft_status index_once(heft_ctx *ctx, const char *path, size_t *count, heft_error *err)
{
    heft__shard_index index = {0};
    heft_status status = heft__shard_index_read(ctx, path, &index, err);
    *count = index.entry_count;
    heft__shard_index_fini(&index);
    return status;
}

int main(int argc, char **argv)
{
    heft_error err = {0};
    double least = 1e99;
    size_t count = 0, dims = 0;
    uint64_t peak = 0;
    int runs = argc > 2 ? atoi(argv[2]) : 9;
    const bool index = argc > 1 && strstr(argv[1], ".index.json");
    for (int i = 0; argc > 1 && i < runs; i++) {
        heft_ctx *ctx = heft_ctx_new(NULL);
        double start = milliseconds();
        heft_status status = !ctx    ? HEFT_NOMEM
                             : index ? index_once(ctx, argv[1], &count, &err)
                                     : open_once(ctx, argv[1], &count, &dims, &err);
        double took = milliseconds() - start;
        if (status != HEFT_OK) {
            heft_error_print(&err, stderr);
            return heft_status_exit_code(status);
        }
        least = took < least ? took : least;
        heft_ctx_memory(ctx, NULL, &peak);
        heft_ctx_free(ctx);
    }
    printf("%.3f %zu %llu %s\n", least, count, (unsigned long long)peak, dims ? "shapes" : "names");
    return argc > 1 ? 0 : 2;
}
