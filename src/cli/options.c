/* options.c - from the words of the command line to values, by the command's option table; and
 * --help from the same table.
 *
 *   --name=value  --name value  --switch  -x value  -xvalue  -xy  --
 *
 * Options may stand anywhere before `--`. Names are written out: an abbreviation that works today
 * would be ambiguous with the next option. Given twice, the last one counts, but each --limit does. */
#include "cli/cli.h"

#include <assert.h>
#include <string.h>

enum { COMMON_JSON, COMMON_QUIET, COMMON_VERBOSE, COMMON_HELP, COMMON_LIMIT, COMMON_COUNT };

static const cli_option common[COMMON_COUNT] = {
    {"json",    0,   NULL,     "print one JSON document to stdout"                               },
    {"quiet",   'q', NULL,     "print only the result and errors"                                },
    {"verbose", 'v', NULL,     "log each step to stderr"                                         },
    {"help",    'h', NULL,     "print this help and exit"                                        },
    {"limit",   0,   "NAME=N", "change a limit on what files may hold, or lift it with NAME=none"},
};

/* ---- parsing --------------------------------------------------------------------------------- */
struct parser {
    cli_run *run;
    int argc;
    char **argv;
    int next; /* word to look at */
    size_t argument_count;
    bool failed; /* the first error is in err; the rest is read for --json and --help */
    heft_error *err;
};

/* Options are numbered: the command's own first, then the common ones. */
static const cli_option *option_at(const cli_command *command, size_t i)
{
    return i < command->option_count ? &command->options[i] : &common[i - command->option_count];
}

static size_t option_total(const cli_command *command)
{
    return command->option_count + COMMON_COUNT - (command->no_limits ? 1 : 0); /* the last */
}

/* The argument is in brackets. */
static bool may_lack(const cli_option *option)
{
    return option->argument && option->argument[0] == '[';
}

static size_t find_long(const cli_command *command, const char *name, size_t length)
{
    for (size_t i = 0; i < option_total(command); i++) {
        const char *known = option_at(command, i)->name;
        if (strlen(known) == length && memcmp(known, name, length) == 0) {
            return i;
        }
    }
    return SIZE_MAX;
}

static size_t find_letter(const cli_command *command, char letter)
{
    for (size_t i = 0; i < option_total(command); i++) {
        if (option_at(command, i)->letter == letter) {
            return i;
        }
    }
    return SIZE_MAX;
}

/* "option '--mode' requires a value": `before`, the quoted word, and what follows it. */
static void complain(struct parser *p, const char *before, const char *word, size_t length,
                     const char *after)
{
    if (!p->failed) {
        p->failed = true;
        cli_refuse(p->err, "", "%s '%.*s'%s", before, length < 200 ? (int)length : 200, word,
                   after);
    }
}

static void set(struct parser *p, size_t option, const char *value)
{
    cli_run *run = p->run;
    run->values[option] = value ? value : "";
    switch (option < run->command->option_count ? COMMON_COUNT
                                                : option - run->command->option_count) {
    case COMMON_JSON:
        run->json = true;
        break;
    case COMMON_QUIET:
        run->quiet = true;
        break;
    case COMMON_VERBOSE:
        run->verbose = true;
        break;
    case COMMON_HELP:
        run->help = true;
        break;
    case COMMON_LIMIT:
        p->failed = p->failed || !cli_limit_set(&run->limits, value, p->err);
        break;
    default:
        break;
    }
}

static void read_long(struct parser *p, const char *word)
{
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t length = equals ? (size_t)(equals - name) : strlen(name);
    size_t option = find_long(p->run->command, name, length);
    if (option == SIZE_MAX) {
        complain(p, "unknown option", word, length + 2, "");
        return;
    }
    const cli_option *known = option_at(p->run->command, option);
    if (!known->argument) {
        if (equals) {
            complain(p, "option", word, length + 2, " takes no value");
        } else {
            set(p, option, NULL);
        }
    } else if (equals) {
        set(p, option, equals + 1);
    } else if (may_lack(known)) {
        set(p, option, NULL);
    } else if (p->next < p->argc) {
        set(p, option, p->argv[p->next++]);
    } else {
        complain(p, "option", word, length + 2, " requires a value");
    }
}

static void read_letters(struct parser *p, const char *word)
{
    for (const char *at = word + 1; *at; at++) {
        const char name[2] = {'-', *at};
        size_t option = find_letter(p->run->command, *at);
        if (option == SIZE_MAX) {
            complain(p, "unknown option", name, 2, "");
            return;
        }
        const cli_option *known = option_at(p->run->command, option);
        if (known->argument && !may_lack(known)) {
            if (at[1]) {
                set(p, option, at + 1);
            } else if (p->next < p->argc) {
                set(p, option, p->argv[p->next++]);
            } else {
                complain(p, "option", name, 2, " requires a value");
            }
            return;
        }
        set(p, option, NULL);
    }
}

static void read_argument(struct parser *p, const char *word)
{
    if (p->argument_count < p->run->command->argument_count) {
        p->run->arguments[p->argument_count++] = word;
        if (!*word && !p->failed) {
            p->failed = true;
            cli_refuse(p->err, "", "argument is empty");
        }
    } else {
        complain(p, "unexpected argument", word, strlen(word), "");
    }
}

bool cli_options_parse(cli_run *run, int argc, char **argv, heft_error *err)
{
    struct parser p = {.run = run, .argc = argc, .argv = argv, .err = err};
    bool ended = false;
    assert(option_total(run->command) <= CLI_MAX_OPTIONS);
    while (p.next < argc) {
        const char *word = argv[p.next++];
        if (ended || word[0] != '-' || !word[1]) {
            read_argument(&p, word);
        } else if (strcmp(word, "--") == 0) {
            ended = true;
        } else if (word[1] == '-') {
            read_long(&p, word);
        } else {
            read_letters(&p, word);
        }
    }
    if (!p.failed && !run->help && p.argument_count < run->command->argument_count) {
        p.failed = true;
        cli_refuse(err, "", "expected %s", run->command->arguments);
    }
    return !p.failed;
}

/* ---- help ------------------------------------------------------------------------------------ */
static int option_text(const cli_option *option, char *dst, size_t cap)
{
    char letter[] = {'-', option->letter, ',', ' ', '\0'};
    int length = snprintf(dst, cap, "%s--%s", option->letter ? letter : "    ", option->name);
    if (option->argument && length > 0 && (size_t)length < cap) {
        /* "--name ARGUMENT" or "--name[=ARGUMENT]" */
        bool brackets = may_lack(option);
        length += snprintf(dst + length, cap - (size_t)length, "%s%s", brackets ? "[=" : " ",
                           option->argument + brackets);
    }
    return length;
}

void cli_options_help(const cli_command *command, FILE *out)
{
    int width = 0;
    char text[128];
    for (size_t i = 0; i < option_total(command); i++) {
        int length = option_text(option_at(command, i), text, sizeof text);
        width = length > width ? length : width;
    }
    fprintf(out, "usage: heft %s [OPTIONS]%s%s\n\n%s.\n%s\n", command->name,
            command->argument_count ? " " : "", command->arguments, command->summary,
            command->about);
    for (size_t i = 0; i < option_total(command); i++) {
        option_text(option_at(command, i), text, sizeof text);
        fprintf(out, "  %-*s  %s\n", width, text, option_at(command, i)->help);
    }
}
