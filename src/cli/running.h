/* running.h - what `heft run` is given and what it will take, for cmd_run.c, cmd_plan.c and run_*.c. */
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
/* Images (pixel_values) or sound (input_features) of a safetensors file. Images are inputs behind the texts
 * that there are; sound needs one row for each text, with which the decoder begins, or no texts. */
heft_status cli_inputs_add_features(cli_inputs *inputs, heft_ctx *ctx, const char *path, bool audio,
                                    heft_error *err);
void cli_inputs_fini(cli_inputs *inputs);

/* ---- run_text.c: prompts ---- */
/* The tokenizer beside a source: in its folder, else in those above it that --subfolder leads through. Warns of what
 * tokenizer_config.json says otherwise. */
heft_status cli_tokenizer_open(cli_run *run, const heft_source *source, const char *subfolder,
                               heft_tokenizer **out, heft_error *err);
/* The folder in which a source is, or the one so far above it, up to where the subfolder (NULL: none) begins; owned,
 * NULL if there is none or no memory. */
char *cli_source_folder(const heft_source *source, const char *subfolder, size_t up);
/* Open something in the first of these folders in which it is: `open` says NOT_FOUND elsewhere. The error of the first
 * folder counts. */
heft_status cli_open_beside(const heft_source *source, const char *subfolder,
                            heft_status (*open)(void *user, const char *folder, heft_error *err),
                            void *user, heft_error *err);

/* How prompts become ids. */
typedef struct cli_prompts {
    const heft_tokenizer *tokenizer;
    uint64_t most;         /* ids are cut to so many, the last special one kept; 0: never */
    size_t cut;            /* filled: how many texts were */
    const char *before;    /* goes before each text; NULL: nothing */
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
/* The chat template, as cli_tokenizer_open(). */
heft_status cli_chat_open(heft_ctx *ctx, const heft_source *source, const char *subfolder,
                          heft_chat **out, heft_error *err);
/* The text of prompt `number`; free it with heft_chat_free_text(). */
heft_status cli_chat_render(const cli_prompts *prompts, size_t number, const char *text,
                            size_t length, char **rendered, size_t *rendered_length,
                            heft_error *err);
typedef struct cli_message {
    const char *role, *text;
} cli_message;
bool cli_is_utf8(const char *text);
/* A list of messages as JSON, owned; NULL without memory. Texts are UTF-8. */
char *cli_chat_messages(const cli_message *messages, size_t count, size_t *bytes);
/* The id that ends a turn besides those of the model's config: the eos_token of the tokenizer's. -1: none.
 * `chat` may be NULL. */
int32_t cli_chat_stop(const heft_chat *chat, const heft_tokenizer *tokenizer);

/* ---- run_talk.c: --chat on a terminal ---- */
typedef struct cli_talk { /* all are borrowed */
    heft_session *session;
    const heft_tokenizer *tokenizer;
    const heft_chat *chat;
    const char *system; /* NULL: none */
    const heft_sampling *sampling;
    uint64_t new_tokens; /* of an answer, at most; at least 1 */
    const int32_t *stops;
    size_t stop_count;
    int32_t turn_end; /* ends an answer too; -1: none */
    bool ignore_eos;
    bool has_budget;     /* the session's memory has a maximum */
    uint64_t steps;      /* out: passes of one token */
    double step_seconds; /* out: of all answers */
} cli_talk;
/* Read messages from stdin and answer them, until its end or an interrupt at the prompt. */
heft_status cli_talk_run(cli_run *run, cli_talk *talk, heft_error *err);

/* ---- run_forecast.c: how a model is run, and how long that takes ---- */
/* Of a process beyond what the session counts: the program, its heap, thread stacks, page tables. */
#define CLI_RUN_BESIDE ((uint64_t)24 << 20)

/* Where the weights are. */
typedef struct cli_run_mode {
    bool disk;              /* they stay in their files; otherwise they are copied into memory */
    uint64_t session_bytes; /* heft_session_options.memory_bytes; 0: no maximum */
} cli_run_mode;

/* memory_bytes: of --memory, more than CLI_RUN_BESIDE; 0: what the machine has left. */
cli_run_mode cli_run_choose(uint64_t memory_bytes, uint64_t model_bytes);

/* Whether so many tokens of so many sequences are worth making weights compact first, which takes as long as
 * some tokens. A batch is not bound by memory. */
bool cli_run_compacts(uint64_t new_tokens, size_t sequences);

typedef struct cli_run_weights {
    heft_load_options load;       /* in */
    heft_session_options session; /* in; the memory that is left for it out */
    heft_plan *plan;
    heft_model *model;
    heft_load_report *report;
} cli_run_weights;

/* The values of --memory and --compute; NULL: not given. */
bool cli_run_read_memory(const char *text, uint64_t bytes, heft_error *err);
/* An error about a session's budget in terms of --memory; others stay. */
void cli_run_explain(heft_error *err);
bool cli_run_read_compute(const char *text, heft_session_options *session, heft_error *err);
/* Copied into memory if they fit in memory_bytes, else left in their files. Quantized ones are refused. */
heft_status cli_run_load(const heft_source *source, uint64_t memory_bytes, cli_run_weights *out,
                         heft_error *err);
void cli_run_weights_fini(cli_run_weights *weights);

typedef struct cli_forecast {
    bool known;
    char why[512]; /* it is not */
    heft_prediction step, input;
    bool has_input;      /* the model has so many positions */
    uint64_t context;    /* tokens of the input */
    uint64_t peak_bytes; /* of the process, at most */
    const char *weights; /* where they are: "memory" or "disk"; static */
} cli_forecast;

/* Predict a run of a source whose skeleton has so many bytes: an input of `context` tokens, and a token
 * after it. load: as for a load; its plan is not used. Fails only without memory: whatever else keeps a model
 * from being run is in `why`. */
heft_status cli_run_forecast(heft_source *source, const heft_load_options *load,
                             uint64_t model_bytes, uint64_t memory_bytes, uint64_t context,
                             cli_forecast *out, heft_error *err);
/* "disk", "memory", "compute"; static. */
const char *cli_bound_name(heft_bound bound);

/* Save results of the session's last pass as tensors: a row of padding for tokens that were not computed. */
heft_status cli_outputs_save(const cli_inputs *inputs, const heft_session *session, heft_ctx *ctx,
                             const char *const *names, size_t count, const char *path,
                             heft_error *err);

#endif
