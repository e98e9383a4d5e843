/* bench_open.c - how long opening a checkpoint takes: all names and shapes, no tensor byte.
 *
 *   bench_open PATH [RUNS]     prints the least milliseconds of RUNS (9), the tensors, and the peak of the heap */
#include <heft/heft.h>

#include <stdlib.h>
#include <time.h>

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
    heft_error err = {0};
    double least = 1e99;
    size_t count = 0, dims = 0;
    uint64_t peak = 0;
    int runs = argc > 2 ? atoi(argv[2]) : 9;
    for (int i = 0; argc > 1 && i < runs; i++) {
        heft_ctx *ctx = heft_ctx_new(NULL);
        heft_checkpoint *ckpt = NULL;
        double start = milliseconds();
        if (!ctx || heft_checkpoint_open(ctx, argv[1], NULL, &ckpt, &err) != HEFT_OK) {
            heft_error_print(&err, stderr);
            return heft_status_exit_code(err.status);
        }
        count = heft_checkpoint_count(ckpt);
        for (size_t k = 0; k < count; k++) { /* look at each, as a caller would */
            dims += heft_checkpoint_info(ckpt, k)->rank;
        }
        double took = milliseconds() - start;
        least = took < least ? took : least;
        heft_checkpoint_close(ckpt);
        heft_ctx_memory(ctx, NULL, &peak);
        heft_ctx_free(ctx);
    }
    printf("%.3f %zu %llu %s\n", least, count, (unsigned long long)peak, dims ? "" : "-");
    return argc > 1 ? 0 : 2;
}
