/* cmd_verify.c - heft verify PATH: is a checkpoint complete and valid? */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define OPTIONS(X)                                                                                 \
    X(DEEP, "deep", NULL,                                                                          \
      "read every byte: checksums, NaN, infinities, and heft-manifest.json if it is there")        \
    X(MANIFEST, "manifest", "FILE", "compare with a manifest written by --write-manifest")         \
    X(WRITE_MANIFEST, "write-manifest", "[FILE]",                                                  \
      "write file sizes and checksums (default: heft-manifest.json in the folder)")                \
    X(VARIANT, "variant", "V", "read model.V.safetensors, ...")                                    \
    X(SUBFOLDER, "subfolder", "DIR", "read the checkpoint in PATH/DIR")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

static void print_json(cli_run *run, const heft_verify_report *report)
{
    cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_bool(&json, "ok", report->ok);
    cli_json_open(&json, "problems", '[');
    for (size_t i = 0; i < report->problem_count; i++) {
        const heft_problem *problem = &report->problems[i];
        cli_json_open(&json, NULL, '{');
        cli_json_string(&json, "kind", problem->kind);
        cli_json_string(&json, "file", problem->file);
        cli_json_string(&json, "tensor", problem->tensor);
        if (problem->offset == HEFT_NO_OFFSET) {
            cli_json_null(&json, "offset");
        } else {
            cli_json_u64(&json, "offset", problem->offset);
        }
        cli_json_string(&json, "message", problem->message);
        cli_json_bool(&json, "fatal", problem->fatal);
        cli_json_close(&json, '}');
    }
    cli_json_close(&json, ']');
    cli_json_u64(&json, "files", report->file_count);
    cli_json_u64(&json, "tensors", report->tensor_count);
    cli_json_u64(&json, "bytes_read", report->bytes_read);
    cli_json_double(&json, "seconds", cli_now() - run->started);
    cli_json_memory(&json, "memory", &run->memory);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

/* "crc: pytorch_model.bin: archive/data/0: byte 704: ...", after "note: " if it is not fatal. */
static void print_problem(const heft_problem *problem)
{
    const char *parts[] = {problem->kind, problem->file, problem->tensor};
    fputs(problem->fatal ? "" : "note: ", stdout);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (parts[i] && *parts[i]) {
            cli_put(stdout, parts[i]);
            fputs(": ", stdout);
        }
    }
    if (problem->offset != HEFT_NO_OFFSET) {
        printf("byte %" PRIu64 ": ", problem->offset);
    }
    cli_put(stdout, problem->message);
    const char *limit = cli_limit_named(problem->message);
    if (limit) {
        printf("; --limit %s=N raises it", limit);
    }
    putchar('\n');
}

static void print_text(const cli_run *run, const heft_verify_report *report)
{
    size_t fatal = 0;
    for (size_t i = 0; i < report->problem_count; i++) {
        fatal += report->problems[i].fatal;
        if (report->problems[i].fatal || !run->quiet) {
            print_problem(&report->problems[i]);
        }
    }
    if (run->quiet) {
        return;
    }
    if (!report->ok) {
        printf("not valid: %zu problem%s\n", fatal, fatal == 1 ? "" : "s");
        return;
    }
    printf("ok: %zu file%s, %zu tensor%s, %" PRIu64 " bytes\n", report->file_count,
           report->file_count == 1 ? "" : "s", report->tensor_count,
           report->tensor_count == 1 ? "" : "s", report->total_bytes);
}

/* That a file cannot be read is no answer about what is in it: scripts that drop stdout see it too. */
static void tell_unreadable(const cli_run *run, const heft_verify_report *report)
{
    for (size_t i = 0; i < report->problem_count && !run->json; i++) {
        const heft_problem *problem = &report->problems[i];
        if (strcmp(problem->kind, "unreadable") == 0) {
            fprintf(stderr, "heft %s: ", run->command->name);
            cli_put(stderr, problem->file);
            fputs(": could not be read: ", stderr);
            cli_put(stderr, problem->message);
            putc('\n', stderr);
            return; /* one line; the others are in the report */
        }
    }
}

/* heft-manifest.json in the folder that holds the files; owned. The folder is derived from the path,
 * because a damaged checkpoint may not open. */
static char *standard_manifest(const char *path, const char *subfolder)
{
    static const char name[] = "heft-manifest.json";
    struct stat facts;
    char *at = NULL, *manifest = NULL;
    if (asprintf(&at, "%s%s%s", path, subfolder ? "/" : "", subfolder ? subfolder : "") < 0) {
        return NULL;
    }
    char *slash = strrchr(at, '/');
    if (stat(at, &facts) == 0 && S_ISDIR(facts.st_mode)) {
        slash = at + strlen(at);
    }
    const int length = slash ? (int)(slash - at) : 0;
    if (asprintf(&manifest, "%.*s%s%s", length, at, slash ? "/" : "", name) < 0) {
        manifest = NULL;
    }
    free(at);
    return manifest;
}

static int run_verify(cli_run *run)
{
    const char *path = run->arguments[0];
    heft_error err = {0};
    heft_verify_report *report = NULL;
    heft_source *source = NULL;
    const heft_checkpoint_options where =
        HEFT_OPTIONS(heft_checkpoint_options, .variant = run->values[OPTION_VARIANT],
                     .subfolder = run->values[OPTION_SUBFOLDER]);
    heft_verify_options request =
        HEFT_OPTIONS(heft_verify_options, .deep = run->values[OPTION_DEEP] != NULL,
                     .manifest = run->values[OPTION_MANIFEST],
                     .write_manifest = run->values[OPTION_WRITE_MANIFEST]);
    char *manifest = standard_manifest(path, where.subfolder);
    if (!manifest) {
        return cli_fail_nomem(run);
    }
    if (request.write_manifest && !*request.write_manifest) {
        request.write_manifest = manifest;
    } else if (request.deep && !request.manifest && !request.write_manifest &&
               access(manifest, F_OK) == 0) {
        request.manifest = manifest;
    }
    int code;
    heft_status status = heft_source_open(
        run->ctx, path, &HEFT_OPTIONS(heft_source_options, .checkpoint = &where, .damaged = true),
        &source, &err);
    if (status == HEFT_OK) {
        status = heft_source_verify(source, &request, &report, &err);
    }
    if (status != HEFT_OK) {
        code = cli_fail(run, &err);
    } else {
        cli_memory_finish(&run->memory);
        cli_progress_clear(run);
        if (run->json) {
            print_json(run, report);
        } else {
            print_text(run, report);
        }
        code = report->ok ? 0 : CLI_EXIT_NO;
        tell_unreadable(run, report);
    }
    heft_verify_report_free(report);
    heft_source_close(source);
    free(manifest);
    return code;
}

const cli_command cli_cmd_verify = {
    .name = "verify",
    .arguments = "PATH",
    .argument_count = 1,
    .summary = "Check whether a checkpoint is complete and valid",
    .about = "PATH is a checkpoint folder, a weight file or an index file.\n"
             "The exit code is 0 if the checkpoint is valid, 1 if not.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .run = run_verify,
};
