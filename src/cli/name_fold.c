/* name_fold.c - many names that differ in numbers only, as one:
 * encoder.layer.{0..11}.output.dense.bias
 *
 * A number counts where it is a whole part between dots. Slots are numbered from the right; one
 * pass per slot groups the names that are equal but for that slot and puts the set of its numbers
 * there. Later passes see that set as text, so layers.{0..3}.experts.{0..7} comes out only where
 * every layer has the same experts. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#define SLOTS 4 /* of a name that fold; further ones on the left stay as they are */

struct item {
    const char *name; /* the first of those it stands for; borrowed */
    const char *note;
    size_t first, count;
    size_t head, tail; /* of the list of names that it stands for */
    size_t slot_count;
    size_t starts[SLOTS], lengths[SLOTS]; /* in name */
    char *texts[SLOTS];                   /* owned; NULL: the digits of name */
    /* of this pass */
    char *key; /* owned; NULL: has no such slot */
    uint32_t number;
};

bool cli_names_number(const char *text, size_t length, uint32_t *number)
{
    if (length == 0 || length > 9 || (length > 1 && text[0] == '0')) {
        return false;
    }
    uint32_t value = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return false;
        }
        value = value * 10 + (uint32_t)(text[i] - '0');
    }
    *number = value;
    return true;
}

char *cli_names_range(const uint32_t *numbers, size_t count)
{
    bool contiguous = count > 1;
    for (size_t i = 1; i < count; i++) {
        contiguous = contiguous && numbers[i] == numbers[i - 1] + 1;
    }
    size_t cap = contiguous || count < 2 ? 32 : count * 12 + 3, at = 0;
    char *text = malloc(cap);
    if (!text) {
        return NULL;
    }
    if (count < 2) {
        snprintf(text, cap, "%u", count ? numbers[0] : 0);
    } else if (contiguous) {
        snprintf(text, cap, "{%u..%u}", numbers[0], numbers[count - 1]);
    } else {
        for (size_t i = 0; i < count; i++) {
            at += (size_t)snprintf(text + at, cap - at, "%s%u", i ? ", " : "{", numbers[i]);
        }
        snprintf(text + at, cap - at, "}");
    }
    return text;
}

/* ---- one name -------------------------------------------------------------------------------- */
static void find_slots(struct item *item)
{
    const char *name = item->name;
    size_t end = strlen(name);
    for (;;) {
        size_t start = end;
        uint32_t number;
        while (start > 0 && name[start - 1] != '.') {
            start--;
        }
        if (item->slot_count < SLOTS && cli_names_number(name + start, end - start, &number)) {
            item->starts[item->slot_count] = start;
            item->lengths[item->slot_count++] = end - start;
        }
        if (start == 0) {
            return;
        }
        end = start - 1;
    }
}

/* The name with its sets in their places; `hidden` is a slot to leave out, or SLOTS. Owned. */
static char *compose(const struct item *item, size_t hidden)
{
    size_t cap = strlen(item->name) + 1;
    for (size_t k = 0; k < item->slot_count; k++) {
        cap += item->texts[k] ? strlen(item->texts[k]) : 0;
    }
    char *text = malloc(cap), *at = text;
    size_t done = 0;
    if (!text) {
        return NULL;
    }
    for (size_t k = item->slot_count; k-- > 0;) { /* from left to right */
        at = mempcpy(at, item->name + done, item->starts[k] - done);
        done = item->starts[k] + item->lengths[k];
        if (k == hidden) {
            *at++ = '*'; /* takes the place of a digit at least */
        } else if (item->texts[k]) {
            at = stpcpy(at, item->texts[k]);
        } else {
            at = mempcpy(at, item->name + item->starts[k], item->lengths[k]);
        }
    }
    strcpy(at, item->name + done);
    return text;
}

/* ---- one pass -------------------------------------------------------------------------------- */
static int compare_groups(const struct item *a, const struct item *b)
{
    if (!a->key || !b->key) {
        return a->key ? -1 : b->key ? 1 : 0;
    }
    int order = strcmp(a->key, b->key);
    return order ? order : strcmp(a->note ? a->note : "", b->note ? b->note : "");
}

static int by_group(const void *left, const void *right)
{
    const struct item *a = left, *b = right;
    int order = compare_groups(a, b);
    if (order == 0 && a->key && a->number != b->number) {
        return a->number < b->number ? -1 : 1;
    }
    return order ? order : a->first < b->first ? -1 : a->first > b->first;
}

static int by_first(const void *left, const void *right)
{
    const struct item *a = left, *b = right;
    return a->first < b->first ? -1 : a->first > b->first;
}

static void item_fini(struct item *item)
{
    for (size_t k = 0; k < SLOTS; k++) {
        free(item->texts[k]);
        item->texts[k] = NULL;
    }
    free(item->key);
    item->key = NULL;
}

struct scratch { /* both owned; [names] */
    uint32_t *numbers;
    size_t *next; /* name that follows in the list of an item */
};

/* Make one item of items[0..count), which are of one group, at items[0]; the others are gone
 * then. */
static bool merge(struct item *items, size_t count, size_t slot, const struct scratch *scratch)
{
    size_t different = 0;
    for (size_t i = 0; i < count; i++) {
        if (different == 0 || scratch->numbers[different - 1] != items[i].number) {
            scratch->numbers[different++] = items[i].number;
        }
    }
    char *text = cli_names_range(scratch->numbers, different);
    if (!text) {
        return false;
    }
    items[0].texts[slot] = text;
    for (size_t i = 1; i < count; i++) {
        items[0].count += items[i].count;
        scratch->next[items[0].tail] = items[i].head;
        items[0].tail = items[i].tail;
        if (items[i].first < items[0].first) {
            items[0].first = items[i].first;
        }
        item_fini(&items[i]);
    }
    return true;
}

/* Returns how many items are left, SIZE_MAX without memory; then all items still need
 * item_fini(). */
static size_t fold_slot(struct item *items, size_t count, size_t slot,
                        const struct scratch *scratch)
{
    for (size_t i = 0; i < count; i++) {
        if (slot < items[i].slot_count) {
            items[i].key = compose(&items[i], slot);
            cli_names_number(items[i].name + items[i].starts[slot], items[i].lengths[slot],
                             &items[i].number);
            if (!items[i].key) {
                return SIZE_MAX;
            }
        }
    }
    qsort(items, count, sizeof *items, by_group);
    size_t kept = 0;
    for (size_t i = 0, next; i < count; i = next) {
        for (next = i + 1;
             next < count && items[i].key && compare_groups(&items[i], &items[next]) == 0;) {
            next++;
        }
        if (next - i > 1 && !merge(&items[i], next - i, slot, scratch)) {
            return SIZE_MAX;
        }
        free(items[i].key);
        items[i].key = NULL;
        if (kept != i) {
            items[kept] = items[i];
            memset(&items[i], 0, sizeof items[i]);
        }
        kept++;
    }
    qsort(items, kept, sizeof *items, by_first);
    return kept;
}

/* ---- all of it ------------------------------------------------------------------------------- */
static cli_folded *finish(const struct item *items, size_t count)
{
    cli_folded *names = calloc(count ? count : 1, sizeof *names);
    for (size_t i = 0; names && i < count; i++) {
        names[i] = (cli_folded){.name = compose(&items[i], SLOTS),
                                .note = items[i].note,
                                .first = items[i].first,
                                .count = items[i].count};
        if (!names[i].name) {
            cli_names_free(names, i);
            return NULL;
        }
    }
    return names;
}

void cli_names_free(cli_folded *names, size_t count)
{
    for (size_t i = 0; names && i < count; i++) {
        free(names[i].name);
    }
    free(names);
}

static void list_groups(const struct item *items, size_t count, const size_t *next, size_t *groups)
{
    for (size_t i = 0; groups && i < count; i++) {
        size_t name = items[i].head;
        for (size_t k = 0; k < items[i].count; k++) {
            groups[name] = i;
            name = next[name];
        }
    }
}

cli_folded *cli_names_fold(const char *const *names, const char *const *notes, size_t count,
                           size_t *folded, size_t *groups)
{
    struct item *items = calloc(count ? count : 1, sizeof *items);
    struct scratch scratch = {calloc(count ? count : 1, sizeof *scratch.numbers),
                              calloc(count ? count : 1, sizeof *scratch.next)};
    const bool good = items && scratch.numbers && scratch.next;
    cli_folded *result = NULL;
    size_t left = count, slots = 0;
    for (size_t i = 0; good && i < count; i++) {
        items[i] = (struct item){.name = names[i],
                                 .note = notes ? notes[i] : NULL,
                                 .first = i,
                                 .count = 1,
                                 .head = i,
                                 .tail = i};
        find_slots(&items[i]);
        slots = items[i].slot_count > slots ? items[i].slot_count : slots;
    }
    for (size_t slot = 0; good && slot < slots && left != SIZE_MAX; slot++) {
        left = fold_slot(items, left, slot, &scratch);
    }
    if (good && left != SIZE_MAX) {
        list_groups(items, left, scratch.next, groups);
        result = finish(items, left);
        *folded = left;
    }
    for (size_t i = 0; good && i < count; i++) {
        item_fini(&items[i]); /* merged and moved ones are empty */
    }
    free(scratch.next);
    free(scratch.numbers);
    free(items);
    return result;
}
