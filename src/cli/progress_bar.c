/* progress_bar.c - what happens while the library works: a bar on a terminal, samples of memory, a
 * way to stop.
 *
 *   reading [##########--------------------]  34%  1.2 GB/s  0:03 left
 *
 * The bar is drawn at most ten times a second, in the width that the terminal has at that moment,
 * and cleared before anything else is printed. */
#include "cli/cli.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define DRAW_SECONDS 0.1

double cli_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* ---- stopping -------------------------------------------------------------------------------- */
static volatile sig_atomic_t caught, interrupts; /* all that a signal handler may touch */

static void on_signal(int number)
{
    (void)number;
    caught = 1;
}

void cli_signals_catch(void)
{
    /* SA_RESETHAND: who asks a second time does not want to wait for tidying up. */
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART | (int)SA_RESETHAND};
    const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        struct sigaction before;
        /* nohup and background jobs have some ignored, which stays so */
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN) {
            sigaction(numbers[i], &action, NULL);
        }
    }
}

static void on_interrupt(int number)
{
    (void)number;
    interrupts += interrupts < 100;
}

void cli_interrupts_catch(void)
{
    struct sigaction ends = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND},
                     stops = {.sa_handler = on_interrupt};
    sigemptyset(&ends.sa_mask);
    sigemptyset(&stops.sa_mask);
    sigaction(SIGINT, &stops, NULL);
    sigaction(SIGTERM, &ends, NULL);
    sigaction(SIGHUP, &ends, NULL);
}

unsigned cli_interrupts(void)
{
    return (unsigned)interrupts;
}

void cli_interrupts_clear(void)
{
    interrupts = 0;
}

/* A signal that comes after the look at what has come must end the wait: until then it is held back. Threads of the
 * library take none. */
bool cli_interrupts_await(int file)
{
    struct pollfd input = {.fd = file, .events = POLLIN};
    sigset_t held, before;
    sigemptyset(&held);
    sigaddset(&held, SIGINT);
    sigaddset(&held, SIGTERM);
    sigaddset(&held, SIGHUP);
    sigprocmask(SIG_BLOCK, &held, &before);
    const bool good = interrupts == 0 && !caught && ppoll(&input, 1, NULL, &before) > 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return good;
}

bool cli_signals_end(void)
{
    return caught != 0;
}

bool cli_signals_caught(void)
{
    return caught != 0 || interrupts > 1;
}

/* ---- the bar --------------------------------------------------------------------------------- */
static size_t terminal_columns(void)
{
    struct winsize size;
    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
        return size.ws_col;
    }
    return 80;
}

static void format_left(double seconds, char *dst, size_t cap)
{
    unsigned long whole = seconds < 3600000 ? (unsigned long)(seconds + 0.5) : 3600000ul;
    if (whole >= 3600) {
        snprintf(dst, cap, "%lu:%02lu:%02lu left", whole / 3600, whole / 60 % 60, whole % 60);
    } else {
        snprintf(dst, cap, "%lu:%02lu left", whole / 60, whole % 60);
    }
}

static void format_rate(const cli_progress *bar, const heft_progress *progress, double now,
                        char *dst, size_t cap)
{
    char bytes[32], left[32] = "";
    double seconds = now - bar->began;
    uint64_t moved = progress->done_bytes > bar->first ? progress->done_bytes - bar->first : 0;
    double rate = seconds > 0 ? (double)moved / seconds : 0;
    if (rate > 0 && progress->total_bytes >= progress->done_bytes) {
        format_left((double)(progress->total_bytes - progress->done_bytes) / rate, left,
                    sizeof left);
    }
    snprintf(dst, cap, "%9s/s  %s", cli_bytes((uint64_t)rate, bytes), left);
}

static void draw(const cli_progress *bar, const heft_progress *progress, double now)
{
    char tail[96], line[512], bytes[32];
    size_t columns = terminal_columns();
    format_rate(bar, progress, now, tail, sizeof tail);
    int at;
    const size_t fixed = strlen(bar->what) + strlen(tail) + 12; /* spaces, brackets, percent */
    const double share = progress->total_bytes == 0 ? 0
                         : progress->done_bytes < progress->total_bytes
                             ? (double)progress->done_bytes / (double)progress->total_bytes
                             : 1;
    if (progress->total_bytes > 0 && columns < fixed + 10) { /* a bar that is cut off looks full */
        at = snprintf(line, sizeof line, "%s %3d%% %s", bar->what, (int)(share * 100), tail);
    } else if (progress->total_bytes == 0) {
        at = snprintf(line, sizeof line, "%s %s  %s", bar->what,
                      cli_bytes(progress->done_bytes, bytes), tail);
    } else {
        const size_t room = columns - fixed > 60 ? 60 : columns - fixed;
        char cells[61];
        for (size_t i = 0; i < room; i++) {
            cells[i] = (double)(i + 1) <= share * (double)room ? '#' : '-';
        }
        cells[room] = '\0';
        at = snprintf(line, sizeof line, "%s [%s] %3d%% %s", bar->what, cells, (int)(share * 100),
                      tail);
    }
    /* never a second line: it could not be cleared */
    size_t length = at < 0 ? 0 : (size_t)at < sizeof line ? (size_t)at : sizeof line - 1;
    length = length < columns ? length : columns - 1;
    fprintf(stderr, "\r%.*s\033[K", (int)length, line);
    fflush(stderr);
}

void cli_progress_clear(cli_run *run)
{
    if (run->progress.drawn) {
        fputs("\r\033[K", stderr);
        fflush(stderr);
        run->progress.drawn = false;
    }
}

bool cli_progress_tell(void *user, const heft_progress *progress)
{
    cli_run *run = user;
    cli_progress *bar = &run->progress;
    cli_memory_sample(&run->memory);
    if (bar->on) {
        double now = cli_now();
        const char *what = progress->what ? progress->what : "working";
        if (strncmp(bar->what, what, sizeof bar->what - 1) != 0 ||
            progress->done_bytes < bar->first) {
            snprintf(bar->what, sizeof bar->what, "%s", what);
            bar->began = now;
            bar->first = progress->done_bytes;
            bar->drawn_at = now; /* what takes less than that needs no bar */
        }
        if (now - bar->drawn_at >= DRAW_SECONDS) {
            draw(bar, progress, now);
            bar->drawn = true;
            bar->drawn_at = now;
        }
    }
    return !cli_signals_caught();
}

void cli_progress_log(void *user, const char *line)
{
    cli_run *run = user;
    cli_progress_clear(run);
    fprintf(stderr, "heft %s: ", run->command->name);
    cli_put(stderr, line);
    putc('\n', stderr);
}
