/* main.c - the command `heft`: the table of commands, and what is the same for all of them. */
#include "cli/cli.h"

#include <fcntl.h>
#include <locale.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const cli_command *const commands[] = {
    &cli_cmd_init, &cli_cmd_load, &cli_cmd_inspect, &cli_cmd_convert, &cli_cmd_verify,
    &cli_cmd_diff, &cli_cmd_plan, &cli_cmd_run,     &cli_cmd_embed,   &cli_cmd_shared,
};
#define COMMAND_COUNT (sizeof commands / sizeof commands[0])

static const cli_command *find_command(const char *name)
{
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        if (strcmp(commands[i]->name, name) == 0) {
            return commands[i];
        }
    }
    return NULL;
}

static void print_help(FILE *out)
{
    fputs("usage: heft COMMAND [OPTIONS] ARGUMENTS\n\nLoad, convert and check big pretrained "
          "models with little memory.\n\n",
          out);
    for (size_t i = 0; i < COMMAND_COUNT; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s %s", commands[i]->name, commands[i]->arguments);
        fprintf(out, "  %-16s %s\n", text, commands[i]->summary);
    }
    fputs("\n  heft help COMMAND, heft COMMAND --help    show the options of a command\n  heft "
          "--version                            show the version of the library\n",
          out);
}

/* A closed stdin, stdout or stderr would give its number to the next file that is opened, and what
 * is printed would go into that file. Opened for the wrong direction, each use of it is an
 * error. */
static void occupy_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd) {
            abort();
        }
    }
}

/* Only the width of characters depends on the locale; numbers never do. */
static void choose_locale(void)
{
    if (!setlocale(LC_CTYPE, "") || MB_CUR_MAX == 1) {
        setlocale(LC_CTYPE, "C.UTF-8");
    }
}

static int run_command(cli_run *run, int argc, char **argv)
{
    heft_error err = {0};
    bool good = cli_options_parse(run, argc, argv, &err);
    if (run->help) {
        cli_options_help(run->command, stdout);
        return 0;
    }
    if (!good) {
        return cli_fail_usage(run, &err);
    }
    uint64_t threads = 0;
    for (size_t i = 0; i < run->command->option_count; i++) {
        if (strcmp(run->command->options[i].name, "threads") == 0 &&
            !cli_value_count(run, i, &threads, &err)) {
            return cli_fail(run, &err);
        }
    }
    const char *terminal = getenv("TERM");
    run->progress.on =
        !run->quiet && isatty(STDERR_FILENO) && !(terminal && strcmp(terminal, "dumb") == 0);
    const heft_ctx_options options =
        HEFT_OPTIONS(heft_ctx_options, .threads = (unsigned)threads, .limits = &run->limits,
                     .progress = cli_progress_tell, .progress_user = run,
                     .log = run->verbose ? cli_progress_log : NULL, .log_user = run);
    run->ctx = heft_ctx_new(&options);
    if (!run->ctx) {
        return cli_fail_nomem(run);
    }
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of writing: see cli_finish_stdout */
    signal(SIGXFSZ, SIG_IGN); /* and so is a file over the limit on file sizes */
    if (!run->command->dies_at_once) {
        cli_signals_catch();
    }
    int code = run->command->run(run);
    cli_progress_clear(run);
    heft_ctx_free(run->ctx);
    return code;
}

/* `heft help`, `heft help COMMAND`, `heft --help` */
static int run_help(cli_run *run, const char *name)
{
    heft_error err = {0};
    const cli_command *command = name ? find_command(name) : NULL;
    if (name && !command) {
        cli_refuse(&err, "", "unknown command '%.200s'", name);
        return cli_fail_usage(run, &err);
    }
    if (command) {
        cli_options_help(command, stdout);
    } else {
        print_help(stdout);
    }
    return 0;
}

static int run_main(cli_run *run, int argc, char **argv)
{
    heft_error err = {0};
    const char *word = argc > 1 ? argv[1] : "";
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0) {
        return run_help(run, NULL);
    }
    if (strcmp(word, "help") == 0) {
        return run_help(run, argc > 2 ? argv[2] : NULL);
    }
    if (strcmp(word, "--version") == 0) {
        printf("heft %s\n", heft_version());
        return 0;
    }
    run->command = find_command(word);
    if (run->command) {
        return run_command(run, argc - 2, argv + 2);
    }
    if (argc < 2) {
        cli_refuse(&err, "", "expected a command");
    } else {
        cli_refuse(&err, "", "unknown %s '%.200s'", word[0] == '-' ? "option" : "command", word);
    }
    return cli_fail_usage(run, &err);
}

/* glibc sets 64 MiB of address space aside for each thread that allocates, which is no more than a
 * few buffers here. */
static void allocate_from_one_arena(void)
{
#ifdef M_ARENA_MAX
    (void)mallopt(M_ARENA_MAX, 1);
#endif
}

int main(int argc, char **argv)
{
    allocate_from_one_arena();
    occupy_standard_files();
    choose_locale();
    cli_run run = {.started = cli_now(), .limits = HEFT_SIZED(heft_limits)};
    return cli_finish_stdout(&run, run_main(&run, argc, argv));
}
