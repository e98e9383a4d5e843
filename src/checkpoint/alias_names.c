/* alias_names.c - which of several names of one tensor a file keeps, where it can keep only one.
 *
 * A reader that ties weights looks for the name below the base model and makes the others of it; a base
 * model alone knows no other. A family says which name that is (source_convert.c). Where no family does,
 * names are compared, whatever order they are stored in:
 *   1. fewer words of heads: "lm_head", "cls", "predictions", a last module "decoder", ...
 *   2. words of embeddings: "embed_tokens", "wte", "shared", ...
 *   3. both embeddings: "shared" first, then the shorter path ("shared.weight", "encoder.embed_tokens.weight")
 *   4. the larger module, by its tensors, where the two names part ("model" is larger than "readout")
 *   5. the natural order of names.
 * These rules pick what Transformers' `_tied_weights_keys` do in nearly all of its families.
 * Source: docs/sharding.md [7]. */
#include "checkpoint/checkpoint.h"

#include <stdlib.h>

struct names {
    const char *const *list; /* [count] */
    const char **sorted;     /* [count] by bytes; NULL until two names are alike in all else */
    size_t count;
    heft_ctx *ctx;
};

/* ---- words ----------------------------------------------------------------------------------- */
static const char *const head_words[] = {
    "cls",       "predictions",  "proj_out",   "out_proj",           "output_projection",
    "embed_out", "output_layer", "pred_layer", "vocab_projector",    "classifier",
    "score",     "mlm_score",    "lm_loss",    "generator",          "to_logits",
    "logits",    "output",       "readout",    "entity_predictions",
};

static bool has_text(const char *part, size_t length, const char *text)
{
    const size_t wanted = strlen(text);
    for (size_t i = 0; i + wanted <= length; i++) {
        if (memcmp(part + i, text, wanted) == 0) {
            return true;
        }
    }
    return false;
}

static bool is_word(const char *part, size_t length, const char *word)
{
    return strlen(word) == length && memcmp(part, word, length) == 0;
}

/* `last`: the last module, whose role follows. */
static bool is_head(const char *part, size_t length, bool last)
{
    bool head = has_text(part, length, "unembed") || (last && is_word(part, length, "decoder")) ||
                is_word(part, length, "head") ||
                (length > 5 && memcmp(part + length - 5, "_head", 5) == 0);
    for (size_t i = 0; i < sizeof head_words / sizeof head_words[0]; i++) {
        head = head || is_word(part, length, head_words[i]);
    }
    return head;
}

static bool is_embedding(const char *part, size_t length)
{
    return !is_head(part, length, false) &&
           (has_text(part, length, "emb") || is_word(part, length, "wte") ||
            is_word(part, length, "shared"));
}

struct traits {
    size_t heads, depth;
    bool embedding, shared;
};

static struct traits traits_of(const char *name)
{
    struct traits traits = {0};
    for (const char *part = name; *part;) {
        const size_t length = strcspn(part, ".");
        const char *next = part + length + (part[length] == '.');
        const bool last = *next && !strchr(next, '.');
        traits.depth++;
        traits.heads += *next && is_head(part, length, last);
        traits.embedding = traits.embedding || is_embedding(part, length);
        traits.shared = traits.shared || is_word(part, length, "shared");
        part = next;
    }
    return traits;
}

/* ---- sizes of modules ------------------------------------------------------------------------ */
static int by_bytes(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* How many names are before "path" and a byte, `path` being the first `length` bytes of a name. */
static size_t count_before(const struct names *names, const char *path, size_t length, char byte)
{
    size_t low = 0, high = names->count;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        const char *name = names->sorted[middle];
        const int order = strncmp(name, path, length);
        if (order < 0 || (order == 0 && (unsigned char)name[length] < (unsigned char)byte)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* How many tensors are in the module, or are the tensor, to which the part of a name at `from` leads. */
static size_t count_below(const struct names *names, const char *name, size_t from)
{
    const size_t length = from + strcspn(name + from, ".");
    return !name[length] ? 1
                         : count_before(names, name, length, '.' + 1) -
                               count_before(names, name, length, '.');
}

static heft_status sort_names(struct names *names, heft_error *err)
{
    names->sorted = heft__alloc(names->ctx, names->count * sizeof *names->sorted);
    if (!names->sorted) {
        return heft__fail_nomem(err, names->count * sizeof *names->sorted);
    }
    for (size_t i = 0; i < names->count; i++) {
        names->sorted[i] = names->list[i];
    }
    qsort(names->sorted, names->count, sizeof *names->sorted, by_bytes);
    return HEFT_OK;
}

/* ---- choosing -------------------------------------------------------------------------------- */
static int compare(size_t left, size_t right)
{
    return (left > right) - (left < right);
}

/* By the module where the two part, then by name. */
static heft_status compare_places(struct names *names, const char *left, const char *right,
                                  int *order, heft_error *err)
{
    size_t from = 0;
    heft_status status = names->sorted ? HEFT_OK : sort_names(names, err);
    for (size_t i = 0; left[i] && left[i] == right[i]; i++) {
        from = left[i] == '.' ? i + 1 : from;
    }
    if (status == HEFT_OK) {
        *order = compare(count_below(names, right, from), count_below(names, left, from));
        *order = *order ? *order : heft__compare_natural(left, right);
    }
    return status;
}

/* *order < 0: the left one stays. */
static heft_status compare_names(struct names *names, const char *left, const char *right,
                                 int *order, heft_error *err)
{
    const struct traits a = traits_of(left), b = traits_of(right);
    *order = compare(a.heads, b.heads);
    *order = *order ? *order : compare(b.embedding, a.embedding);
    if (*order == 0 && a.embedding) {
        *order = compare(b.shared, a.shared);
        *order = *order ? *order : compare(a.depth, b.depth);
    }
    return *order ? HEFT_OK : compare_places(names, left, right, order, err);
}

heft_status heft__aliases_choose(heft_ctx *ctx, const char *const *list, size_t count,
                                 size_t *first, heft_error *err)
{
    struct names names = {.list = list, .count = count, .ctx = ctx};
    size_t *best = heft__alloc(ctx, count * sizeof *best);
    heft_status status = best ? HEFT_OK : heft__fail_nomem(err, count * sizeof *best);
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        best[i] = i;
    }
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        int order = 0;
        if (first[i] != i) {
            status = compare_names(&names, list[i], list[best[first[i]]], &order, err);
            best[first[i]] = order < 0 ? i : best[first[i]];
        }
    }
    for (size_t i = 0; status == HEFT_OK && i < count; i++) {
        first[i] = best[first[i]];
    }
    heft__free(ctx, names.sorted, names.sorted ? count * sizeof *names.sorted : 0);
    heft__free(ctx, best, count * sizeof *best);
    return status;
}
