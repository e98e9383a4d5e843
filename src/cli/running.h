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
/* The folder in which a source is; owned, NULL without memory. */
char *cli_source_folder(const heft_source *source);

/* How prompts become ids. */
typedef struct cli_prompts {
    const heft_tokenizer *tokenizer;
    uint64_t most;         /* ids are cut to so many, the last special one kept; 0: never */
    size_t cut;            /* filled: how many texts were */
    const heft_chat *chat; /* a prompt is the message of a user; NULL: a text */
    const char *system;    /* the message before it; NULL: none */
    bool lists;            /* what begins with '[' is a list of messages */
} cli_prompts;

/* The ids of each line of a text, or of all of it as one prompt. */
heft_status cli_prompts_encode(cli_inputs *inputs, cli_prompts *prompts, const char *text,
                               bool by_line, heft_error *err);
/* A whole file, or with "-" stdin, as text: owned; NULL with a filled err. */
char *cli_text_read(const char *path, const char *option, heft_error *err);

/* ---- run_chat.c: --chat ---- */
/* The chat template of the folder in which a source is. */
heft_status cli_chat_open(heft_ctx *ctx, const heft_source *source, heft_chat **out,
                          heft_error *err);
/* The text of prompt `number`; free it with heft_chat_free_text(). */
heft_status cli_chat_render(const cli_prompts *prompts, size_t number, const char *text,
                            size_t length, char **rendered, size_t *rendered_length,
                            heft_error *err);
/* The id that ends a turn besides those of the model's config: the eos_token of the tokenizer's. -1: none.
 * `chat` may be NULL. */
int32_t cli_chat_stop(const heft_chat *chat, const heft_tokenizer *tokenizer);

/* Save results of the session's last pass as tensors: a row of padding for tokens that were not computed. */
heft_status cli_outputs_save(const cli_inputs *inputs, const heft_session *session, heft_ctx *ctx,
                             const char *const *names, size_t count, const char *path,
                             heft_error *err);

#endif
