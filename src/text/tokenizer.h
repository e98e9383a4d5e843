/* tokenizer.h - what the files of this layer share: the parts of a tokenizer, and the pieces of a text on
 * their way to ids.
 *
 *     text ─► added tokens (as written) ─► normalizers ─► added tokens (normalized)
 *          ─► pre-tokenizers: pieces ─► model: ids of each piece ─► template: ids around them
 *
 * Each part is read once from its object in tokenizer.json into a list of steps; a Sequence is its steps. */
#ifndef HEFT__TEXT_TOKENIZER_H
#define HEFT__TEXT_TOKENIZER_H

#include "text/text.h"

#include "json/json.h"

#define HEFT__NO_ID UINT32_MAX
#define HEFT__STEPS_MAX 64         /* of one part */
#define HEFT__TOKEN_BYTES_MAX 4096 /* of one token */

typedef struct heft__string {
    const char *text;
    size_t length;
} heft__string;

/* ---- fields of an object (fields.c) --------------------------------------------------------------- */
/* UNSUPPORTED for a member that is not in `names`, which are separated by spaces. */
heft_status heft__fields_known(const heft__json_value *object, const char *names, heft_error *err);
/* FORMAT for a value of another type. Absent and null give the fallback. */
heft_status heft__field_bool(const heft__json_value *object, const char *key, bool fallback,
                             bool *out, heft_error *err);
heft_status heft__field_u64(const heft__json_value *object, const char *key, uint64_t fallback,
                            uint64_t *out, heft_error *err);
/* Text NULL for absent and null. */
heft_status heft__field_text(const heft__json_value *object, const char *key, heft__string *out,
                             heft_error *err);
/* FORMAT where it is absent. */
heft_status heft__field_needed(const heft__json_value *object, const char *key, heft__string *out,
                               heft_error *err);
bool heft__string_is(heft__string string, const char *text);
/* The place of a name in a list that is separated by spaces, SIZE_MAX if it is not there. */
size_t heft__place_in(const char *names, heft__string name);
/* The number of a name in a list that ends with NULL. UNSUPPORTED, naming it, if it is not there. */
heft_status heft__field_choice(heft__string name, const char *const *names, uint64_t offset,
                               size_t *out, heft_error *err);

/* Call `read` for each step of a part: an object with a "type", or a Sequence of them under `list`. NULL and
 * null: none. LIMIT for more than HEFT__STEPS_MAX. */
typedef heft_status (*heft__step_fn)(void *user, heft__string type, const heft__json_value *step,
                                     heft_error *err);
heft_status heft__each_step(const heft__json_value *part, const char *list, heft__step_fn read,
                            void *user, heft_error *err);

/* ---- Unicode (unicode.c) ------------------------------------------------------------------------------ */
/* The code point at text, which is valid UTF-8; `*size` is its bytes. */
uint32_t heft__utf8_get(const char *text, size_t *size);
bool heft__is_white_space(uint32_t code);
/* Whether this build knows categories, cases and normal forms (utf8proc). */
bool heft__has_unicode_data(void);
/* UNSUPPORTED, naming what needs it, where it does not. */
heft_status heft__need_unicode_data(const char *what, heft_error *err);
/* Whether a code point with a decomposition, or of category M, P or Cf, is newer than a version of Unicode: 8
 * or 9 (unicode_age.c). */
bool heft__is_newer(uint32_t code, unsigned version);
bool heft__is_numeric(uint32_t code);
bool heft__is_punctuation(uint32_t code); /* ASCII's, or category P */
bool heft__is_mark(uint32_t code);
bool heft__is_nonspacing_mark(uint32_t code);
bool heft__is_other(uint32_t code); /* category C, unassigned ones apart */
size_t heft__lowercase(uint32_t code, uint32_t out[2]);
/* Whether a grapheme cluster ends between two code points. `*state` begins as 0. */
bool heft__grapheme_ends(uint32_t before, uint32_t after, int32_t *state);
typedef enum heft__normal_form { HEFT__NFC, HEFT__NFD, HEFT__NFKC, HEFT__NFKD } heft__normal_form;
heft_status heft__to_normal_form(heft__normal_form form, heft__string text, heft__buffer *out,
                                 heft_error *err);

/* ---- patterns (pattern.c) --------------------------------------------------------------------------------- */
typedef struct heft__pattern {
    heft__string literal; /* text NULL: the regex */
    void *regex;          /* of libonig */
} heft__pattern;

/* {"String": ...} or {"Regex": ...}. */
heft_status heft__pattern_read(const heft__json_value *value, heft__pattern *out, heft_error *err);
/* A regular expression. UNSUPPORTED without libonig, and for what is not worth its risk. */
heft_status heft__pattern_compile(heft__string source, heft__pattern *out, heft_error *err);
void heft__pattern_fini(heft__pattern *pattern);
/* Whether a code point is of a word: alphabetic, mark, decimal number, connector or joiner. */
bool heft__is_word(uint32_t code);
bool heft__has_regex(void);

/* A search through one text after the other. */
typedef struct heft__searcher {
    heft_ctx *ctx;
    void *region, *param;
    uint64_t budget; /* steps that are left for searches that are not short */
} heft__searcher;
void heft__searcher_init(heft__searcher *searcher, heft_ctx *ctx, size_t text_bytes);
void heft__searcher_fini(heft__searcher *searcher);

typedef struct heft__matches {
    const heft__pattern *pattern;
    heft__searcher *searcher;
    heft__string text;
    size_t at;         /* where the next search begins */
    size_t last_match; /* end of the last match; SIZE_MAX: none */
} heft__matches;
/* The next match, as often as there is one. */
heft_status heft__next_match(heft__matches *matches, bool *found, size_t *start, size_t *end,
                             heft_error *err);

/* ---- tries (trie.c) ------------------------------------------------------------------------------------------ */
/* Children of node i are nodes first[i] .. first[i + 1] - 1, labels ascending. */
typedef struct heft__trie {
    uint32_t *first;
    uint8_t *label;
    uint32_t *value; /* HEFT__NO_ID: no word ends here */
    size_t nodes;
    uint32_t root[256]; /* its children, 0 for none */
} heft__trie;
typedef struct heft__trie_word {
    heft__string word;
    uint32_t value;
} heft__trie_word;
/* Sorts the words. Of equal words the one with the smaller value counts. */
heft_status heft__trie_build(heft__arena *arena, heft__trie_word *words, size_t count,
                             heft__trie *out, heft_error *err);
/* The child of a node, 0 if there is none. */
static inline uint32_t heft__trie_step(const heft__trie *trie, uint32_t node, uint8_t byte)
{
    if (node == 0) {
        return trie->root[byte];
    }
    const uint32_t begin = trie->first[node], end = trie->first[node + 1];
    if (end - begin == 1) { /* most nodes */
        return trie->label[begin] == byte ? begin : 0;
    }
    const uint8_t *at = end > begin ? memchr(trie->label + begin, byte, end - begin) : NULL;
    return at ? (uint32_t)(at - trie->label) : 0;
}

/* ---- vocabulary (vocabulary.c) ---------------------------------------------------------------------------------- */
typedef struct heft__vocabulary {
    heft__map ids;        /* text -> id */
    heft__string *tokens; /* [id_count] by id; text NULL: there is none */
    size_t id_count, count;
    size_t longest; /* bytes */
} heft__vocabulary;
uint32_t heft__vocabulary_id(const heft__vocabulary *vocabulary, const char *text, size_t length);
/* {"token": id, ...}, at whose first token the reader stands. */
heft_status heft__vocabulary_read(heft_ctx *ctx, heft__arena *arena, heft__json_reader *reader,
                                  heft__vocabulary *out, heft_error *err);
/* [["token", score], ...]: the id is the place. Scores are in the arena. */
heft_status heft__scores_read(heft_ctx *ctx, heft__arena *arena, heft__json_reader *reader,
                              heft__vocabulary *out, double **scores, heft_error *err);
void heft__vocabulary_fini(heft__vocabulary *vocabulary);

/* ---- ids that grow --------------------------------------------------------------------------------------------------- */
typedef struct heft__ids {
    heft_ctx *ctx;
    uint32_t *list;
    size_t count, cap;
    bool failed; /* sticky, as of heft__buffer */
} heft__ids;
void heft__ids_add(heft__ids *ids, uint32_t id);
void heft__ids_fini(heft__ids *ids);

/* ---- a text on its way (text_work.c) ----------------------------------------------------------------------------------------- */
typedef struct heft__piece {
    size_t start, end; /* in the text */
    uint32_t id;       /* of an added token, else HEFT__NO_ID */
    bool first;        /* begins where the caller's text begins, of which nothing was dropped */
} heft__piece;
typedef struct heft__pieces {
    heft__piece *list;
    size_t count, cap;
} heft__pieces;
typedef struct heft__text_work {
    heft_ctx *ctx;
    heft__buffer text, other; /* of the pieces; of the step that is made */
    heft__pieces pieces, next;
    heft__buffer normal[2], codes;
    heft__searcher searcher;
    size_t text_limit;   /* steps may make a text longer, up to here */
    bool failed;         /* sticky: no memory for a piece */
    bool beginning_gone; /* the normalizers have dropped the first character */
} heft__text_work;
void heft__work_init(heft__text_work *work, heft_ctx *ctx, size_t text_bytes);
void heft__work_fini(heft__text_work *work);
void heft__add_piece(heft__text_work *work, heft__pieces *pieces, heft__piece piece);
/* What was made takes the place of what was there. */
void heft__work_turn_pieces(heft__text_work *work);
void heft__work_turn_text(heft__text_work *work);
/* NOMEM; LIMIT for a text over the limit. */
heft_status heft__work_check(const heft__text_work *work, const heft__buffer *text,
                             heft_error *err);

/* ---- normalizers (normalize.c, charsmap.c) -------------------------------------------------------------------------------- */
typedef struct heft__charsmap {
    const uint8_t *units; /* [unit_count] of 4 bytes: a double array */
    size_t unit_count;
    const char *texts; /* [texts_length] ended by NULs */
    size_t texts_length;
} heft__charsmap;
heft_status heft__charsmap_read(heft__arena *arena, heft__string base64, uint64_t offset,
                                heft__charsmap *out, heft_error *err);
heft_status heft__charsmap_apply(const heft__charsmap *map, heft__string text,
                                 heft__text_work *work, heft__buffer *out, heft_error *err);

typedef enum heft__normalizer_kind {
    HEFT__NORM_NFC,
    HEFT__NORM_NFD,
    HEFT__NORM_NFKC,
    HEFT__NORM_NFKD,
    HEFT__NORM_LOWERCASE,
    HEFT__NORM_STRIP,
    HEFT__NORM_STRIP_ACCENTS,
    HEFT__NORM_REPLACE,
    HEFT__NORM_PREPEND,
    HEFT__NORM_BERT,
    HEFT__NORM_NMT,
    HEFT__NORM_PRECOMPILED,
    HEFT__NORM_BYTE_LEVEL
} heft__normalizer_kind;
typedef struct heft__normalizer {
    heft__normalizer_kind kind;
    bool left, right;                              /* Strip */
    bool clean, chinese, strip_accents, lowercase; /* Bert */
    heft__pattern pattern;                         /* Replace */
    heft__string content;                          /* Replace, Prepend */
    heft__charsmap charsmap;
} heft__normalizer;
typedef struct heft__normalizers {
    heft__normalizer *list;
    size_t count;
} heft__normalizers;
heft_status heft__normalizers_read(heft__arena *arena, const heft__json_value *part,
                                   heft__normalizers *out, heft_error *err);
void heft__normalizers_fini(heft__normalizers *normalizers);
/* The result is lent by the work until the next call. */
heft_status heft__normalize(const heft__normalizers *normalizers, heft__text_work *work,
                            heft__string text, heft__string *out, heft_error *err);
/* Each byte as the character that stands for it; out[] has room for 2 bytes. */
size_t heft__byte_character(uint8_t byte, char out[2]);

/* ---- added tokens (added_tokens.c) -------------------------------------------------------------------------------------------- */
typedef struct heft__added_token {
    heft__string content, shown; /* shown: as ids become text, normalized where it is found so */
    uint32_t id;
    bool special, normalized, single_word, lstrip, rstrip;
} heft__added_token;
typedef struct heft__added_tokens {
    heft__added_token *list;
    size_t count;
    heft__map by_text; /* content -> place in the list */
    size_t *by_id;     /* [count] places, ids ascending */
    heft__trie written, normalized;
    uint32_t *special_ids;
    size_t special_count;
} heft__added_tokens;
heft_status heft__added_tokens_read(heft_ctx *ctx, heft__arena *arena, const heft__json_value *list,
                                    const heft__vocabulary *vocabulary,
                                    const heft__normalizers *normalizers, heft__added_tokens *out,
                                    heft_error *err);
void heft__added_tokens_fini(heft__added_tokens *added);
const heft__added_token *heft__added_token_of(const heft__added_tokens *added, uint32_t id);
/* The text's tokens and what is between them as pieces of work->text, normalized. */
heft_status heft__added_tokens_split(const heft__added_tokens *added,
                                     const heft__normalizers *normalizers, heft__text_work *work,
                                     heft__string text, heft_error *err);

/* ---- pre-tokenizers (pre_tokenize.c, split.c) ---------------------------------------------------------------------------------- */
typedef enum heft__split_behavior {
    HEFT__SPLIT_REMOVED,
    HEFT__SPLIT_ISOLATED,
    HEFT__SPLIT_MERGED_WITH_PREVIOUS,
    HEFT__SPLIT_MERGED_WITH_NEXT,
    HEFT__SPLIT_CONTIGUOUS
} heft__split_behavior;
typedef bool (*heft__code_fn)(uint32_t code, uint32_t argument);
/* Split every piece that is no token: where the code points are, or where the pattern matches. */
heft_status heft__split_codes(heft__text_work *work, heft__code_fn matches, uint32_t argument,
                              heft__split_behavior behavior, heft_error *err);
heft_status heft__split_pattern(heft__text_work *work, const heft__pattern *pattern,
                                heft__split_behavior behavior, bool invert, heft_error *err);

typedef enum heft__pre_kind {
    HEFT__PRE_BYTE_LEVEL,
    HEFT__PRE_METASPACE,
    HEFT__PRE_WHITESPACE,
    HEFT__PRE_WHITESPACE_SPLIT,
    HEFT__PRE_BERT,
    HEFT__PRE_PUNCTUATION,
    HEFT__PRE_DIGITS,
    HEFT__PRE_SPLIT,
    HEFT__PRE_DELIMITER,
    HEFT__PRE_FIXED_LENGTH
} heft__pre_kind;
typedef enum heft__prepend {
    HEFT__PREPEND_ALWAYS,
    HEFT__PREPEND_FIRST,
    HEFT__PREPEND_NEVER
} heft__prepend;
typedef struct heft__pre_tokenizer {
    heft__pre_kind kind;
    bool add_prefix_space, use_regex; /* ByteLevel */
    heft__string replacement;         /* Metaspace: one character */
    heft__prepend prepend;
    bool split;      /* Metaspace */
    bool individual; /* Digits */
    bool invert;     /* Split */
    heft__split_behavior behavior;
    uint32_t code;   /* of the delimiter or the replacement */
    uint64_t length; /* FixedLength */
    heft__pattern pattern;
} heft__pre_tokenizer;
typedef struct heft__pre_tokenizers {
    heft__pre_tokenizer *list;
    size_t count;
} heft__pre_tokenizers;
heft_status heft__pre_tokenizers_read(heft__arena *arena, const heft__json_value *part,
                                      heft__pre_tokenizers *out, heft_error *err);
void heft__pre_tokenizers_fini(heft__pre_tokenizers *pre);
heft_status heft__pre_tokenize(const heft__pre_tokenizers *pre, heft__text_work *work,
                               heft_error *err);
/* "replacement", one character, and "prepend_scheme" with the older "add_prefix_space": of the pre-tokenizer
 * and of the decoder. */
heft_status heft__metaspace_read(const heft__json_value *step, heft__string *replacement,
                                 heft__prepend *prepend, heft_error *err);

/* ---- models -------------------------------------------------------------------------------------------------------------------------- */
typedef enum heft__model_kind {
    HEFT__MODEL_BPE,
    HEFT__MODEL_WORD_PIECE,
    HEFT__MODEL_WORD_LEVEL,
    HEFT__MODEL_UNIGRAM
} heft__model_kind;
struct heft__merge_slot;
typedef struct heft__token_model {
    heft__model_kind kind;
    heft__vocabulary vocabulary;
    uint32_t unk_id; /* HEFT__NO_ID: none */
    bool unk_lost;   /* one is named, but the vocabulary has no such token */
    bool byte_fallback;
    uint32_t byte_ids[256]; /* of <0x00> to <0xFF>, HEFT__NO_ID where there is none */
    /* BPE */
    heft__string prefix, suffix; /* of a character that continues a word; of the last one */
    bool fuse_unk, ignore_merges;
    uint32_t *character_ids; /* [0x800], where there is neither prefix nor suffix; else NULL */
    struct heft__merge_slot *merges;
    size_t merge_cap;
    uint64_t seed;
    /* WordPiece */
    uint64_t word_characters_max;
    /* Unigram */
    heft__trie trie;
    double *scores, unk_score;
} heft__token_model;

/* One piece to its ids. The scratch begins as zeros and is the caller's across pieces. */
typedef struct heft__model_scratch {
    heft_ctx *ctx;
    heft__buffer a, b, c;
} heft__model_scratch;
void heft__model_scratch_fini(heft__model_scratch *scratch);

heft_status heft__merges_read(heft_ctx *ctx, heft__token_model *model, heft__json_reader *reader,
                              heft_error *err);
void heft__merges_fini(heft_ctx *ctx, heft__token_model *model);
heft_status heft__bpe_encode(const heft__token_model *model, heft__model_scratch *scratch,
                             heft__string piece, heft__ids *out, heft_error *err);
heft_status heft__word_piece_encode(const heft__token_model *model, heft__model_scratch *scratch,
                                    heft__string piece, heft__ids *out, heft_error *err);
heft_status heft__unigram_build(heft__arena *arena, heft__token_model *model, heft_error *err);
heft_status heft__unigram_encode(const heft__token_model *model, heft__model_scratch *scratch,
                                 heft__string piece, heft__ids *out, heft_error *err);
/* The object "model", at whose first token the reader stands (model_read.c). */
heft_status heft__token_model_read(heft_ctx *ctx, heft__arena *arena, heft__json_reader *reader,
                                   heft__token_model *out, heft_error *err);
void heft__token_model_fini(heft_ctx *ctx, heft__token_model *model);
/* All pieces of the work to ids (model_encode.c). */
heft_status heft__token_model_encode(const heft__token_model *model, heft__text_work *work,
                                     heft__ids *out, heft_error *err);

/* ---- templates (template.c) ---------------------------------------------------------------------------------------------------------- */
typedef struct heft__template {
    uint32_t *before, *after;
    size_t before_count, after_count;
} heft__template;
heft_status heft__template_read(heft__arena *arena, const heft__json_value *part,
                                heft__template *out, heft_error *err);

/* ---- decoders (decode.c) ----------------------------------------------------------------------------------------------------------------- */
typedef enum heft__decoder_kind {
    HEFT__DECODE_BYTE_LEVEL,
    HEFT__DECODE_WORD_PIECE,
    HEFT__DECODE_METASPACE,
    HEFT__DECODE_BPE,
    HEFT__DECODE_BYTE_FALLBACK,
    HEFT__DECODE_FUSE,
    HEFT__DECODE_STRIP,
    HEFT__DECODE_REPLACE
} heft__decoder_kind;
typedef struct heft__decoder {
    heft__decoder_kind kind;
    heft__string content; /* WordPiece: prefix; BPE: suffix; Strip: one character; Replace */
    heft__string replacement;
    heft__prepend prepend;
    bool cleanup;
    uint64_t start, stop;
    heft__pattern pattern;
} heft__decoder;
typedef struct heft__decoders {
    heft__decoder *list;
    size_t count;
    bool none; /* tokens are joined with spaces */
} heft__decoders;
heft_status heft__decoders_read(heft__arena *arena, const heft__json_value *part,
                                heft__decoders *out, heft_error *err);
void heft__decoders_fini(heft__decoders *decoders);
/* The work's pieces, tokens one by one, to one text: work->text. */
heft_status heft__decode(const heft__decoders *decoders, heft__text_work *work, heft_error *err);

/* ---- the tokenizer --------------------------------------------------------------------------------------------------------------------------- */
struct heft_tokenizer {
    heft_ctx *ctx;
    heft__arena arena;
    heft__added_tokens added;
    heft__normalizers normalizers;
    heft__pre_tokenizers pre_tokenizers;
    heft__token_model model;
    heft__template template;
    heft__decoders decoders;
    uint64_t truncation; /* tokens, 0: none is given */
};
/* The text of a token, text NULL if there is none. */
heft__string heft__token_text(const heft_tokenizer *tokenizer, uint32_t id);
/* Ids to one text: work->text. NOT_FOUND for an id that is none. */
heft_status heft__decode_ids(const heft_tokenizer *tokenizer, const uint32_t *ids, size_t count,
                             bool skip_special, heft__text_work *work, heft_error *err);

#endif
