/* cmd_shared.c - heft shared: which shared copies are there? */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OPTIONS(X)                                                                                 \
    X(REMOVE, "remove", "ID", "remove this copy, so that no other process joins it")               \
    X(ALL, "all", NULL, "remove all copies, with or without --remove")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

static int64_t age_of(const heft_shared_copy *copy)
{
    const int64_t age = (int64_t)time(NULL) - copy->created;
    return age > 0 ? age : 0;
}

/* ---- the list -------------------------------------------------------------------------------- */
static void print_json(const heft_shared_list *list)
{
    cli_json json = {.out = stdout};
    uint64_t bytes = 0;
    cli_json_open(&json, NULL, '{');
    cli_json_open(&json, "copies", '[');
    for (size_t i = 0; i < list->count; i++) {
        const heft_shared_copy *copy = &list->copies[i];
        bytes += copy->bytes;
        cli_json_open(&json, NULL, '{');
        cli_json_string(&json, "id", copy->id);
        cli_json_string(&json, "source", copy->source);
        cli_json_u64(&json, "bytes", copy->bytes);
        cli_json_bool(&json, "building", copy->building);
        cli_json_open(&json, "pids", '[');
        for (size_t k = 0; k < copy->pid_count; k++) {
            cli_json_u64(&json, NULL, (uint64_t)copy->pids[k]);
        }
        cli_json_close(&json, ']');
        if (copy->created > 0) {
            cli_json_u64(&json, "created", (uint64_t)copy->created);
            cli_json_u64(&json, "age_seconds", (uint64_t)age_of(copy));
        } else {
            cli_json_null(&json, "created");
            cli_json_null(&json, "age_seconds");
        }
        cli_json_close(&json, '}');
    }
    cli_json_close(&json, ']');
    cli_json_u64(&json, "bytes", bytes);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

/* "45 s", "3 min", "5 h", "12 d" */
static void print_age(const heft_shared_copy *copy, char dst[32])
{
    static const struct {
        int64_t seconds, limit;
        const char *unit;
    } units[] = {
        {1,     120,       "s"  },
        {60,    7200,      "min"},
        {3600,  172800,    "h"  },
        {86400, INT64_MAX, "d"  }
    };
    const int64_t age = age_of(copy);
    size_t i = 0;
    while (age >= units[i].limit) {
        i++;
    }
    if (copy->created > 0) {
        snprintf(dst, 32, "%" PRId64 " %s", age / units[i].seconds, units[i].unit);
    } else {
        snprintf(dst, 32, "-");
    }
}

/* "3: 815, 816, 4711"; of many the first ones. */
static void print_users(const heft_shared_copy *copy, char *dst, size_t cap)
{
    size_t length = 0;
    dst[0] = '\0';
    for (size_t i = 0; i < copy->pid_count && length + 32 < cap; i++) {
        length += (size_t)snprintf(dst + length, cap - length, "%s%" PRId64, i ? ", " : "",
                                   copy->pids[i]);
    }
    if (copy->pid_count > 0 && length + 32 >= cap) {
        snprintf(dst + length, cap - length, ", ...");
    }
}

static bool print_text(const cli_run *run, const heft_shared_list *list)
{
    static const char *const titles[] = {"id", ">bytes", ">age", "processes", "source"};
    cli_table table = {.titles = titles, .has_head = true, .columns = 5};
    for (size_t i = 0; i < list->count; i++) {
        const heft_shared_copy *copy = &list->copies[i];
        char bytes[32], age[32], users[160];
        print_age(copy, age);
        print_users(copy, users, sizeof users);
        cli_table_add(&table, copy->id);
        cli_table_add(&table, cli_grouped(copy->bytes, bytes));
        cli_table_add(&table, age);
        cli_table_add(&table, users);
        cli_table_add(&table, copy->building ? "(being built)" : copy->source ? copy->source : "-");
    }
    if (list->count == 0) {
        if (!run->quiet) {
            puts("no shared copies");
        }
        return true;
    }
    return cli_table_print(&table, 0, stdout);
}

static int run_list(cli_run *run)
{
    heft_error err = {0};
    heft_shared_list *list = NULL;
    int code = 0;
    if (heft_shared_list_read(run->ctx, &list, &err) != HEFT_OK) {
        return cli_fail(run, &err);
    }
    if (run->json) {
        print_json(list);
    } else if (!print_text(run, list)) {
        code = cli_fail_nomem(run);
    }
    heft_shared_list_free(list);
    return code;
}

/* ---- removing -------------------------------------------------------------------------------- */
static int run_remove(cli_run *run, const char *id)
{
    heft_error err = {0};
    size_t removed = 0;
    if (heft_shared_remove(run->ctx, id, &removed, &err) != HEFT_OK) {
        return cli_fail(run, &err);
    }
    if (run->json) {
        cli_json json = {.out = stdout};
        cli_json_open(&json, NULL, '{');
        cli_json_u64(&json, "removed", removed);
        cli_json_close(&json, '}');
        cli_json_end(&json);
    } else if (!run->quiet) {
        printf("removed %zu shared cop%s\n", removed, removed == 1 ? "y" : "ies");
    }
    return 0;
}

static int run_shared(cli_run *run)
{
    heft_error err = {0};
    const char *id = run->values[OPTION_REMOVE];
    const bool named = id && strcmp(id, "--all") != 0; /* "--remove --all" */
    if (named && run->values[OPTION_ALL]) {
        cli_refuse(&err, "--all", "cannot be combined with the id of one copy");
        return cli_fail(run, &err);
    }
    return id || run->values[OPTION_ALL] ? run_remove(run, named ? id : NULL) : run_list(run);
}

const cli_command cli_cmd_shared = {
    .name = "shared",
    .arguments = "",
    .argument_count = 0,
    .summary = "List or remove the shared copies of this user on this host",
    .about =
        "heft load --mode shared creates shared copies. Processes that hold a removed copy keep it;"
        "\nthe next load creates a new one.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .no_limits = true,
    .run = run_shared,
};
