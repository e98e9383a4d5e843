/* session_state.h - the inside of a session, for session.c, session_run.c and predict.c. */
#ifndef HEFT__RUN_SESSION_STATE_H
#define HEFT__RUN_SESSION_STATE_H

#include "run/pass_state.h"

#include <heft/session.h>

#define HEFT__PASS_TOKENS 512
#define HEFT__NO_BUDGET (UINT64_MAX / 4)

struct heft__pass_shape { /* what scratch has been planned for */
    size_t tokens, sequences, wanted, keys, encoded;
};

/* How fast this machine is; of a session, measured once. (probe.c, probe_files.c) */
typedef struct heft__rates {
    bool known;
    double read;   /* bytes of weights a second from their files; 0: nothing is read */
    double cached; /* the share of what was read that was in the page cache */
    /* seconds per byte of weights, by the form and the tokens of a product */
    double weight[HEFT__FORMS][HEFT__KNOTS];
    double product,
        split;        /* seconds that each product, each job of all threads takes beside that */
    double attend[2]; /* operations a second, as in heft__tally */
    double memory, operations; /* of products: bytes a second, operations a second at most */
} heft__rates;

struct heft_session {
    heft_ctx *ctx;
    const heft_model *model;
    heft_ledger *ledger;
    heft_residency *residency;
    heft__pass *pass;
    heft_session_options options;
    bool causal; /* some attention keeps what it has seen: tokens may be split */
    bool has_encoder;
    bool
        dual; /* its encoder and decoder are models of images and of texts, each with its own inputs */
    size_t feature_tokens, feature_shape[3]; /* of an image or a sound; 0: the class takes none */
    int encodes; /* the schedule in use: 1 the encoder's, 0 the decoder's, -1 none yet */
    struct heft__pass_shape planned[2]; /* of the decoder, and of the encoder */
    uint64_t reserved;                  /* of the ledger, for scratch */
    uint64_t positions; /* that a sequence can have; UINT64_MAX: no limit is known */
    uint64_t passes, tokens;
    heft__rates rates;
    heft__arena arena; /* of `ids` */
    heft_generation_ids ids;
};

struct heft_sequence {
    heft_session *session;
    heft__sequence *kept;
    size_t encoded;
    int32_t counted; /* tokens so far that are not masked */
    int32_t words; /* tokens so far that are not the id of padding, where the class counts those */
    bool broken;   /* a pass has failed with it */
    bool running;  /* it is an input of the call */
};

static inline size_t heft__larger(size_t a, size_t b)
{
    return a > b ? a : b;
}

static inline size_t heft__session_pass_tokens(const heft_session *session)
{
    return session->options.pass_tokens ? (size_t)session->options.pass_tokens : HEFT__PASS_TOKENS;
}

/* The most tokens of one sequence in a pass. */
static inline size_t heft__session_chunk(const heft_session *session, size_t capacity)
{
    const size_t most = heft__session_pass_tokens(session);
    const bool may_be_whole = session->pass->whole || session->pass->whole_behind_id;
    return may_be_whole ? heft__larger(most, capacity) : most;
}

#define HEFT__MEMORY_ITEM "memory_bytes" /* of the options: the item of an error about the budget */

static inline uint64_t heft__session_budget(const heft_session *session)
{
    return session->options.memory_bytes ? session->options.memory_bytes : HEFT__NO_BUDGET;
}

/* Have scratch memory for a pass of this shape, and the schedule of its units. LIMIT if the budget has no room
 * for what it takes at once. */
heft_status heft__session_plan(heft_session *session, const struct heft__pass_shape *wanted,
                               bool encode, heft_error *err);
/* LIMIT if what a pass takes at once, by the tally of its dry run, does not fit in the budget beside caches. */
heft_status heft__session_has_room(const heft_session *session, const heft__tally *tally,
                                   uint64_t caches, heft_error *err);
/* Cut the tokens of a pass of a decoder, until the budget has room for its scratch memory and the units that
 * are held at once beside what sequences have reserved; to 1 if even that is too much. */
heft_status heft__session_fit(heft_session *session, const struct heft__pass_shape *wanted,
                              size_t *tokens, heft_error *err);
heft_status heft__session_new_sequence(heft_session *session, size_t capacity, size_t encoded,
                                       heft_sequence **out, heft_error *err);

#endif
