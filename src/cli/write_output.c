/* write_output.c - what `init` and `convert` say of the files they wrote, or would write. */
#include "cli/cli.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static void print_json(cli_run *run, const heft_write_report *report, bool dry_run, double seconds)
{
    cli_json json = {.out = stdout};
    cli_json_open(&json, NULL, '{');
    cli_json_open(&json, "files", '[');
    for (size_t i = 0; i < report->file_count; i++) {
        cli_json_open(&json, NULL, '{');
        cli_json_string(&json, "name", report->files[i].name);
        cli_json_u64(&json, "bytes", report->files[i].size_bytes);
        cli_json_u64(&json, "tensors", report->files[i].tensors);
        cli_json_close(&json, '}');
    }
    cli_json_close(&json, ']');
    cli_json_string(&json, "index", report->index);
    cli_json_u64(&json, "total_size", report->total_size);
    if (report->total_parameters) {
        cli_json_u64(&json, "total_parameters", report->total_parameters);
    }
    cli_json_bool(&json, "dry_run", dry_run);
    cli_json_strings(&json, "warnings", report->warnings, report->warning_count);
    cli_json_double(&json, "seconds", seconds);
    cli_json_memory(&json, "memory", &run->memory);
    cli_json_close(&json, '}');
    cli_json_end(&json);
}

static bool print_files(const heft_write_report *report)
{
    static const char *const titles[] = {"file", ">tensors", ">bytes"};
    cli_table table = {.titles = titles, .columns = 3, .has_head = true};
    char text[32];
    for (size_t i = 0; i < report->file_count; i++) {
        cli_table_add(&table, report->files[i].name);
        cli_table_add(&table, cli_grouped(report->files[i].tensors, text));
        cli_table_add(&table, cli_grouped(report->files[i].size_bytes, text));
    }
    return cli_table_print(&table, 0, stdout);
}

static bool print_text(cli_run *run, const heft_write_report *report, bool dry_run, double seconds)
{
    char bytes[32], exact[32], elements[32], memory[128];
    if (!print_files(report)) {
        return false;
    }
    if (report->index) {
        printf("index       ");
        cli_put(stdout, report->index);
        putchar('\n');
    }
    printf("total       %s (%s bytes)\n", cli_bytes(report->total_size, bytes),
           cli_grouped(report->total_size, exact));
    if (report->total_parameters) {
        printf("parameters  %s\n", cli_grouped(report->total_parameters, elements));
    }
    if (dry_run) {
        printf("nothing was written (--dry-run)\n");
    }
    printf("time        %.2f s\nmemory      %s\n", seconds, cli_memory_text(&run->memory, memory));
    return true;
}

void cli_warn_of_folder(cli_run *run, const char *path)
{
    static const char *const endings[] = {".safetensors", ".bin", ".pt", ".pth", ".ckpt"};
    const size_t length = strlen(path);
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        const size_t tail = strlen(endings[i]);
        char *text = NULL;
        if (length > tail && strcmp(path + length - tail, endings[i]) == 0 &&
            asprintf(&text, "DST '%s' is a folder, although it is named as a weight file", path) >=
                0) {
            cli_warn(run, text);
            free(text);
        }
    }
}

int cli_print_written(cli_run *run, const heft_write_report *report, bool dry_run)
{
    double seconds = cli_now() - run->started;
    cli_memory_finish(&run->memory);
    cli_progress_clear(run);
    for (size_t i = 0; i < report->warning_count; i++) {
        cli_warn(run, report->warnings[i]);
    }
    if (run->json) {
        print_json(run, report, dry_run, seconds);
    } else if (!run->quiet && !print_text(run, report, dry_run, seconds)) {
        return cli_fail_nomem(run);
    }
    return 0;
}
