/* diff.c - what differs between two checkpoints.
 *
 * Names are joined to pairs. Pairs of one shape are read in two passes, in the order of A's files:
 *
 *   1. equal dtypes: whether the bytes are equal; a pair is left at its first difference
 *   2. what is not equal: how far the values lie apart (measure.c)
 *
 * so that equal tensors cost no arithmetic, and what is a sum runs over whole tensors. A pass cuts tensors
 * into chunks, which threads read and compare piece by piece. Chunks of pass 2 have a fixed number of
 * elements, and what was measured of them is added up in their order: results do not depend on the number
 * of threads, nor on files and formats. What cannot be read from its middle (deflated, strided, computed)
 * is one chunk after another on one thread.
 *
 * Memory: for each thread a piece of each side and a block of float64 of each; what a tensor reader takes.
 * Source: docs/commands/diff.md. */
#include "checkpoint/checkpoint.h"

#include "checkpoint/measure.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

#define PIECE_BYTES ((size_t)128 << 10) /* of a side: two stay in the second-level cache */
#define CHUNK_BYTES ((size_t)8 << 20)   /* of pass 1, of a side */
#define CHUNK_ELEMS ((size_t)1 << 20)   /* of pass 2 */

struct report_memory {
    heft_diff_report report;
    heft__arena arena; /* holds a reference on its context */
};

struct names { /* a key of a map */
    size_t a, b;
};

struct pair {
    size_t numbers[2];    /* of the tensor in each checkpoint */
    struct names first;   /* of the first names of the same bytes */
    struct pair *same_as; /* one of the same two tensors, which is read; NULL: this is */
    bool dtype, shape;    /* differ */
    heft__measure_kind kind;
    atomic_bool differs; /* in bytes */
    heft__distance distance;
    /* of a pass */
    uint64_t elems;  /* bytes, where elements are smaller */
    size_t units[2]; /* bytes of one */
    size_t chunk;    /* elements */
    size_t first_item, items;
    bool heavy; /* a reader holds a storage */
};

struct diff {
    heft_ctx *ctx;
    const heft_checkpoint *sides[2];
    double tolerance;
    struct report_memory *memory;
    struct pair *pairs; /* [count] */
    size_t count;
    struct pair **list; /* [count] those of a pass, heavy ones last */
    size_t listed, light_items, items;
    bool measures;         /* it is pass 2 */
    heft__distance *parts; /* [items] of pass 2 */
    atomic_bool stop;      /* something failed */
    _Atomic uint64_t done_bytes;
    uint64_t total_bytes;        /* of both sides */
    _Atomic uint64_t bytes_read; /* in both passes */
};

void heft_diff_report_free(heft_diff_report *report)
{
    struct report_memory *memory = (struct report_memory *)report;
    if (memory) {
        heft__free_with_arena(&memory->arena, memory, sizeof *memory);
    }
}

/* ---- pairs ----------------------------------------------------------------------------------- */
static void join(struct diff *d, size_t i, size_t k)
{
    const heft_tensor_info *a = &d->sides[0]->infos[i], *b = &d->sides[1]->infos[k];
    struct pair *pair = &d->pairs[d->count++];
    pair->numbers[0] = i;
    pair->numbers[1] = k;
    pair->dtype = a->dtype != b->dtype;
    pair->shape = !heft__shape_equal(a->shape, a->rank, b->shape, b->rank);
    pair->kind = heft__measure_kind_of(a->dtype, b->dtype);
}

/* Find pairs of the same two tensors; firsts are as heft__checkpoint_aliases() gives them. */
static heft_status join_aliases(struct diff *d, size_t *const firsts[2], heft_error *err)
{
    heft_status status = HEFT_OK;
    heft__map seen;
    heft__map_init(&seen, d->ctx);
    for (size_t i = 0; i < d->count && status == HEFT_OK; i++) {
        struct pair *pair = &d->pairs[i];
        size_t found = HEFT__MAP_NONE;
        pair->first = (struct names){firsts[0][pair->numbers[0]], firsts[1][pair->numbers[1]]};
        if (pair->shape) {
            continue; /* tied names may have shapes of their own */
        }
        if (!heft__map_put(&seen, (const char *)&pair->first, sizeof pair->first, i, &found)) {
            status = heft__fail_nomem(err, sizeof pair->first);
        } else if (found != HEFT__MAP_NONE) {
            pair->same_as = &d->pairs[found];
        }
    }
    heft__map_fini(&seen);
    return status;
}

/* Tied names are read once. */
static heft_status join_ties(struct diff *d, heft_error *err)
{
    size_t *firsts[2] = {NULL, NULL};
    bool tied = false;
    heft_status status = HEFT_OK;
    for (size_t s = 0; s < 2 && status == HEFT_OK; s++) {
        status = heft__checkpoint_aliases(d->sides[s], &firsts[s], err);
        for (size_t i = 0; status == HEFT_OK && i < d->sides[s]->count; i++) {
            tied = tied || firsts[s][i] != i;
        }
    }
    if (status == HEFT_OK && tied) {
        status = join_aliases(d, firsts, err);
    }
    for (size_t s = 0; s < 2; s++) {
        heft__free(d->sides[s]->ctx, firsts[s], d->sides[s]->count * sizeof *firsts[s]);
    }
    return status;
}

static heft_status join_all(struct diff *d, heft_error *err)
{
    const heft_checkpoint *a = d->sides[0], *b = d->sides[1];
    d->pairs = heft__alloc_zero(d->ctx, a->count, sizeof *d->pairs);
    d->list = heft__alloc_zero(d->ctx, a->count, sizeof *d->list);
    if (!d->pairs || !d->list) {
        return heft__fail_nomem(err, a->count * sizeof *d->pairs);
    }
    for (size_t i = 0; i < a->count; i++) {
        const size_t k = heft_checkpoint_find(b, a->infos[i].name);
        if (k != SIZE_MAX) {
            join(d, i, k);
        }
    }
    return join_ties(d, err);
}

/* ---- a pass ---------------------------------------------------------------------------------- */
static bool is_streamed(const heft_checkpoint *ckpt, size_t i)
{
    const heft__file_tensor *entry = ckpt->entries[i];
    return entry->decoded || heft__file_of(ckpt, i)->storages[entry->storage].deflated;
}

static bool is_wanted(const struct diff *d, const struct pair *pair)
{
    if (pair->same_as || pair->shape || d->sides[0]->infos[pair->numbers[0]].size_bytes == 0) {
        return false;
    }
    return d->measures ? pair->kind != HEFT__MEASURE_NONE && (pair->dtype || pair->differs)
                       : !pair->dtype;
}

static void cut_pair(const struct diff *d, struct pair *pair)
{
    bool whole = false;
    pair->heavy = false;
    for (size_t s = 0; s < 2; s++) {
        const heft_checkpoint *ckpt = d->sides[s];
        const heft_tensor_info *info = &ckpt->infos[pair->numbers[s]];
        const unsigned bits = heft_dtype_bits(info->dtype);
        const bool strided = ckpt->entries[pair->numbers[s]]->strides != NULL,
                   streamed = is_streamed(ckpt, pair->numbers[s]);
        pair->units[s] = bits % 8 ? 1 : bits / 8;
        pair->elems = info->size_bytes / pair->units[s]; /* the same on both sides */
        pair->heavy = pair->heavy || (strided && streamed);
        whole = whole || strided || streamed;
    }
    pair->chunk = d->measures ? CHUNK_ELEMS : CHUNK_BYTES / pair->units[0];
    pair->items = whole ? 1 : (size_t)((pair->elems + pair->chunk - 1) / pair->chunk);
}

static void begin_pass(struct diff *d, bool measures)
{
    d->measures = measures;
    d->listed = d->items = d->light_items = 0;
    d->total_bytes = 0;
    d->done_bytes = 0;
    for (size_t i = 0; i < d->count; i++) {
        struct pair *pair = &d->pairs[i];
        if (is_wanted(d, pair)) {
            cut_pair(d, pair);
            d->total_bytes += pair->elems * (pair->units[0] + pair->units[1]);
        }
    }
    for (int heavy = 0; heavy < 2; heavy++) {
        for (size_t i = 0; i < d->count; i++) {
            struct pair *pair = &d->pairs[i];
            if (is_wanted(d, pair) && pair->heavy == (heavy == 1)) {
                pair->first_item = d->items;
                d->items += pair->items;
                d->list[d->listed++] = pair;
            }
        }
        d->light_items = heavy ? d->light_items : d->items;
    }
}

/* ---- an item --------------------------------------------------------------------------------- */
struct side {
    const heft_checkpoint *ckpt;
    size_t number;
    uint64_t elems; /* the shape of the view, where it is a part */
    heft__file_tensor view;
    heft__tensor_reader *reader;
    uint8_t *bytes; /* a piece */
    size_t cap;
};

static heft_status open_side(struct side *side, size_t unit, size_t piece, heft_error *err)
{
    heft_ctx *ctx = side->ckpt->ctx;
    side->cap = piece * unit;
    side->bytes = heft__alloc(ctx, side->cap);
    heft_status status = side->bytes ? HEFT_OK : heft__fail_nomem(err, side->cap);
    if (status == HEFT_OK) {
        status = heft__tensor_reader_new(ctx, heft__file_of(side->ckpt, side->number), &side->view,
                                         &side->reader, err);
    }
    return heft__checkpoint_blame(side->ckpt, side->number, status, err);
}

static void close_side(struct side *side)
{
    heft__tensor_reader_free(side->reader);
    heft__free(side->ckpt->ctx, side->bytes, side->cap);
}

static heft_status read_side(struct diff *d, struct side *side, size_t length, heft_error *err)
{
    d->bytes_read += length;
    heft_status status = heft__tensor_reader_fill(side->reader, side->bytes, length, err);
    return heft__checkpoint_blame(side->ckpt, side->number, status, err);
}

struct item {
    struct diff *d;
    struct pair *pair;
    struct side sides[2];
    size_t piece; /* elements */
    heft__measure_room *room;
};

/* The elements of an item as tensors of their own. */
static void view_item(struct item *item, size_t number, uint64_t *elems)
{
    const struct pair *pair = item->pair;
    const uint64_t from = (uint64_t)number * pair->chunk, left = pair->elems - from;
    const bool part = pair->items > 1;
    const size_t most =
        PIECE_BYTES / (pair->units[0] > pair->units[1] ? pair->units[0] : pair->units[1]);
    *elems = part && left > pair->chunk ? pair->chunk : left;
    item->piece = *elems < most ? (size_t)*elems : most;
    for (size_t s = 0; s < 2; s++) {
        struct side *side = &item->sides[s];
        *side = (struct side){.ckpt = item->d->sides[s],
                              .number = pair->numbers[s],
                              .elems = *elems,
                              .view = *item->d->sides[s]->entries[pair->numbers[s]]};
        if (part) {
            const bool small = heft_dtype_bits(side->view.dtype) % 8 != 0;
            side->view.dtype = small ? HEFT_DTYPE_U8 : side->view.dtype;
            side->view.rank = 1;
            side->view.shape = &side->elems;
            side->view.start += from * pair->units[s];
            side->view.size_bytes = *elems * pair->units[s];
        }
    }
}

/* Whether the rest of an item is of no consequence. */
static bool is_settled(const struct item *item)
{
    return item->d->stop || (!item->d->measures && item->pair->differs);
}

static heft_status compare_chunk(struct item *item, uint64_t elems, heft__distance *sum,
                                 heft_error *err)
{
    struct pair *pair = item->pair;
    struct side *a = &item->sides[0], *b = &item->sides[1];
    heft_status status = HEFT_OK;
    while (elems > 0 && status == HEFT_OK && !is_settled(item)) {
        const size_t piece = elems < item->piece ? (size_t)elems : item->piece;
        const size_t length = piece * pair->units[0];
        status = read_side(item->d, a, length, err);
        if (status == HEFT_OK) {
            status = read_side(item->d, b, piece * pair->units[1], err);
        }
        if (status == HEFT_OK && item->d->measures) {
            heft__measure(sum, pair->kind, (heft__measured){a->view.dtype, a->bytes},
                          (heft__measured){b->view.dtype, b->bytes}, piece, item->room);
        } else if (status == HEFT_OK && memcmp(a->bytes, b->bytes, length) != 0) {
            pair->differs = true;
        }
        elems -= piece;
    }
    return status;
}

static heft_status tell(const struct diff *d, uint64_t done, heft_error *err)
{
    return heft__tell_progress(d->ctx, d->measures ? "measuring" : "comparing", done,
                               d->total_bytes, err);
}

static heft_status compare_chunks(struct item *item, uint64_t elems, heft__distance *total,
                                  heft_error *err)
{
    struct diff *d = item->d;
    const struct pair *pair = item->pair;
    heft_status status = HEFT_OK;
    while (elems > 0 && status == HEFT_OK && !d->stop) {
        const uint64_t chunk = elems < pair->chunk ? elems : pair->chunk;
        const uint64_t bytes = chunk * (pair->units[0] + pair->units[1]);
        heft__distance sum = {0};
        if (!is_settled(item)) {
            status = compare_chunk(item, chunk, &sum, err);
            heft__distance_add(total, &sum);
        }
        elems -= chunk;
        const uint64_t done = atomic_fetch_add(&d->done_bytes, bytes) + bytes;
        if (status == HEFT_OK) {
            status = tell(d, done, err);
        }
    }
    return status;
}

static heft_status compare_item(void *user, size_t number, heft_error *err)
{
    struct diff *d = user;
    size_t low = 0, high = d->listed; /* the last pair that begins at or before the item */
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        *(d->list[middle]->first_item <= number ? &low : &high) = middle;
    }
    struct item item = {.d = d, .pair = d->list[low]};
    heft__distance total = {0};
    uint64_t elems = 0;
    heft_status status = HEFT_OK;
    view_item(&item, number - item.pair->first_item, &elems);
    if (d->measures) {
        item.room = heft__alloc(d->ctx, sizeof *item.room);
        status = item.room ? HEFT_OK : heft__fail_nomem(err, sizeof *item.room);
    }
    for (size_t s = 0; s < 2 && status == HEFT_OK && !is_settled(&item); s++) {
        status = open_side(&item.sides[s], item.pair->units[s], item.piece, err);
    }
    if (status == HEFT_OK) {
        status = compare_chunks(&item, elems, &total, err);
    }
    close_side(&item.sides[0]);
    close_side(&item.sides[1]);
    heft__free(d->ctx, item.room, sizeof *item.room);
    if (d->parts) {
        d->parts[number] = total;
    }
    d->stop = d->stop || status != HEFT_OK;
    return status;
}

static heft_status run_pass(struct diff *d, bool measures, heft_error *err)
{
    heft_status status = HEFT_OK;
    begin_pass(d, measures);
    if (measures) {
        d->parts = heft__alloc_zero(d->ctx, d->items, sizeof *d->parts);
        status = d->parts ? HEFT_OK : heft__fail_nomem(err, d->items * sizeof *d->parts);
    }
    if (status == HEFT_OK) {
        status = heft__parallel(d->ctx, d->light_items, compare_item, d, err);
    }
    for (size_t i = d->light_items; i < d->items && status == HEFT_OK; i++) {
        status = compare_item(d, i, err);
    }
    if (status == HEFT_OK && d->items > 0) { /* a helper may have had the last item */
        status = tell(d, d->total_bytes, err);
    }
    for (size_t i = 0; i < d->listed && status == HEFT_OK && measures; i++) {
        struct pair *pair = d->list[i];
        for (size_t k = 0; k < pair->items; k++) {
            heft__distance_add(&pair->distance, &d->parts[pair->first_item + k]);
        }
    }
    heft__free(d->ctx, d->parts, d->items * sizeof *d->parts);
    d->parts = NULL;
    return status;
}

/* ---- the report ------------------------------------------------------------------------------ */
/* Whether values differ by more than is tolerated; of pairs of one shape. */
static bool differs(const struct diff *d, const struct pair *pair)
{
    const heft__distance *distance = &pair->distance;
    if (pair->kind == HEFT__MEASURE_NONE) {
        return pair->differs;
    }
    return distance->odd || distance->max_abs > d->tolerance;
}

/* "dtype float32 -> bfloat16; values", which is as long as this at most. */
#define WHAT_TEXT (2 * HEFT__SHAPE_TEXT + 128)

static void describe(const struct diff *d, const struct pair *pair, bool values,
                     char text[WHAT_TEXT])
{
    const heft_tensor_info *a = &d->sides[0]->infos[pair->numbers[0]],
                           *b = &d->sides[1]->infos[pair->numbers[1]];
    char from[HEFT__SHAPE_TEXT], to[HEFT__SHAPE_TEXT];
    size_t at = 0;
    *text = '\0';
    if (pair->dtype) {
        at += (size_t)snprintf(text + at, WHAT_TEXT - at, "dtype %s -> %s",
                               heft_dtype_name(a->dtype), heft_dtype_name(b->dtype));
    }
    if (pair->shape) {
        at += (size_t)snprintf(text + at, WHAT_TEXT - at, "%sshape %s -> %s", at ? "; " : "",
                               heft__shape_text(a->shape, a->rank, from),
                               heft__shape_text(b->shape, b->rank, to));
    }
    if (values) {
        snprintf(text + at, WHAT_TEXT - at, "%svalues", at ? "; " : "");
    }
}

static const char *copy_name(struct diff *d, const char *name)
{
    return heft__arena_text(&d->memory->arena, name, strlen(name));
}

/* Fill a change, if the pair is one; *what is the text of the one before. */
static heft_status put_change(struct diff *d, const struct pair *pair, const char **what,
                              heft_change *change, bool *is_one, heft_error *err)
{
    const struct pair *read = pair->same_as ? pair->same_as : pair;
    const bool measured = !pair->shape && pair->kind != HEFT__MEASURE_NONE;
    const bool values = !pair->shape && differs(d, read);
    char text[WHAT_TEXT];
    *is_one = pair->dtype || pair->shape || values;
    if (!*is_one) {
        return HEFT_OK;
    }
    describe(d, pair, values, text);
    if (!*what || strcmp(*what, text) != 0) { /* layer after layer has the same */
        *what = copy_name(d, text);
    }
    const heft__distance *distance = &read->distance;
    const double rel = distance->max_abs > DBL_MAX ? (double)INFINITY : distance->max_rel;
    *change = (heft_change){
        .name = copy_name(d, d->sides[0]->infos[pair->numbers[0]].name),
        .what = *what,
        .measured = measured,
        .max_abs = measured && !distance->odd ? distance->max_abs : (double)NAN,
        .max_rel = measured && !distance->odd ? rel : (double)NAN,
        .cosine = measured ? heft__distance_cosine(distance) : (double)NAN,
    };
    return change->name && change->what ? HEFT_OK : heft__fail_nomem(err, 0);
}

static int compare_names(const char *a, const char *b)
{
    const int order = heft__compare_natural(a, b);
    return order ? order : strcmp(a, b);
}

static int by_name(const void *a, const void *b)
{
    return compare_names(*(const char *const *)a, *(const char *const *)b);
}

static int by_change(const void *a, const void *b)
{
    return compare_names(((const heft_change *)a)->name, ((const heft_change *)b)->name);
}

/* The names of one checkpoint that another has not. */
static heft_status put_names(struct diff *d, const heft_checkpoint *from,
                             const heft_checkpoint *other, const char *const **out, size_t *count,
                             heft_error *err)
{
    const size_t most = from->count - d->count;
    const char **names = heft__arena_array(&d->memory->arena, most, sizeof *names);
    size_t filled = 0;
    if (!names) {
        return heft__fail_nomem(err, most * sizeof *names);
    }
    for (size_t i = 0; i < from->count; i++) {
        if (heft_checkpoint_find(other, from->infos[i].name) == SIZE_MAX) {
            names[filled] = copy_name(d, from->infos[i].name);
            if (!names[filled++]) {
                return heft__fail_nomem(err, 0);
            }
        }
    }
    qsort(names, filled, sizeof *names, by_name);
    *out = names;
    *count = filled;
    return HEFT_OK;
}

static heft_status put_changes(struct diff *d, heft_error *err)
{
    heft_diff_report *report = &d->memory->report;
    const char *what = NULL;
    size_t most = 0;
    for (size_t i = 0; i < d->count; i++) {
        const struct pair *pair = &d->pairs[i], *read = pair->same_as ? pair->same_as : pair;
        most += pair->dtype || pair->shape || read->differs;
    }
    heft_change *changes = heft__arena_array(&d->memory->arena, most, sizeof *changes);
    if (!changes) {
        return heft__fail_nomem(err, most * sizeof *changes);
    }
    for (size_t i = 0; i < d->count; i++) {
        heft_change change;
        bool is_one = false;
        heft_status status = put_change(d, &d->pairs[i], &what, &change, &is_one, err);
        if (status != HEFT_OK) {
            return status;
        }
        if (is_one) {
            changes[report->changed_count++] = change;
        }
    }
    qsort(changes, report->changed_count, sizeof *changes, by_change);
    report->changed = changes;
    return HEFT_OK;
}

static heft_status publish(struct diff *d, heft_error *err)
{
    heft_diff_report *report = &d->memory->report;
    heft_status status =
        put_names(d, d->sides[0], d->sides[1], &report->removed, &report->removed_count, err);
    if (status == HEFT_OK) {
        status = put_names(d, d->sides[1], d->sides[0], &report->added, &report->added_count, err);
    }
    if (status == HEFT_OK) {
        status = put_changes(d, err);
    }
    report->common = d->count;
    report->bytes_read = d->bytes_read;
    report->equal = report->added_count + report->removed_count + report->changed_count == 0;
    return status;
}

static heft_status compare_all(struct diff *d, heft_error *err)
{
    heft_status status = join_all(d, err);
    for (int pass = 0; pass < 2 && status == HEFT_OK; pass++) {
        status = run_pass(d, pass == 1, err);
    }
    return status == HEFT_OK ? publish(d, err) : status;
}

heft_status heft__checkpoint_diff(const heft_checkpoint *a, const heft_checkpoint *b,
                                  const heft_diff_options *options, heft_diff_report **report,
                                  heft_error *err)
{
    heft_ctx *ctx = a->ctx;
    struct diff d = {
        .ctx = ctx, .sides = {a, b},
             .tolerance = options->tolerance
    };
    if (!(d.tolerance >= 0 && d.tolerance <= DBL_MAX)) {
        return heft__fail(err, HEFT_INVALID_ARG,
                          "tolerance is %g, expected a finite number that is not negative",
                          d.tolerance);
    }
    d.memory = heft__alloc_zero(ctx, 1, sizeof *d.memory);
    if (!d.memory) {
        return heft__fail_nomem(err, sizeof *d.memory);
    }
    heft__arena_init(&d.memory->arena, heft__ctx_ref(ctx));
    heft_status status = compare_all(&d, err);
    heft__free(ctx, d.list, a->count * sizeof *d.list);
    heft__free(ctx, d.pairs, a->count * sizeof *d.pairs);
    if (status == HEFT_OK) {
        *report = &d.memory->report;
    } else {
        heft_diff_report_free(&d.memory->report);
    }
    return status;
}
