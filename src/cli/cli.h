/* The internal header of the cli layer.
 *
 * What it does: implements the command `heft`. It reads options, calls the library, and prints data
 * to stdout and everything else to stderr. It knows about formats, names and models only what
 * <heft/heft.h> provides.
 * May include: none. It includes only <heft/heft.h>, as any other program does.
 * Rules: each command is one file cmd_NAME.c, with one list of options from which both parsing and
 * --help are generated, and one line in the table of commands in main.c. Text from a file or a
 * command line is escaped before it reaches a terminal. All options are read before anything is
 * touched. This layer uses malloc for its memory: it is small, and the library does not count it.
 * Source: docs/commands/README.md, which lists the names, JSON keys and exit codes that others rely
 * on. */
#ifndef HEFT__CLI_CLI_H
#define HEFT__CLI_CLI_H

#include <heft/heft.h>

#define CLI_MAX_OPTIONS 40 /* of one command, with those common to all */
#define CLI_MAX_ARGUMENTS 2
#define CLI_EXIT_NO 1 /* the answer is no */
#define CLI_EXIT_USAGE 2

struct cli_run;

typedef struct cli_option {
    const char *name;     /* long, without dashes */
    char letter;          /* 0: none */
    const char *argument; /* as --help calls it; "[FILE]": may be left out, given as --name=FILE
                           * only; NULL: a switch */
    const char *help;
} cli_option;

/* A command lists its options once, X(ID, "name", "ARGUMENT", "help"), and makes of that list the
 * numbers OPTION_ID into cli_run.values, and the table. */
#define CLI_OPTION_ID(id, name, argument, help) OPTION_##id,
#define CLI_OPTION_ROW(id, name, argument, help) {name, 0, argument, help},

typedef struct cli_command {
    const char *name;
    const char *arguments; /* "SRC DST" */
    size_t argument_count;
    const char *summary; /* one line */
    const char *about;   /* some lines more for --help, each ended */
    const cli_option *options;
    size_t option_count;
    bool no_limits;    /* it opens nothing that has any: there is no --limit */
    bool dies_at_once; /* a signal ends it: it leaves nothing behind and tells no progress */
    int (*run)(struct cli_run *run); /* returns the exit code */
} cli_command;

typedef struct cli_memory {
    uint64_t peak_rss_bytes, peak_anon_bytes, pss_bytes;
    bool known;
    double sampled; /* when, by cli_now() */
} cli_memory;

typedef struct cli_progress {
    bool on;    /* stderr is a terminal, and not -q */
    bool drawn; /* there is a bar to clear */
    double drawn_at;
    double began;   /* when this kind of work began */
    char what[32];  /* and what it is */
    uint64_t first; /* bytes done when it began */
} cli_progress;

/* One call of one command. */
typedef struct cli_run {
    const cli_command *command;               /* NULL for `heft` itself */
    const char *values[CLI_MAX_OPTIONS];      /* by OPTION_ID; NULL: not given; a switch is "" */
    const char *arguments[CLI_MAX_ARGUMENTS]; /* borrowed from argv */
    bool json, quiet, verbose, help;
    heft_limits limits; /* 0: not given */
    const char *kept;   /* what a cancelled command leaves behind on purpose; NULL: nothing */
    heft_ctx *ctx;
    double started;
    cli_memory memory;
    cli_progress progress;
} cli_run;

/* ---- options.c */
/* Fill the run from the words behind the command's name. False for a usage error, which is in
 * err. */
bool cli_options_parse(cli_run *run, int argc, char **argv, heft_error *err);
void cli_options_help(const cli_command *command, FILE *out);

/* ---- option_values.c: what an option says; false with a filled err for what cannot be */
bool cli_value_size(const cli_run *run, size_t option, uint64_t *bytes, heft_error *err);
/* The same, and 0; a plain count from 1 on. */
bool cli_value_size_or_none(const cli_run *run, size_t option, uint64_t *bytes, heft_error *err);
bool cli_value_count(const cli_run *run, size_t option, uint64_t *count, heft_error *err);
bool cli_value_seed(const cli_run *run, size_t option, uint64_t *seed, heft_error *err);
bool cli_value_dtype(const cli_run *run, size_t option, bool may_be_auto, heft_dtype *dtype,
                     heft_error *err);
/* Dtypes of parts: "A=D,B=D" of one option, and names that stay float32, "A,B", of another. */
typedef struct cli_dtypes {
    heft_module_dtype *list; /* owned; [count]; names lie in the texts */
    size_t count;
    char *texts[2]; /* owned */
} cli_dtypes;
/* Either way cli_dtypes_fini() is called. */
bool cli_value_dtypes(const cli_run *run, size_t of, size_t keep, cli_dtypes *out, heft_error *err);
void cli_dtypes_fini(cli_dtypes *dtypes);
bool cli_value_order(const cli_run *run, size_t option, bool *natural, heft_error *err);
bool cli_value_format(const cli_run *run, size_t option, heft_format *format, heft_error *err);
bool cli_value_mode(const cli_run *run, size_t option, heft_load_mode *mode, heft_error *err);

bool cli_value_strategy(const cli_run *run, size_t option, heft_strategy *strategy,
                        heft_error *err);
/* A strategy, a device, JSON text, or the name of a file. */
bool cli_value_map(const cli_run *run, size_t option, heft_plan_options *wanted, heft_error *err);
/* "0=20GB,cpu=30GB,disk": malloced; none without the option. */
bool cli_value_budgets(const cli_run *run, size_t option, heft_budget **budgets, size_t *count,
                       heft_error *err);

/* ---- limits.c */
/* "rank=100", "index_bytes=2GiB", "tensors=none": set a member. */
bool cli_limit_set(heft_limits *limits, const char *text, heft_error *err);
/* The limit that a message names: "... (limit rank)"; NULL for none. */
const char *cli_limit_named(const char *message);

/* ---- plan_svg.c */
bool cli_plan_svg(cli_run *run, const heft_plan *plan, const char *path, heft_error *err);

/* ---- failure.c */
/* Fill an error of the command line: INVALID_ARG; item is the option with its dashes, or "".
 * Returns false. */
bool cli_refuse(heft_error *err, const char *item, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Say what went wrong, as a line on stderr, or with --json as the error document on stdout. Returns
 * the exit code. */
int cli_fail(cli_run *run, const heft_error *err);
/* The same for a wrong command line: the line is followed by where to find help. */
int cli_fail_usage(cli_run *run, const heft_error *err);
int cli_fail_nomem(cli_run *run);
/* "heft load: warning: ..." on stderr, but not with -q or --json. */
void cli_warn(cli_run *run, const char *text);
/* Hand on what stdout still holds. Returns `code`, or IO's exit code if stdout could not take all
 * of it. */
int cli_finish_stdout(cli_run *run, int code);

/* ---- emit_json.c: one document in one line; `key` is NULL in a list and at the top */
typedef struct cli_json {
    FILE *out;
    bool comma; /* before the next value */
} cli_json;

void cli_json_open(cli_json *json, const char *key, char bracket);       /* '{' or '[' */
void cli_json_close(cli_json *json, char bracket);                       /* '}' or ']' */
void cli_json_end(cli_json *json);                                       /* of the line */
void cli_json_string(cli_json *json, const char *key, const char *text); /* NULL: null */
void cli_json_u64(cli_json *json, const char *key, uint64_t value);
void cli_json_double(cli_json *json, const char *key, double value);
/* With all its digits; null for NaN and infinity, which JSON lacks. */
void cli_json_real(cli_json *json, const char *key, double value);
void cli_json_bool(cli_json *json, const char *key, bool value);
void cli_json_null(cli_json *json, const char *key);
void cli_json_strings(cli_json *json, const char *key, const char *const *texts, size_t count);
void cli_json_shape(cli_json *json, const char *key, const uint64_t *shape, uint32_t rank);
void cli_json_memory(cli_json *json, const char *key, const cli_memory *memory);
/* The member "error". */
void cli_json_error(cli_json *json, const heft_error *err);

/* ---- quantized_text.c; NULL: nothing is quantized */
void cli_put_quantization(cli_json *json, const heft_quantization *quantization);
void cli_print_quantization(const char *title, const heft_quantization *quantization);
/* Refuse a source whose weights are quantized, and not dequantized, by the method's name. */
heft_status cli_check_plain(const heft_source *source, heft_error *err);

/* The warning that an adapter lies beside the model; NULL: none does. It lives as long as the source. */
const char *cli_adapter_warning(const heft_source *source);
/* Refuse to compute with a model beside which an adapter lies, by the name of its file. */
heft_status cli_check_adapter(const heft_source *source, heft_error *err);

/* ---- placing.c */
/* "0", "cpu", ...; dst holds the text of a number. */
#define CLI_DEVICE_TEXT 16
const char *cli_device(int32_t device, char dst[CLI_DEVICE_TEXT]);
/* A plan's warnings, each line as one; false without memory. */
bool cli_plan_warn(cli_run *run, const heft_plan *plan);
/* As members of an open list. plan: NULL for none. */
void cli_plan_put_warnings(cli_json *json, const heft_plan *plan);

/* ---- emit_text.c */
/* Print text with control characters and broken UTF-8 as \xNN, so that no file name moves the
 * cursor. */
void cli_put(FILE *out, const char *text);
/* The same as owned text; NULL without memory. */
char *cli_escaped(const char *text);
/* How many bytes the character at p has, 0 for broken UTF-8, and its number in *code. p ends with
 * NUL. */
size_t cli_utf8(const char *p, uint32_t *code);
/* Columns on a terminal. */
size_t cli_width(const char *text);
/* "1,234,567" and "433.2 MB", in buf. */
const char *cli_grouped(uint64_t value, char buf[32]);
const char *cli_bytes(uint64_t bytes, char buf[32]);
/* From now on cli_bytes() answers in powers of 1024 (GiB) if one of these sizes is in them. */
void cli_units_like(const char *sizes);
/* "[768, 3072]" in buf; a shape that is too long ends with "...". */
const char *cli_shape(const uint64_t *shape, uint32_t rank, char buf[256]);

/* Aligned columns. A column whose title begins with '>' stands at the right. All rows are held
 * until printed. */
typedef struct cli_table {
    const char *const *titles; /* borrowed; [columns] */
    bool has_head;             /* print the titles too */
    size_t columns;
    size_t
        optional; /* at the end: left out, the last one first, on a terminal that is too narrow */
    char **cells; /* owned; [count] */
    size_t count, cap;
    bool failed; /* no memory */
} cli_table;

void cli_table_add(cli_table *table, const char *text); /* the next cell; escaped */
/* Prints with `indent` spaces before each row, and frees the cells. On a terminal that is too narrow, columns are left
 * out and texts are cut in the middle; elsewhere nothing is. False if memory had run out. */
bool cli_table_print(cli_table *table, size_t indent, FILE *out);

/* ---- name_fold.c: "layer.{0..11}.weight" */
typedef struct cli_folded {
    char *name;       /* owned */
    const char *note; /* borrowed; names are folded only where it is equal, or NULL */
    size_t first;     /* the least of the numbers of the names in it */
    size_t count;     /* how many names it stands for */
} cli_folded;

/* Fold names whose numbers, where they are a whole part between dots, are all that differs. `notes`
 * may be NULL. Returns an owned array in the order of first appearance, its length in *folded; NULL
 * without memory. groups: filled, [count], with the number of the result that stands for each name, or
 * NULL. */
cli_folded *cli_names_fold(const char *const *names, const char *const *notes, size_t count,
                           size_t *folded, size_t *groups);
void cli_names_free(cli_folded *names, size_t count);
/* Tell whether `length` bytes at text are a number that folds: digits, no leading zero, below
 * 10^9. */
bool cli_names_number(const char *text, size_t length, uint32_t *number);
/* "{0..11}", "{0, 2, 5}" or "7" of ascending numbers, owned; NULL without memory. */
char *cli_names_range(const uint32_t *numbers, size_t count);

/* ---- listing.c: what `inspect` shows of a checkpoint or of an empty model */
typedef struct cli_listing {
    const heft_checkpoint *ckpt; /* borrowed; NULL for an empty model */
    const heft_model *model;     /* borrowed; NULL for a checkpoint */
    const char *format;
    heft_tensor_info *infos; /* owned; [count]; pointers in it are lent by ckpt or model */
    bool *repeated;          /* owned; [count]: its bytes have been counted under an earlier name */
    uint64_t *parameters;    /* owned; [count]: how many it stands for */
    size_t count;
    const char **tied; /* owned; names, group after group */
    size_t *tied_ends; /* owned; [tied_count]: where in `tied` each group ends */
    size_t tied_count;
    uint64_t total_size, total_parameters;
    const heft_tensor_info *
        *shown; /* owned; [shown_count] of infos, in the order of a list; NULL: none yet */
    size_t shown_count;
} cli_listing;

/* False without memory. Either way cli_listing_fini() is called. */
bool cli_listing_of_source(cli_listing *list, const heft_source *source);
bool cli_listing_of_model(cli_listing *list, const heft_model *model, heft_format format);
void cli_listing_fini(cli_listing *list);
/* Elements of a tensor, UINT64_MAX where there are more than that. */
uint64_t cli_elements(const uint64_t *shape, uint32_t rank);

/* ---- module_tree.c */
/* The tree of modules with their sums; numbered blocks of equal sums are one row. False without
 * memory. */
bool cli_tree_print(const cli_listing *list, FILE *out);
bool cli_tree_json(const cli_listing *list, cli_json *json, const char *key);

/* ---- treemap.c */
/* Write a page that shows the tensors as boxes, under a temporary name first. Returns 0 or an
 * errno. */
bool cli_treemap_write(cli_run *run, const cli_listing *list, const char *title, const char *path,
                       heft_error *err);

/* ---- write_output.c: what `init` and `convert` say */
/* Warn if DST, which is a folder, is named as a weight file. */
void cli_warn_of_folder(cli_run *run, const char *path);
/* `total_parameters` 0: not known. Returns the exit code. */
int cli_print_written(cli_run *run, const heft_write_report *report, bool dry_run);

/* ---- proc_memory.c */
/* Note how much anonymous memory the process holds now, at most every 20 ms. */
void cli_memory_sample(cli_memory *memory);
/* Fill in what is known at the end. */
void cli_memory_finish(cli_memory *memory);
/* "peak 12.3 MB (45.6 MB with file pages)" in buf. */
const char *cli_memory_text(const cli_memory *memory, char buf[128]);

/* ---- progress_bar.c */
double cli_now(void); /* seconds, monotonic */
/* From now on SIGINT, SIGTERM and SIGHUP end the work at its next step; a second one of a kind ends
 * the process. */
void cli_signals_catch(void);
bool cli_signals_caught(void);
/* The same where interrupts (SIGINT) stop one answer: the work ends at the second one before they are cleared. All
 * these signals end a read that waits. */
void cli_interrupts_catch(void);
unsigned cli_interrupts(void);
void cli_interrupts_clear(void);
/* Wait until a file can be read; false if a signal has come or comes before that. */
bool cli_interrupts_await(int file);
bool cli_signals_end(void); /* whether a signal other than an interrupt came */
/* heft_ctx_options.progress and .log; user is the cli_run. */
bool cli_progress_tell(void *user, const heft_progress *progress);
void cli_progress_log(void *user, const char *line);
void cli_progress_clear(cli_run *run);

/* ---- the commands */
extern const cli_command cli_cmd_init, cli_cmd_load, cli_cmd_inspect, cli_cmd_convert,
    cli_cmd_verify, cli_cmd_diff, cli_cmd_plan, cli_cmd_run, cli_cmd_embed, cli_cmd_shared;

#endif
