/* running.h - what `heft run` is given, for cmd_run.c and run_inputs.c. */
#ifndef HEFT__CLI_RUNNING_H
#define HEFT__CLI_RUNNING_H

#include "cli/cli.h"

/* The tokens of each sequence. All arrays are owned. */
typedef struct cli_inputs {
    size_t count;       /* sequences */
    heft_input *inputs; /* [count] arrays in it are these */
    size_t width;       /* tokens of the longest one; of the decoder's, where there is an encoder */
    int32_t **ids;      /* [count] */
    size_t *tokens;     /* [count] */
    int32_t *positions, *types, *decoder_ids; /* [count][...]; NULL: not given */
    uint8_t *mask;
    float *features;
} cli_inputs;

/* "1,2,3", with spaces or commas between ids; several lines are several sequences. `what` is named in
 * errors. */
bool cli_inputs_parse(cli_inputs *inputs, const char *text, const char *what, heft_error *err);
/* A safetensors file whose tensors are the inputs by the reference's names. */
heft_status cli_inputs_read(cli_inputs *inputs, heft_ctx *ctx, const char *path, heft_error *err);
void cli_inputs_fini(cli_inputs *inputs);

/* Save results of the session's last pass as tensors: a row of padding for tokens that were not computed. */
heft_status cli_outputs_save(const cli_inputs *inputs, const heft_session *session, heft_ctx *ctx,
                             const char *const *names, size_t count, const char *path,
                             heft_error *err);

#endif
