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

/* Room for so many sequences; false without memory. */
bool cli_inputs_make(cli_inputs *inputs, size_t count);
/* "1,2,3", with spaces or commas between ids; several lines are several sequences. `what` is named in
 * errors. */
bool cli_inputs_parse(cli_inputs *inputs, const char *text, const char *what, heft_error *err);
/* A safetensors file whose tensors are the inputs by the reference's names. */
heft_status cli_inputs_read(cli_inputs *inputs, heft_ctx *ctx, const char *path, heft_error *err);
void cli_inputs_fini(cli_inputs *inputs);

/* ---- run_text.c: prompts ---- */
/* The tokenizer of the folder in which a source is. */
heft_status cli_tokenizer_open(heft_ctx *ctx, const heft_source *source, heft_tokenizer **out,
                               heft_error *err);
/* The ids of each line of a text, or of all of it as one prompt. `most`: ids are cut to so many, the last
 * special one kept; 0: never. *cut: how many texts were. */
heft_status cli_prompts_encode(cli_inputs *inputs, const heft_tokenizer *tokenizer,
                               const char *text, bool by_line, uint64_t most, size_t *cut,
                               heft_error *err);
/* A whole file, or with "-" stdin, as text: owned; NULL with a filled err. */
char *cli_text_read(const char *path, const char *option, heft_error *err);

/* Save results of the session's last pass as tensors: a row of padding for tokens that were not computed. */
heft_status cli_outputs_save(const cli_inputs *inputs, const heft_session *session, heft_ctx *ctx,
                             const char *const *names, size_t count, const char *path,
                             heft_error *err);

#endif
