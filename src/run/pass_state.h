/* pass_state.h - the inside of a forward pass, for the files of layer run; families see pass.h only. */
#ifndef HEFT__RUN_PASS_STATE_H
#define HEFT__RUN_PASS_STATE_H

#include "run/pass.h"
#include "run/run.h"

#define HEFT__PASS_DEPTH 24
#define HEFT__PASS_OP_HOLDS 4
#define HEFT__PASS_ROPES 4
#define HEFT__NONE SIZE_MAX /* no such parameter, module or slot */

/* ---- cache.c: what a sequence keeps -------------------------------------------------------------- */
#define HEFT__PAGE_TOKENS HEFT__BLOCK_KEYS

/* What one attention keeps of a token; found by the dry run. */
typedef struct heft__slot {
    size_t kv_heads, key_width;
    size_t value_width; /* 0: values are the first numbers of the keys */
    size_t window;      /* 0: all tokens are kept */
    bool cross;         /* of the encoder's tokens */
} heft__slot;

/* Keys and values of some tokens of one attention. Sequences share it; one that writes into it has it alone. */
typedef struct heft__page {
    size_t sharers;         /* sequences that have it */
    size_t paid;            /* pages of the budget that it stands for: 1, or one for each sharer */
    uint8_t *keys, *values; /* [kv_heads][page_tokens][width] in the cache's dtype */
    int32_t *at;            /* [page_tokens] places; negative: not seen */
} heft__page;

typedef struct heft__kept { /* of one sequence by one attention */
    heft__page **pages;     /* [page_count] of pages_cap */
    heft__key_page *views;  /* [page_count] of views_cap: where they are */
    size_t page_count, pages_cap, views_cap;
    size_t page_tokens, page_bytes;
    size_t credit;   /* pages of the budget that are not taken yet */
    size_t capacity; /* tokens */
    size_t count;    /* tokens so far, those that have left the window included */
    size_t gone;     /* pages that have left the window, before the first one of `pages` */
} heft__kept;

/* An encoder's output; sequences share it. */
typedef struct heft__encoded {
    size_t sharers;
    uint64_t paid; /* bytes of the budget that it stands for */
    size_t count, width, bytes;
    float *rows;  /* [count][width] */
    int32_t *at;  /* [count] -1: masked */
    int32_t *ids; /* [count] */
} heft__encoded;

typedef struct heft__sequence {
    heft_ctx *ctx;
    heft__kept *kept; /* [slot_count] */
    size_t slot_count;
    size_t capacity;         /* tokens */
    int32_t length;          /* tokens so far */
    int32_t reach;           /* their largest position + 1 */
    heft__encoded *encoded;  /* NULL: none yet */
    uint64_t encoded_credit; /* bytes of the budget for it */
} heft__sequence;

/* What a new sequence takes: `capacity` tokens, `chunk` of them at most in one pass, `encoded` of the encoder's. */
typedef struct heft__sequence_size {
    size_t capacity, chunk, encoded;
} heft__sequence_size;

/* Bytes of the budget that a sequence takes in the end. false: more than there is address space. */
bool heft__sequence_bytes(const heft__pass *pass, const heft__sequence_size *size, uint64_t *bytes);
/* heft__sequence_bytes() are reserved for it. */
heft_status heft__sequence_new(const heft__pass *pass, const heft__sequence_size *size,
                               heft__sequence **out, heft_error *err);
/* Bytes of the budget that a fork takes in the end beside its origin. */
uint64_t heft__sequence_fork_bytes(const heft__pass *pass, const heft__sequence *from);
/* A sequence with the same tokens so far; heft__sequence_fork_bytes() are reserved for it. */
heft_status heft__sequence_fork(const heft__pass *pass, const heft__sequence *from,
                                heft__sequence **out, heft_error *err);
/* Drop the tokens from number `tokens` on. UNSUPPORTED with nothing dropped if their pages are shared, if a window
 * has left tokens that the next one would see, or if positions are not those of plain text. */
heft_status heft__sequence_truncate(const heft__pass *pass, heft__sequence *sequence, size_t tokens,
                                    heft_error *err);
/* Returns the bytes of the budget that nobody stands for any more. NULL is allowed. */
uint64_t heft__sequence_free(heft__sequence *sequence);
/* Take the pages that the next `count` tokens, and those of the encoder, are written into; drop those that the next
 * tokens do not see. */
heft_status heft__sequence_prepare(const heft__pass *pass, heft__sequence *sequence, size_t count,
                                   heft_error *err);
/* Append the keys and values of tokens for which there are pages: k[count][kv_heads * key_width]; v NULL with
 * slot->value_width 0. */
void heft__kept_append(heft__kept *kept, const heft__slot *slot, heft_dtype dtype,
                       const heft__kernels *kernels, const float *k, const float *v,
                       const int32_t *at, size_t count);
heft__keys heft__kept_keys(const heft__kept *kept, const heft__slot *slot, heft_dtype dtype);
/* Keep `count` rows of an encoder, with their ids and positions. */
heft_status heft__sequence_encode(heft__sequence *sequence, heft__rows rows, const int32_t *ids,
                                  const int32_t *at, heft_error *err);

/* ---- the pass ----------------------------------------------------------------------------------- */
typedef struct heft__span { /* the tokens of one sequence */
    heft__sequence *sequence;
    size_t first, count;
    int32_t reach; /* the largest position of its tokens in this call + 1 */
    bool ends;     /* its last token in this call is among these */
} heft__span;

typedef struct heft__scope {
    size_t module;
    size_t mark;       /* scratch in use when it was entered */
    bool releases;     /* a block or section */
    bool data_decides; /* a section: whether it is computed depends on the tokens */
    size_t
        unit; /* that it holds until it is left; HEFT__NONE: none yet, or nothing is brought in */
    heft_lease *lease; /* on the unit; NULL in a dry run */
} heft__scope;

typedef struct heft__op_hold { /* what one operation holds */
    size_t unit;
    heft_lease *lease; /* NULL in a dry run */
} heft__op_hold;

typedef struct heft__memo { /* a name, and what it is in the model */
    const char *name;
    size_t module, item, value;
} heft__memo;

typedef struct heft__result {
    const char *name; /* as it was asked for */
    heft__out_kind kind;
    float *data; /* [count][width] owned by the pass; NULL: not made yet */
    size_t count, width;
} heft__result;

typedef struct heft__use { /* how a parameter is read: compact.c */
    size_t columns;        /* of the rows in which it is */
    uint8_t ways;
} heft__use;

typedef struct heft__rope_memory { /* frequencies of one rotary embedding */
    const char *layer_type;
    size_t width;
    uint64_t length; /* of the text that they are for */
    float *frequencies, factor;
} heft__rope_memory;

/* ---- tally.c: what a dry run counts --------------------------------------------------------------- */
#define HEFT__KNOTS 8 /* numbers of tokens at which the time of a product is known */
extern const size_t heft__knots[HEFT__KNOTS];

/* How a product is computed: split among threads, or by one; the weight as [out, in], turned, or compact. */
enum { HEFT__FORM_LONE = 1, HEFT__FORM_TURNED = 2, HEFT__FORM_COMPACT = 4, HEFT__FORMS = 6 };

typedef struct heft__tally {
    uint64_t scratch_bytes;
    uint64_t held_bytes;          /* of units, as many as are held at once */
    uint64_t flops, weight_bytes; /* of products; of an expert, what is expected of it */
    /* The bytes of weights, split over the two knots beside the tokens of each product: the time of all
     * products is the sum over the knots of these times the seconds per byte at the knot. */
    double weight_at[HEFT__FORMS][HEFT__KNOTS];
    double products, splits;   /* number of products; of jobs that are split among threads */
    uint64_t attend_flops[2];  /* of one query of a sequence, and of several */
    heft__attention attention; /* one of them; its arrays are not there */
    uint64_t cache_bytes;      /* of keys and values, each once */
    uint64_t row_bytes;        /* of embeddings that are read by row */
    uint64_t expert_bytes;     /* of all experts that are brought in by themselves */
    double expert_read_bytes;  /* of those that are expected to be used */
    uint64_t routes, experts;  /* how often tokens were routed, and among how many experts in all */
} heft__tally;

/* Where routing sends tokens, while the products of an expert are counted. */
typedef struct heft__expected {
    bool expert;  /* between heft__routed() and heft__add_routed() */
    double share; /* of the tokens that go to one expert */
    double used;  /* probability that any does */
} heft__expected;

struct heft__pass {
    heft_ctx *ctx;
    const heft_model *model;
    heft_residency *residency;
    const heft__kernels *kernels;
    heft__skeleton *config;
    const heft__class *class;
    bool exact, dry;
    heft_dtype cache_dtype;
    heft__pass_inputs in;
    const int32_t *places;   /* [tokens] in their sequence, by which attention goes */
    const int32_t *seen_at;  /* [tokens] the same, -1 where masked */
    const heft__span *spans; /* [sequences] */
    size_t encoded_tokens;   /* of all sequences, in a dry run */
    size_t encoded_width;    /* of a row that the encoder keeps */
    size_t most_keys;        /* of a sequence, in a dry run */
    bool appends;            /* results go after those of the same name */

    heft_status status;
    heft_error error;
    const char *bad_block; /* path of the first block whose rows were not finite; NULL: none */

    heft__scope scopes[HEFT__PASS_DEPTH];
    size_t depth;
    heft__op_hold op_holds[HEFT__PASS_OP_HOLDS];
    size_t op_hold_count;
    uint64_t held_bytes; /* in a dry run: of the units that are held now */

    uint8_t *scratch; /* [scratch_bytes] aligned to 64 */
    void *scratch_block;
    size_t scratch_bytes, scratch_used, scratch_most;
    uint8_t *lane_block; /* [lane_count][lane_bytes] of each thread */
    size_t lane_count, lane_bytes, lane_most, lane_block_bytes;
    atomic_bool *lanes; /* [lane_count] taken */

    heft__memo *memo; /* [memo_cap] a power of two */
    size_t memo_count, memo_cap;

    heft__slot *slots; /* [slot_count] */
    size_t slot_count, slot_cap, slot_at;
    size_t
        *order; /* [order_count] units in the order of a dry run, without those that data decides */
    size_t order_count, order_cap;
    heft__rope_memory ropes[HEFT__PASS_ROPES];
    const char **names; /* [name_count] results of the class, noted by dry runs; static texts */
    size_t name_count, name_cap;
    float *stash; /* [stash_count][stash_width] */
    size_t stash_count, stash_width;
    size_t stash_planned;  /* rows of a dry run */
    heft__result *results; /* [result_count] */
    size_t result_count;
    heft__tally tally;
    heft__use *uses; /* [parameters] noted by dry runs, under the one that others are tied to */
    bool expects_compact; /* weights that can be compact are counted as such */
    heft__expected expected;
    bool cross_kept; /* dry runs: keys of the encoder's output are there already */
    heft__numbering numbering;
    int32_t padding; /* of HEFT__NUMBER_WORDS */
    bool whole;      /* sequences are not split */
    bool whole_behind_id;
    int32_t behind_id; /* nor are those that end with this id, with whole_behind_id */
};

/* exact: products round nothing to bfloat16. */
heft_status heft__pass_new(const heft_model *model, heft_residency *residency, bool exact,
                           heft__pass **out, heft_error *err);
void heft__pass_free(heft__pass *pass);
/* What a run is to yield: [count] names, borrowed while the pass lives. Drops earlier results. */
heft_status heft__pass_ask(heft__pass *pass, const char *const *names, size_t count,
                           heft_error *err);

typedef struct heft__pass_run {
    heft__pass_inputs inputs;
    const int32_t *places, *seen_at;
    const heft__span *spans;
    size_t encoded_tokens; /* dry runs: of all sequences together */
    size_t most_keys;      /* dry runs: that a sequence can have */
    bool appends;          /* results go after those of earlier runs */
    bool dry;
    bool cross_kept; /* dry runs: it is not the first pass behind the encoder */
    bool encode;     /* the encoder's forward */
} heft__pass_run;
/* Run the forward function of the model's class. After a dry run of at least as many tokens, in as many
 * sequences, memory for a real one is there. */
heft_status heft__pass_run_once(heft__pass *pass, const heft__pass_run *run, heft_error *err);
/* The result of a name; NULL if it was not asked for. */
const heft__result *heft__pass_result(const heft__pass *pass, const char *name);

/* Count, in a dry run: a product of so many tokens; rows of a table that may be read from its file; what is
 * brought in for an expert; attention of `queries` of all sequences to `keys` of each, the queries' own
 * tokens included, `kept` in a cache. */
void heft__tally_product(heft__pass *p, size_t tokens, const heft__matrix *w, bool compact);
void heft__tally_rows(heft__pass *p, size_t table, size_t rows);
void heft__tally_expert(heft__pass *p, size_t parameter);
void heft__tally_attention(heft__pass *p, const heft__attention *a, size_t queries, size_t keys,
                           const heft__slot *kept);
/* Expect tokens to be spread evenly over the experts. */
void heft__tally_route(heft__pass *p, size_t tokens, const heft__routing *routing);
/* Count a job of so many items, of all threads. */
void heft__tally_split(heft__pass *p, size_t items);
/* Rows of a weight that one item of a product of so many tokens does. (pass_product.c) */
size_t heft__product_chunk(const heft__pass *p, const heft__matrix *w, size_t tokens);

/* ---- for the operations: pass.c ------------------------------------------------------------------ */
/* Whether there is something to compute: a real run without an error. */
static inline bool heft__pass_live(const heft__pass *p)
{
    return p->status == HEFT_OK && !p->dry;
}
/* Scratch that the end of the innermost block, part or operation releases; NULL in a dry run. */
void *heft__pass_take(heft__pass *p, size_t count, size_t size);
heft__rows heft__pass_rows(heft__pass *p, size_t count, size_t width);
/* Scratch for each thread of an operation: asked for before heft__parallel(), taken in an item. */
bool heft__pass_need_lanes(heft__pass *p, size_t bytes);
void *heft__pass_lane_take(heft__pass *p);
void heft__pass_lane_give(heft__pass *p, void *lane);
/* Number of a parameter: that of a module's role, or (role NULL) "path.role". HEFT__NONE: there is none. */
size_t heft__pass_find(heft__pass *p, const char *name, const char *role);
/* A parameter in memory, until the operation's end; NULL after an error. */
const heft_tensor *heft__pass_view(heft__pass *p, size_t parameter);
void heft__pass_end_op(heft__pass *p);
/* Number of module list.i below the one that is entered; HEFT__NONE. */
size_t heft__pass_find_item(heft__pass *p, const char *list, size_t i);
/* Unit of the expert list.i, or of number i of those that module `list` stacks; HEFT__NONE. */
size_t heft__pass_find_expert(heft__pass *p, const char *list, size_t i);
/* Do fn(user, i) for all i < count on all threads. */
void heft__pass_parallel(heft__pass *p, size_t count, heft__work_fn fn, void *user);
/* A small vector in float32: a bias, a norm's weight. NULL in a dry run or after an error. */
const float *heft__pass_vector(heft__pass *p, size_t parameter, size_t expected);

/* ---- compact.c: weights in 12 bits ------------------------------------------------------------------ */
/* Note, in a dry run, what reads a parameter or a slice: a product with a weight that begins at its element
 * `first`; rows of a table; anything else. */
void heft__compact_note_product(heft__pass *p, size_t parameter, uint64_t first,
                                const heft__matrix *w);
void heft__compact_note_rows(heft__pass *p, size_t parameter, size_t columns);
void heft__compact_note_other(heft__pass *p, size_t parameter);
/* The compact form of the parameter that this is, or is a slice of; NULL: it is plain. */
const heft__compact *heft__compact_of(const heft__pass *p, size_t parameter);
/* Whether it is compact, or, with expects_compact, can be. */
bool heft__compact_expected(const heft__pass *p, size_t parameter);
/* Of all compact parameters, as if they were plain. */
uint64_t heft__compact_bytes(const heft_model *model);

/* ---- session.c ------------------------------------------------------------------------------------ */
struct heft_session;
struct heft_generation_ids;
heft_ctx *heft__session_ctx(const struct heft_session *session);
/* Of a model's files; arrays live in the arena. (generation.c) */
heft_status heft__generation_read(const heft_model *model, heft__arena *arena,
                                  struct heft_generation_ids *out, heft_error *err);

/* ---- rotary.c of layer model has the formulas: pass_rope.c --------------------------------------- */
void heft__pass_ropes_free(heft__pass *p);
void heft__pass_drop_stash(heft__pass *p);

#endif
