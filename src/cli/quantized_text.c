/* quantized_text.c - how weights are stored quantized, as text and as JSON. */
#include "cli/cli.h"

#include <string.h>

void cli_put_quantization(cli_json *json, const heft_quantization *quantization)
{
    if (!quantization) {
        cli_json_null(json, "quantization");
        return;
    }
    cli_json_open(json, "quantization", '{');
    cli_json_string(json, "method", quantization->method);
    cli_json_u64(json, "bits", quantization->bits);
    if (quantization->group_size) {
        cli_json_u64(json, "group_size", quantization->group_size);
    } else {
        cli_json_null(json, "group_size");
    }
    cli_json_u64(json, "weights", quantization->weights);
    cli_json_bool(json, "known", quantization->known);
    cli_json_bool(json, "declared", quantization->declared);
    cli_json_bool(json, "dequantized", quantization->dequantized);
    cli_json_strings(json, "state", quantization->state, quantization->state_count);
    if (quantization->block_rows) {
        const uint64_t block[2] = {quantization->block_rows, quantization->group_size};
        cli_json_shape(json, "block", block, 2);
    } else {
        cli_json_null(json, "block");
    }
    cli_json_close(json, '}');
}

const char *cli_adapter_warning(const heft_source *source)
{
    const heft_checkpoint *ckpt = heft_source_checkpoint(source);
    const char *line = NULL;
    for (size_t i = 0; ckpt && (line = heft_checkpoint_warning(ckpt, i)) &&
                       strncmp(line, "adapter_config.json: ", strlen("adapter_config.json: ")) != 0;
         i++) {
    }
    return line;
}

heft_status cli_check_adapter(const heft_source *source, heft_error *err)
{
    const char *line = cli_adapter_warning(source);
    if (!line) {
        return HEFT_OK;
    }
    cli_refuse(err, "", "%.300s; without that file in its folder, the model runs as it is", line);
    err->status = HEFT_UNSUPPORTED;
    return HEFT_UNSUPPORTED;
}

/* A scale to which a plain weight would be rounded; NULL: there is none. */
static const char *find_rounding(const heft_quantization *found)
{
    static const char end[] = ".weight_scale";
    for (size_t i = 0; found && !found->dequantized && i < found->state_count; i++) {
        const size_t length = strlen(found->state[i]);
        if (length > sizeof end && strcmp(found->state[i] + length - sizeof end + 1, end) == 0) {
            return found->state[i];
        }
    }
    return NULL;
}

heft_status cli_check_plain(const heft_source *source, heft_error *err)
{
    const heft_quantization *found = heft_source_quantization(source);
    const char *rounding = find_rounding(found);
    char bits[24] = "";
    if (rounding) {
        cli_refuse(err, rounding,
                   "the weights are to be rounded to scales whenever they are used (%.60s), which "
                   "heft does not do",
                   found->method);
        err->status = HEFT_UNSUPPORTED;
        return HEFT_UNSUPPORTED;
    }
    if (!found || found->weights == 0 || found->dequantized) {
        return HEFT_OK;
    }
    if (found->bits) {
        snprintf(bits, sizeof bits, ", %u bits", found->bits);
    }
    cli_refuse(err, "",
               "%zu weights are stored quantized (%.60s%s) and heft computes with plain weights: "
               "--dequantize makes them while loading, heft convert --dequantize once for all",
               found->weights, found->method, bits);
    err->status = HEFT_UNSUPPORTED;
    return HEFT_UNSUPPORTED;
}

void cli_print_quantization(const char *title, const heft_quantization *quantization)
{
    if (!quantization) {
        return;
    }
    fputs(title, stdout);
    cli_put(stdout, quantization->method);
    if (quantization->bits) {
        printf(", %u bits", quantization->bits);
    }
    if (quantization->block_rows) {
        printf(", block %llux%llu", (unsigned long long)quantization->block_rows,
               (unsigned long long)quantization->group_size);
    } else if (quantization->group_size) {
        printf(", group size %llu", (unsigned long long)quantization->group_size);
    }
    if (quantization->known) {
        printf(", %zu weights%s\n", quantization->weights,
               quantization->dequantized ? ", dequantized" : "");
    } else {
        puts(", a method that heft does not support");
    }
    if (quantization->state_count) {
        printf("%-*s%zu tensor%s of scales for inputs, outputs and caches, %s\n",
               (int)strlen(title), "state", quantization->state_count,
               quantization->state_count == 1 ? "" : "s",
               quantization->dequantized ? "left out" : "kept");
    }
}
