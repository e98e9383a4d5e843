/* listing.c - a checkpoint, or an empty model as it would be saved, as one list of tensors with
 * ties and sums. */
#include "cli/cli.h"

#include <stdlib.h>

struct place {
    size_t storage;
    uint64_t offset;
    size_t number; /* of the tensor */
    const char *name;
};

uint64_t cli_elements(const uint64_t *shape, uint32_t rank)
{
    uint64_t elems = 1;
    bool over = false;
    for (uint32_t d = 0; d < rank; d++) {
        if (shape[d] == 0) {
            return 0;
        }
        over |= __builtin_mul_overflow(elems, shape[d], &elems);
    }
    return over ? UINT64_MAX : elems;
}

static int compare_numbers(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

static int by_offset(const void *left, const void *right)
{
    const struct place *a = left, *b = right;
    int order = compare_numbers(a->storage, b->storage);
    order = order ? order : compare_numbers(a->offset, b->offset);
    return order ? order : compare_numbers(a->number, b->number);
}

static int by_storage(const void *left, const void *right)
{
    const struct place *a = left, *b = right;
    int order = compare_numbers(a->storage, b->storage);
    return order ? order : compare_numbers(a->number, b->number);
}

struct group {
    size_t begin, end; /* in the places */
    size_t first;      /* number of its first tensor */
};

static int by_first(const void *left, const void *right)
{
    const struct group *a = left, *b = right;
    return compare_numbers(a->first, b->first);
}

/* Names on one storage, groups in the order of their first names. */
static bool find_ties(cli_listing *list, struct place *places, size_t count)
{
    size_t groups = 0, at = 0;
    struct group *found = calloc(count ? count : 1, sizeof *found);
    qsort(places, count, sizeof *places, by_storage);
    for (size_t i = 0, next; found && i < count; i = next) {
        for (next = i + 1; next < count && places[next].storage == places[i].storage;) {
            next++;
        }
        if (next - i > 1) {
            found[groups++] = (struct group){.begin = i, .end = next, .first = places[i].number};
            at += next - i;
        }
    }
    list->tied = calloc(at ? at : 1, sizeof *list->tied);
    list->tied_ends = calloc(groups ? groups : 1, sizeof *list->tied_ends);
    bool good = found && list->tied && list->tied_ends;
    if (good && groups) {
        qsort(found, groups, sizeof *found, by_first);
    }
    at = 0;
    for (size_t g = 0; good && g < groups; g++) {
        for (size_t i = found[g].begin; i < found[g].end; i++) {
            list->tied[at++] = places[i].name;
        }
        list->tied_ends[list->tied_count++] = at;
    }
    free(found);
    return good;
}

static bool add_up(cli_listing *list)
{
    bool over = false;
    uint64_t elems = 0;
    for (size_t i = 0; i < list->count; i++) {
        over |= !list->repeated[i] && __builtin_add_overflow(elems, list->parameters[i], &elems);
    }
    list->total_parameters = over ? UINT64_MAX : elems;
    return true;
}

static bool reserve(cli_listing *list, size_t count)
{
    list->infos = calloc(count ? count : 1, sizeof *list->infos);
    list->repeated = calloc(count ? count : 1, sizeof *list->repeated);
    list->parameters = calloc(count ? count : 1, sizeof *list->parameters);
    return list->infos && list->repeated && list->parameters;
}

bool cli_listing_of_source(cli_listing *list, const heft_source *source)
{
    const heft_checkpoint *ckpt = heft_source_checkpoint(source);
    const size_t count = heft_checkpoint_count(ckpt);
    const heft_file_info *file = heft_checkpoint_file(ckpt, 0);
    *list = (cli_listing){.ckpt = ckpt,
                          .format = heft_format_name(file ? file->format : HEFT_FORMAT_AUTO)};
    struct place *places = calloc(count ? count : 1, sizeof *places);
    bool good = reserve(list, count) && places;
    for (size_t i = 0; good && i < count; i++) {
        const heft_tensor_info *info = heft_checkpoint_info(ckpt, i);
        list->parameters[list->count] = heft_source_parameters(source, i);
        list->infos[list->count++] = *info;
        places[i] = (struct place){
            .storage = info->storage, .offset = info->offset, .number = i, .name = info->name};
    }
    if (good && count) {
        /* Two slices of one storage are two tensors; two names at one place are one. */
        qsort(places, count, sizeof *places, by_offset);
        for (size_t k = 1; k < count; k++) {
            list->repeated[places[k].number] = places[k].storage == places[k - 1].storage &&
                                               places[k].offset == places[k - 1].offset;
        }
    }
    list->total_size = heft_checkpoint_total_bytes(ckpt);
    good = good && find_ties(list, places, count) && add_up(list);
    free(places);
    return good;
}

bool cli_listing_of_model(cli_listing *list, const heft_model *model, heft_format format)
{
    const size_t count = heft_model_count(model);
    const bool names_each = format == HEFT_FORMAT_TORCH; /* a .bin holds every name of a tie */
    *list = (cli_listing){.model = model, .format = heft_format_name(format)};
    struct place *places = calloc(count ? count : 1, sizeof *places);
    bool good = reserve(list, count) && places;
    size_t kept = 0;
    for (size_t i = 0; good && i < count; i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        if (parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT) {
            continue;
        }
        places[kept++] =
            (struct place){.storage = parameter->tied_to, .number = i, .name = parameter->name};
        if (parameter->tied_to == i || names_each) {
            list->repeated[list->count] = parameter->tied_to != i;
            list->parameters[list->count] = parameter->kind == HEFT_PARAMETER_WEIGHT
                                                ? cli_elements(parameter->shape, parameter->rank)
                                                : 0;
            list->infos[list->count++] = (heft_tensor_info){
                .name = parameter->name,
                .dtype = parameter->dtype,
                .rank = parameter->rank,
                .shape = parameter->shape,
                .offset = HEFT_NO_OFFSET,
                .size_bytes = parameter->size_bytes,
                .storage = parameter->tied_to,
            };
        }
    }
    list->total_size = heft_model_bytes(model);
    good = good && find_ties(list, places, kept) && add_up(list);
    free(places);
    return good;
}

void cli_listing_fini(cli_listing *list)
{
    free(list->infos);
    free(list->repeated);
    free(list->parameters);
    free(list->tied);
    free(list->tied_ends);
    free(list->shown);
    *list = (cli_listing){0};
}
