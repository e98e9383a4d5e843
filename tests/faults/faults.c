/* faults.c - every call of every command that writes fails, or is the last one; and a second process comes in.
 *
 *   faults [--heft FILE] [--root FOLDER] [--jobs N] [--sample N] [--list]
 *          [--only SCENARIO] [--mode MODE] [--n N] [--exchange yes|no] [-v]
 *
 * A point is a scenario, with or without an exchange of folders, a mode and the number of a call. After it the
 * destination is read as a loader would and through heft: it is what it was (OLD), what the command makes (NEW),
 * or a folder from which nothing loads; never a mixture. The same command then has to succeed, leave NEW and
 * nothing else. Modes:
 *   ENOSPC EIO EINTR EROFS EACCES   the call fails            short            it writes half
 *   kill killafter                  the process ends          pENOSPC pEIO pEROFS   all later writes fail as well
 *   power0 ... power4               the power fails: power.h
 *   reader                          the writer stops at the call, and a reader comes
 *   strict                          the writer stops at the call, and heft load --strict comes
 *   reread                          the reader stops at its call, and the writer runs
 *   race                            the writer stops at the call, and a second writer comes
 * One line per violation, with options that repeat it, and one per scenario. Exit: 0 if there are no violations. */
#include "inject.h"
#include "power.h"
#include "programs.h"
#include "scenarios.h"
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SCENARIOS_MAX 64
#define SECONDS 60 /* that a point may take */

typedef enum kind { KIND_FAULT, KIND_POWER, KIND_READER, KIND_STRICT, KIND_REREAD, KIND_RACE } kind;

static const struct mode {
    const char *name;
    kind kind;
    inject_action action;
    int error; /* or variant */
} modes[] = {
    {"ENOSPC",    KIND_FAULT,  INJECT_FAIL,       ENOSPC},
    {"EIO",       KIND_FAULT,  INJECT_FAIL,       EIO   },
    {"EINTR",     KIND_FAULT,  INJECT_FAIL,       EINTR },
    {"EROFS",     KIND_FAULT,  INJECT_FAIL,       EROFS },
    {"EACCES",    KIND_FAULT,  INJECT_FAIL,       EACCES},
    {"short",     KIND_FAULT,  INJECT_SHORT,      0     },
    {"kill",      KIND_FAULT,  INJECT_KILL,       0     },
    {"killafter", KIND_FAULT,  INJECT_KILL_AFTER, 0     },
    {"pENOSPC",   KIND_FAULT,  INJECT_FAIL_LATER, ENOSPC},
    {"pEIO",      KIND_FAULT,  INJECT_FAIL_LATER, EIO   },
    {"pEROFS",    KIND_FAULT,  INJECT_FAIL_LATER, EROFS },
    {"power0",    KIND_POWER,  INJECT_KILL,       0     },
    {"power1",    KIND_POWER,  INJECT_KILL,       1     },
    {"power2",    KIND_POWER,  INJECT_KILL,       2     },
    {"power3",    KIND_POWER,  INJECT_KILL,       3     },
    {"power4",    KIND_POWER,  INJECT_KILL,       4     },
    {"reader",    KIND_READER, INJECT_PAUSE,      0     },
    {"strict",    KIND_STRICT, INJECT_PAUSE,      0     },
    {"reread",    KIND_REREAD, INJECT_PAUSE,      0     },
    {"race",      KIND_RACE,   INJECT_PAUSE,      0     },
};
#define MODES (sizeof modes / sizeof modes[0])

/* What a point is about, so that a sample has enough of each. */
typedef enum subject { ABOUT_ANY, ABOUT_JOURNAL, ABOUT_LOCK } subject;

typedef struct point {
    unsigned scenario, exchange, mode;
    subject about;
    long n;
} point;

/* Shared by all workers. */
static struct shared {
    atomic_size_t next;
    struct {
        atomic_long points, bad, reruns, nothing;
    } results[SCENARIOS_MAX];
} * shared;

static struct options {
    const char *heft, *root, *only, *mode, *exchange;
    long n, jobs, sample;
    bool list, verbose;
} options;

static char self[512], top[256];

/* ---- one worker -------------------------------------------------------------------------------- */
static struct worker {
    unsigned number;
    char folder[300], text[310], destination[310];
    int output; /* what the command prints */
    char printed[2000];
    /* of the scenario at hand */
    const point *at;
    const scenario *scenario;
    unsigned scenario_number, exchange;
    bool ready;
    long first_count;
    long journal_begin, journal_end; /* calls between which there is one; 0: there is none */
    tree old, new, source;
    meaning old_meaning, new_meaning;
    int old_strict, new_strict;          /* exit codes of heft load --strict */
    tree rival_new, both, both_reversed; /* of races */
    tree got, got_later;
    unsigned violations;
    char what[1600]; /* the call */
} w;

static const char *exchange_text(unsigned exchange)
{
    return exchange ? "yes" : "no";
}

__attribute__((format(printf, 1, 2))) static void violation(const char *format, ...)
{
    char text[3000], line[4000];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    for (char *p = text; *p; p++) {
        *p = *p == '\n' ? '|' : *p;
    }
    const int length = snprintf(
        line, sizeof line, "--only %s --mode %s --exchange %s --n %ld: %s: %s\n", w.scenario->name,
        modes[w.at->mode].name, exchange_text(w.exchange), w.at->n, w.what, text);
    (void)!write(1, line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
    w.violations++;
}

static void fresh(void)
{
    char path[600];
    tree_remove(w.folder);
    if (mkdir(w.folder, 0755) != 0) {
        die("cannot make", w.folder);
    }
    if (w.scenario->before) {
        snprintf(path, sizeof path, "%s/before/%s", top, w.scenario->before);
        tree_copy(path, w.destination);
    }
}

static void take_printed(void)
{
    const ssize_t got = pread(w.output, w.printed, sizeof w.printed - 1, 0);
    w.printed[got > 0 ? got : 0] = '\0';
    (void)!ftruncate(w.output, 0);
    (void)lseek(w.output, 0, SEEK_SET);
}

static void free_words(char **words)
{
    for (size_t i = 0; words[i]; i++) {
        free(words[i]);
    }
}

/* -v: every call of the point at hand. */
static void print_call(void *user, const inject_call *call)
{
    char path[64], name[300] = "";
    (void)user;
    if (call->fd >= 0) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)call->pid, call->fd);
        (void)!readlink(path, name, sizeof name - 1);
    }
    fprintf(stderr, "%s %s%s%s %s\n", call->name, call->path, *call->to ? " to " : "", call->to,
            name);
}

/* Run a command under the injector, to its end or its pause. `words` belong to the caller. */
static void inject(inject_job *job, const char *command, char **words)
{
    scenarios_split(command, w.destination, words, 32);
    job->argv = words;
    job->text = w.text;
    job->no_exchange = !w.exchange;
    job->output = w.output;
    if (options.verbose && w.at && !job->watch) {
        job->watch = print_call;
    }
    if (!inject_run(job)) {
        errno = 0;
        die("cannot trace", words[0]);
    }
}

static int inject_whole(inject_job *job, const char *command)
{
    char *words[32];
    inject(job, command, words);
    free_words(words);
    return job->code;
}

/* What is there before: an unfinished run, if the scenario has one. */
static void set_up(void)
{
    fresh();
    if (w.scenario->first) {
        inject_job job = {.action = INJECT_KILL, .n = w.first_count * 6 / 10};
        (void)inject_whole(&job, w.scenario->first);
        (void)!ftruncate(w.output, 0);
    }
}

#define STRICT "{H} load {D} --strict -q"

static int load_strict(void)
{
    inject_job job = {.action = INJECT_NOTHING};
    const int code = inject_whole(&job, STRICT);
    take_printed();
    return code;
}

static void watch_journal(void *user, const inject_call *call)
{
    const inject_job *job = user;
    if (strncmp(call->name, "rename", 6) != 0) {
        return;
    }
    if (strstr(call->to, ".heft-tmp-journal")) {
        w.journal_begin = job->count;
    }
    if (strstr(call->path, ".heft-tmp-journal")) {
        w.journal_end = job->count;
    }
}

static long count_calls(const char *command)
{
    inject_job job = {.action = INJECT_COUNT, .watch = watch_journal, .user = &job};
    w.journal_begin = w.journal_end = 0;
    const int code = inject_whole(&job, command);
    take_printed();
    if (code != 0) {
        fprintf(stderr, "faults: %s: without a fault it ends with %d: %s\n", w.scenario->name, code,
                w.printed);
        exit(99);
    }
    return job.count;
}

static void then(const char *command, tree *out)
{
    (void)count_calls(command);
    tree_read(w.destination, false, out);
}

static bool is_own(const tree_entry *entry)
{
    return entry->mtime != 0;
}

/* That the undisturbed result is right by itself: what is the user's stays, and weights are the source's. */
static void check_new(void)
{
    char path[300], message[600];
    meaning source;
    for (size_t i = 0, k = 0; i < w.old.count; i++) {
        while (k < w.new.count && strcmp(w.new.entries[k].path, w.old.entries[i].path) < 0) {
            k++;
        }
        if (is_own(&w.old.entries[i]) &&
            (k == w.new.count ||
             memcmp(&w.new.entries[k], &w.old.entries[i], sizeof(tree_entry)))) {
            fprintf(stderr, "faults: %s: '%s' is not as it was\n", w.scenario->name,
                    w.old.entries[i].path);
            exit(99);
        }
    }
    if (strstr(w.scenario->command, "convert") && !strstr(w.scenario->command, "--dtype")) {
        snprintf(path, sizeof path, "%s/source", top);
        meaning_read(path, &source, message, sizeof message);
        if (source.code != 0 || w.new_meaning.code != 0 ||
            source.weights != w.new_meaning.weights) {
            fprintf(stderr, "faults: %s: the weights are not the source's\n", w.scenario->name);
            exit(99);
        }
    }
}

/* What the destination is before and after, undisturbed. Returns the number of calls. */
static long begin_scenario(unsigned number, unsigned exchange)
{
    char message[600];
    w.scenario = &scenarios[number];
    w.scenario_number = number;
    w.exchange = exchange;
    w.first_count = 0;
    w.ready = true;
    if (w.scenario->first) {
        fresh();
        w.first_count = count_calls(w.scenario->first);
    }
    set_up();
    tree_read(w.destination, false, &w.old);
    meaning_read(w.destination, &w.old_meaning, message, sizeof message);
    w.old_strict = load_strict();
    set_up();
    const long calls = count_calls(w.scenario->command);
    const long journal_begin = w.journal_begin, journal_end = w.journal_end;
    tree_read(w.destination, false, &w.new);
    meaning_read(w.destination, &w.new_meaning, message, sizeof message);
    w.new_strict = load_strict();
    check_new();
    if (w.scenario->rival && !(w.scenario->what & PLAIN)) {
        then(w.scenario->rival, &w.both);
        set_up();
        then(w.scenario->rival, &w.rival_new);
        then(w.scenario->command, &w.both_reversed);
    } else if (w.scenario->rival) {
        set_up();
        then(w.scenario->rival, &w.rival_new);
        w.both = w.both_reversed = w.rival_new;
    }
    w.journal_begin = journal_begin;
    w.journal_end = journal_end;
    return calls;
}

/* ---- what is checked --------------------------------------------------------------------------- */
typedef enum state { STATE_OLD, STATE_NEW, STATE_NOTHING, STATE_MIXED } state;
static const char *const state_names[] = {"OLD", "NEW", "NOTHING", "MIXED"};

static state state_of(const tree *got)
{
    return tree_same(got, &w.new)                               ? STATE_NEW
           : tree_same(got, &w.old)                             ? STATE_OLD
           : !tree_loads(got) && !(w.scenario->what & ONE_FILE) ? STATE_NOTHING
                                                                : STATE_MIXED;
}

static const char *difference(const tree *got)
{
    static char text[1200];
    tree_difference(got, &w.new, text, 600);
    const size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, "; to OLD:");
    tree_difference(got, &w.old, text + strlen(text), 500);
    return text;
}

static bool is_meaning(const meaning *got, const meaning *want)
{
    return got->code == 0 && want->code == 0 && got->weights == want->weights &&
           got->config == want->config;
}

/* As heft reads it, which takes an unfinished write back. */
static state check_read(void)
{
    char message[600];
    meaning got;
    meaning_read(w.destination, &got, message, sizeof message);
    tree_read(w.destination, false, &w.got);
    const state now = state_of(&w.got);
    if (now == STATE_MIXED) {
        violation("heft read it, and it is mixed: to NEW:%s", difference(&w.got));
    } else if (got.code == 0 && !is_meaning(&got, &w.old_meaning) &&
               !is_meaning(&got, &w.new_meaning)) {
        violation("heft reads neither OLD nor NEW from %s", state_names[now]);
    } else if (got.code != 0 && now == STATE_NEW && w.new_meaning.code == 0) {
        violation("heft does not read NEW: %s", message);
    } else if (got.code != 0 && w.old_meaning.code == 0 && now != STATE_NEW) {
        shared->results[w.scenario_number].nothing++;
        violation("heft reads it, and nothing loads: %s", message);
    } else if (now == STATE_NOTHING && w.old_meaning.code == 0) {
        violation("heft reads it, and does not repair it");
    }
    return now;
}

static void check_rerun(state now)
{
    char first[300] = "";
    inject_job job = {.action = INJECT_NOTHING};
    const int code = inject_whole(&job, w.scenario->command);
    take_printed();
    tree_read(w.destination, false, &w.got_later);
    shared->results[w.scenario_number].reruns++;
    const bool reuses = (w.scenario->what & ANY_TIMES) || /* does not write what is there */
                        ((w.scenario->what & RESUMES) && code == 11); /* keeps finished work */
    const bool may_exist = (w.scenario->what & PLAIN) && now == STATE_NEW;
    if (code != 0 && !(may_exist && code == 11)) {
        violation("run again after %s, it ends with %d: %s", state_names[now], code, w.printed);
    } else if (!tree_same(&w.got_later, &w.new)) {
        violation("run again after %s, to NEW:%s", state_names[now], difference(&w.got_later));
    } else if (!(reuses && now == STATE_NEW) && tree_leftovers(w.folder, first, sizeof first) > 0) {
        violation("run again after %s, it leaves '%s'", state_names[now], first);
    }
}

/* What the command says of itself. */
static void check_end(const inject_job *job, state now, bool lasting)
{
    char first[300] = "";
    const size_t length = strlen(w.printed);
    const char *end = strchr(w.printed, '\n');
    if (job->code == 0 && now != STATE_NEW) {
        violation("it ends with 0, and leaves %s: to NEW:%s", state_names[now], difference(&w.got));
    }
    if (job->code == 0) {
        return;
    }
    /* A lock that cannot be taken may be another's: it stays. */
    const bool unlocked = job->hit && strcmp(job->at.name, "flock") == 0;
    const bool answers = (w.scenario->what & ANSWERS) && job->code == 1 &&
                         (length == 0 || strstr(w.printed, ": could not be read: "));
    if (answers) {
        return;
    }
    const bool no_locks = job->code == 7 && unlocked;
    if (job->code != 3 && !no_locks && (job->code < 9 || job->code > 12)) {
        violation("it ends with %d: %s", job->code, w.printed);
    } else if (!end || end != w.printed + length - 1) {
        violation("it ends with %d, and prints not one line: '%s'", job->code, w.printed);
    }
    if (now == STATE_NOTHING && !lasting && !unlocked) {
        violation("it ends with %d, and nothing loads: %s", job->code, w.printed);
    }
    const bool told = strstr(w.printed, "in place") || strstr(w.printed, "until heft next");
    if (now == STATE_NEW && !tree_same(&w.old, &w.new) && !(lasting && told) &&
        !(w.scenario->what & ANY_TIMES)) {
        violation("it ends with %d, and leaves NEW: %s", job->code, w.printed);
    }
    if (!lasting && !(w.scenario->what & RESUMES) &&
        tree_leftovers(w.folder, first, sizeof first) > 0) {
        violation("it ends with %d, and leaves '%s'", job->code, first);
    }
}

static void note_call(const inject_job *job)
{
    const char *path = strstr(job->at.path, w.folder), *to = strstr(job->at.to, w.folder);
    path = path ? path + strlen(w.folder) + 1 : job->at.path;
    to = to ? to + strlen(w.folder) + 1 : job->at.to;
    if (!job->hit) {
        snprintf(w.what, sizeof w.what, "at its end");
    } else if (job->at.fd >= 0) {
        snprintf(w.what, sizeof w.what, "%s %d", job->at.name, job->at.fd);
    } else {
        snprintf(w.what, sizeof w.what, "%s '%s'%s%s", job->at.name, path, *to ? " to " : "", to);
    }
}

/* ---- kinds of points --------------------------------------------------------------------------- */
static void run_fault(const struct mode *mode, long n)
{
    inject_job job = {.action = mode->action, .error = mode->error, .n = n};
    const bool lasting = mode->action == INJECT_FAIL_LATER;
    const bool killed = mode->action == INJECT_KILL || mode->action == INJECT_KILL_AFTER;
    set_up();
    (void)inject_whole(&job, w.scenario->command);
    take_printed();
    note_call(&job);
    if (killed && job.hit && job.code != 128 + SIGKILL) {
        violation("it was killed, and ends with %d", job.code);
    }
    tree_read(w.destination, false, &w.got);
    state now = state_of(&w.got);
    if (now == STATE_MIXED) {
        violation("it ends with %d, and leaves a mixture: to NEW:%s", job.code, difference(&w.got));
    }
    if (!killed) {
        check_end(&job, now, lasting);
    }
    if (killed || lasting ? (n + (long)(mode - modes)) % 2
                          : n % 3) { /* else the next writer comes first */
        now = check_read();
    }
    if (killed || lasting || n % 2) {
        check_rerun(now);
    }
}

static void run_power(const struct mode *mode, long n)
{
    set_up();
    power *disk = power_new(w.folder);
    inject_job job = {.action = INJECT_KILL, .n = n, .watch = power_watch, .user = disk};
    (void)inject_whole(&job, w.scenario->command);
    take_printed();
    note_call(&job);
    power_cut(disk, (unsigned)mode->error);
    power_free(disk);
    tree_read(w.destination, false, &w.got);
    state now = state_of(&w.got);
    if (now == STATE_MIXED) {
        violation("a mixture: to NEW:%s", difference(&w.got));
    }
    if (!job.hit && now != STATE_NEW) {
        violation("it has ended, and the disk has %s: to NEW:%s", state_names[now],
                  difference(&w.got));
    }
    if (n % 2) {
        now = check_read();
    }
    check_rerun(now);
}

/* Wait for it for some time; false if it is still running. */
static bool wait_for(pid_t child, int *status, unsigned milliseconds)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (unsigned i = 0; i < milliseconds; i++) {
        if (waitpid(child, status, WNOHANG) == child) {
            return true;
        }
        (void)nanosleep(&pause, NULL);
    }
    return false;
}

typedef struct pair {
    inject_job first; /* stopped at a call until the second has run */
    int first_code, second_code;
    char second_printed[sizeof w.printed], first_printed[sizeof w.printed];
    bool waited;
} pair;

static void run_pair(pair *both, const char *first, const char *second, long n)
{
    char *words[32], *others[32];
    int status = 0;
    set_up();
    both->first = (inject_job){.action = INJECT_PAUSE, .n = n};
    inject(&both->first, first, words);
    note_call(&both->first);
    scenarios_split(second, w.destination, others, 32);
    take_printed();
    memcpy(both->first_printed, w.printed, sizeof w.printed);
    inject_job other = {
        .action = INJECT_NOTHING, .argv = others, .no_exchange = !w.exchange, .output = w.output};
    const pid_t child = inject_start(&other);
    both->waited = !wait_for(child, &status, 200);
    if (!both->waited) {
        take_printed();
        memcpy(both->second_printed, w.printed, sizeof w.printed);
    }
    both->first.other = both->waited ? child : 0;
    inject_go(&both->first);
    both->first_code = both->first.code;
    if (both->waited) {
        status = both->first.other_status;
        if (!both->first.other_ended && !wait_for(child, &status, 40000)) {
            violation("the second process waits for ever");
            (void)kill(child, SIGKILL);
            (void)waitpid(child, &status, 0);
        }
    }
    take_printed();
    memcpy(both->waited ? both->second_printed : both->first_printed, w.printed, sizeof w.printed);
    both->second_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    free_words(words);
    free_words(others);
}

static void check_writer(int code)
{
    tree_read(w.destination, false, &w.got);
    if (code != 0) {
        violation("beside a reader the writer ends with %d", code);
    } else if (!tree_same(&w.got, &w.new)) {
        violation("beside a reader the writer leaves %s: to NEW:%s", state_names[state_of(&w.got)],
                  difference(&w.got));
    }
    check_rerun(STATE_NEW);
}

/* heft load --strict: as of OLD, as of NEW, or refused because the folder is being written. */
static void run_strict(long n)
{
    pair both;
    run_pair(&both, w.scenario->command, STRICT, n);
    const int code = both.second_code;
    if (code != w.old_strict && code != w.new_strict) {
        shared->results[w.scenario_number].nothing++;
        if (code != 3 && code != 4) {
            violation("heft load --strict ends with %d: %s", code, both.second_printed);
        }
    }
    check_writer(both.first_code);
}

static void check_reader(const char *printed, const pair *both)
{
    unsigned long long weights = 0, config = 0;
    meaning got = {.code = -1};
    if (sscanf(printed, "%d %llx %llx", &got.code, &weights, &config) != 3) {
        violation("the reader prints '%s'", printed);
        return;
    }
    got.weights = weights;
    got.config = config;
    if (got.code == 0 && !is_meaning(&got, &w.old_meaning) && !is_meaning(&got, &w.new_meaning)) {
        violation("the reader gets a mixture%s", both->waited ? ", after waiting" : "");
    }
    if (got.code != 0 && w.old_meaning.code == 0) {
        shared->results[w.scenario_number].nothing++;
        if (got.code != 3 && got.code != 4 && got.code != 11) {
            violation("the reader fails with %s", printed);
        }
    }
}

static void run_readers(const struct mode *mode, long n)
{
    pair both;
    const bool comes = mode->kind == KIND_READER;
    run_pair(&both, comes ? w.scenario->command : "{P} read {D}",
             comes ? "{P} read {D}" : w.scenario->command, n);
    const char *of_first = both.first_printed, *of_second = both.second_printed;
    const char *line = comes ? of_second : of_first;
    if (both.waited) { /* both are in one text */
        const char *last = strrchr(w.printed, '\n');
        line = last ? w.printed : line;
    }
    check_reader(line, &both);
    check_writer(comes ? both.first_code : both.second_code);
}

static void run_race(long n)
{
    pair both;
    char first[300] = "";
    run_pair(&both, w.scenario->command, w.scenario->rival, n);
    tree_read(w.destination, false, &w.got);
    const tree *got = &w.got;
    const bool a = both.first_code == 0, b = both.second_code == 0;
    const bool good = a && b ? tree_same(got, &w.both) || tree_same(got, &w.both_reversed)
                      : a    ? tree_same(got, &w.new)
                      : b    ? tree_same(got, &w.rival_new)
                             : tree_same(got, &w.old);
    if (!good || (!a && !b)) {
        violation("two writers end with %d and %d; to NEW:%s", both.first_code, both.second_code,
                  difference(got));
    }
    if (a && b && (w.scenario->what & PLAIN)) {
        violation("two writers of a new destination succeed");
    }
    if ((!a && both.first_code != 11) || (!b && both.second_code != 11)) {
        violation("two writers end with %d and %d: %s%s", both.first_code, both.second_code,
                  both.first_printed, both.second_printed);
    } else if (!b && !strstr(both.second_printed, "is being written by") &&
               !strstr(both.second_printed, "exists") && !strstr(both.second_printed, "contains")) {
        violation("the second writer says '%s'", both.second_printed);
    }
    if (tree_leftovers(w.folder, first, sizeof first) > 0 && !(w.scenario->what & RESUMES)) {
        violation("two writers leave '%s'", first);
    }
}

static void run_point(const point *at)
{
    const struct mode *mode = &modes[at->mode];
    if (!w.ready || w.scenario_number != at->scenario || w.exchange != at->exchange) {
        (void)begin_scenario(at->scenario, at->exchange);
    }
    w.at = at;
    w.what[0] = '\0';
    const unsigned before = w.violations;
    alarm(SECONDS);
    switch (mode->kind) {
    case KIND_FAULT:
        run_fault(mode, at->n);
        break;
    case KIND_POWER:
        run_power(mode, at->n);
        break;
    case KIND_READER:
    case KIND_REREAD:
        run_readers(mode, at->n);
        break;
    case KIND_STRICT:
        run_strict(at->n);
        break;
    case KIND_RACE:
        run_race(at->n);
        break;
    }
    alarm(0);
    shared->results[at->scenario].points++;
    shared->results[at->scenario].bad += w.violations != before;
}

/* ---- all workers ------------------------------------------------------------------------------- */
static void too_long(int signal_number)
{
    (void)signal_number;
    if (w.at) {
        violation("it does not end");
    }
    _exit(98);
}

static void open_worker(unsigned number)
{
    w.number = number;
    snprintf(w.folder, sizeof w.folder, "%s/work%u", top, number);
    snprintf(w.text, sizeof w.text, "%s", w.folder);
    snprintf(w.destination, sizeof w.destination, "%s/d", w.folder);
    w.output = memfd_create("printed", 0);
    if (w.output < 0) {
        die("cannot make", "memfd");
    }
    (void)fcntl(w.output, F_SETFL, O_APPEND);
    (void)signal(SIGALRM, too_long);
}

static void work(unsigned number, const point *points, size_t count)
{
    char path[300];
    static tree source;
    open_worker(number);
    snprintf(path, sizeof path, "%s/source", top);
    tree_read(path, true, &w.source);
    for (size_t i; (i = atomic_fetch_add(&shared->next, 1)) < count;) {
        run_point(&points[i]);
        tree_read(path, true, &source);
        if (!tree_same(&source, &w.source)) {
            violation("the source has changed");
            w.source = source;
        }
    }
    tree_remove(w.folder);
}

static subject about_what(kind what, inject_action action, unsigned exchange, long n)
{
    const bool ends = what == KIND_POWER || action == INJECT_FAIL_LATER || action == INJECT_KILL ||
                      action == INJECT_KILL_AFTER;
    const bool journal = w.journal_begin > 0 && n > w.journal_begin && n <= w.journal_end;
    return what == KIND_RACE              ? ABOUT_LOCK
           : ends && journal && !exchange ? ABOUT_JOURNAL
                                          : ABOUT_ANY;
}

static void add_points(point **points, size_t *count, unsigned number, unsigned exchange)
{
    static size_t cap;
    open_worker(number);
    const long calls = begin_scenario(number, exchange);
    set_up();
    inject_job reader = {.action = INJECT_COUNT};
    (void)inject_whole(&reader, "{P} read {D}");
    close(w.output);
    for (unsigned m = 0; m < MODES; m++) {
        const kind what = modes[m].kind;
        const bool wanted =
            (!options.mode || strcmp(options.mode, modes[m].name) == 0) &&
            (what != KIND_RACE || w.scenario->rival) &&
            (what < KIND_READER || !(w.scenario->what & ONE_FILE) || what == KIND_RACE);
        const long last = what == KIND_POWER    ? calls + 1
                          : what == KIND_REREAD ? reader.count
                                                : calls;
        for (long n = 1; wanted && n <= last; n++) {
            if (options.n && n != options.n) {
                continue;
            }
            if (*count == cap) {
                cap = cap ? cap * 2 : 4096;
                *points = realloc(*points, cap * sizeof **points);
            }
            (*points)[(*count)++] = (point){.scenario = number,
                                            .exchange = exchange,
                                            .mode = m,
                                            .about = about_what(what, modes[m].action, exchange, n),
                                            .n = n};
        }
    }
}

/* Keep `take` of the points of one kind between two places, at even distances; returns how many. */
static size_t take_evenly(const point *all, size_t from, size_t to, subject about, size_t take,
                          point *kept)
{
    size_t count = 0, seen = 0, used = 0;
    for (size_t i = from; i < to; i++) {
        count += all[i].about == about;
    }
    take = take < count ? take : count;
    for (size_t i = from; i < to && used < take; i++) {
        if (all[i].about != about) {
            continue;
        }
        if (seen++ == (used * count + count / 2) / take) {
            kept[used++] = all[i];
        }
    }
    return used;
}

/* As many of each scenario: of those that have them, a ninth of races and a sixth of ends while there
 * is a journal, since these are what a missing lock and a missing repair are seen by. */
static void take_sample(point *points, size_t *count, long sample)
{
    size_t used = 0;
    const size_t each = (size_t)sample / scenario_count + 1;
    point *kept = calloc(*count + 1, sizeof *kept);
    for (size_t from = 0, to; from < *count && kept; from = to) {
        for (to = from; to < *count && points[to].scenario == points[from].scenario; to++) {
        }
        const size_t before = used;
        used += take_evenly(points, from, to, ABOUT_LOCK, each / 9, kept + used);
        used += take_evenly(points, from, to, ABOUT_JOURNAL, each / 6, kept + used);
        used += take_evenly(points, from, to, ABOUT_ANY, each - (used - before), kept + used);
    }
    if (kept) {
        memcpy(points, kept, used * sizeof *points);
        *count = used;
    }
    free(kept);
}

static int read_options(int argc, char **argv)
{
    options = (struct options){.jobs = sysconf(_SC_NPROCESSORS_ONLN)};
    for (int i = 1; i < argc; i++) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        const char **text = strcmp(name, "--heft") == 0       ? &options.heft
                            : strcmp(name, "--root") == 0     ? &options.root
                            : strcmp(name, "--only") == 0     ? &options.only
                            : strcmp(name, "--mode") == 0     ? &options.mode
                            : strcmp(name, "--exchange") == 0 ? &options.exchange
                                                              : NULL;
        long *number = strcmp(name, "--n") == 0        ? &options.n
                       : strcmp(name, "--jobs") == 0   ? &options.jobs
                       : strcmp(name, "--sample") == 0 ? &options.sample
                                                       : NULL;
        if (text) {
            *text = value;
            i++;
        } else if (number) {
            *number = strtol(value, NULL, 10);
            i++;
        } else if (strcmp(name, "--list") == 0) {
            options.list = true;
        } else if (strcmp(name, "-v") == 0) {
            options.verbose = true;
        } else {
            fprintf(stderr, "faults: unknown option '%s'\n", name);
            return 2;
        }
    }
    return options.heft || options.list ? 0 : 2;
}

static int run_all(const point *points, size_t count)
{
    int failed = 0, status;
    for (long i = 0; i < options.jobs; i++) {
        if (fork() == 0) {
            work((unsigned)i, points, count);
            _exit(0);
        }
    }
    while (wait(&status) > 0) {
        failed |= status != 0;
    }
    return failed;
}

static int print_results(bool crashed, double seconds)
{
    long points = 0, bad = 0;
    printf("%-20s %8s %8s %14s %10s\n", "scenario", "points", "run again", "nothing loads",
           "violations");
    for (size_t i = 0; i < scenario_count; i++) {
        if (shared->results[i].points) {
            printf("%-20s %8ld %8ld %14ld %10ld\n", scenarios[i].name, shared->results[i].points,
                   shared->results[i].reruns, shared->results[i].nothing, shared->results[i].bad);
            points += shared->results[i].points;
            bad += shared->results[i].bad;
        }
    }
    printf("%ld points, %ld with violations, %.0f s%s\n", points, bad, seconds,
           crashed ? "; a worker ended early" : "");
    return bad || crashed || points == 0;
}

static bool make_root(void)
{
    const char *base = options.root                    ? options.root
                       : access("/dev/shm", W_OK) == 0 ? "/dev/shm"
                       : getenv("TMPDIR")              ? getenv("TMPDIR")
                                                       : "/tmp";
    snprintf(top, sizeof top, "%s/heft-faults-XXXXXX", base);
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    return mkdtemp(top) && length > 0;
}

static bool can_trace(void)
{
    char *const words[] = {self, "--list", NULL};
    inject_job job = {.argv = words, .action = INJECT_COUNT, .text = "/"};
    job.output = open("/dev/null", O_WRONLY);
    const bool good = inject_run(&job) && job.code == 0;
    close(job.output);
    return good;
}

static void add_all(point **points, size_t *count)
{
    for (unsigned i = 0; i < scenario_count; i++) {
        for (unsigned exchange = 0; exchange < 2; exchange++) {
            const bool wanted = !options.only || strcmp(options.only, scenarios[i].name) == 0;
            const bool differs = exchange || (scenarios[i].what & REPLACES);
            if (wanted && differs &&
                (!options.exchange || strcmp(options.exchange, exchange_text(exchange)) == 0)) {
                add_points(points, count, i, exchange);
            }
        }
    }
    if (options.sample && (size_t)options.sample < *count) {
        take_sample(*points, count, options.sample);
    }
    w.ready = false;
    w.at = NULL;
}

int main(int argc, char **argv)
{
    const int code = programs_run(argc, argv);
    point *points = NULL;
    size_t count = 0;
    struct timespec start, end;
    if (code >= 0) {
        return code;
    }
    if (read_options(argc, argv) != 0) {
        fprintf(stderr, "usage: faults --heft FILE [OPTIONS]; they are in tests/faults/faults.c\n");
        return 2;
    }
    for (size_t i = 0; options.list && i < scenario_count; i++) {
        puts(scenarios[i].name);
    }
    if (options.list) {
        return 0;
    }
    (void)umask(022);
    (void)clock_gettime(CLOCK_MONOTONIC, &start);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || !make_root()) {
        die("cannot make", top);
    }
    if (!can_trace()) {
        tree_remove(top);
        fprintf(stderr, "faults: processes cannot be traced here\n");
        return 77;
    }
    scenarios_prepare(top, options.heft, self);
    add_all(&points, &count);
    const bool crashed = run_all(points, count) != 0;
    (void)clock_gettime(CLOCK_MONOTONIC, &end);
    tree_remove(top);
    free(points);
    return print_results(crashed, (double)(end.tv_sec - start.tv_sec));
}
