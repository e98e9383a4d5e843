/* heft/text.h - tokenizers: text to ids and back, as a `tokenizer.json` describes it. */
#ifndef HEFT_TEXT_H
#define HEFT_TEXT_H

#include <heft/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * A tokenizer: turns text into the ids that a model takes, and ids into text. It does not change
 * after it is opened: any number of threads may use it at once.
 */
typedef struct heft_tokenizer heft_tokenizer;

/**
 * Open a tokenizer.
 *
 * @param ctx   borrowed; kept alive by the tokenizer
 * @param path  borrowed; a `tokenizer.json`, or a folder that contains one
 * @param out   filled with an owned tokenizer; free it with heft_tokenizer_close()
 * @param err   filled on failure; may be NULL
 *
 * Memory   for real files up to four times the size of the file while it is opened, then up to 2.5
 *          times; for hostile ones that were tried up to 18 times.
 * Errors   NOT_FOUND; IO; FORMAT, with the byte; UNSUPPORTED, naming it, for anything in the file
 *          that is not known or that this build lacks a library for; LIMIT (`tokenizer_bytes`).
 * Source   docs/text.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tokenizer_open(heft_ctx *ctx, const char *path,
                                                         heft_tokenizer **out, heft_error *err);
/**
 * Name what the tokenizer_config.json of a folder says otherwise than its tokenizer.json, and
 * Transformers' AutoTokenizer obeys: "token <|im_end|>, add_prefix_space". heft does not.
 *
 * @param tokenizer  borrowed
 * @param folder     borrowed
 * @param text       filled with an owned text, NUL-terminated, "" if there is nothing or no such
 *                   file; free it with heft_tokenizer_free_text()
 * @param length     filled with the bytes of the text
 * @param err        filled on failure; may be NULL
 *
 * Errors   IO; FORMAT; LIMIT (`tokenizer_bytes`); NOMEM.
 * Source   docs/text.md.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tokenizer_check_config(const heft_tokenizer *tokenizer,
                                                                 const char *folder, char **text,
                                                                 size_t *length, heft_error *err);
/**
 * Open a tokenizer from the bytes of a `tokenizer.json`.
 *
 * @param ctx     borrowed; kept alive by the tokenizer
 * @param name    borrowed; used as the path in errors
 * @param bytes   borrowed
 * @param length  number of bytes
 * @param out     filled with an owned tokenizer; free it with heft_tokenizer_close()
 * @param err     filled on failure; may be NULL
 *
 * Errors   as heft_tokenizer_open().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tokenizer_open_bytes(heft_ctx *ctx, const char *name,
                                                               const void *bytes, size_t length,
                                                               heft_tokenizer **out,
                                                               heft_error *err);
/** Free a tokenizer. NULL is allowed. */
HEFT_API void heft_tokenizer_close(heft_tokenizer *tokenizer);

/**
 * Turn a text into ids. The file's truncation and padding are not applied.
 *
 * @param tokenizer    borrowed
 * @param text         borrowed; UTF-8; NULs are characters
 * @param length       bytes of the text
 * @param add_special  whether to add the ids that the file's template puts around a text, such as
 *                     those of [CLS] and [SEP]. Special tokens that are written in the text become
 *                     their ids in any case.
 * @param ids          filled with an owned array; free it with heft_tokenizer_free_ids()
 * @param count        filled with the number of ids, which may be 0
 * @param err          filled on failure; may be NULL
 *
 * Memory   in proportion to the text: 18 to 50 bytes for each of its bytes in real tokenizers.
 * Errors   INVALID_ARG for text that is not UTF-8: err->offset is the first invalid byte; LIMIT for
 *          a text that the tokenizer makes too long or on which its regular expressions take too
 *          many steps; FORMAT for a part of the text that is no token, if the vocabulary has no
 *          unknown token.
 * Threads  may be called by any number of threads at once.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tokenizer_encode(const heft_tokenizer *tokenizer,
                                                           const char *text, size_t length,
                                                           bool add_special, uint32_t **ids,
                                                           size_t *count, heft_error *err);
/** Free the ids of heft_tokenizer_encode(). NULL is allowed. */
HEFT_API void heft_tokenizer_free_ids(const heft_tokenizer *tokenizer, uint32_t *ids, size_t count);

/**
 * Turn ids into text. Ids that are no tokens are skipped, as in `tokenizers`. Bytes that are not
 * UTF-8 become U+FFFD.
 *
 * @param tokenizer     borrowed
 * @param ids           borrowed, [count]; may be NULL if count is 0
 * @param count         number of ids
 * @param skip_special  whether to leave out special tokens
 * @param text          filled with an owned text, NUL-terminated; free it with
 *                      heft_tokenizer_free_text()
 * @param length        filled with the bytes of the text
 * @param err           filled on failure; may be NULL
 *
 * Errors   LIMIT for a text that the decoder makes too long.
 * Threads  may be called by any number of threads at once.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_tokenizer_decode(const heft_tokenizer *tokenizer,
                                                           const uint32_t *ids, size_t count,
                                                           bool skip_special, char **text,
                                                           size_t *length, heft_error *err);
/** Free the text of heft_tokenizer_decode(). NULL is allowed. */
HEFT_API void heft_tokenizer_free_text(const heft_tokenizer *tokenizer, char *text, size_t length);

/** Return the largest id plus 1. A model may have more rows than this. */
HEFT_API size_t heft_tokenizer_size(const heft_tokenizer *tokenizer);
/** Return the text of a token as it is in the vocabulary, such as "Ġthe", and fill its length; lent
 * by the tokenizer, NUL-terminated. NULL if the id is no token. */
HEFT_API const char *heft_tokenizer_token(const heft_tokenizer *tokenizer, uint32_t id,
                                          size_t *length);
/** Fill `id` with the id of a token of the vocabulary. Returns false if there is no such token. */
HEFT_API HEFT_MUST_CHECK bool heft_tokenizer_id(const heft_tokenizer *tokenizer, const char *token,
                                                size_t length, uint32_t *id);
/** Return the ids of special tokens, ascending, and fill their number; lent by the tokenizer. */
HEFT_API const uint32_t *heft_tokenizer_special_ids(const heft_tokenizer *tokenizer, size_t *count);
/** Whether an id is a special token's. */
HEFT_API bool heft_tokenizer_is_special(const heft_tokenizer *tokenizer, uint32_t id);
/** Return the number of ids to which the file truncates a text, 0 if it does not say. heft itself
 * never truncates. */
HEFT_API uint64_t heft_tokenizer_truncation(const heft_tokenizer *tokenizer);

/* ---- text id by id --------------------------------------------------------------------------- */

/**
 * A stream: turns ids into text one by one, as a model generates them. It never gives part of a
 * UTF-8 character: the text of an id may come with a later id.
 */
typedef struct heft_text_stream heft_text_stream;

/**
 * Begin a stream.
 *
 * @param tokenizer     borrowed; must be open until the stream is freed
 * @param skip_special  whether to leave out special tokens
 * @param out           filled with an owned stream; free it with heft_text_stream_free()
 * @param err           filled on failure; may be NULL
 *
 * Memory   a few hundred bytes, however long the text becomes.
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_text_stream_new(const heft_tokenizer *tokenizer,
                                                          bool skip_special, heft_text_stream **out,
                                                          heft_error *err);
/**
 * Add an id and get the text that is complete with it.
 *
 * @param stream  borrowed
 * @param id      the next id
 * @param text    filled; lent by the stream until its next call; NUL-terminated, empty if no text
 *                is complete
 * @param length  filled with the bytes of the text
 * @param err     filled on failure; may be NULL
 *
 * All texts of a stream, with that of heft_text_stream_finish(), are the text that
 * heft_tokenizer_decode() makes of all ids, if that contains no U+FFFD.
 * Errors   as heft_tokenizer_decode().
 */
HEFT_API HEFT_MUST_CHECK heft_status heft_text_stream_add(heft_text_stream *stream, uint32_t id,
                                                          const char **text, size_t *length,
                                                          heft_error *err);
/** Get the text that is left: U+FFFD for a character that has not become complete. Arguments and
 * errors are those of heft_text_stream_add(). The stream can then begin again. */
HEFT_API HEFT_MUST_CHECK heft_status heft_text_stream_finish(heft_text_stream *stream,
                                                             const char **text, size_t *length,
                                                             heft_error *err);
/** Free a stream. NULL is allowed. */
HEFT_API void heft_text_stream_free(heft_text_stream *stream);

#ifdef __cplusplus
}
#endif
#endif
