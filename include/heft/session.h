/* heft/session.h - forward passes over a loaded model, in bounded memory, and generation of text. */
#ifndef HEFT_SESSION_H
#define HEFT_SESSION_H

#include <heft/run.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- session --------------------------------------------------------------------------------- */

/**
 * A session: runs forward passes of one model. It brings weights in from the checkpoint's files as
 * blocks need them, and keeps weights, caches and intermediate results within one budget. Many
 * sessions may share a model; one thread at a time may use a session.
 */
typedef struct heft_session heft_session;

typedef struct heft_session_options {
    size_t struct_size; /* set by HEFT_OPTIONS */
    /* Maximum bytes of weights brought into memory, caches of sequences and intermediate results.
     * Weights that the model already has in memory do not count. 0: no maximum, so weights that were
     * brought in stay. */
    uint64_t memory_bytes;
    /* Maximum tokens in one pass. Longer inputs of a decoder are computed in several passes; a sequence of
     * an encoder is never split. 0: 512. A decoder takes fewer if memory_bytes has no room for so many. */
    uint64_t pass_tokens;
    /* Do not round activations to bfloat16 where they are multiplied with bfloat16 weights, and keep caches
     * in float32. */
    bool exact;
    /* Create the session even if its weights need more memory than is available, including swap. */
    bool over_limit;
    /* heft_session_predict() reckons with weights as heft_session_compact() leaves them. */
    bool expect_compact;
} heft_session_options;

/**
 * Create a session for a loaded model.
 *
 * @param model    borrowed; must outlive the session and must not change while it exists
 * @param options  borrowed; NULL for defaults
 * @param out      filled with an owned session; free it with heft_session_free()
 * @param err      filled on failure; may be NULL
 *
 * Memory   lists of units and names. Memory for intermediate results is allocated by the first pass of
 *          a size.
 * Errors   UNSUPPORTED for a class without a forward pass, and for weights that are stored quantized;
 *          LIMIT if memory_bytes is too small for one block with its intermediate results, with both
 *          sizes; FORMAT for a config whose values contradict each other; NOMEM.
 * Source   docs/running.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_session_new(const heft_model *model,
                                                      const heft_session_options *options,
                                                      heft_session **out, heft_error *err);
/** Free a session. Its sequences must have been freed. NULL is allowed. */
HEFT_API void heft_session_free(heft_session *session);

/**
 * Store the bfloat16 weights that the session multiplies in 12 bits each, without loss, in the memory that the
 * model has them in. Generating tokens reads a quarter less memory for each; all results have the same bits.
 *
 * A weight stays as it is if it is mapped or shared, if it came by heft_model_set(), if a tensor on it or another
 * session exists, if something else than products and rows of an embedding reads it, if its rows are not a
 * multiple of 64 numbers, or if more than one in 256 of its numbers has an unusual exponent. Compact weights are
 * for sessions of this model only: heft_model_tensor() and heft_model_save() return UNSUPPORTED for them. The rows
 * take three quarters of the memory; the rest of it is not given back.
 *
 * @param session  borrowed; none of its passes runs
 * @param model    borrowed; the session's. No other thread uses it meanwhile.
 * @param err      filled on failure; may be NULL
 *
 * Memory   for each thread, a copy of one row, and 4 bytes for each row and each unusual number of a weight.
 * Errors   INVALID_ARG for another model; NOMEM, CANCELLED: some weights are compact then, and all are right.
 * Source   docs/running.md [7].
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_session_compact(heft_session *session, heft_model *model,
                                                          heft_error *err);

/* ---- sequences ------------------------------------------------------------------------------- */

/** A sequence: the tokens seen so far, as keys and values (or an encoder's output) that later passes
 * attend to. */
typedef struct heft_sequence heft_sequence;

/**
 * Create an empty sequence.
 *
 * @param session   borrowed; must outlive the sequence
 * @param capacity  maximum tokens, of input and output together; at least 1
 * @param encoded   maximum tokens of the encoder's input; 0 for a model without an encoder, and if the
 *                  encoder takes images or sound
 * @param out       filled with an owned sequence; free it with heft_sequence_free()
 * @param err       filled on failure; may be NULL
 *
 * Memory   pages of 64 tokens, taken as the sequence grows, and the encoder's output. The session's budget
 *          reserves all that the sequence takes until it is full, so it always reaches its capacity.
 * Errors   INVALID_ARG for a capacity of 0 or one beyond the model's positions; LIMIT, with both sizes, if
 *          the cache does not fit in the budget; NOMEM.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_sequence_new(heft_session *session, uint64_t capacity,
                                                       uint64_t encoded, heft_sequence **out,
                                                       heft_error *err);
/**
 * Create a sequence that continues another one: it has the same tokens so far, and the same capacity.
 *
 * @param sequence  borrowed; may be freed before the fork
 * @param out       filled with an owned sequence
 * @param err       filled on failure; may be NULL
 *
 * Memory   both share the pages of these tokens and the encoder's output. A page that is not full is copied when
 *          one of them adds a token. The budget reserves that copy and all pages that the fork can add; of a
 *          sliding window also those that it will have in the place of shared ones. So both always reach
 *          their capacity.
 * Errors   LIMIT, with both sizes, if these pages do not fit in the budget; NOMEM. The fork of a sequence that a
 *          failed pass has left unusable is unusable too.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_sequence_fork(const heft_sequence *sequence,
                                                        heft_sequence **out, heft_error *err);
/**
 * Drop the last tokens of a sequence, so that it goes on after the first ones.
 *
 * @param sequence  borrowed; not changed on failure
 * @param tokens    number of tokens to keep, at most heft_sequence_length()
 * @param err       filled on failure; may be NULL
 *
 * Memory   pages that hold none of the kept tokens are freed; the budget still reserves them.
 * Errors   INVALID_ARG for more tokens than there are, and after a pass that has failed; UNSUPPORTED if the
 *          dropped tokens share a page with another sequence, if a sliding window has left tokens that the
 *          next one would see, and for sequences with padding or positions of their own.
 * Source   docs/running.md [2].
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_sequence_truncate(heft_sequence *sequence,
                                                            uint64_t tokens, heft_error *err);
/** Free a sequence. What it shares with others stays until the last one is freed. NULL is allowed. */
HEFT_API void heft_sequence_free(heft_sequence *sequence);
/** Return the number of tokens so far. */
HEFT_API uint64_t heft_sequence_length(const heft_sequence *sequence);

/* ---- passes ---------------------------------------------------------------------------------- */

typedef enum heft_logits {
    HEFT_LOGITS_LAST, /* of the last token */
    HEFT_LOGITS_ALL,  /* of every token */
    HEFT_LOGITS_NONE
} heft_logits;

/** The tokens that a pass adds to one sequence. Arrays are [count] and borrowed. */
typedef struct heft_input {
    size_t struct_size;      /* set by HEFT_OPTIONS */
    heft_sequence *sequence; /* NULL: one that lives for this pass only */
    const int32_t *ids;      /* NULL with `features` */
    size_t count;
    /* 0 for padding; NULL: none. Other tokens do not see padding. Results of padding are zero in a decoder,
     * and computed in an encoder. */
    const uint8_t *mask;
    const int32_t *positions; /* NULL: as the reference numbers them */
    const int32_t *types;     /* token_type_ids; NULL: 0 */
    /* pixel_values or input_features of this sequence, row by row, of feature_shape; NULL: none */
    const float *features;
    uint64_t feature_shape[3];
    /* The decoder's tokens of a model with an encoder, whose input the members above are in a sequence's first
     * pass. Later passes have the decoder's tokens only, here or in `ids`. */
    const int32_t *decoder_ids;
    size_t decoder_count;
    heft_logits logits;
} heft_input;

/**
 * Run the model on the tokens of one or more sequences.
 *
 * @param session       borrowed
 * @param inputs        borrowed; [count]
 * @param count         number of sequences; at least 1
 * @param outputs       borrowed; [output_count] the results to keep, by the reference's names: "logits",
 *                      "last_hidden_state", "pooler_output", "hidden_states.3" (with an encoder and a
 *                      decoder "encoder_hidden_states.3" and "decoder_hidden_states.3"), ...; the rest is
 *                      not computed where that can be avoided
 * @param output_count  number of results
 * @param err           filled on failure; may be NULL. A failed pass leaves its sequences unusable.
 *
 * Memory   intermediate results, and the results, within the budget; pages of its sequences, which are
 *          reserved.
 * Errors   INVALID_ARG for ids that are not in the vocabulary, more tokens than a sequence's capacity or
 *          the model's positions, a sequence in two inputs, features of a wrong shape, and inputs that the
 *          model does not take;
 *          NOT_FOUND for an output that the class does not have; MISMATCH for a weight without a value;
 *          FORMAT, with the first block that made them, for logits that are not finite; LIMIT, IO,
 *          NOMEM; CANCELLED by the context's progress callback, which is called for every block.
 * Source   docs/running.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_session_run(heft_session *session,
                                                      const heft_input *inputs, size_t count,
                                                      const char *const *outputs,
                                                      size_t output_count, heft_error *err);

typedef enum heft_output_kind {
    HEFT_OUTPUT_TOKENS,    /* a row for each token, sequence after sequence */
    HEFT_OUTPUT_SEQUENCES, /* a row for each sequence */
    HEFT_OUTPUT_LOGITS,    /* a row for each token whose logits were asked for */
    HEFT_OUTPUT_ENCODED,   /* a row for each token of the encoder, sequence after sequence */
    HEFT_OUTPUT_WHOLE      /* one matrix of the whole batch */
} heft_output_kind;

/** A result; lent by the session until its next pass. */
typedef struct heft_output {
    size_t struct_size; /* set by HEFT_SIZED */
    heft_output_kind kind;
    const float *data; /* [rows][width] */
    size_t rows, width;
} heft_output;

/** Get a result of the last pass. NOT_FOUND for one that was not asked for, or that the class does not
 * have. */
HEFT_API HEFT_MUST_CHECK heft_status heft_session_output(const heft_session *session,
                                                         const char *name, heft_output *output,
                                                         heft_error *err);

/** What a session takes and has done. */
typedef struct heft_session_counts {
    size_t struct_size; /* set by HEFT_SIZED */
    uint64_t
        resident_bytes;     /* of weights in memory now, those that the model has itself included */
    uint64_t read_bytes;    /* of weights from files so far */
    uint64_t peak_bytes;    /* maximum of the budget in use so far */
    uint64_t scratch_bytes; /* of intermediate results */
    uint64_t passes, tokens;
    uint64_t
        compact_bytes; /* of the model's weights, by heft_session_compact(); counted at their full size */
} heft_session_counts;
HEFT_API HEFT_MUST_CHECK heft_status heft_session_facts(const heft_session *session,
                                                        heft_session_counts *counts,
                                                        heft_error *err);
/** Return whether the model has an encoder in front of its decoder: inputs have ids of both then. */
HEFT_API bool heft_session_has_encoder(const heft_session *session);
/** Return whether the class numbers tokens itself, as OPT by their masks, RoBERTa by their ids, BART by their places. If
 * not, a text with padding in front that is continued needs heft_input.positions, from 0 at its first token. */
HEFT_API bool heft_session_numbers_tokens(const heft_session *session);
/** Return the instruction set that the session computes with, such as "avx2"; static. */
HEFT_API const char *heft_session_isa(const heft_session *session);

/** Return the name of output i of the model's class, without hidden states, or NULL past the end; lent
 * by the session. */
HEFT_API const char *heft_session_output_name(const heft_session *session, size_t i);

/* ---- how long it takes ----------------------------------------------------------------------- */

/** A call of heft_session_run() whose time is to be predicted. */
typedef struct heft_pass_shape {
    size_t struct_size; /* set by HEFT_OPTIONS */
    uint64_t sequences; /* of equal length; 0: 1 */
    /* That the call adds to each of them; 0: 1. Not used for images and sound. */
    uint64_t tokens;
    uint64_t kept; /* tokens that each has seen before */
    /* Tokens of each encoder's input, for a model with an encoder: it runs if `kept` is 0. 0: 1. Not used
     * for images and sound. */
    uint64_t encoded;
    heft_logits logits;
} heft_pass_shape;

/** What a pass waits for most of its time. */
typedef enum heft_bound {
    HEFT_BOUND_DISK,   /* weights that are read from files */
    HEFT_BOUND_MEMORY, /* weights that are read from memory */
    HEFT_BOUND_COMPUTE
} heft_bound;

/** Times and sizes of a call, as they are expected when the session has made some passes: the weights that
 * stay in memory are there. Seconds are estimates. */
typedef struct heft_prediction {
    size_t struct_size;     /* set by HEFT_SIZED */
    double seconds;         /* of the call */
    double read_seconds;    /* of reading weights, which goes on while others compute */
    double compute_seconds; /* of products and attention */
    heft_bound bound;       /* of the call's last pass */
    double ready_seconds;   /* of reading the weights that then stay in memory */
    double first_seconds;   /* of the call if no weight that has to be read is in memory yet */
    uint64_t ready_bytes;   /* that then stay in memory */
    uint64_t read_bytes;    /* from files, in the call */
    uint64_t weight_bytes;  /* that products use; an expert counts by its probability */
    uint64_t cache_bytes;   /* of keys and values that attention uses */
    uint64_t operations;    /* additions and multiplications of products and attention */
    uint64_t peak_bytes;    /* of the session's budget: weights, caches, intermediate results */
    uint64_t passes;        /* that the call is made of */
    bool continues;         /* a sequence can go on after the call */
    /* The largest number of sequences for which a call takes at most a tenth longer than for one, within the
     * budget; 1 if there is none. And its time. */
    uint64_t best_batch;
    double best_batch_seconds;
    /* What was measured, on all threads. */
    double disk_rate;    /* bytes of weights a second, from their files; 0: none have to be read */
    double memory_rate;  /* bytes of weights a second, from memory */
    double compute_rate; /* operations a second of products of many tokens */
    double cached; /* 0 to 1: how much of what was read was in the page cache, which is faster */
} heft_prediction;

/**
 * Predict how long a call takes, from the operations and bytes that the model's class counts for it.
 *
 * @param session  borrowed
 * @param shape    borrowed; NULL: one token of one sequence
 * @param out      filled; initialized with HEFT_SIZED by the caller
 * @param err      filled on failure; may be NULL
 *
 * The first prediction of a session measures the machine, in at most half a second: reads of the model's
 * files, products in memory.
 *
 * Memory   up to 64 MB for the measurement, within the budget; freed.
 * Errors   INVALID_ARG for more tokens than the model has positions; LIMIT if the budget is too small for
 *          such a call; IO, NOMEM.
 * Source   docs/running.md [6].
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_session_predict(heft_session *session,
                                                          const heft_pass_shape *shape,
                                                          heft_prediction *out, heft_error *err);

/* ---- embeddings of texts --------------------------------------------------------------------- */

typedef enum heft_pooling_mode {
    HEFT_POOLING_MEAN, /* the mean of all tokens' last hidden states */
    HEFT_POOLING_CLS,  /* that of the first token */
    HEFT_POOLING_LAST  /* that of the last token */
} heft_pooling_mode;

/** How one embedding is made of a text's tokens. */
typedef struct heft_pooling {
    size_t struct_size; /* set by HEFT_SIZED or HEFT_OPTIONS */
    heft_pooling_mode mode;
    bool normalize;       /* to length 1 */
    bool known;           /* it was read from the folder; false: a guess, the mean */
    uint64_t most_tokens; /* longer texts are cut, in sentence-transformers; 0: not known */
    uint64_t most_width;  /* embeddings are cut to so many numbers, after normalization; 0: not */
    char prompt[1024];    /* goes before each text; "": none */
} heft_pooling;

/**
 * Read how sentence-transformers pools the tokens of a model: modules.json, the config of its
 * pooling module, sentence_bert_config.json, config_sentence_transformers.json, and what
 * tokenizer_config.json and config.json say of the length of a text.
 *
 * @param ctx     borrowed
 * @param folder  borrowed; the folder of the model
 * @param out     filled; initialized with HEFT_SIZED by the caller
 * @param err     filled on failure; may be NULL
 *
 * Errors   UNSUPPORTED, naming it, for a module, mode or setting that heft does not compute; FORMAT,
 *          IO, NOMEM.
 * Source   docs/running.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_pooling_read(heft_ctx *ctx, const char *folder,
                                                       heft_pooling *out, heft_error *err);
/**
 * Make one embedding for each sequence of a pass without padding.
 *
 * @param pooling  borrowed
 * @param states   borrowed; the output "last_hidden_state"
 * @param tokens   borrowed; [count] tokens of each sequence
 * @param count    number of sequences
 * @param out      filled; room for [count][states->width], of which [count][most_width] are filled
 *                 if that is less
 * @param err      filled on failure; may be NULL
 *
 * Errors   INVALID_ARG if the tokens are not as many as the rows.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_pooling_apply(const heft_pooling *pooling,
                                                        const heft_output *states,
                                                        const size_t *tokens, size_t count,
                                                        float *out, heft_error *err);

/* ---- generation ------------------------------------------------------------------------------ */

/** What generation_config.json says of generation, otherwise config.json. */
typedef struct heft_generation_ids {
    size_t struct_size;  /* set by HEFT_SIZED */
    const int32_t *stop; /* [stop_count] that end a text; lent by the session */
    size_t stop_count;
    int32_t decoder_start; /* first id of a decoder behind an encoder; -1: none */
    int32_t begin, pad;    /* -1: none */
    const int32_t *suppress,
        *begin_suppress; /* that are never chosen, and not as the first; lent */
    size_t suppress_count, begin_suppress_count;
    int32_t forced_begin, forced_end; /* the second id of a text, and its last one; -1: none */
    float repetition_penalty;         /* 0: none */
    const char *not_followed; /* names of further settings that change greedy results, and that
                               * heft does not follow, as "num_beams, min_length"; lent */
} heft_generation_ids;

/** Fill `ids`. INVALID_ARG for a struct_size of 0. */
HEFT_API HEFT_MUST_CHECK heft_status heft_session_ids(const heft_session *session,
                                                      heft_generation_ids *ids, heft_error *err);

typedef struct heft_sampling {
    size_t struct_size;       /* set by HEFT_OPTIONS */
    float temperature;        /* 0: greedy, the most likely token */
    uint32_t top_k;           /* 0: all */
    float top_p, min_p;       /* 0: not used */
    float repetition_penalty; /* 0 or 1: none */
    uint64_t seed;
    bool by_config; /* as heft_generation_ids says, too: ids that are suppressed or forced, and its
                     * repetition penalty if that is 0 here */
    uint64_t prompt_count,
        most_count; /* with by_config: of the text's tokens, those that were given, and all
                                        * that there will be at most (0: not known) */
} heft_sampling;

/**
 * Choose a token.
 *
 * @param session     borrowed
 * @param sampling    borrowed; NULL: greedy
 * @param logits      borrowed; [count]
 * @param count       size of the vocabulary
 * @param seen        borrowed; [seen_count] tokens so far, for the repetition penalty and by_config
 * @param seen_count  number of them
 * @param index       number of the token in its sequence: with the seed, it determines the random number
 * @param id          filled
 * @param err         filled on failure; may be NULL
 *
 * Equal arguments give equal ids.
 *
 * Memory   no heap for greedy choices among all tokens; otherwise 8 bytes for each token of the vocabulary.
 * Errors   INVALID_ARG for negative options and without logits; NOMEM.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_session_sample(
    const heft_session *session, const heft_sampling *sampling, const float *logits, size_t count,
    const int32_t *seen, size_t seen_count, uint64_t index, int32_t *id, heft_error *err);

#ifdef __cplusplus
}
#endif
#endif
