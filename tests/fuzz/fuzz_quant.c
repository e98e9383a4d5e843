/* fuzz_quant.c - quantized weights: settings as JSON, a zero byte, and a safetensors file. What is found is
 * computed from odd places in odd pieces. */
#include "repair.h"

#include "load/load.h"

static size_t split(const uint8_t *data, size_t size)
{
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    return zero ? (size_t)(zero - data) : size;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t cap, unsigned int seed)
{
    size = LLVMFuzzerMutate(data, size, cap);
    const size_t at = split(data, size);
    if (seed % 4 && at < size) {
        repair_header(data + at + 1, size - at - 1);
    }
    return size;
}

static void read_view(const heft_checkpoint *view)
{
    uint64_t budget = (uint64_t)8 << 20;
    heft_error err;
    for (size_t i = 0; i < view->count; i++) {
        const heft__decoded *decoded = view->entries[i]->decoded;
        heft__decoder *decoder = NULL;
        uint64_t piece[512], elems = 0;
        if (!decoded || heft__decoder_new(fuzz_ctx(), decoded, NULL, &decoder, &err) != HEFT_OK) {
            continue;
        }
        (void)heft__shape_elems(view->infos[i].shape, view->infos[i].rank, &elems);
        for (uint64_t first = 0; first < elems && budget > sizeof piece; first += 997) {
            const uint64_t some = elems - first < 997 ? elems - first : 997;
            budget -= sizeof piece;
            if (heft__decoder_read(decoder, first, some, piece, false, &err) != HEFT_OK) {
                break;
            }
        }
        heft__decoder_free(decoder);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const size_t at = split(data, size);
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .dequantize = true);
    const heft_checkpoint_options plain = HEFT_SIZED(heft_checkpoint_options);
    heft__input *input = NULL;
    heft_config *config = NULL;
    heft_checkpoint *ckpt = NULL;
    heft_source *source = NULL;
    heft_error err;
    if (at < size &&
        heft__config_parse(fuzz_ctx(), "config.json", data, at, &config, &err) == HEFT_OK &&
        (input = fuzz_source(data + at + 1, size - at - 1)) != NULL &&
        heft__checkpoint_open_input(fuzz_ctx(), input, &plain, &ckpt, &err) == HEFT_OK &&
        heft_source_new(ckpt, config, &how, &source, &err) == HEFT_OK) {
        read_view(heft_source_checkpoint(source));
    }
    heft_source_close(source);
    heft_checkpoint_close(ckpt);
    heft__input_unref(input);
    heft_config_free(config);
    fuzz_expect_nothing_live();
    return 0;
}
