/* failure.c - how the command says that something went wrong.
 *
 *   heft load: model-00002-of-00005.bin: byte 4711: pickle global 'os.system' is refused
 *
 * One line on stderr, or with --json the error document on stdout, never both. */
#include "cli/cli.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

bool cli_refuse(heft_error *err, const char *item, const char *format, ...)
{
    va_list args;
    *err = (heft_error){.status = HEFT_INVALID_ARG, .offset = HEFT_NO_OFFSET};
    snprintf(err->item, sizeof err->item, "%s", item);
    va_start(args, format);
    vsnprintf(err->message, sizeof err->message, format, args);
    va_end(args);
    return false;
}

static void print_line(cli_run *run, const heft_error *err)
{
    char line[sizeof(heft_error) + 64];
    cli_progress_clear(run);
    heft_error_format(err, line, sizeof line);
    fputs(run->command ? "heft " : "heft", stderr);
    fputs(run->command ? run->command->name : "", stderr);
    fputs(": ", stderr);
    cli_put(stderr, line);
    putc('\n', stderr);
}

/* What can be done about it. */
static void tell_option(heft_error *err)
{
    const char *name = cli_limit_named(err->message);
    const size_t length = strlen(err->message);
    if (name) {
        snprintf(err->message + length, sizeof err->message - length, "; --limit %s=N raises it",
                 name);
    }
}

int cli_fail(cli_run *run, const heft_error *err)
{
    heft_error plain = *err;
    if (err->status == HEFT_LIMIT) {
        tell_option(&plain);
    }
    if (err->status == HEFT_CANCELLED) { /* where it stopped is of no use to anybody */
        plain = (heft_error){.status = HEFT_CANCELLED, .offset = HEFT_NO_OFFSET};
        snprintf(plain.message, sizeof plain.message, "cancelled%s%s", run->kept ? "; " : "",
                 run->kept ? run->kept : "");
    }
    if (run->json) {
        cli_json json = {.out = stdout};
        cli_progress_clear(run);
        cli_json_open(&json, NULL, '{');
        cli_json_error(&json, &plain);
        cli_json_close(&json, '}');
        cli_json_end(&json);
    } else {
        print_line(run, &plain);
    }
    return heft_status_exit_code(err->status);
}

int cli_fail_usage(cli_run *run, const heft_error *err)
{
    cli_fail(run, err);
    if (!run->json) {
        fprintf(stderr, "try heft %s%s--help\n", run->command ? run->command->name : "",
                run->command ? " " : "");
    }
    return CLI_EXIT_USAGE;
}

int cli_fail_nomem(cli_run *run)
{
    heft_error err = {.status = HEFT_NOMEM,
                      .offset = HEFT_NO_OFFSET,
                      .message = "cannot allocate memory for the output"};
    return cli_fail(run, &err);
}

void cli_warn(cli_run *run, const char *text)
{
    if (run->quiet || run->json) {
        return;
    }
    cli_progress_clear(run);
    fprintf(stderr, "heft %s: warning: ", run->command->name);
    cli_put(stderr, text);
    putc('\n', stderr);
}

/* `| head` has read enough: a command that only shows something ends as every filter does, by the
 * signal. */
static void end_with_reader(const cli_run *run)
{
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    if ((!run->command || run->command->dies_at_once) && poll(&out, 1, 0) == 1 &&
        (out.revents & POLLERR)) {
        signal(SIGPIPE, SIG_DFL);
        (void)raise(SIGPIPE);
    }
}

int cli_finish_stdout(cli_run *run, int code)
{
    bool failed = ferror(stdout) != 0;
    errno = 0;
    if (fflush(stdout) == 0 && !failed) {
        return code;
    }
    const int reason = errno;
    end_with_reader(run);
    errno = reason;
    heft_error err = {.status = HEFT_IO, .sys_errno = errno, .offset = HEFT_NO_OFFSET};
    snprintf(err.message, sizeof err.message, "cannot write to standard output%s%s",
             errno ? ": " : "", errno ? strerror(errno) : "");
    print_line(run, &err); /* a document would go where this one failed to go */
    return heft_status_exit_code(HEFT_IO);
}
