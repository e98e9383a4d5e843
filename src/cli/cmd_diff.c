/* cmd_diff.c - heft diff A B: what differs between two checkpoints? */
#include "cli/cli.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OPTIONS(X)                                                                                 \
    X(TOLERANCE, "tolerance", "X", "values that differ by at most X are equal (default: 0)")       \
    X(VARIANT, "variant", "V", "read model.V.safetensors, ... of both")                            \
    X(SUBFOLDER, "subfolder", "DIR", "read the checkpoints in A/DIR and B/DIR")                    \
    X(FORMAT, "format", "F",                                                                       \
      "read only this format: safetensors, bin or offload (default: any, safetensors first)")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

static bool take_tolerance(const cli_run *run, double *tolerance, heft_error *err)
{
    const char *text = run->values[OPTION_TOLERANCE];
    char *end;
    if (!text) {
        return true;
    }
    *tolerance = strtod(text, &end);
    return (*text && !*end && *tolerance >= 0 && *tolerance <= DBL_MAX) ||
           cli_refuse(err, "--tolerance", "'%.40s' is not a finite number that is 0 or more", text);
}

/* ---- JSON ------------------------------------------------------------------------------------ */
static void put_warnings(cli_json *json, const heft_source *source)
{
    const heft_checkpoint *ckpt = heft_source_checkpoint(source);
    const char *warning;
    for (size_t i = 0; (warning = heft_checkpoint_warning(ckpt, i)); i++) {
        cli_json_string(json, NULL, warning);
    }
}

static void print_json(cli_run *run, heft_source *const sources[2], const heft_diff_report *report)
{
    cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_bool(&json, "equal", report->equal);
    cli_json_strings(&json, "added", report->added, report->added_count);
    cli_json_strings(&json, "removed", report->removed, report->removed_count);
    cli_json_open(&json, "changed", '[');
    for (size_t i = 0; i < report->changed_count; i++) {
        const heft_change *change = &report->changed[i];
        cli_json_open(&json, NULL, '{');
        cli_json_string(&json, "name", change->name);
        cli_json_string(&json, "what", change->what);
        cli_json_real(&json, "max_abs", change->max_abs);
        cli_json_real(&json, "max_rel", change->max_rel);
        cli_json_real(&json, "cosine", change->cosine);
        cli_json_close(&json, '}');
    }
    cli_json_close(&json, ']');
    cli_json_u64(&json, "common", report->common);
    cli_json_u64(&json, "bytes_read", report->bytes_read);
    cli_json_open(&json, "warnings", '[');
    put_warnings(&json, sources[0]);
    put_warnings(&json, sources[1]);
    cli_json_close(&json, ']');
    cli_json_double(&json, "seconds", cli_now() - run->started);
    cli_json_memory(&json, "memory", &run->memory);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

/* ---- text ------------------------------------------------------------------------------------ */
/* All names of the report in one list: removed, added, changed. */
struct listing {
    const char **names, **notes; /* owned; texts are borrowed */
    size_t *groups;              /* owned; the row of each name */
    size_t count, first_change;
    cli_folded *rows; /* owned; [folded] */
    size_t folded;
    heft_change *worst; /* owned; [folded] the largest differences and the least cosine of a row */
};

static bool list_names(struct listing *list, const heft_diff_report *report)
{
    list->count = report->removed_count + report->added_count + report->changed_count;
    list->names = calloc(list->count + 1, sizeof *list->names);
    list->notes = calloc(list->count + 1, sizeof *list->notes);
    list->groups = calloc(list->count + 1, sizeof *list->groups);
    if (!list->names || !list->notes || !list->groups) {
        return false;
    }
    size_t at = 0;
    for (size_t i = 0; i < report->removed_count; i++, at++) {
        list->names[at] = report->removed[i];
        list->notes[at] = "removed";
    }
    for (size_t i = 0; i < report->added_count; i++, at++) {
        list->names[at] = report->added[i];
        list->notes[at] = "added";
    }
    list->first_change = at;
    for (size_t i = 0; i < report->changed_count; i++, at++) {
        list->names[at] = report->changed[i].name;
        list->notes[at] = report->changed[i].what;
    }
    list->rows = cli_names_fold(list->names, list->notes, list->count, &list->folded, list->groups);
    return list->rows != NULL;
}

/* NaN is worse than any number: something could not be compared. */
static double larger(double a, double b)
{
    return isnan(a) || a > b ? a : b;
}

static double smaller(double a, double b)
{
    return isnan(a) || a < b ? a : b;
}

static bool find_worst(struct listing *list, const heft_diff_report *report)
{
    list->worst = calloc(list->folded + 1, sizeof *list->worst);
    for (size_t i = 0; list->worst && i < report->changed_count; i++) {
        const heft_change *change = &report->changed[i];
        heft_change *worst = &list->worst[list->groups[list->first_change + i]];
        if (!worst->name) {
            *worst = *change;
        }
        worst->max_abs = larger(worst->max_abs, change->max_abs);
        worst->max_rel = larger(worst->max_rel, change->max_rel);
        worst->cosine = smaller(worst->cosine, change->cosine);
    }
    return list->worst != NULL;
}

/* known: not NaN for want of numbers. digits: behind the point; -1: three in all. */
static void add_number(cli_table *table, bool known, int digits, double value)
{
    char text[32] = "-";
    if (known && digits < 0) {
        snprintf(text, sizeof text, "%.3g", value);
    } else if (known) {
        snprintf(text, sizeof text, "%.*f", digits, value);
    }
    cli_table_add(table, text);
}

static bool print_changes(const struct listing *list)
{
    static const char *const titles[] = {"tensor", "difference", ">max_abs", ">max_rel", ">cosine"};
    cli_table table = {.titles = titles, .columns = 5, .has_head = true};
    for (size_t i = 0; i < list->folded; i++) {
        const heft_change *worst = &list->worst[i];
        cli_table_add(&table, list->rows[i].name);
        cli_table_add(&table, list->rows[i].note);
        add_number(&table, worst->measured, -1, worst->max_abs);
        add_number(&table, worst->measured, -1, worst->max_rel);
        add_number(&table, worst->measured && !isnan(worst->cosine), 6, worst->cosine);
    }
    return cli_table_print(&table, 0, stdout);
}

static void print_counts(const heft_diff_report *report)
{
    const size_t same = report->common - report->changed_count;
    if (report->equal) {
        printf("equal: %zu tensor%s\n", same, same == 1 ? "" : "s");
    } else {
        printf("different: %zu removed, %zu added, %zu changed, %zu equal\n", report->removed_count,
               report->added_count, report->changed_count, same);
    }
}

static bool print_text(const cli_run *run, const heft_diff_report *report)
{
    struct listing list = {0};
    bool good = true;
    if (!report->equal) {
        good = list_names(&list, report) && find_worst(&list, report) && print_changes(&list);
    }
    cli_names_free(list.rows, list.folded);
    free(list.worst);
    free(list.groups);
    free(list.notes);
    free(list.names);
    if (good && !run->quiet) {
        print_counts(report);
    }
    return good;
}

/* ---- the command ----------------------------------------------------------------------------- */
static void warn_of(cli_run *run, const heft_source *source)
{
    const heft_checkpoint *ckpt = heft_source_checkpoint(source);
    const char *warning;
    for (size_t i = 0; (warning = heft_checkpoint_warning(ckpt, i)); i++) {
        cli_warn(run, warning);
    }
}

static int print_report(cli_run *run, heft_source *const sources[2], const heft_diff_report *report)
{
    bool good = true;
    cli_memory_finish(&run->memory);
    cli_progress_clear(run);
    warn_of(run, sources[0]);
    warn_of(run, sources[1]);
    if (run->json) {
        print_json(run, sources, report);
    } else {
        good = print_text(run, report);
    }
    return !good ? cli_fail_nomem(run) : report->equal ? 0 : CLI_EXIT_NO;
}

static int run_diff(cli_run *run)
{
    heft_error err = {0};
    heft_source *sources[2] = {NULL, NULL};
    heft_diff_report *report = NULL;
    heft_diff_options request = HEFT_SIZED(heft_diff_options);
    heft_checkpoint_options where =
        HEFT_OPTIONS(heft_checkpoint_options, .variant = run->values[OPTION_VARIANT],
                     .subfolder = run->values[OPTION_SUBFOLDER]);
    if (!take_tolerance(run, &request.tolerance, &err) ||
        !cli_value_format(run, OPTION_FORMAT, &where.prefer, &err)) {
        return cli_fail(run, &err);
    }
    const heft_source_options how = HEFT_OPTIONS(heft_source_options, .checkpoint = &where);
    heft_status status = HEFT_OK;
    for (size_t i = 0; i < 2 && status == HEFT_OK; i++) {
        status = heft_source_open(run->ctx, run->arguments[i], &how, &sources[i], &err);
    }
    if (status == HEFT_OK) {
        status = heft_source_diff(sources[0], sources[1], &request, &report, &err);
    }
    const int code = status == HEFT_OK ? print_report(run, sources, report) : cli_fail(run, &err);
    heft_diff_report_free(report);
    heft_source_close(sources[1]);
    heft_source_close(sources[0]);
    return code;
}

const cli_command cli_cmd_diff = {
    .name = "diff",
    .arguments = "A B",
    .argument_count = 2,
    .summary = "Show what differs between two checkpoints",
    .about = "A and B are checkpoint folders, weight files or index files, of any formats.\n"
             "The exit code is 0 if their tensors are equal, 1 if not.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .run = run_diff,
};
