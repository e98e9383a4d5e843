/* pass.h - a forward pass, for the families in model/arch: operations on rows by the names of modules.
 *
 * A family's forward function stands below its skeleton and uses the same names:
 *
 *   heft__rows h = heft__rms_norm(p, "input_layernorm", x, c->eps, 0);
 *   heft__enter(p, "self_attn");
 *   heft__rows q = heft__linear(p, "q_proj", h);
 *
 * It runs twice: dry, when only names are resolved and sizes are counted, and for real. It knows
 * nothing about disks or threads: the weights of a block are brought in when the block is entered.
 * Errors stick to the pass; after the first one operations do nothing. All rows lie in scratch memory
 * that the end of the block, section or pass releases. */
#ifndef HEFT__RUN_PASS_H
#define HEFT__RUN_PASS_H

#include "kernel/kernel.h"
#include "model/model.h"

typedef struct heft__pass heft__pass;

/* x[count][width], without gaps. x is NULL in a dry run and after an error. */
typedef struct heft__rows {
    float *x;
    size_t count, width;
} heft__rows;

/* What a pass is given: tokens of all sequences, packed one after the other. */
typedef struct heft__pass_inputs {
    size_t tokens, sequences;
    const int32_t *ids;     /* [tokens] */
    const int32_t *at;      /* [tokens] positions */
    const int32_t *counted; /* [tokens] positions as heft__number() says */
    const int32_t *types;   /* [tokens] token_type_ids; zeros if none were given */
    const bool *typed;      /* [sequences] whether they were; NULL in a dry run */
    const int32_t *first;   /* [sequences] number of each one's first token */
    const int32_t *last;    /* [sequences] of its last one that is not masked */
    const int32_t *wanted;  /* [wanted_count] tokens whose logits are asked for */
    size_t wanted_count;
    const float
        *features; /* [sequences][feature_shape[0]][[1]][[2]] pixel_values or input_features */
    size_t feature_shape[3];
} heft__pass_inputs;

const heft__pass_inputs *heft__inputs(const heft__pass *p);
/* For typed look-ups in the config, as in the family's skeleton. Errors stick to the pass. */
heft__skeleton *heft__pass_config(heft__pass *p);
bool heft__pass_going(const heft__pass *p); /* no error so far */
void heft__pass_fail(heft__pass *p, heft_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* How a class numbers tokens where no positions are given. */
typedef enum heft__numbering {
    HEFT__NUMBER_PLACES, /* `at`: by their places, padding included */
    HEFT__NUMBER_MASKED, /* `counted`: those that are not masked */
    /* `counted`: those that are not the id `padding`, masked or not, from padding + 1 on; it has its own number */
    HEFT__NUMBER_WORDS,
    HEFT__NUMBER_FIXED, /* `at`: by their places; positions cannot be given */
    HEFT__NUMBER_ALIBI /* attention goes by the tokens that are not masked; positions change nothing */
} heft__numbering;
/* In dry runs; PLACES where a class does not say it. */
void heft__number(heft__pass *p, heft__numbering numbering, int64_t padding);
/* A result is made of a token that any part of a sequence may have: a decoder's sequences are not split either. */
void heft__keep_whole(heft__pass *p);
/* The same of sequences that end with this id. */
void heft__keep_whole_behind(heft__pass *p, int64_t id);

/* ---- where names are looked up ----------------------------------------------------------------- */
/* Names are paths relative to the module that is entered, "attention.self.query"; they and formats are
 * static text. */
void heft__enter(heft__pass *p, const char *name);
void heft__enter_item(heft__pass *p, const char *list, size_t i); /* "layers", 3: layers.3 */
void heft__leave(heft__pass *p);
/* The body below a head, at the class's own prefix; nothing is entered where the body is the root. */
void heft__pass_enter_body(heft__pass *p);
/* What the family's body makes, below a head. heft__base_forward: a base class, which is nothing else. */
heft__rows heft__body(heft__pass *p);
void heft__base_forward(heft__pass *p);
/* Enter list.i as a block: its weights are held, and the rows made inside live, until heft__block_end().
 * `x` is what the block made: the first block whose rows are not finite is named in the error. */
void heft__block(heft__pass *p, const char *list, size_t i);
void heft__block_end(heft__pass *p, heft__rows x);
/* The same for an expert, which is brought in only if it is used. */
void heft__section(heft__pass *p, const char *list, size_t i);
/* The same for one expert of a module that stacks them: products with matrix `index` of its parameters. */
void heft__section_of_stack(heft__pass *p, const char *name);
void heft__section_end(heft__pass *p);
bool heft__has(heft__pass *p, const char *name); /* whether there is such a module or parameter */

/* Scratch that rows made since heft__mark() take, given back before the block ends. */
size_t heft__mark(const heft__pass *p);
void heft__release(heft__pass *p, size_t mark);

/* ---- rows and weights --------------------------------------------------------------------------- */
heft__rows heft__zeros(heft__pass *p, size_t count, size_t width);
heft__rows heft__copy(heft__pass *p, heft__rows x);
void heft__set(heft__pass *p, heft__rows dst, heft__rows src); /* dst = src, of the same shape */
heft__rows heft__pick(heft__pass *p, heft__rows x, const int32_t *rows,
                      size_t count); /* by number */
/* A row is groups of `group` numbers: of each group the numbers first .. first + width - 1. */
heft__rows heft__columns(heft__pass *p, heft__rows x, size_t group, size_t first, size_t width);
/* Write the rows x into the rows y, from column `first` on. */
void heft__put(heft__pass *p, heft__rows y, size_t first, heft__rows x);
/* Rows of an embedding: table[ids[i] + offset]; the table is not brought in. An id outside it is an error. */
heft__rows heft__embed(heft__pass *p, const char *name, const int32_t *ids, size_t count,
                       int32_t offset);
/* A whole parameter as float32, rows of its last dimension, or of `width` numbers if that is not 0. */
heft__rows heft__parameter(heft__pass *p, const char *name, size_t width);

/* y = x W^T + bias, by "name.weight" [out, in] and, if there is one, "name.bias". A convolution's kernel
 * is [out, all the rest]. */
heft__rows heft__linear(heft__pass *p, const char *name, heft__rows x);
/* The same with a weight that is stored as [in, out]. */
heft__rows heft__linear_turned(heft__pass *p, const char *name, heft__rows x);
/* A product with some rows of a parameter's matrix, first .. : y[j] = sum of x[i] W[first + j][i] + bias,
 * or, turned, of x[i] W[first + i][j]. */
typedef struct heft__slab {
    const char *weight, *bias; /* bias NULL: none */
    size_t first, rows;        /* rows 0: all; turned: as many as x has numbers */
    size_t width; /* turned: numbers in a row of W; 0: as many as W has if all its rows are used */
    size_t index, count; /* matrix `index` of [count, ...]; count 0: there is one */
    bool turned;
} heft__slab;
heft__rows heft__linear_slab(heft__pass *p, const heft__slab *slab, heft__rows x);

/* ---- images and sound: of each sequence, one after the other ----------------------------------- */
heft__rows heft__frames(heft__pass *p); /* features [channels][frames] as rows [frames][channels] */
/* Patches of features [channels][height][width], row by row: [patches][channels * high * wide]. */
heft__rows heft__patches(heft__pass *p, size_t high, size_t wide);
/* And back: of each sequence, rows after the first `skipped`, of a square, as [channels][height][width] in
 * one row; a row holds [channels][stride][stride]. */
heft__rows heft__pixels(heft__pass *p, heft__rows x, size_t skipped, size_t stride);
/* What a convolution sees: of every `stride`-th of a sequence's `count` rows, that row and `span` / 2 on
 * both sides (zeros beyond the ends), as [width][span]. */
heft__rows heft__windows(heft__pass *p, heft__rows x, size_t count, size_t span, size_t stride);
heft__rows heft__prepend(heft__pass *p, heft__rows first,
                         heft__rows x); /* one row before each sequence's */
void heft__add_tiled(heft__pass *p, heft__rows x, heft__rows y); /* row i += row i % count of y */
/* Of each sequence, without its first `skipped` rows. */
heft__rows heft__mean_rows(heft__pass *p, heft__rows x, size_t skipped);
heft__rows heft__inner_products(heft__pass *p, heft__rows x,
                                heft__rows y); /* [rows of x][rows of y] */
/* Keep rows of the encoder's passes for the other ones of the same call: those of all of them. */
void heft__stash(heft__pass *p, heft__rows x);
heft__rows heft__stashed(heft__pass *p);
/* Of each sequence, the row as far from its first as the last `id` in the encoder's input. */
const int32_t *heft__rows_of_encoded(heft__pass *p, int32_t id);

/* ---- norms, positions, activations -------------------------------------------------------------- */
/* Weight and bias where they are there. heads: x is [count][heads][width of the weight], or the weight is
 * [heads][width]. */
heft__rows heft__layer_norm(heft__pass *p, const char *name, heft__rows x, double eps);
heft__rows heft__layer_norm_heads(heft__pass *p, const char *name, heft__rows x, size_t heads,
                                  double eps);
/* The same with a norm of its own for each head: modules name.0 .. heads - 1. */
heft__rows heft__layer_norm_list(heft__pass *p, const char *name, heft__rows x, size_t heads,
                                 double eps);
/* times (one + weight) */
heft__rows heft__rms_norm(heft__pass *p, const char *name, heft__rows x, double eps, float one);
heft__rows heft__rms_norm_heads(heft__pass *p, const char *name, heft__rows x, size_t heads,
                                double eps, float one);

/* Cosines and sines of all tokens: of the config's rotary embedding of `width` numbers a head. */
typedef struct heft__rope {
    const float *cos, *sin; /* [tokens][width / 2] */
    size_t width;
    bool interleaved; /* pairs are neighbors, not halves */
} heft__rope;
heft__rope heft__rope_table(heft__pass *p, const char *layer_type, size_t width);
/* In place, of each of `heads` heads of a row the numbers first .. first + width - 1. */
void heft__rotate(heft__pass *p, heft__rows x, size_t heads, size_t first, const heft__rope *rope);

void heft__activate(heft__pass *p, heft__act act, heft__rows x); /* in place */
void heft__softmax(heft__pass *p, heft__rows x);                 /* of each row, in place */
void heft__gate(heft__pass *p, heft__act act, heft__rows a, heft__rows b);  /* a = act(a) * b */
void heft__add(heft__pass *p, heft__rows x, heft__rows y);                  /* x += y */
void heft__add_scaled(heft__pass *p, heft__rows x, heft__rows y, double s); /* x += s * y */
void heft__multiply(heft__pass *p, heft__rows x, heft__rows y);             /* x *= y */
void heft__scale_rows(heft__pass *p, heft__rows x, heft__rows s);           /* row i *= s[i][0] */
void heft__scale_by(heft__pass *p, heft__rows x, double s);                 /* x *= s */
void heft__cap_to(heft__pass *p, heft__rows x, double cap);                 /* cap tanh(x / cap) */
void heft__clamp(heft__pass *p, heft__rows x, double low, double high);
/* A constant as the reference multiplies with it: rounded to the model's dtype, unless nothing is. */
double heft__rounded(const heft__pass *p, double constant);
void heft__unit_rows(heft__pass *p, heft__rows x); /* each of length 1 */
/* The activation of a config's key; an unknown name sticks as an error. */
float heft__round_bf16(float x); /* to bfloat16 and back, nearest even */
heft__act heft__act_of(heft__pass *p, const char *key, const char *standard);

/* ---- attention ---------------------------------------------------------------------------------- */
/* Of tokens to those of their own sequence. Causal, unless the config's is_causal is false: keys and values are
 * kept for the passes to come, in the next place of the sequence's cache. Else nothing is kept, and masked tokens
 * are not seen. v.x NULL with v.width > 0 in a real run: values are the first numbers of each key. */
heft__rows heft__attend(heft__pass *p, heft__rows q, heft__rows k, heft__rows v,
                        const heft__attention *a);
/* To the encoder's rows of each sequence. Its keys and values, key(encoder rows) and value(), are made once
 * for a sequence and kept. */
heft__rows heft__attend_cross(heft__pass *p, heft__rows q, const char *key, const char *value,
                              const heft__attention *a);
/* As many key heads as heads, keys and values of `width` numbers, the scale 1 / sqrt(width). */
heft__attention heft__attention_of(size_t heads, size_t width, bool causal);
/* Slopes of ALiBi for so many heads. */
float *heft__alibi_slopes(heft__pass *p, size_t heads);

/* ---- experts ------------------------------------------------------------------------------------ */
typedef enum heft__scoring {
    HEFT__SOFTMAX_THEN_TOP, /* of all experts; `normalize`: the chosen ones sum to 1 */
    HEFT__TOP_THEN_SOFTMAX, /* of the chosen ones */
    HEFT__SIGMOID_GROUPS    /* sigmoid; chosen by score + bias, in the best groups only */
} heft__scoring;

typedef struct heft__routing {
    heft__scoring scoring;
    size_t experts, top;
    bool normalize;
    float scale;               /* of the weights; 1 */
    size_t groups, top_groups; /* SIGMOID_GROUPS */
    const float *bias;         /* [experts] */
} heft__routing;

typedef struct heft__routes { /* rows and their weights, sorted by expert */
    size_t tokens;
    size_t *count, *first; /* [experts] */
    int32_t *rows;         /* [tokens * top] */
    float *weights;        /* [tokens * top] */
} heft__routes;

heft__routes heft__route(heft__pass *p, heft__rows logits, const heft__routing *routing);
/* The experts list.i with rows, or those of a stack, are used next, in their order: they are read meanwhile. */
void heft__expect(heft__pass *p, const char *list, const heft__routes *routes, size_t experts);
/* How many rows go to an expert (in a dry run, all could), these rows, and what it made of them back
 * to where they belong: y[row] += weight * x. */
size_t heft__routed_count(const heft__pass *p, const heft__routes *routes, size_t expert);
heft__rows heft__routed(heft__pass *p, heft__rows x, const heft__routes *routes, size_t expert);
void heft__add_routed(heft__pass *p, heft__rows y, const heft__routes *routes, size_t expert,
                      heft__rows x);

/* ---- results ------------------------------------------------------------------------------------ */
typedef enum heft__out_kind {
    HEFT__OUT_TOKENS,    /* a row for each token */
    HEFT__OUT_SEQUENCES, /* a row for each sequence */
    HEFT__OUT_WANTED,    /* a row for each wanted token */
    HEFT__OUT_ENCODED, /* a row for each of the encoder's tokens, where there is a decoder behind it */
    HEFT__OUT_WHOLE,  /* one matrix of the whole batch, with rows of each pass */
    HEFT__OUT_COLUMNS /* the same, with columns of each pass */
} heft__out_kind;
/* A result by the reference's name: "logits", "last_hidden_state", "pooler_output". Kept if it was asked
 * for. `name` is static text. */
void heft__out(heft__pass *p, heft__out_kind kind, const char *name, heft__rows x);
/* Whether it was asked for; in a dry run, it could be. */
bool heft__is_asked(const heft__pass *p, const char *name);
/* Hidden state i of the reference's hidden_states; with a side, of its encoder_ or decoder_hidden_states. */
typedef enum heft__side { HEFT__SIDE_ONLY, HEFT__SIDE_ENCODER, HEFT__SIDE_DECODER } heft__side;
void heft__out_hidden(heft__pass *p, size_t i, heft__rows x);
void heft__out_hidden_of(heft__pass *p, heft__side side, size_t i, heft__rows x);
/* The rows of the wanted tokens. */
heft__rows heft__wanted(heft__pass *p, heft__rows x);

/* What the encoder made of each sequence: kept for the decoder's passes. */
void heft__keep_encoded(heft__pass *p, heft__rows x);

#endif
