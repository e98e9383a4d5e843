/* Plans: very many modules, cancellation, dtypes by name, and warnings. */
#include "place/place.h"
#include "support.h"
#include "support_model.h"
#include "support_place.h"

#include <math.h>
#include <stdlib.h>

#define MANY 100000U

static heft_ctx *ctx;

/* ---- trees ----------------------------------------------------------------------------------- */
/* A root with `modules` children, m0 to m9 ..., and one tensor in each, or all in the root if there
 * are none. tied: all are one tensor. */
static heft__tree *make_tree(heft_ctx *with, uint32_t modules, uint32_t tensors, bool tied)
{
    heft__tree *tree = NULL;
    heft_error err = {0};
    test_expect_status(heft__tree_new(with, modules + 1, tensors, &tree, &err), HEFT_OK, &err,
                       "tree");
    tree->modules[0].path = tree->modules[0].class_name = "";
    for (uint32_t i = 0; i < modules; i++) {
        tree->modules[i + 1].path = heft__arena_format(&tree->arena, "m%u", i);
        tree->modules[i + 1].class_name = "Linear";
    }
    for (uint32_t i = 0; i < tensors; i++) {
        tree->tensors[i] = (heft__tree_tensor){
            .path = heft__arena_format(&tree->arena, modules ? "m%u.weight" : "t%u", i),
            .module = modules ? i + 1 : 0,
            .first = tied ? 0 : i,
            .dtype = HEFT_DTYPE_F32,
            .elems = 10,
        };
    }
    test_tree_finish(tree);
    heft__tree_size(tree, HEFT_DTYPE_NONE, 0, NULL);
    return tree;
}

/* Takes the tree. */
static heft_plan *plan_of(heft__tree *tree, const heft_plan_options *options)
{
    heft_plan *plan = NULL;
    heft_error err = {0};
    test_expect_status(heft__plan_of_tree(tree, false, options, &plan, &err), HEFT_OK, &err,
                       "plan");
    return plan;
}

static double placed_on(const heft_plan *plan, int32_t device)
{
    heft_budget budget;
    double placed;
    for (size_t i = 0; heft_plan_device(plan, i, &budget, &placed); i++) {
        if (budget.device == device) {
            return placed;
        }
    }
    return -1;
}

/* Tensors beside modules are placed one by one, but a module's own come in together. */
static void own_tensors_of_a_module_come_together(void **state)
{
    (void)state;
    static const heft_budget disk[] = {
        {HEFT_DEVICE_CPU,  0               },
        {HEFT_DEVICE_DISK, (double)INFINITY}
    };
    const heft_plan_options options = HEFT_OPTIONS(
        heft_plan_options, .strategy = HEFT_STRATEGY_BEST, .budgets = disk, .budget_count = 2);
    double one, two;
    heft_plan *plan = plan_of(make_tree(ctx, 0, 3, false), &options);
    (void)heft_plan_stream(plan, &one, &two);
    assert_true(one == 120 && two == 120);
    heft_plan_free(plan);
    plan = plan_of(make_tree(ctx, 3, 3, false), &options);
    (void)heft_plan_stream(plan, &one, &two);
    assert_true(one == 40 && two == 80);
    heft_plan_free(plan);
}

/* Without names, the modules that the model flags are not split, and budgets are balanced by them: the same
 * as if their classes were named. */
static void compare_with_names(const char *what, heft_model *model)
{
    const char *names[8];
    heft_plan_options options = HEFT_OPTIONS(heft_plan_options, .strategy = HEFT_STRATEGY_BALANCED);
    const double share = (double)heft_model_bytes(model) * 0.9;
    const heft_budget given[] = {
        {0, share},
        {1, share}
    };
    heft_plan *plans[2] = {NULL, NULL};
    heft_error err = {0};
    if (heft_model_module_count(model) > 3000) {
        return; /* takes long with sanitizers */
    }
    options.budgets = given;
    options.budget_count = 2;
    for (int named = 0; named < 2; named++) {
        options.no_split = named ? names : NULL;
        while (named && heft_model_no_split(model, options.no_split_count)) {
            names[options.no_split_count] = heft_model_no_split(model, options.no_split_count);
            options.no_split_count++;
        }
        test_expect_status(heft_plan_new(model, &options, &plans[named], &err), HEFT_OK, &err,
                           what);
    }
    assert_int_equal(heft_plan_count(plans[0]), heft_plan_count(plans[1]));
    for (size_t i = 0; i < 2; i++) {
        heft_budget budgets[2];
        double placed[2];
        for (int named = 0; named < 2; named++) {
            assert_true(heft_plan_device(plans[named], i, &budgets[named], &placed[named]));
        }
        if (budgets[0].bytes != budgets[1].bytes || placed[0] != placed[1]) {
            fail_msg("%s: budget %zu is %.0f, by names %.0f", what, i, budgets[0].bytes,
                     budgets[1].bytes);
        }
    }
    heft_plan_free(plans[0]);
    heft_plan_free(plans[1]);
}

static void marks_stand_for_names(void **state)
{
    (void)state;
    assert_true(test_each_skeleton(ctx, compare_with_names) >= 190);
}

/* ---- very many ------------------------------------------------------------------------------- */
static const heft_budget thirds[] = {
    {0,               1400000},
    {1,               1400000},
    {HEFT_DEVICE_CPU, 1000000}
}; /* of 4,000,000 bytes */

static heft_plan_options options_of(int strategy)
{
    return HEFT_OPTIONS(heft_plan_options, .strategy = (heft_strategy)strategy, .budgets = thirds,
                        .budget_count = 3);
}

static void plans_a_hundred_thousand_side_by_side(void **state)
{
    (void)state;
    for (int strategy = HEFT_STRATEGY_AUTO; strategy <= HEFT_STRATEGY_BEST; strategy++) {
        for (uint32_t modules = 0; modules <= MANY; modules += MANY) {
            const heft_plan_options options = options_of(strategy);
            heft_plan *plan = plan_of(make_tree(ctx, modules, MANY, false), &options);
            double sum = 0, bytes;
            int32_t device;
            for (size_t i = 0; heft_plan_entry(plan, i, &device, &bytes); i++) {
                assert_int_equal(
                    heft_plan_device_of(plan, heft_plan_entry(plan, i, &device, &bytes)), device);
                sum += bytes;
            }
            assert_true(sum == 40.0 * MANY);
            assert_true(placed_on(plan, 0) > 1300000 && placed_on(plan, 0) <= 1400000);
            assert_true(placed_on(plan, HEFT_DEVICE_CPU) > 900000);
            heft_plan_free(plan);
        }
    }
}

/* One tensor in all: 40 bytes, which go somewhere with all their names. */
static void plans_a_hundred_thousand_names_of_one(void **state)
{
    (void)state;
    for (int strategy = HEFT_STRATEGY_AUTO; strategy <= HEFT_STRATEGY_BEST; strategy++) {
        for (uint32_t modules = 0; modules <= MANY; modules += MANY) {
            const heft_plan_options options = options_of(strategy);
            heft_plan *plan = plan_of(make_tree(ctx, modules, MANY, true), &options);
            int32_t device = heft_plan_device_of(plan, modules ? "m0.weight" : "t0");
            assert_true(device != HEFT_DEVICE_NONE && placed_on(plan, device) == 40);
            assert_int_equal(heft_plan_device_of(plan, modules ? "m99999.weight" : "t99999"),
                             device);
            heft_plan_free(plan);
        }
    }
}

/* The largest layer is another one at each step. */
static void plans_ever_smaller_modules(void **state)
{
    (void)state;
    heft__tree *tree = make_tree(ctx, MANY, MANY, false);
    const heft_budget budgets[] = {
        {0,               1e9},
        {HEFT_DEVICE_CPU, 1e9}
    };
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .strategy = HEFT_STRATEGY_SEQUENTIAL, .budgets = budgets,
                     .budget_count = 2);
    for (uint32_t i = 0; i < MANY; i++) {
        tree->tensors[i].elems = MANY - i;
    }
    heft__tree_size(tree, HEFT_DTYPE_NONE, 0, NULL);
    heft_plan *plan = plan_of(tree, &options);
    assert_true(placed_on(plan, 0) > 999000000 && placed_on(plan, 0) <= 1e9);
    heft_plan_free(plan);
}

/* ---- cancellation ---------------------------------------------------------------------------- */
struct patience {
    int calls, most;
};

static bool look(void *user, const heft_progress *progress)
{
    struct patience *patience = user;
    assert_string_equal(progress->what, "planning");
    return patience->calls++ < patience->most;
}

static void a_plan_can_be_stopped(void **state)
{
    (void)state;
    for (int strategy = HEFT_STRATEGY_AUTO; strategy <= HEFT_STRATEGY_BEST; strategy++) {
        for (int most = 0; most <= 2; most += 2) {
            struct patience patience = {.most = most};
            const heft_ctx_options how =
                HEFT_OPTIONS(heft_ctx_options, .progress = look, .progress_user = &patience);
            const heft_plan_options options = options_of(strategy);
            heft_ctx *with = heft_ctx_new(&how);
            heft_plan *plan = NULL;
            heft_error err = {0};
            test_expect_status(
                heft__plan_of_tree(make_tree(with, 0, MANY, false), false, &options, &plan, &err),
                HEFT_CANCELLED, &err, "stopped");
            assert_null(plan);
            assert_int_equal(patience.calls, most + 1); /* and not asked again */
            heft_ctx_free(with);
        }
    }
}

/* Bytes by name, and the number of the first name of the same tensor. */
struct row {
    const char *path;
    uint32_t module, first;
    uint64_t bytes;
};

static heft__tree *tree_of(const char *const *paths, uint32_t modules, const struct row *rows,
                           uint32_t tensors)
{
    heft__tree *tree = NULL;
    heft_error err = {0};
    test_expect_status(heft__tree_new(ctx, modules, tensors, &tree, &err), HEFT_OK, &err, "tree");
    for (uint32_t i = 0; i < modules; i++) {
        tree->modules[i].path = paths[i];
        tree->modules[i].class_name = "";
    }
    for (uint32_t i = 0; i < tensors; i++) {
        tree->tensors[i] = (heft__tree_tensor){.path = rows[i].path,
                                               .module = rows[i].module,
                                               .first = rows[i].first,
                                               .dtype = HEFT_DTYPE_U8,
                                               .elems = rows[i].bytes};
    }
    test_tree_finish(tree);
    heft__tree_size(tree, HEFT_DTYPE_NONE, 0, NULL);
    return tree;
}

/* Two items that are too large together with their ties once pulled each other forward for ever: once per
 * device is enough. */
static void fallback_allocation_ends(void **state)
{
    (void)state;
    static const char *const paths[] = {"", "b", "w", "c"};
    static const struct row rows[] = {
        {"w",        0, 0, 10},
        {"b.w",      1, 1, 10},
        {"b.weight", 1, 0, 10},
        {"w.w",      2, 3, 10},
        {"w.v",      2, 4, 10}
    };
    const heft_budget budgets[] = {
        {0,               36},
        {1,               14},
        {HEFT_DEVICE_CPU, 22}
    };
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .strategy = HEFT_STRATEGY_SEQUENTIAL, .budgets = budgets,
                     .budget_count = 3, .fallback_allocation = true);
    heft_plan *plan = plan_of(tree_of(paths, 4, rows, 5), &options);
    double sum = 0;
    for (int32_t device = HEFT_DEVICE_DISK; device < 2; device++) {
        sum += placed_on(plan, device);
    }
    assert_true(sum == 40);
    heft_plan_free(plan);
}

/* ---- dtypes by name -------------------------------------------------------------------------- */
static const char llama[] = "{\"model_type\":\"llama\",\"hidden_size\":32,\"num_hidden_layers\":2,"
                            "\"num_attention_heads\":4,\"intermediate_size\":64,\"vocab_size\":100,"
                            "\"tie_word_embeddings\":true}";

static double total_with(const heft_model *model, heft_dtype dtype, const heft_module_dtype *dtypes,
                         size_t count)
{
    const heft_budget disk = {HEFT_DEVICE_DISK, (double)INFINITY};
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .budgets = &disk, .budget_count = 1, .dtype = dtype,
                     .dtypes = dtypes, .dtype_count = count);
    heft_plan *plan = NULL;
    heft_error err = {0};
    test_expect_status(heft_plan_new(model, &options, &plan, &err), HEFT_OK, &err, "plan");
    const double bytes = placed_on(plan, HEFT_DEVICE_DISK);
    heft_plan_free(plan);
    return bytes;
}

static void dtypes_go_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *row;
        heft_module_dtype dtypes[2];
        size_t count;
        double more; /* bytes than with float16 alone */
    } rows[] = {
        {"one_tensor",      {{"model.norm.weight", HEFT_DTYPE_F32}},                  1, 64    },
        {"end_of_a_tensor", {{"norm.weight", HEFT_DTYPE_F32}},                        1, 64    },
        {"module",          {{"model.layers.0.mlp", HEFT_DTYPE_F32}},                 1, 12288 },
        {"end_of_a_module", {{"mlp", HEFT_DTYPE_F32}},                                1, 24576 },
        {"class",           {{"LlamaDecoderLayer", HEFT_DTYPE_F32}},                  1, 41216 },
        {"number",          {{"model.layers.*", HEFT_DTYPE_F32}},                     1, 41216 },
        {"smaller",         {{"mlp", HEFT_DTYPE_I8}},                                 1, -12288},
        {"innermost_first", {{"down_proj", HEFT_DTYPE_F16}, {"mlp", HEFT_DTYPE_F32}}, 2, 16384 },
        {"innermost_last",  {{"mlp", HEFT_DTYPE_F32}, {"down_proj", HEFT_DTYPE_F16}}, 2, 16384 },
        {"last_of_equals",  {{"mlp", HEFT_DTYPE_F32}, {"mlp", HEFT_DTYPE_F16}},       2, 0     },
        {"whole_model",     {{"", HEFT_DTYPE_F16}, {"norm", HEFT_DTYPE_F32}},         2, 64    },
        {"tied_once",       {{"model.embed_tokens", HEFT_DTYPE_F32}},                 1, 6400  },
    };
    heft_model *model = test_model_from_text(ctx, llama, "LlamaForCausalLM");
    const double plain = total_with(model, HEFT_DTYPE_F16, NULL, 0);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const double more =
            total_with(model, HEFT_DTYPE_F16, rows[i].dtypes, rows[i].count) - plain;
        if (more != rows[i].more) {
            fail_msg("%s: %.0f bytes more, expected %.0f", rows[i].row, more, rows[i].more);
        }
    }
    heft_model_free(model);
}

static void names_of_nothing_are_refused(void **state)
{
    (void)state;
    static const struct {
        heft_module_dtype dtype;
        heft_status status;
    } rows[] = {
        {{"model.layer", HEFT_DTYPE_F32},    HEFT_MISMATCH   },
        {{"odel.layers", HEFT_DTYPE_F32},    HEFT_MISMATCH   },
        {{"model.layers.9", HEFT_DTYPE_F32}, HEFT_MISMATCH   },
        {{"model.norm", HEFT_DTYPE_NONE},    HEFT_INVALID_ARG},
        {{NULL, HEFT_DTYPE_F32},             HEFT_INVALID_ARG},
    };
    heft_model *model = test_model_from_text(ctx, llama, "LlamaForCausalLM");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const heft_plan_options options =
            HEFT_OPTIONS(heft_plan_options, .dtypes = &rows[i].dtype, .dtype_count = 1);
        heft_plan *plan = NULL;
        heft_error err = {0};
        test_expect_status(heft_plan_new(model, &options, &plan, &err), rows[i].status, &err,
                           "refused");
        assert_null(plan);
        if (rows[i].status == HEFT_MISMATCH) {
            assert_string_equal(err.item, rows[i].dtype.name);
        }
    }
    heft_model_free(model);
}

/* A golden case's sum, of the model that heft makes of its config. */
static void t5_with_its_outputs_in_float32(void **state)
{
    (void)state;
    static const char t5[] =
        "{\"model_type\":\"t5\",\"vocab_size\":32128,\"d_model\":1024,\"d_ff\":65536,\"d_kv\":128,"
        "\"num_layers\":24,\"num_heads\":128}";
    const heft_module_dtype wo = {"wo", HEFT_DTYPE_F32};
    heft_model *model = test_model_from_text(ctx, t5, "T5ForConditionalGeneration");
    assert_true(total_with(model, HEFT_DTYPE_F16, &wo, 1) == 29057093632.0);
    heft_model_free(model);
}

/* ---- warnings -------------------------------------------------------------------------------- */
/* "m0" is in the name of "am0.weight", so Accelerate regards the tie as m0's: the tied tensor
 * goes with m0, and am0 elsewhere. */
static void ties_across_devices_are_told(void **state)
{
    (void)state;
    static const heft_budget budgets[] = {
        {0,               0   }, /* keeps the room, so that 1 has none to keep */
        {1,               30  },
        {HEFT_DEVICE_CPU, 1000}
    };
    const heft_plan_options options =
        HEFT_OPTIONS(heft_plan_options, .strategy = HEFT_STRATEGY_SEQUENTIAL, .budgets = budgets,
                     .budget_count = 3);
    static const char *const paths[] = {"", "m0", "am0", "x"};
    static const struct row rows[] = {
        {"m0.weight",  1, 0, 20},
        {"am0.weight", 2, 1, 40},
        {"x.weight",   3, 1, 40}
    };
    heft_plan *plan = plan_of(tree_of(paths, 4, rows, 3), &options);
    assert_int_equal(heft_plan_device_of(plan, "m0"), 1);
    assert_int_equal(heft_plan_device_of(plan, "x"), 1);
    assert_int_equal(heft_plan_device_of(plan, "am0"), HEFT_DEVICE_CPU);
    assert_non_null(strstr(heft_plan_warning(plan, 0), "\n  - 0: "));
    assert_string_equal(heft_plan_warning(plan, 1),
                        "Tied parameters are on different devices: {'am0.weight': 'cpu', "
                        "'x.weight': 1}. Please modify your custom device map or set "
                        "`device_map='auto'`. ");
    assert_null(heft_plan_warning(plan, 2));
    heft_plan_free(plan);
}

/* ---- every family ---------------------------------------------------------------------------- */
/* Everything has a device, `best` exceeds no budget and splits no block, and the memory of a pass over the
 * disk fits unless the CPU budget is too small for a block. */
static void check_family_plan(const char *what, const heft_model *model,
                              const heft_plan_options *options)
{
    heft_plan *plan = NULL;
    heft_error err = {0};
    heft_budget budget;
    double placed, all = 0, one, two, cpu_left = 0;
    test_expect_status(heft_plan_new(model, options, &plan, &err), HEFT_OK, &err, what);
    for (size_t i = 0; i < heft_model_count(model); i++) {
        const char *name = heft_model_parameter(model, i)->name;
        const int32_t device = heft_plan_device_of(plan, name);
        if (device == HEFT_DEVICE_NONE) {
            fail_msg("%s: '%s' has no device", what, name);
        }
        const size_t root = heft_model_parameter(model, i)->tied_to;
        if (options->strategy == HEFT_STRATEGY_BEST &&
            device != heft_plan_device_of(plan, heft_model_parameter(model, root)->name)) {
            fail_msg("%s: '%s' is not where it is tied to", what, name);
        }
    }
    for (size_t i = 0; heft_plan_device(plan, i, &budget, &placed); i++) {
        all += placed;
        cpu_left = budget.device == HEFT_DEVICE_CPU ? budget.bytes - placed : cpu_left;
        if (budget.device != HEFT_DEVICE_DISK && placed > budget.bytes) {
            fail_msg("%s: %.0f bytes on %d, which has %.0f", what, placed, (int)budget.device,
                     budget.bytes);
        }
    }
    for (size_t i = 0; i < heft_model_count(model); i++) {
        const heft_parameter *parameter = heft_model_parameter(model, i);
        all -= parameter->tied_to == i ? (double)parameter->size_bytes : 0;
    }
    if (all != 0) {
        fail_msg("%s: %.0f bytes are placed that are not there", what, all);
    }
    const double stream = heft_plan_stream(plan, &one, &two);
    assert_true(one <= two && stream <= two && stream <= cpu_left);
    heft_plan_free(plan);
}

static void check_family(const char *what, heft_model *model)
{
    const double bytes = (double)heft_model_bytes(model);
    const heft_budget shares[][3] = {
        {{0, bytes / 3}, {1, bytes / 5}, {HEFT_DEVICE_CPU, bytes / 4}},
        {{0, bytes},     {1, bytes},     {HEFT_DEVICE_CPU, bytes}    },
        {{0, 0},         {1, 100},       {HEFT_DEVICE_CPU, bytes / 2}},
    };
    for (size_t i = 0; i < sizeof shares / sizeof shares[0]; i++) {
        for (heft_strategy strategy = HEFT_STRATEGY_AUTO; strategy <= HEFT_STRATEGY_BEST;
             strategy++) {
            const heft_plan_options options = HEFT_OPTIONS(heft_plan_options, .strategy = strategy,
                                                           .budgets = shares[i], .budget_count = 3);
            check_family_plan(what, model, &options);
        }
    }
}

static void every_family_can_be_planned(void **state)
{
    (void)state;
    const size_t seen = test_each_skeleton(ctx, check_family);
    assert_true(seen >= 190);
}

/* ---- the rest: a run on the CPU, with room for streaming the others ------------------------------ */
#define REST_MOST 7

#define PARTS_MOST 3

struct rest_row {
    heft__rest_unit units[REST_MOST];
    double parts[REST_MOST][PARTS_MOST]; /* that a unit comes in */
    size_t part_count[REST_MOST];
    size_t count;
};

/* What is held at once when two neighbors among the parts on the disk are, or one; a tensor once. */
static double held_at_once(const struct rest_row *row, size_t first, size_t end, bool lone)
{
    size_t disk[REST_MOST * PARTS_MOST], disks = 0;
    double part[REST_MOST * PARTS_MOST], most = 0;
    for (size_t i = 0; i < row->count; i++) {
        if (row->units[i].leader < first || row->units[i].leader >= end) {
            for (size_t p = 0; p < row->part_count[i]; p++) {
                disk[disks] = i;
                part[disks++] = row->parts[i][p];
            }
        }
    }
    for (size_t k = 0; k < disks; k++) {
        const size_t after = (k + 1) % disks;
        const heft__rest_unit *one = &row->units[disk[k]], *next = &row->units[disk[after]];
        double held = part[k];
        if (!lone && after != k) {
            held += part[after] -
                    (one != next && one->leader == next->leader ? one->tied + next->tied : 0);
        }
        most = held > most ? held : most;
    }
    return most;
}

/* A unit of one part, or of several. */
static void add_rest_unit(struct rest_row *row, unsigned *random, bool apart)
{
    const size_t i = row->count++;
    heft__rest_unit *unit = &row->units[i];
    *unit = (heft__rest_unit){.leader = i, .apart = apart};
    row->part_count[i] = apart ? 2 + (*random >> 24) % 2 : 1;
    for (size_t p = 0; p < row->part_count[i]; p++) {
        *random = *random * 1103515245U + 12345U;
        const double bytes = 1 + (double)((*random >> 16) % 12),
                     two = p > 0 ? row->parts[i][p - 1] + bytes : bytes;
        row->parts[i][p] = bytes;
        unit->bytes += bytes;
        unit->first = p == 0 ? bytes : unit->first;
        unit->last = bytes;
        unit->one = bytes > unit->one ? bytes : unit->one;
        unit->two = two > unit->two ? two : unit->two;
    }
    unit->saves = unit->stream = unit->bytes;
}

/* Small rows, with at most one pair that is tied. */
static void the_rest_keeps_room(void **state)
{
    (void)state;
    unsigned random = 7;
    for (int round = 0; round < 20000; round++) {
        struct rest_row row = {.count = 0};
        heft__rest_unit *units = row.units;
        random = random * 1103515245U + 12345U;
        const size_t count = 1 + (random >> 16) % REST_MOST;
        const double budget = (double)((random >> 20) % 60);
        for (size_t i = 0; i < count; i++) {
            random = random * 1103515245U + 12345U;
            add_rest_unit(&row, &random, i > 0 && i + 1 < count && (random >> 18) % 3 == 0);
        }
        if (count > 2 &&
            round % 2 == 0) { /* the last has a tensor of the first, and bytes of its own */
            heft__rest_unit *last = &units[count - 1];
            last->leader = 0;
            last->tied = units[0].stream;
            units[0].bytes += last->bytes;
            last->stream += last->tied;
            units[0].saves += last->stream;
            last->bytes = last->saves = 0;
            row.parts[count - 1][0] = last->stream;
        }
        size_t first, end;
        heft__rest_choose(units, count, budget, &first, &end);
        double bytes = 0, saves = 0, most = -1;
        for (size_t i = first; i < end; i++) {
            bytes += units[i].bytes;
            saves += units[i].saves;
        }
        assert_true(end <= count && bytes <= budget);
        const bool pairs = held_at_once(&row, 0, 0, false) <= budget;
        const bool lone = held_at_once(&row, 0, 0, true) <= budget;
        if (pairs || lone) {
            assert_true(bytes + held_at_once(&row, first, end, !pairs) <= budget);
        }
        for (size_t a = 0; a <= count; a++) { /* every run that keeps the room */
            double sum = 0, saved = 0;
            for (size_t b = a; b <= count; sum += b < count ? units[b].bytes : 0,
                        saved += b < count ? units[b].saves : 0, b++) {
                const double room = pairs || lone ? held_at_once(&row, a, b, !pairs) : 0;
                most = sum + room <= budget && saved > most ? saved : most;
            }
        }
        if (saves != (most > 0 ? most : 0)) {
            fail_msg("round %d: %.0f bytes are saved, %.0f could be", round, saves, most);
        }
    }
}

/* heft's own map warns about buffers, and about nothing else. */
static void best_tells_of_buffers(void **state)
{
    (void)state;
    heft__tree *tree = make_tree(ctx, 2, 2, false);
    const heft_budget budgets[] = {
        {0,               50 },
        {HEFT_DEVICE_CPU, 100}
    };
    heft_plan_options options = HEFT_OPTIONS(heft_plan_options, .strategy = HEFT_STRATEGY_BEST,
                                             .budgets = budgets, .budget_count = 2);
    tree->tensors[0].buffer = tree->tensors[1].buffer = true;
    heft_plan *plan = plan_of(tree, &options);
    assert_non_null(strstr(heft_plan_warning(plan, 0), "requires 40 bytes of buffer"));
    assert_null(heft_plan_warning(plan, 1));
    heft_plan_free(plan);
    tree = make_tree(ctx, 2, 2, false);
    tree->tensors[0].buffer = tree->tensors[1].buffer = options.offload_buffers = true;
    plan = plan_of(tree, &options);
    assert_null(heft_plan_warning(plan, 0));
    heft_plan_free(plan);
}

/* ---- without memory -------------------------------------------------------------------------- */
static heft_status plan_with_all(heft_ctx *with, void *user, heft_error *err)
{
    static const heft_budget budgets[] = {
        {0,               10  },
        {1,               6000},
        {HEFT_DEVICE_CPU, 9000}
    };
    static const heft_module_dtype dtypes[] = {
        {"mlp",         HEFT_DTYPE_F32},
        {"norm.weight", HEFT_DTYPE_F16}
    };
    static const char *const no_split[] = {"self_attn"};
    const heft_plan_options options = HEFT_OPTIONS(
        heft_plan_options, .strategy = *(const heft_strategy *)user, .budgets = budgets,
        .budget_count = 3, .dtype = HEFT_DTYPE_F16, .no_split = no_split, .no_split_count = 1,
        .dtypes = dtypes, .dtype_count = 2, .fallback_allocation = true);
    heft_config *config = NULL;
    heft_model *model = NULL;
    heft_plan *plan = NULL;
    heft_status status =
        heft__config_parse(with, "config.json", llama, strlen(llama), &config, err);
    if (status == HEFT_OK) {
        status = heft_model_new(with, config, "LlamaForCausalLM", HEFT_DTYPE_NONE, &model, err);
    }
    if (status == HEFT_OK) {
        status = heft_plan_new(model, &options, &plan, err);
    }
    if (status == HEFT_OK && options.strategy != HEFT_STRATEGY_BEST) {
        assert_non_null(strstr(heft_plan_warning(plan, 0), "\n  - 0: "));
    }
    heft_plan_free(plan);
    heft_model_free(model);
    heft_config_free(config);
    return status;
}

static void all_options_survive_a_lack_of_memory(void **state)
{
    (void)state;
    for (int strategy = HEFT_STRATEGY_AUTO; strategy <= HEFT_STRATEGY_BEST; strategy++) {
        heft_strategy one = (heft_strategy)strategy;
        test_oom_sweep(plan_with_all, &one);
    }
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
        cmocka_unit_test(marks_stand_for_names),
        cmocka_unit_test(own_tensors_of_a_module_come_together),
        cmocka_unit_test(plans_a_hundred_thousand_side_by_side),
        cmocka_unit_test(plans_a_hundred_thousand_names_of_one),
        cmocka_unit_test(plans_ever_smaller_modules),
        cmocka_unit_test(a_plan_can_be_stopped),
        cmocka_unit_test(fallback_allocation_ends),
        cmocka_unit_test(dtypes_go_by_name),
        cmocka_unit_test(names_of_nothing_are_refused),
        cmocka_unit_test(t5_with_its_outputs_in_float32),
        cmocka_unit_test(ties_across_devices_are_told),
        cmocka_unit_test(every_family_can_be_planned),
        cmocka_unit_test(the_rest_keeps_room),
        cmocka_unit_test(best_tells_of_buffers),
        cmocka_unit_test(all_options_survive_a_lack_of_memory),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
