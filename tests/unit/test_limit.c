/* What the machine and its containers leave, from files as the kernel writes them, and what a load makes
 * of that: it is refused, warned of or done. */
#include "load/load.h"
#include "support.h"
#include "support_model.h"
#include "support_residency.h"

#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static heft_ctx *ctx;
static char folder[256];

static const char *at(const char *name)
{
    return test_path(folder, name);
}

/* ---- a machine made of files ------------------------------------------------------------------ */
#define V2 "/sys/fs/cgroup"
#define V1 "/sys/fs/cgroup/memory"
#define MEMINFO "/proc/meminfo"
#define CGROUPS "/proc/self/cgroup"
#define NO_LIMIT "9223372036854771712\n" /* of v1 */
#define FILES 10

struct file {
    const char *path, *text;
};

/* Make them in a new folder of this name, with the folders that they are in. */
static const char *make_machine(const char *name, const struct file *files)
{
    static char root[300];
    snprintf(root, sizeof root, "%s", at(name));
    assert_int_equal(mkdir(root, 0777), 0);
    for (size_t i = 0; i < FILES && files[i].path; i++) {
        char path[700];
        snprintf(path, sizeof path, "%s%s", root, files[i].path);
        for (char *slash = path + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
            *slash = '\0';
            (void)mkdir(path, 0777);
            *slash = '/';
        }
        test_write_file(root, files[i].path + 1, files[i].text, strlen(files[i].text));
    }
    return root;
}

#define K ((uint64_t)1024)
static const struct machine_row {
    const char *name;
    struct file files[FILES];
    uint64_t bytes, most; /* without swap, and with */
    const char *reason;   /* of the most */
} machines[] = {
    {"nothing_is_known",           {{0}},                                                                                          UINT64_MAX, UINT64_MAX,       "memory"},
    {"memory",
     {{MEMINFO, "MemTotal:  9000 kB\nMemAvailable:  8000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"}},
     8000 * K,
     8000 * K,
     "memory"                                                                                                                                                            },
    {"memory_and_swap",
     {{MEMINFO,
       "MemTotal:  9000 kB\nMemAvailable:  8000 kB\nSwapTotal: 700 kB\nSwapFree: 500 kB\n"}},
     8000 * K,
     8500 * K,
     "memory and swap"                                                                                                                                                   },
    {"v2",
     {{MEMINFO, "MemAvailable: 8000 kB\nSwapFree: 0 kB\n"},
      {CGROUPS, "0::/a\n"},
      {V2 "/a/memory.max", "1000000\n"},
      {V2 "/a/memory.current", "300000\n"}},
     700000,                                                                                                                                   700000,
     "cgroup v2 limit"                                                                                                                                                   },
    {"v2_pages_of_files_can_go",
     {{MEMINFO, "MemAvailable: 8000 kB\n"},
      {CGROUPS, "0::/a\n"},
      {V2 "/a/memory.max", "1000000\n"},
      {V2 "/a/memory.current", "990000\n"},
      {V2 "/a/memory.stat",
       "anon 100000\nfile 890000\ninactive_anon 7\ninactive_file 500000\nactive_file 300000\n"
       "slab_reclaimable 50000\n"}},
     860000,                                                                                                                                   860000,
     "cgroup v2 limit"                                                                                                                                                   },
    {"v2_shared_memory_cannot_go", /* it is in "file", as tmpfs and memfd are */
     {{MEMINFO, "MemAvailable: 8000 kB\n"},
      {CGROUPS, "0::/a\n"},
      {V2 "/a/memory.max", "1000000\n"},
      {V2 "/a/memory.current", "900000\n"},
      {V2 "/a/memory.stat", "file 900000\nshmem 880000\ninactive_file 20000\nactive_file 0\n"}},
     120000,                                                                                                                                   120000,
     "cgroup v2 limit"                                                                                                                                                   },
    {"v2_without_a_limit",
     {{MEMINFO, "MemAvailable: 8000 kB\n"},
      {CGROUPS, "0::/a\n"},
      {V2 "/a/memory.max", "max\n"},
      {V2 "/a/memory.current", "300000\n"}},
     8000 * K,
     8000 * K,
     "memory"                                                                                                                                                            },
    {"v2_a_group_above",
     {{MEMINFO, "MemAvailable: 8000 kB\n"},
      {CGROUPS, "0::/a/b\n"},
      {V2 "/a/b/memory.max", "max\n"},
      {V2 "/a/memory.max", "1000000\n"},
      {V2 "/a/memory.current", "100000\n"},
      {V2 "/memory.max", "2000000\n"}},
     900000,                                                                                                                                   900000,
     "cgroup v2 limit"                                                                                                                                                   },
    {"v2_its_own_root",            /* in a namespace of its own */
     {{MEMINFO, "MemAvailable: 8000 kB\n"}, {CGROUPS, "0::/\n"}, {V2 "/memory.max", "5000\n"}},
     5000,                                                                                                                                     5000,
     "cgroup v2 limit"                                                                                                                                                   },
    {"v2_with_swap",
     {{MEMINFO, "MemAvailable: 8000 kB\nSwapFree: 900 kB\n"},
      {CGROUPS, "0::/a\n"},
      {V2 "/a/memory.max", "1000000\n"},
      {V2 "/a/memory.current", "300000\n"},
      {V2 "/a/memory.swap.max", "max\n"},
      {V2 "/a/memory.swap.current", "10\n"}},
     700000,                                                                                                                                   700000 + 900 * K,
     "cgroup v2 limit"                                                                                                                                                   },
    {"v2_with_some_swap",
     {{MEMINFO, "MemAvailable: 8000 kB\nSwapFree: 900 kB\n"},
      {CGROUPS, "0::/a\n"},
      {V2 "/a/memory.max", "1000000\n"},
      {V2 "/a/memory.current", "300000\n"},
      {V2 "/a/memory.swap.max", "50000\n"},
      {V2 "/a/memory.swap.current", "10000\n"}},
     700000,                                                                                                                                   740000,
     "cgroup v2 limit"                                                                                                                                                   },
    {"v2_used_up",
     {{MEMINFO, "MemAvailable: 8000 kB\n"},
      {CGROUPS, "0::/a\n"},
      {V2 "/a/memory.max", "1000000\n"},
      {V2 "/a/memory.current", "1000001\n"}},
     0,                                                                                                                                        0,
     "cgroup v2 limit"                                                                                                                                                   },
    {"v1",
     {{MEMINFO, "MemAvailable: 8000 kB\n"},
      {CGROUPS, "5:cpu:/x\n4:memory:/a\n0::/\n"},
      {V1 "/a/memory.limit_in_bytes", "1000000\n"},
      {V1 "/a/memory.usage_in_bytes", "990000\n"},
      {V1 "/a/memory.stat",
       "cache 890000\ntotal_cache 890000\ntotal_inactive_file 400000\ntotal_active_file 200000\n"},
      {V1 "/a/memory.memsw.limit_in_bytes", NO_LIMIT},
      {V1 "/a/memory.memsw.usage_in_bytes", "990000\n"}},
     610000,                                                                                                                                   610000,
     "cgroup v1 limit"                                                                                                                                                   },
    {"v1_without_a_limit",
     {{MEMINFO, "MemAvailable: 8000 kB\n"},
      {CGROUPS, "4:cpu,memory:/a\n"},
      {V1 "/a/memory.limit_in_bytes", NO_LIMIT}},
     8000 * K,
     8000 * K,
     "memory"                                                                                                                                                            },
    {"v1_with_swap",
     {{MEMINFO, "MemAvailable: 8000 kB\nSwapFree: 900 kB\n"},
      {CGROUPS, "4:cpu,memory:/a\n"},
      {V1 "/a/memory.limit_in_bytes", "1000000\n"},
      {V1 "/a/memory.usage_in_bytes", "100000\n"},
      {V1 "/a/memory.memsw.limit_in_bytes", NO_LIMIT}},
     900000,                                                                                                                                   900000 + 900 * K,
     "cgroup v1 limit"                                                                                                                                                   },
    {"v1_with_some_swap",
     {{MEMINFO, "MemAvailable: 8000 kB\nSwapFree: 900 kB\n"},
      {CGROUPS, "4:cpu,memory:/a\n"},
      {V1 "/a/memory.limit_in_bytes", "1000000\n"},
      {V1 "/a/memory.usage_in_bytes", "100000\n"},
      {V1 "/a/memory.memsw.limit_in_bytes", "1200000\n"},
      {V1 "/a/memory.memsw.usage_in_bytes", "150000\n"}},
     900000,                                                                                                                                   1050000,
     "cgroup v1 limit"                                                                                                                                                   },
};

static void the_least_of_all_limits_is_left(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof machines / sizeof machines[0]; i++) {
        const struct machine_row *row = &machines[i];
        heft_machine machine = HEFT_SIZED(heft_machine);
        heft__most_memory most;
        heft__machine_look_below(make_machine(row->name, row->files), &machine, &most);
        if (machine.bytes != row->bytes || most.bytes != row->most ||
            strcmp(most.reason, row->reason) != 0) {
            fail_msg("%s: %llu and %llu (%s)", row->name, (unsigned long long)machine.bytes,
                     (unsigned long long)most.bytes, most.reason);
        }
    }
}

/* ---- loads ------------------------------------------------------------------------------------ */
static const char config_text[] =
    "{\"model_type\":\"bert\",\"hidden_size\":64,\"num_hidden_layers\":3,\"num_attention_heads\":2,"
    "\"intermediate_size\":256,\"vocab_size\":300,\"max_position_embeddings\":20,"
    "\"dtype\":\"float32\",\"architectures\":[\"BertModel\"]}";

/* A machine on which so much is left. */
static const char *make_limit(uint64_t bytes, const char *cached)
{
    static unsigned number;
    char name[32], limit[32];
    snprintf(name, sizeof name, "limit-%u", number++);
    snprintf(limit, sizeof limit, "%llu\n", (unsigned long long)bytes);
    const struct file files[FILES] = {
        {MEMINFO,                "MemTotal: 99000000 kB\nMemAvailable: 99000000 kB\n"        },
        {CGROUPS,                "0::/a\n"                                                   },
        {V2 "/a/memory.max",     limit                                                       },
        {V2 "/a/memory.current", cached ? cached : "0\n"                                     },
        {V2 "/a/memory.stat",    cached ? "inactive_file 50000\nactive_file 900000000\n" : ""},
    };
    return make_machine(name, files);
}

static heft_source *open_source(const char *name, const char *class_name, const char *machine)
{
    heft_error err = {0};
    heft_source *source = NULL;
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .class_name = class_name);
    test_expect_status(heft_source_open(ctx, at(name), &how, &source, &err), HEFT_OK, &err, name);
    source->machine = machine;
    return source;
}

static const struct load_row {
    const char *name, *class_name;
    heft_load_mode mode;
    heft_dtype dtype;
    bool touch, on_cpu; /* by a plan */
    bool needs_memory;
} loads[] = {
    {"mapped",              NULL,              HEFT_LOAD_MAP,    HEFT_DTYPE_NONE, false, false, false},
    {"mapped and touched",  NULL,              HEFT_LOAD_MAP,    HEFT_DTYPE_NONE, true,  false, false},
    {"auto",                NULL,              HEFT_LOAD_AUTO,   HEFT_DTYPE_NONE, false, false, false},
    {"shared, all mapped",  NULL,              HEFT_LOAD_SHARED, HEFT_DTYPE_NONE, false, false, false},
    {"copied",              NULL,              HEFT_LOAD_COPY,   HEFT_DTYPE_NONE, false, false, true },
    {"cast",                NULL,              HEFT_LOAD_AUTO,   HEFT_DTYPE_BF16, false, false, true },
    {"copied and cast",     NULL,              HEFT_LOAD_COPY,   HEFT_DTYPE_BF16, true,  false, true },
    {"shared",              NULL,              HEFT_LOAD_SHARED, HEFT_DTYPE_BF16, false, false, true },
    {"weights are missing", "BertForMaskedLM", HEFT_LOAD_MAP,    HEFT_DTYPE_NONE, false, false, true },
    {"a device map",        NULL,              HEFT_LOAD_AUTO,   HEFT_DTYPE_NONE, false, true,  true },
};

static heft_status load_below(const struct load_row *row, const char *machine, bool over_limit,
                              size_t *warnings, heft_error *err)
{
    heft_load_options options =
        HEFT_OPTIONS(heft_load_options, .mode = row->mode, .dtype = row->dtype, .touch = row->touch,
                     .over_limit = over_limit);
    const heft_device_entry cpu = {"", HEFT_DEVICE_CPU};
    const heft_plan_options wanted =
        HEFT_OPTIONS(heft_plan_options, .device_map = &cpu, .device_map_count = 1);
    heft_source *source = open_source("st", row->class_name, machine);
    heft_model *model = NULL;
    heft_plan *plan = NULL;
    heft_load_report *report = NULL;
    heft_status status = heft_model_skeleton(source, &options, &model, err);
    if (status == HEFT_OK && row->on_cpu) {
        status = heft_plan_new(model, &wanted, &plan, err);
        options.plan = plan;
    }
    heft_model_free(model);
    model = NULL;
    if (status == HEFT_OK) {
        status = heft_model_load(source, &options, &model, &report, err);
    }
    assert_true((status == HEFT_OK) == (model != NULL));
    *warnings = report ? report->warning_count : 0;
    heft_load_report_free(report);
    heft_model_free(model);
    heft_plan_free(plan);
    heft_source_close(source);
    return status;
}

/* What heft_model_needs() says of it. */
static heft_load_needs needs_of(const struct load_row *row)
{
    heft_error err = {0};
    heft_load_needs needs = HEFT_SIZED(heft_load_needs);
    const test_how how = {
        .class_name = row->class_name,
        .module = row->on_cpu ? "" : NULL,
        .device = HEFT_DEVICE_CPU,
        .load = {.mode = row->mode, .dtype = row->dtype, .touch = row->touch}
    };
    test_expect_status(test_needs(ctx, at("st"), &how, &needs, &err), HEFT_OK, &err, row->name);
    assert_int_equal(needs.least_bytes, needs.resident_bytes - needs.doubt_bytes);
    return needs;
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof loads / sizeof loads[0]; i++) {
        const struct load_row *row = &loads[i];
        const heft_load_needs needs = needs_of(row);
        /* a buffer of positions always has some */
        const uint64_t least = needs.least_bytes,
                       most = least + needs.beside_bytes + needs.staging_bytes;
        heft_error err = {0};
        size_t warnings = 0, usual = 0;
        assert_true((least > 1000) == row->needs_memory);
        test_expect_status(load_below(row, make_limit(most, NULL), false, &usual, &err), HEFT_OK,
                           &err, row->name);
        test_expect_status(load_below(row, make_limit(least, NULL), false, &warnings, &err),
                           HEFT_OK, &err, row->name);
        assert_int_equal(warnings, usual + (row->needs_memory && most > least ? 1 : 0));
        const char *low = make_limit(row->needs_memory ? least - 1 : 0, NULL);
        test_expect_status(load_below(row, low, true, &warnings, &err), HEFT_OK, &err, row->name);
        assert_int_equal(warnings, usual);
        test_expect_status(load_below(row, low, false, &warnings, &err),
                           row->needs_memory ? HEFT_LIMIT : HEFT_OK, &err, row->name);
        if (row->needs_memory) {
            char both[128];
            snprintf(both, sizeof both,
                     "needs %llu bytes, but %llu bytes are available (cgroup v2 ",
                     (unsigned long long)least, (unsigned long long)least - 1);
            if (!strstr(err.message, both) || !strstr(err.message, "'over_limit'") ||
                !strstr(err.path, "/st")) {
                fail_msg("%s: %s: %s", row->name, err.path, err.message);
            }
        }
    }
}

static void numbers_are_short_where_they_differ(void **state)
{
    (void)state;
    heft_error err = {0};
    size_t warnings;
    assert_int_equal(load_below(&loads[4], make_limit(100000, NULL), false, &warnings, &err),
                     HEFT_LIMIT);
    assert_non_null(
        strstr(err.message, " KB, but 100.0 KB are available (cgroup v2 limit of 100.0 KB)"));
}

static void pages_of_files_are_no_reason_to_refuse(void **state)
{
    (void)state;
    heft_error err = {0};
    size_t warnings;
    const char *full = make_limit(900000000, "900000000\n"); /* all of it is cache */
    test_expect_status(load_below(&loads[4], full, false, &warnings, &err), HEFT_OK, &err, "full");
    assert_int_equal(warnings, 0);
}

static void who_joins_a_shared_copy_needs_none(void **state)
{
    (void)state;
    heft_error err = {0};
    heft_load_report *report = NULL;
    heft_model *first = NULL, *second = NULL;
    const heft_load_options options =
        HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_SHARED, .dtype = HEFT_DTYPE_F16);
    heft_source *source = open_source("st", NULL, make_limit(10, NULL));
    assert_int_equal(heft_model_load(source, &options, &first, NULL, &err), HEFT_LIMIT);
    source->machine = NULL;
    test_expect_status(heft_model_load(source, &options, &first, NULL, &err), HEFT_OK, &err,
                       "the first one builds");
    source->machine = make_limit(10, NULL);
    test_expect_status(heft_model_load(source, &options, &second, &report, &err), HEFT_OK, &err,
                       "the second one joins");
    assert_non_null(strstr(report->strategy, "already existed"));
    assert_int_equal(report->warning_count, 0);
    heft_load_report_free(report);
    heft_model_free(second);
    heft_model_free(first);
    second = NULL;
    assert_int_equal(heft_model_load(source, &options, &second, NULL, &err), HEFT_LIMIT);
    heft_source_close(source);
}

/* Address space is limited for all of this process, so it is tried in a table of its own. */
static void address_space_is_a_limit(void **state)
{
    (void)state;
    if (TEST_SANITIZED || test_emulated()) {
        skip();
    }
    struct rlimit before, low;
    uint64_t resident, mapped;
    heft_error err = {0};
    size_t warnings;
    assert_int_equal(getrlimit(RLIMIT_AS, &before), 0);
    assert_true(heft__process_memory(&resident, &mapped));
    low = before;
    low.rlim_cur = (rlim_t)(mapped + 200000);
    assert_int_equal(setrlimit(RLIMIT_AS, &low), 0);
    const heft_status status = load_below(&loads[4], NULL, false, &warnings, &err);
    assert_int_equal(setrlimit(RLIMIT_AS, &before), 0);
    assert_int_equal(status, HEFT_LIMIT);
    assert_non_null(strstr(err.message, "(address space limit of "));
}

/* ---- into an existing model --------------------------------------------------------------------- */
static const struct into_row {
    const char *name;
    heft_dtype dtype;    /* of the model; NONE: the files' */
    bool loaded;         /* NULL before, or with values by: */
    heft_load_mode mode; /* of the load */
    bool needs_memory;
} intos[] = {
    {"absent",       HEFT_DTYPE_NONE, false, HEFT_LOAD_AUTO,   true },
    {"absent, cast", HEFT_DTYPE_F16,  false, HEFT_LOAD_AUTO,   true },
    {"mapped",       HEFT_DTYPE_NONE, true,  HEFT_LOAD_MAP,    true },
    {"shared, cast", HEFT_DTYPE_F16,  true,  HEFT_LOAD_SHARED, true },
    {"owned",        HEFT_DTYPE_NONE, true,  HEFT_LOAD_COPY,   false},
    {"owned, cast",  HEFT_DTYPE_BF16, true,  HEFT_LOAD_COPY,   false},
};

static heft_model *make_target(const struct into_row *row)
{
    heft_error err = {0};
    heft_model *model = NULL;
    const heft_load_options options =
        HEFT_OPTIONS(heft_load_options, .mode = row->mode, .dtype = row->dtype);
    heft_source *source = open_source("st", NULL, NULL);
    test_expect_status(row->loaded ? heft_model_load(source, &options, &model, NULL, &err)
                                   : heft_model_skeleton(source, &options, &model, &err),
                       HEFT_OK, &err, row->name);
    heft_source_close(source);
    return model;
}

static void into_a_model_what_does_not_fit_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof intos / sizeof intos[0]; i++) {
        const struct into_row *row = &intos[i];
        char both[128];
        heft_error err = {0};
        heft_load_report *report = NULL;
        heft_load_sharded_options options = HEFT_OPTIONS(heft_load_sharded_options, .strict = true);
        heft_model *model = make_target(row);
        uint64_t least = 0; /* all that is in the files */
        for (size_t k = 0; k < heft_model_count(model); k++) {
            const heft_parameter *parameter = heft_model_parameter(model, k);
            least += parameter->kind == HEFT_PARAMETER_BUFFER_TRANSIENT ? 0 : parameter->size_bytes;
        }
        model->machine = make_limit(least - 1, NULL);
        test_expect_status(heft_model_load_sharded(model, at("st"), &options, NULL, &err),
                           row->needs_memory ? HEFT_LIMIT : HEFT_OK, &err, row->name);
        snprintf(both, sizeof both,
                 "needs %llu bytes, but %llu bytes are available (cgroup v2 limit",
                 (unsigned long long)least, (unsigned long long)least - 1);
        if (row->needs_memory &&
            (!strstr(err.message, both) ||
             !strstr(err.message, "; 'over_limit' (--over-limit) loads anyway"))) {
            fail_msg("%s: %s", row->name, err.message);
        }
        model->machine = make_limit(least, NULL);
        test_expect_status(heft_model_load_sharded(model, at("st"), &options, &report, &err),
                           HEFT_OK, &err, row->name);
        assert_int_equal(report->warning_count, row->needs_memory ? 1 : 0);
        heft_load_report_free(report);
        heft_model_free(model);
        model = make_target(row);
        options.over_limit = true;
        model->machine = make_limit(0, NULL);
        test_expect_status(heft_model_load_sharded(model, at("st"), &options, NULL, &err), HEFT_OK,
                           &err, row->name);
        heft_model_free(model);
    }
}

/* ---- units that are brought in ------------------------------------------------------------------- */
static const struct pass_row {
    const char *name;
    heft_dtype dtype; /* of the model: a cast cannot be used in the page cache */
    uint64_t budget;  /* 0: two neighbors; 1: all of it */
    bool needs_memory;
} passes[] = {
    {"mapped",            HEFT_DTYPE_NONE, 0,      false},
    {"mapped, all",       HEFT_DTYPE_NONE, 1,      false},
    {"cast",              HEFT_DTYPE_BF16, 0,      true },
    {"cast, a small one", HEFT_DTYPE_BF16, 120000, true },
    {"cast, all",         HEFT_DTYPE_BF16, 1,      true },
};

static void pass_over(heft_residency *r)
{
    for (size_t i = 0; i < heft_residency_count(r); i++) {
        heft_lease_free(test_acquire(r, i));
    }
}

static void units_that_do_not_fit_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof passes / sizeof passes[0]; i++) {
        const struct pass_row *row = &passes[i];
        heft_error err = {0};
        heft_residency *r = NULL;
        heft_model *model = test_load_on_disk(ctx, at("st"), "", row->dtype);
        heft_residency_options options =
            HEFT_OPTIONS(heft_residency_options,
                         .budget_bytes = row->budget == 1 ? heft_model_bytes(model) : row->budget,
                         .over_limit = true);
        model->machine = make_limit(0, NULL);
        r = test_residency(model, &options);
        pass_over(r);
        const heft_residency_counts counts = test_counts(r);
        heft_residency_free(r);
        r = NULL;
        assert_true((counts.least_bytes > 0) == row->needs_memory);
        if (counts.peak_bytes < counts.least_bytes || counts.peak_bytes > counts.most_bytes ||
            (row->budget == 1 && row->needs_memory && counts.peak_bytes != counts.least_bytes)) {
            fail_msg("%s: %llu bytes at once, predicted %llu to %llu", row->name,
                     (unsigned long long)counts.peak_bytes, (unsigned long long)counts.least_bytes,
                     (unsigned long long)counts.most_bytes);
        }
        options.over_limit = false;
        model->machine = make_limit(counts.most_bytes, NULL);
        r = test_residency(model, &options);
        assert_null(heft_residency_warning(r));
        heft_residency_free(r);
        model->machine = make_limit(counts.least_bytes, NULL);
        r = test_residency(model, &options);
        assert_non_null(heft_residency_warning(r));
        assert_non_null(strstr(heft_residency_warning(r), "while units are brought in, "));
        heft_residency_free(r);
        r = NULL;
        if (row->needs_memory) {
            model->machine = make_limit(counts.least_bytes - 1, NULL);
            test_expect_status(heft_residency_new(model, &options, &r, &err), HEFT_LIMIT, &err,
                               row->name);
            assert_null(r);
            assert_non_null(strstr(err.message, "; a smaller budget keeps fewer units, "
                                                "'over_limit' (--over-limit) loads anyway"));
        }
        heft_model_free(model);
    }
}

static heft_status load_once(heft_ctx *with, void *user, heft_error *err)
{
    const heft_load_options options = HEFT_OPTIONS(heft_load_options, .mode = HEFT_LOAD_COPY);
    heft_source *source = NULL;
    heft_model *model = NULL;
    heft_status status = heft_source_open(with, at("st"), NULL, &source, err);
    if (status == HEFT_OK) {
        source->machine = user; /* with a warning */
        status = heft_model_load(source, &options, &model, NULL, err);
    }
    heft_model_free(model);
    heft_source_close(source);
    return status;
}

static void memory_can_run_out_anywhere(void **state)
{
    (void)state;
    char machine[300];
    snprintf(machine, sizeof machine, "%s", make_limit(needs_of(&loads[4]).least_bytes, NULL));
    test_oom_sweep(load_once, machine);
}

static int set_up(void **state)
{
    (void)state;
    heft_error err = {0};
    test_folder_make(folder);
    assert_int_equal(setenv("XDG_RUNTIME_DIR", folder, 1), 0);
    ctx = heft_ctx_new(NULL);
    heft_model *model = test_model_from_text(ctx, config_text, "BertModel");
    test_expect_status(heft_model_save_random(model, at("st"), NULL, NULL, NULL, &err), HEFT_OK,
                       &err, "st");
    heft_model_free(model);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    uint64_t live;
    test_folder_remove(folder);
    heft_ctx_memory(ctx, &live, NULL);
    heft_ctx_free(ctx);
    return live == 0 ? 0 : 1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_of_all_limits_is_left),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(numbers_are_short_where_they_differ),
        cmocka_unit_test(pages_of_files_are_no_reason_to_refuse),
        cmocka_unit_test(who_joins_a_shared_copy_needs_none),
        cmocka_unit_test(into_a_model_what_does_not_fit_is_refused),
        cmocka_unit_test(units_that_do_not_fit_are_refused),
        cmocka_unit_test(address_space_is_a_limit),
        cmocka_unit_test(memory_can_run_out_anywhere),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
