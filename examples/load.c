/* load.c - open a checkpoint, find a tensor, print some of its values.
 *
 *   cc load.c $(pkg-config --cflags --libs heft) -o load
 *   ./load FOLDER [TENSOR]
 */
#include <heft/heft.h>

#include <inttypes.h>
#include <stdio.h>

static void print_tensor(const heft_tensor_info *info, const heft_tensor *tensor)
{
    uint64_t elems = 1;
    printf("%s %s [", info->name, heft_dtype_name(tensor->dtype));
    for (uint32_t d = 0; d < tensor->rank; d++) {
        printf("%s%" PRIu64, d ? ", " : "", tensor->shape[d]);
        elems *= tensor->shape[d];
    }
    printf("] in %s, %s\n", info->file, tensor->flags & HEFT_TENSOR_MAPPED ? "mapped" : "copied");
    if (tensor->dtype == HEFT_DTYPE_F32 &&
        (tensor->rank == 0 || tensor->strides[tensor->rank - 1] == 1)) {
        const float *values = tensor->data; /* the last dimension is contiguous */
        uint64_t row = tensor->rank ? tensor->shape[tensor->rank - 1] : 1;
        for (uint64_t i = 0; i < 8 && i < row && elems > 0; i++) {
            printf("%s%.9g", i ? " " : "", (double)values[i]);
        }
        printf("\n");
    }
}

int main(int argc, char **argv)
{
    heft_error err = {0};
    heft_checkpoint *ckpt = NULL;
    heft_tensor *tensor = NULL;
    if (argc < 2) {
        fprintf(stderr, "usage: %s FOLDER [TENSOR]\n", argv[0]);
        return 2;
    }
    heft_ctx *ctx = heft_ctx_new(NULL);
    heft_status status = heft_checkpoint_open(ctx, argv[1], NULL, &ckpt, &err);
    if (status == HEFT_OK) {
        size_t i = argc > 2 ? heft_checkpoint_find(ckpt, argv[2]) : 0;
        printf("%zu tensors, %" PRIu64 " bytes\n", heft_checkpoint_count(ckpt),
               heft_checkpoint_total_bytes(ckpt));
        status = heft_checkpoint_map(ckpt, i, HEFT_MAP_READ_ONLY, &tensor, &err);
        if (status == HEFT_OK) {
            print_tensor(heft_checkpoint_info(ckpt, i), tensor);
        }
    }
    if (status != HEFT_OK) {
        heft_error_print(&err, stderr);
    }
    heft_tensor_free(tensor);
    heft_checkpoint_close(ckpt);
    heft_ctx_free(ctx);
    return heft_status_exit_code(status);
}
