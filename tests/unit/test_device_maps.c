/* Device maps: every golden case of Accelerate, by order of placing, by joined map, by balanced budgets
 * and by bytes. Where it loses something or fails, heft's map covers everything within budget. */
#include "place/place.h"
#include "support.h"
#include "support_model.h"
#include "support_place.h"

#include <math.h>
#include <stdlib.h>

static heft_ctx *ctx;

/* In these cases Accelerate fails or loses a tensor; heft produces a map, with at most one warning: about a
 * device that stays empty, with the bytes that it would need. */
static const struct {
    const char *id, *warning;
} better[] = {
    {"llama7b-disk-key-auto",   NULL                               },
    {"llama7b-low0-noncontig",  "\n  - 0: 666910720 bytes required"},
    {"toy-y-first",             NULL                               },
    {"toy-six-float-fallback",  "\n  - 0: 880 bytes required"      },
    {"toy-directs-lost-buffer", NULL                               },
};

/* ---- trees from golden modules --------------------------------------------------------------- */
static heft_dtype dtype_named(const char *name)
{
    heft_dtype dtype = HEFT_DTYPE_NONE;
    assert_int_equal(heft_dtype_parse(name, &dtype, NULL), HEFT_OK);
    return dtype;
}

static uint32_t find_tensor(const heft__tree *tree, const char *path)
{
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        if (strcmp(tree->tensors[i].path, path) == 0) {
            return i;
        }
    }
    return HEFT__NO_NODE;
}

/* Parameters first, then buffers; [name, kind, dtype, shape] */
static void add_tensors(heft__tree *tree, const heft__json_value *list, uint32_t module,
                        uint32_t *at)
{
    for (int buffers = 0; buffers < 2; buffers++) {
        for (const heft__json_value *row = list->first; row; row = row->next) {
            const heft__json_value *kind = row->first->next, *dtype = kind->next,
                                   *shape = dtype->next;
            if ((strcmp(kind->text, "param") != 0) != (buffers == 1)) {
                continue;
            }
            heft__tree_tensor *tensor = &tree->tensors[*at];
            const char *path = tree->modules[module].path;
            tensor->path = heft__arena_format(&tree->arena, "%s%s%s", path, *path ? "." : "",
                                              row->first->text);
            tensor->module = module;
            tensor->dtype = dtype_named(dtype->text);
            tensor->buffer = buffers == 1;
            tensor->elems = 1;
            tensor->first = (*at)++;
            for (const heft__json_value *dim = shape->first; dim; dim = dim->next) {
                uint64_t size;
                assert_true(heft__json_as_u64(dim, &size));
                tensor->elems *= size;
            }
        }
    }
}

/* Within a group the name that comes first in the walk has the bytes. */
static void tie(heft__tree *tree, const heft__json_value *groups)
{
    for (const heft__json_value *group = groups->first; group; group = group->next) {
        uint32_t first = HEFT__NO_NODE;
        for (const heft__json_value *name = group->first; name; name = name->next) {
            uint32_t at = find_tensor(tree, name->text);
            assert_true(at != HEFT__NO_NODE);
            first = at < first ? at : first;
        }
        for (const heft__json_value *name = group->first; name; name = name->next) {
            tree->tensors[find_tensor(tree, name->text)].first = first;
        }
    }
}

static heft__tree *make_tree(const heft__json_value *golden)
{
    const heft__json_value *modules = heft__json_member(golden, "modules_preorder");
    uint32_t tensors = 0, module = 0, at = 0;
    heft__tree *tree = NULL;
    heft_error err = {0};
    for (const heft__json_value *row = modules->first; row; row = row->next) {
        tensors += (uint32_t)row->first->next->next->count;
    }
    test_expect_status(heft__tree_new(ctx, (uint32_t)modules->count, tensors, &tree, &err), HEFT_OK,
                       &err, "tree");
    for (const heft__json_value *row = modules->first; row; row = row->next, module++) {
        tree->modules[module].path = row->first->text;
        tree->modules[module].class_name = row->first->next->text;
        add_tensors(tree, row->first->next->next, module, &at);
    }
    tie(tree, heft__json_member(golden, "tied_groups"));
    test_tree_finish(tree);
    return tree;
}

/* The tree of heft's own architecture; NULL for a toy. */
static heft__tree *make_own_tree(const heft__json_value *golden)
{
    static const char *const types[][2] = {
        {"BertConfig",    "bert"   },
        {"GPT2Config",    "gpt2"   },
        {"LlamaConfig",   "llama"  },
        {"MistralConfig", "mistral"},
        {"MixtralConfig", "mixtral"},
        {"T5Config",      "t5"     },
        {"OPTConfig",     "opt"    },
        {"BloomConfig",   "bloom"  },
        {"Qwen2Config",   "qwen2"  },
        {"FalconConfig",  "falcon" },
    };
    const heft__json_value *class = heft__json_member(golden, "config_class");
    for (size_t i = 0; class && i < sizeof types / sizeof types[0]; i++) {
        if (strcmp(class->text, types[i][0]) == 0) {
            heft__json_value config = *heft__json_member(golden, "config"), type = config;
            type.type = HEFT__JSON_TYPE_STRING;
            type.key = "model_type";
            type.key_length = strlen(type.key);
            type.text = types[i][1];
            type.length = strlen(type.text);
            type.next = config.first;
            config.first = &type;
            config.count++;
            heft__json_value untied = type; /* what init_empty_weights() makes of ties */
            untied.type = HEFT__JSON_TYPE_BOOL;
            untied.key = "tie_word_embeddings";
            untied.key_length = strlen(untied.key);
            untied.boolean = false;
            if (strcmp(heft__json_member(golden, "construct_context")->text,
                       "init_empty_weights") == 0) {
                type.next = &untied;
                config.count++;
            }
            heft__tree *tree = NULL;
            heft_error err = {0};
            heft_model *model = test_make_model(
                ctx, &config, heft__json_member(golden, "class")->text,
                dtype_named(heft__json_member(golden, "build_dtype")->text), types[i][1]);
            test_expect_status(heft__tree_of_model(model, &tree, &err), HEFT_OK, &err, "tree");
            heft_model_free(model);
            for (uint32_t k = 0; k < tree->module_count; k++) { /* the case says which */
                tree->modules[k].block = false;
            }
            return tree;
        }
    }
    return NULL;
}

typedef heft__tree *(*maker)(const heft__json_value *golden);

/* ---- arguments ------------------------------------------------------------------------------- */
struct arguments {
    heft_budget budgets[16];
    const char *classes[8];
    heft_module_dtype special;
    heft_plan_options options; /* with the above, which are in the order of devices */
};

static int32_t device_named(const heft__json_value *key)
{
    return key->type == HEFT__JSON_TYPE_NUMBER ? (int32_t)strtol(key->text, NULL, 10)
           : strcmp(key->text, "cpu") == 0     ? HEFT_DEVICE_CPU
           : strcmp(key->text, "disk") == 0    ? HEFT_DEVICE_DISK
                                               : HEFT_DEVICE_MPS;
}

static double bytes_of(const heft__json_value *value)
{
    double number = 0;
    uint64_t bytes = 0;
    if (value->type == HEFT__JSON_TYPE_NUMBER) {
        assert_true(heft__json_as_double(value, &number));
        return number;
    }
    const size_t length = strlen(value->text);
    const bool bits = length > 2 && value->text[length - 1] == 'b' &&
                      strchr("iI", value->text[length - 2]) == NULL; /* "20Gb", there */
    assert_int_equal(heft_size_parse(value->text, &bytes, NULL), HEFT_OK);
    return (double)(bits ? bytes / 8 : bytes);
}

static int by_device(const void *left, const void *right)
{
    /* numbers ascending, then mps, cpu, disk */
    static const int32_t order[] = {0, 2, 3, 1}; /* by -device: -, cpu, disk, mps */
    int32_t a = ((const heft_budget *)left)->device, b = ((const heft_budget *)right)->device;
    int32_t first = a >= 0 ? a - 1000000 : order[-a], second = b >= 0 ? b - 1000000 : order[-b];
    return first < second ? -1 : first > second;
}

/* Passed by pointer, because it contains pointers into itself. */
static void read_arguments(const heft__json_value *test, struct arguments *a)
{
    const char *strategy = heft__json_member(test, "strategy")->text;
    const heft__json_value *memory = heft__json_member(test, "max_memory"),
                           *classes = heft__json_member(test, "no_split_module_classes"),
                           *rule = heft__json_member(test, "special_dtypes_rule"),
                           *flags = heft__json_member(test, "options");
    *a = (struct arguments){
        .options = {.budgets = a->budgets, .no_split = a->classes}
    };
    for (const heft__json_value *pair = memory->first; pair; pair = pair->next) {
        a->budgets[a->options.budget_count++] =
            (heft_budget){device_named(pair->first), bytes_of(pair->first->next)};
    }
    if (a->options.budget_count == 0) { /* to heft that would be the machine's memory */
        a->budgets[a->options.budget_count++] = (heft_budget){HEFT_DEVICE_DISK, (double)INFINITY};
    }
    qsort(a->budgets, a->options.budget_count, sizeof a->budgets[0], by_device);
    if (classes->type == HEFT__JSON_TYPE_STRING) { /* one class may stand alone */
        a->classes[a->options.no_split_count++] = classes->text;
    }
    for (const heft__json_value *name = classes->first; name; name = name->next) {
        a->classes[a->options.no_split_count++] = name->text;
    }
    if (rule->type == HEFT__JSON_TYPE_ARRAY) {
        a->special = (heft_module_dtype){rule->first->text, dtype_named(rule->first->next->text)};
        a->options.dtypes = &a->special;
        a->options.dtype_count = 1;
    }
    a->options.strategy = strcmp(strategy, "sequential") == 0       ? HEFT_STRATEGY_SEQUENTIAL
                          : strcmp(strategy, "balanced_low_0") == 0 ? HEFT_STRATEGY_BALANCED_LOW_0
                          : strcmp(strategy, "auto") == 0           ? HEFT_STRATEGY_AUTO
                                                                    : HEFT_STRATEGY_BALANCED;
    a->options.fallback_allocation = heft__json_member(flags, "fallback_allocation") != NULL;
    a->options.offload_buffers = heft__json_member(flags, "offload_buffers") != NULL;
}

/* The dtype of the sizes goes into the options. heft has no dtype of half a byte or of no bytes: for these
 * the tree is given its sizes beforehand. */
static void ask_dtype(heft__tree *tree, const heft__json_value *test, struct arguments *a)
{
    const heft__json_value *asked = heft__json_member(test, "dtype");
    const char *name = asked->type == HEFT__JSON_TYPE_STRING ? asked->text : "";
    heft__tree_size(tree, HEFT_DTYPE_NONE, 0, NULL);
    if (strstr(name, "int4")) {
        heft__tree_size(tree, HEFT_DTYPE_F16, strcmp(name, "int4") == 0 ? 0 : 0.5, NULL);
    } else if (*name) {
        a->options.dtype = dtype_named(strncmp(name, "torch.", 6) == 0 ? name + 6 : name);
    }
}

/* A tree with sizes and blocks, and the arguments of its plan. */
static heft__tree *read_case(const heft__json_value *test, const heft__json_value *golden,
                             maker make, struct arguments *a)
{
    heft__tree *tree = make(golden);
    heft_error err = {0};
    read_arguments(test, a);
    ask_dtype(tree, test, a);
    test_expect_status(heft__tree_size_by(tree, &a->options, &err), HEFT_OK, &err, "sizes");
    heft__tree_keep_whole(tree, a->options.no_split, a->options.no_split_count);
    return tree;
}

/* Accelerate's map before it is joined; budgets are balanced in `a`. */
static void place_case(const char *id, const heft__tree *tree, struct arguments *a,
                       heft__map_of_devices *map)
{
    double used[16] = {0}, needed[16] = {0};
    heft__map_facts facts = {used, needed, 0};
    heft_error err = {0};
    const heft_plan_options *options = &a->options;
    test_expect_status(heft__balance(tree, options->strategy, a->budgets, options->budget_count,
                                     options->no_split, options->no_split_count, &err),
                       HEFT_OK, &err, id);
    test_expect_status(heft__compat_map(tree, a->budgets, options->budget_count,
                                        options->fallback_allocation, &facts, map, &err),
                       HEFT_OK, &err, id);
}

/* ---- comparing ------------------------------------------------------------------------------- */
/* The device of a node by the entry that is it or is above it, computed independently of the library. */
static int32_t device_of(const heft__tree *tree, const heft__map_of_devices *map, uint32_t node)
{
    for (size_t i = 0; i < map->count; i++) {
        if (heft__tree_is_inside(tree, node, map->entries[i].node)) {
            return map->entries[i].device;
        }
    }
    return HEFT__NO_DEVICE;
}

static void compare_balanced(const char *id, const heft_plan *plan, const heft__json_value *golden)
{
    size_t i = 0;
    heft_budget budget = {0};
    double placed;
    for (const heft__json_value *pair = golden ? golden->first : NULL; pair;
         pair = pair->next, i++) {
        if (!heft_plan_device(plan, i, &budget, &placed) ||
            budget.device != device_named(pair->first) ||
            budget.bytes != bytes_of(pair->first->next)) {
            fail_msg("%s: balanced budget %zu is %.2f, expected %.2f", id, i, budget.bytes,
                     bytes_of(pair->first->next));
        }
    }
}

static void compare_order(const char *id, const heft__tree *tree, const heft__map_of_devices *map,
                          const heft__json_value *golden)
{
    size_t i = 0;
    for (const heft__json_value *pair = golden->first; pair; pair = pair->next, i++) {
        if (i >= map->count ||
            strcmp(heft__tree_path(tree, map->entries[i].node), pair->first->text) != 0 ||
            map->entries[i].device != device_named(pair->first->next)) {
            fail_msg("%s: place %zu is '%s' on %d, expected '%s' on %s", id, i,
                     i < map->count ? heft__tree_path(tree, map->entries[i].node) : "nothing",
                     i < map->count ? map->entries[i].device : 0, pair->first->text,
                     pair->first->next->text);
        }
    }
    assert_int_equal(i, map->count);
}

static void compare_joined(const char *id, const heft_plan *plan, const heft__json_value *golden)
{
    for (const heft__json_value *pair = golden->first; pair; pair = pair->next) {
        bool found = false;
        int32_t device;
        double bytes;
        for (size_t i = 0; i < heft_plan_count(plan); i++) {
            found = found || (strcmp(heft_plan_entry(plan, i, &device, &bytes), pair->key) == 0 &&
                              device == device_named(pair));
        }
        if (!found || heft_plan_device_of(plan, pair->key) != device_named(pair)) {
            fail_msg("%s: '%s' is not where it should be", id, pair->key);
        }
    }
    assert_int_equal(heft_plan_count(plan), golden->count);
}

/* Exactly what Accelerate reports, as logs and as Python warnings, in the same words. */
static void compare_warnings(const char *id, const heft_plan *plan,
                             const heft__json_value *expected)
{
    const heft__json_value *lists[] = {heft__json_member(expected, "log"),
                                       heft__json_member(expected, "warnings")};
    size_t wanted = 0, count = 0;
    for (size_t k = 0; k < 2; k++) {
        for (const heft__json_value *row = lists[k] ? lists[k]->first : NULL; row;
             row = row->next, wanted++) {
            bool found = false;
            for (size_t i = 0; heft_plan_warning(plan, i); i++) {
                found = found || strcmp(heft_plan_warning(plan, i), row->first->next->text) == 0;
            }
            if (!found) {
                fail_msg("%s: there is no warning '%s'", id, row->first->next->text);
            }
        }
    }
    for (; heft_plan_warning(plan, count); count++) {
        /* Accelerate says nothing of a class in no_split_module_classes that the model does not have */
        wanted += strstr(heft_plan_warning(plan, count), "which was to stay on one device") != NULL;
    }
    if (count != wanted) {
        fail_msg("%s: %zu warnings, expected %zu; the first is '%s'", id, count, wanted,
                 count ? heft_plan_warning(plan, 0) : "");
    }
}

/* Every tensor has a place; budgets of all devices but disk hold. */
static void check_map(const char *id, const heft__tree *tree, const struct arguments *a,
                      const heft__map_of_devices *map)
{
    double used[16] = {0};
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        int32_t device = device_of(tree, map, tree->module_count + i);
        if (device == HEFT__NO_DEVICE) {
            fail_msg("%s: '%s' has no device", id, tree->tensors[i].path);
        }
        for (size_t k = 0; k < a->options.budget_count; k++) {
            used[k] += a->budgets[k].device == device ? tree->tensors[i].bytes : 0;
        }
    }
    for (size_t k = 0; k < a->options.budget_count; k++) {
        if (a->budgets[k].device != HEFT_DEVICE_DISK && used[k] > a->budgets[k].bytes) {
            fail_msg("%s: %.0f bytes on %d, which has %.0f", id, used[k], a->budgets[k].device,
                     a->budgets[k].bytes);
        }
    }
}

static void compare_bytes(const char *id, const heft_plan *plan, const heft__json_value *golden)
{
    for (const heft__json_value *pair = golden->first; pair; pair = pair->next) {
        const int32_t wanted = strcmp(pair->key, "cpu") == 0    ? HEFT_DEVICE_CPU
                               : strcmp(pair->key, "disk") == 0 ? HEFT_DEVICE_DISK
                               : strcmp(pair->key, "mps") == 0
                                   ? HEFT_DEVICE_MPS
                                   : (int32_t)strtol(pair->key, NULL, 10);
        double placed = 0;
        heft_budget budget;
        bool found = false;
        for (size_t i = 0; !found && heft_plan_device(plan, i, &budget, &placed); i++) {
            found = budget.device == wanted;
        }
        if (!found || placed != bytes_of(pair)) {
            fail_msg("%s: %.0f bytes on %s, expected %.0f", id, placed, pair->key, bytes_of(pair));
        }
    }
}

/* Its row in `better`, SIZE_MAX if it has none. */
static size_t better_at(const char *id)
{
    for (size_t i = 0; i < sizeof better / sizeof better[0]; i++) {
        const size_t length = strlen(better[i].id);
        if (strncmp(id, better[i].id, length) == 0 && id[length] == '@') {
            return i;
        }
    }
    return SIZE_MAX;
}

/* Where heft has a map and Accelerate has none. */
static void check_better(const char *id, const heft_plan *plan, const char *warning)
{
    const char *first = heft_plan_warning(plan, 0);
    if ((first != NULL) != (warning != NULL) || (first && !strstr(first, warning))) {
        fail_msg("%s: the warning is '%s'", id, first ? first : "none");
    }
    assert_null(first ? heft_plan_warning(plan, 1) : NULL);
}

/* ---- with heft's own architectures ----------------------------------------------------------- */
/* Whether a module of the golden model, or a tensor of one, is in the tree: modules without tensors are
 * not, and stacked experts of the golden model have other tensors here. */
static bool is_in_tree(const heft__tree *tree, const char *path)
{
    for (uint32_t i = 0; i < tree->module_count; i++) {
        if (strcmp(tree->modules[i].path, path) == 0) {
            return tree->modules[i].bytes > 0 || i == 0;
        }
    }
    return find_tensor(tree, path) != HEFT__NO_NODE;
}

/* The golden entries that the tree has, in their order, are the map's. */
static void compare_own_order(const char *id, const heft__tree *tree,
                              const heft__map_of_devices *map, const heft__json_value *golden)
{
    size_t i = 0;
    for (const heft__json_value *pair = golden->first; pair; pair = pair->next) {
        if (!is_in_tree(tree, pair->first->text)) {
            continue;
        }
        while (i < map->count && heft__tree_bytes(tree, map->entries[i].node) == 0 &&
               strcmp(heft__tree_path(tree, map->entries[i].node), pair->first->text) != 0) {
            i++;
        }
        if (i == map->count ||
            strcmp(heft__tree_path(tree, map->entries[i].node), pair->first->text) != 0 ||
            map->entries[i].device != device_named(pair->first->next)) {
            fail_msg("%s: place %zu is '%s' on %d, expected '%s' on %s", id, i,
                     i < map->count ? heft__tree_path(tree, map->entries[i].node) : "nothing",
                     i < map->count ? map->entries[i].device : 0, pair->first->text,
                     pair->first->next->text);
        }
        i++;
    }
}

/* Every tensor is where the golden map has it. */
static void compare_own_devices(const char *id, const heft__tree *tree, const heft_plan *plan,
                                const heft__json_value *golden)
{
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        const char *path = tree->tensors[i].path;
        const heft__json_value *found = NULL;
        size_t longest = 0;
        for (const heft__json_value *pair = golden->first; pair; pair = pair->next) {
            const size_t length = strlen(pair->key);
            if (strncmp(path, pair->key, length) == 0 &&
                (length == 0 || path[length] == '.' || !path[length]) &&
                (!found || length > longest)) {
                found = pair;
                longest = length;
            }
        }
        if (!found || heft_plan_device_of(plan, path) != device_named(found)) {
            fail_msg("%s: '%s' is on %d, expected %s", id, path, heft_plan_device_of(plan, path),
                     found ? found->text : "nothing");
        }
    }
}

/* own: with heft's own architecture, whose tree lacks modules without tensors. */
static void run_case(const heft__json_value *test, const heft__json_value *golden, bool own)
{
    const char *id = heft__json_member(test, "id")->text;
    const heft__json_value *expected = heft__json_member(test, "expected");
    const maker make = own ? make_own_tree : make_tree;
    struct arguments placing, planning;
    heft__map_of_devices map;
    heft_plan *plan = NULL;
    heft_error err = {0};
    heft__tree *tree = read_case(test, golden, make, &placing), *other = make(golden);
    place_case(id, tree, &placing, &map);
    read_arguments(test, &planning);
    ask_dtype(other, test, &planning);
    const bool tied = heft__json_member(golden, "all_tied_weights_keys")->count > 0;
    test_expect_status(heft__plan_of_tree(other, tied, &planning.options, &plan, &err), HEFT_OK,
                       &err, id);
    const size_t row = better_at(id);
    if (row != SIZE_MAX) {
        check_map(id, tree, &placing, &map);
        check_better(id, plan, better[row].warning);
    } else {
        assert_null(heft__json_member(expected, "error"));
        compare_balanced(id, plan, heft__json_member(expected, "balanced_memory"));
        (own ? compare_own_order : compare_order)(
            id, tree, &map, heft__json_member(expected, "device_map_uncleaned_in_placement_order"));
        compare_bytes(id, plan, heft__json_member(expected, "bytes_per_device"));
        if (own) {
            compare_own_devices(id, tree, plan, heft__json_member(expected, "device_map"));
        } else {
            compare_joined(id, plan, heft__json_member(expected, "device_map"));
        }
        compare_warnings(id, plan, expected);
    }
    heft_plan_free(plan);
    heft__devices_fini(&map);
    heft__tree_free(tree);
}

/* Visit the golden cases with their models; returns the sum of the results. */
static size_t each_case(size_t (*visit)(const heft__json_value *test,
                                        const heft__json_value *golden))
{
    size_t count = 0;
    heft__arena arena;
    heft__arena_init(&arena, ctx);
    const heft__json_value *models = heft__json_member(
                               test_read_json(&arena, HEFT_TEST_DATA "/device_maps/models.json"),
                               "models"),
                           *cases = heft__json_member(
                               test_read_json(&arena, HEFT_TEST_DATA "/device_maps/cases.json"),
                               "cases");
    for (const heft__json_value *test = cases->first; test; test = test->next) {
        count += visit(test, heft__json_member(models, heft__json_member(test, "model_key")->text));
    }
    heft__arena_fini(&arena);
    return count;
}

static bool is_of_accelerate(const heft__json_value *test)
{
    return strcmp(heft__json_member(test, "library")->text, "accelerate") == 0;
}

static size_t visit_golden(const heft__json_value *test, const heft__json_value *golden)
{
    if (is_of_accelerate(test)) {
        run_case(test, golden, false);
    }
    return is_of_accelerate(test);
}

static void accelerate_maps_are_golden(void **state)
{
    (void)state;
    assert_int_equal(each_case(visit_golden), 112);
}

/* Not the toys, and not cases that split a layer among experts, which are stacked in the golden model and
 * separate in the files. */
static size_t visit_own(const heft__json_value *test, const heft__json_value *golden)
{
    static const char splits_experts[] = "mixtral-layer-too-large-split@";
    const bool wanted = is_of_accelerate(test) &&
                        strncmp(heft__json_member(golden, "model")->text, "toy:", 4) != 0 &&
                        strncmp(heft__json_member(test, "id")->text, splits_experts,
                                sizeof splits_experts - 1) != 0;
    if (wanted) {
        run_case(test, golden, true);
    }
    return wanted;
}

static void own_architectures_have_the_golden_maps(void **state)
{
    (void)state;
    assert_int_equal(each_case(visit_own), 74); /* of 75 */
}

/* ---- heft's own map -------------------------------------------------------------------------- */
/* Bytes that are on no accelerator. */
static double left_over(const heft__tree *tree, const heft__map_of_devices *map)
{
    double sum = 0;
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        int32_t device =
            tree->tensors[i].bytes > 0 ? device_of(tree, map, tree->module_count + i) : 0;
        sum += device == HEFT_DEVICE_CPU || device == HEFT_DEVICE_DISK ? tree->tensors[i].bytes : 0;
    }
    return sum;
}

static void check_ties(const char *id, const heft__tree *tree, const heft__map_of_devices *map)
{
    for (uint32_t i = 0; i < tree->tensor_count; i++) {
        int32_t one = device_of(tree, map, tree->module_count + i),
                two = device_of(tree, map, tree->module_count + tree->tensors[i].first);
        if (one != two) {
            fail_msg("%s: '%s' is not where it is tied to", id, tree->tensors[i].path);
        }
    }
}

/* No entry lies inside of a block. */
static void check_blocks(const char *id, const heft__tree *tree, const heft__map_of_devices *map)
{
    for (size_t i = 0; i < map->count; i++) {
        for (uint32_t m = 0; m < tree->module_count; m++) {
            if (tree->modules[m].block && map->entries[i].node != m &&
                heft__tree_is_inside(tree, map->entries[i].node, m)) {
                fail_msg("%s: '%s' is split", id, tree->modules[m].path);
            }
        }
    }
}

static size_t cases_seen;

static size_t compare_with_best(const heft__json_value *test, const heft__json_value *golden)
{
    const char *id = heft__json_member(test, "id")->text;
    struct arguments a, own;
    heft__map_of_devices theirs, ours;
    heft_error err = {0};
    heft__tree *tree = read_case(test, golden, make_tree, &a);
    read_arguments(test, &own);
    place_case(id, tree, &a, &theirs);
    test_expect_status(heft__best_map(tree, own.budgets, own.options.budget_count, &ours, &err),
                       HEFT_OK, &err, id);
    check_map(id, tree, &own, &ours);
    check_ties(id, tree, &ours);
    check_blocks(id, tree, &ours);
    double their_rest = left_over(tree, &theirs), our_rest = left_over(tree, &ours);
    if (our_rest > their_rest) {
        fail_msg("%s: %.0f bytes left over, Accelerate leaves %.0f", id, our_rest, their_rest);
    }
    heft__devices_fini(&theirs);
    heft__devices_fini(&ours);
    heft__tree_free(tree);
    cases_seen++;
    return our_rest < their_rest;
}

static void best_is_never_worse(void **state)
{
    (void)state;
    const size_t far_better = each_case(compare_with_best);
    print_message("fewer bytes left over than Accelerate's in %zu of %zu cases\n", far_better,
                  cases_seen);
    assert_true(far_better > 10);
}

/* ---- against brute force --------------------------------------------------------------------- */
static uint64_t random_state = 88172645463325252U;

static uint32_t random_below(uint32_t end)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 33) % end;
}

#define UNITS_MOST 8

/* A root with up to eight leaves, one tensor each. */
static heft__tree *random_tree(uint32_t units, double bytes[UNITS_MOST])
{
    heft__tree *tree = NULL;
    heft_error err = {0};
    test_expect_status(heft__tree_new(ctx, units + 1, units, &tree, &err), HEFT_OK, &err, "tree");
    tree->modules[0].path = tree->modules[0].class_name = "";
    for (uint32_t i = 0; i < units; i++) {
        tree->modules[i + 1].path = heft__arena_format(&tree->arena, "m%u", i);
        tree->modules[i + 1].class_name = "";
        tree->tensors[i] = (heft__tree_tensor){
            .path = heft__arena_format(&tree->arena, "m%u.weight", i),
            .module = i + 1,
            .first = i,
            .dtype = HEFT_DTYPE_U8,
            .elems = random_below(20),
        };
        bytes[i] = (double)tree->tensors[i].elems;
    }
    test_tree_finish(tree);
    heft__tree_size(tree, HEFT_DTYPE_NONE, 0, NULL);
    return tree;
}

/* The most bytes on accelerators, each of which has one run: all ways to give units to devices. */
static double brute_force(const double *bytes, uint32_t units, const double *budgets,
                          uint32_t devices)
{
    double most = 0;
    uint64_t ways = 1;
    for (uint32_t i = 0; i < units; i++) {
        ways *= devices + 1;
    }
    for (uint64_t way = 0; way < ways; way++) {
        double used[4] = {0}, sum = 0;
        bool ended[5] = {0}, good = true;
        uint32_t last = devices; /* "none" */
        uint64_t rest = way;
        for (uint32_t i = 0; i < units && good; i++, rest /= devices + 1) {
            uint32_t device = (uint32_t)(rest % (devices + 1));
            if (device != last) {
                ended[last] = true;
                good = device == devices || !ended[device];
                last = device;
            }
            if (good && device < devices) {
                used[device] += bytes[i];
                sum += bytes[i];
                good = used[device] <= budgets[device];
            }
        }
        most = good && sum > most ? sum : most;
    }
    return most;
}

static void best_is_what_brute_force_finds(void **state)
{
    (void)state;
    for (int round = 0; round < 300; round++) {
        double bytes[UNITS_MOST], limits[3];
        const uint32_t units = 1 + random_below(7), devices = 1 + random_below(3);
        heft_budget budgets[4];
        heft__tree *tree = random_tree(units, bytes);
        heft__map_of_devices map;
        heft_error err = {0};
        for (uint32_t d = 0; d < devices; d++) {
            limits[d] = random_below(60);
            budgets[d] = (heft_budget){(int32_t)d, limits[d]};
        }
        test_expect_status(heft__best_map(tree, budgets, devices, &map, &err), HEFT_OK, &err,
                           "best");
        double held = tree->modules[0].bytes - left_over(tree, &map);
        double most = brute_force(bytes, units, limits, devices);
        if (held != most) {
            fail_msg("round %d: %.0f bytes held, %.0f can be", round, held, most);
        }
        heft__devices_fini(&map);
        heft__tree_free(tree);
    }
}

/* Devices of unequal size are filled in proportion where all fits. */
static void best_fills_in_proportion(void **state)
{
    (void)state;
    heft_error err = {0};
    heft__map_of_devices map;
    heft__tree *tree = NULL;
    const heft_budget budgets[] = {
        {0, 1000},
        {1, 3000}
    };
    test_expect_status(heft__tree_new(ctx, 101, 100, &tree, &err), HEFT_OK, &err, "tree");
    tree->modules[0].path = tree->modules[0].class_name = "";
    for (uint32_t i = 0; i < 100; i++) {
        tree->modules[i + 1].path = heft__arena_format(&tree->arena, "m%u", i);
        tree->modules[i + 1].class_name = "";
        tree->tensors[i] = (heft__tree_tensor){.path = tree->modules[i + 1].path,
                                               .module = i + 1,
                                               .first = i,
                                               .dtype = HEFT_DTYPE_U8,
                                               .elems = 20};
    }
    test_tree_finish(tree);
    heft__tree_size(tree, HEFT_DTYPE_NONE, 0, NULL);
    test_expect_status(heft__best_map(tree, budgets, 2, &map, &err), HEFT_OK, &err, "best");
    double on_first = 0;
    for (uint32_t i = 0; i < 100; i++) {
        on_first += device_of(tree, &map, 101 + i) == 0 ? 20 : 0;
    }
    assert_true(on_first >= 460 && on_first <= 540); /* a quarter of 2000 */
    heft__devices_fini(&map);
    heft__tree_free(tree);
}

/* ---- through the public interface ------------------------------------------------------------ */
static const char small[] = "{\"model_type\":\"llama\",\"hidden_size\":32,\"num_hidden_layers\":6,"
                            "\"num_attention_heads\":4,\"intermediate_size\":64,\"vocab_size\":100,"
                            "\"tie_word_embeddings\":true}";

static heft_status plan_small(heft_ctx *with, void *user, heft_error *err)
{
    const heft_budget budgets[] = {
        {HEFT_DEVICE_CPU, 40000},
        {0,               60000},
        {1,               60000}
    };
    heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .budgets = budgets, .budget_count = 3);
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_plan *plan = NULL;
    options.strategy = *(const heft_strategy *)user;
    heft_status status =
        heft__config_parse(with, "config.json", small, strlen(small), &config, err);
    if (status == HEFT_OK) {
        status = heft_model_new(with, config, "LlamaForCausalLM", HEFT_DTYPE_NONE, &model, err);
    }
    if (status == HEFT_OK) {
        status = heft_plan_new(model, &options, &plan, err);
    }
    double total = 0, placed, bytes;
    heft_budget budget;
    for (size_t i = 0; status == HEFT_OK && heft_plan_device(plan, i, &budget, &placed); i++) {
        assert_true(placed <= budget.bytes);
        total += placed;
    }
    if (status == HEFT_OK) { /* rotary buffers are in memory too */
        int32_t device;
        assert_true(total >= (double)heft_model_bytes(model));
        assert_non_null(heft_plan_entry(plan, 0, &device, &bytes));
        assert_null(heft_plan_entry(plan, heft_plan_count(plan), &device, &bytes));
    }
    heft_plan_free(plan);
    heft_model_free(model);
    heft_config_free(config);
    return status;
}

static void plans_survive_a_lack_of_memory(void **state)
{
    (void)state;
    for (int strategy = HEFT_STRATEGY_AUTO; strategy <= HEFT_STRATEGY_BEST; strategy++) {
        heft_strategy one = (heft_strategy)strategy;
        test_oom_sweep(plan_small, &one);
    }
}

static void budgets_are_checked(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        heft_budget budgets[2];
    } rows[] = {
        {"twice",        {{0, 1}, {0, 2}}          },
        {"negative",     {{0, -1}, {1, 2}}         },
        {"no_device",    {{-9, 1}, {1, 2}}         },
        {"not_a_number", {{0, (double)NAN}, {1, 2}}},
    };
    heft_model *model = test_model_from_text(ctx, small, "LlamaModel");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        heft_plan *plan = NULL;
        heft_error err = {0};
        const heft_plan_options options =
            HEFT_OPTIONS(heft_plan_options, .budgets = rows[i].budgets, .budget_count = 2);
        test_expect_status(heft_plan_new(model, &options, &plan, &err), HEFT_INVALID_ARG, &err,
                           rows[i].name);
        assert_null(plan);
    }
    heft_model_free(model);
}

static void the_machine_has_memory(void **state)
{
    (void)state;
    heft_machine machine = HEFT_SIZED(heft_machine);
    assert_int_equal(heft_machine_memory(&machine, NULL), HEFT_OK);
    assert_true(machine.bytes > 0);
    assert_non_null(machine.reason);
}

static int set_up(void **state)
{
    (void)state;
    ctx = heft_ctx_new(NULL);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    heft_ctx_free(ctx);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accelerate_maps_are_golden),
        cmocka_unit_test(own_architectures_have_the_golden_maps),
        cmocka_unit_test(best_is_never_worse),
        cmocka_unit_test(best_is_what_brute_force_finds),
        cmocka_unit_test(best_fills_in_proportion),
        cmocka_unit_test(plans_survive_a_lack_of_memory),
        cmocka_unit_test(budgets_are_checked),
        cmocka_unit_test(the_machine_has_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
