/* option_values.c - what the value of an option means: sizes, seeds, dtypes, formats, modes.
 *
 * An option that was not given leaves the result as it is. All are read before a command touches
 * anything. */
#include "cli/cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* "--format: 'onnx' is no format: ..." */
static bool refuse(const cli_run *run, size_t option, heft_error *err, const char *message)
{
    char item[64];
    snprintf(item, sizeof item, "--%s", run->command->options[option].name);
    return cli_refuse(err, item, "'%.100s' %s", run->values[option], message);
}

/* The library's own words, which quote the value, and the option's name in front. */
static bool refuse_as(const cli_run *run, size_t option, heft_error *err, const heft_error *reason)
{
    refuse(run, option, err, "");
    memcpy(err->message, reason->message, sizeof err->message);
    return false;
}

bool cli_value_size_or_none(const cli_run *run, size_t option, uint64_t *bytes, heft_error *err)
{
    const char *text = run->values[option];
    heft_error reason = {0};
    if (text && heft_size_parse(text, bytes, &reason) != HEFT_OK) {
        return refuse_as(run, option, err, &reason);
    }
    if (text) {
        cli_units_like(text);
    }
    return true;
}

bool cli_value_size(const cli_run *run, size_t option, uint64_t *bytes, heft_error *err)
{
    uint64_t value = *bytes;
    if (!cli_value_size_or_none(run, option, &value, err)) {
        return false;
    }
    if (run->values[option] && value == 0) { /* to the library it would be the default */
        return refuse(run, option, err, "is less than one byte");
    }
    *bytes = value;
    return true;
}

bool cli_value_count(const cli_run *run, size_t option, uint64_t *count, heft_error *err)
{
    const char *text = run->values[option];
    if (!text) {
        return true;
    }
    errno = 0;
    const unsigned long long value = strtoull(text, NULL, 10);
    if (!*text || strspn(text, "0123456789") != strlen(text) || errno == ERANGE || value == 0 ||
        value > 1000000000) {
        return refuse(run, option, err, "is not a count: expected an integer from 1 to 1000000000");
    }
    *count = value;
    return true;
}

bool cli_value_seed(const cli_run *run, size_t option, uint64_t *seed, heft_error *err)
{
    const char *text = run->values[option];
    if (!text) {
        return true;
    }
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (!*text || strspn(text, "0123456789") != strlen(text) || errno == ERANGE) {
        return refuse(run, option, err,
                      "is not a seed: expected an integer from 0 to 18446744073709551615");
    }
    *seed = value;
    return true;
}

bool cli_value_dtype(const cli_run *run, size_t option, bool may_be_auto, heft_dtype *dtype,
                     heft_error *err)
{
    const char *text = run->values[option];
    heft_error reason = {0};
    heft_dtype value;
    if (!text || (may_be_auto && strcmp(text, "auto") == 0)) {
        return true;
    }
    if (heft_dtype_parse(text, &value, &reason) != HEFT_OK) {
        return refuse_as(run, option, err, &reason);
    }
    if (!heft_dtype_is_floating(value)) {
        return refuse(run, option, err,
                      "is not a dtype for weights: expected float32, bfloat16, float16, ...");
    }
    *dtype = value;
    return true;
}

/* One word of --dtype-of: a pair, cut at its last "=". */
static bool read_pair(char *word, heft_module_dtype *one, heft_error *err)
{
    heft_error reason = {0};
    char *equal = strrchr(word, '=');
    if (!equal) {
        return cli_refuse(err, "--dtype-of", "'%.100s' is not a NAME=DTYPE pair such as wo=float32",
                          word);
    }
    *equal = '\0';
    one->name = word;
    return heft_dtype_parse(equal + 1, &one->dtype, &reason) == HEFT_OK ||
           cli_refuse(err, "--dtype-of", "%s", reason.message);
}

bool cli_value_dtypes(const cli_run *run, size_t of, size_t keep, cli_dtypes *out, heft_error *err)
{
    const char *texts[2] = {run->values[of], run->values[keep]};
    size_t most = 1;
    for (size_t k = 0; k < 2; k++) {
        most += texts[k] ? strlen(texts[k]) + 1 : 0;
        out->texts[k] = texts[k] ? strdup(texts[k]) : NULL;
        if (texts[k] && !out->texts[k]) {
            return cli_refuse(err, "--dtype-of", "cannot allocate memory for the names");
        }
    }
    out->list = calloc(most, sizeof *out->list);
    if (!out->list) {
        return cli_refuse(err, "--dtype-of", "cannot allocate memory for the names");
    }
    for (char *rest = out->texts[0], *word; (word = strsep(&rest, ","));) {
        if (!read_pair(word, &out->list[out->count++], err)) {
            return false;
        }
    }
    for (char *rest = out->texts[1], *word; (word = strsep(&rest, ","));) {
        if (!*word) {
            return cli_refuse(err, "--keep-f32", "a name is empty");
        }
        out->list[out->count++] = (heft_module_dtype){.name = word, .dtype = HEFT_DTYPE_F32};
    }
    return true;
}

void cli_dtypes_fini(cli_dtypes *dtypes)
{
    free(dtypes->list);
    free(dtypes->texts[0]);
    free(dtypes->texts[1]);
    *dtypes = (cli_dtypes){0};
}

bool cli_value_format(const cli_run *run, size_t option, heft_format *format, heft_error *err)
{
    const char *text = run->values[option];
    if (text && strcmp(text, "safetensors") == 0) {
        *format = HEFT_FORMAT_SAFETENSORS;
    } else if (text && strcmp(text, "bin") == 0) {
        *format = HEFT_FORMAT_TORCH;
    } else if (text && strcmp(text, "offload") == 0) {
        *format = HEFT_FORMAT_OFFLOAD;
    } else if (text) {
        return refuse(run, option, err, "is not a format: expected safetensors, bin or offload");
    }
    return true;
}

bool cli_value_order(const cli_run *run, size_t option, bool *natural, heft_error *err)
{
    const char *text = run->values[option];
    if (text && strcmp(text, "natural") != 0 && strcmp(text, "state_dict") != 0) {
        return refuse(run, option, err, "is not an order: expected state_dict or natural");
    }
    *natural = text && strcmp(text, "natural") == 0;
    return true;
}

bool cli_value_mode(const cli_run *run, size_t option, heft_load_mode *mode, heft_error *err)
{
    static const struct {
        const char *name;
        heft_load_mode mode;
    } modes[] = {
        {"auto",   HEFT_LOAD_AUTO  },
        {"map",    HEFT_LOAD_MAP   },
        {"copy",   HEFT_LOAD_COPY  },
        {"shared", HEFT_LOAD_SHARED},
    };
    const char *text = run->values[option];
    for (size_t i = 0; text && i < sizeof modes / sizeof modes[0]; i++) {
        if (strcmp(text, modes[i].name) == 0) {
            *mode = modes[i].mode;
            return true;
        }
    }
    return !text || refuse(run, option, err, "is not a mode: expected auto, map, copy or shared");
}

bool cli_value_strategy(const cli_run *run, size_t option, heft_strategy *strategy, heft_error *err)
{
    static const char *const names[] = {"auto", "balanced", "balanced_low_0", "sequential", "best"};
    const char *text = run->values[option];
    for (size_t i = 0; text && i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(text, names[i]) == 0) {
            *strategy = (heft_strategy)i;
            return true;
        }
    }
    return !text || refuse(run, option, err,
                           "is not a strategy, a device or a device map: expected auto, balanced, "
                           "balanced_low_0, sequential, best, cpu, disk, 0, cuda:0, {\"\": 0}, or "
                           "a path with a "
                           "/ or .");
}

static bool read_device(const char *text, size_t length, int32_t *device);

bool cli_value_map(const cli_run *run, size_t option, heft_plan_options *wanted, heft_error *err)
{
    static heft_device_entry whole; /* the model on one device: "cpu", "0", "cuda:0" */
    const char *text = run->values[option];
    const char *device = text && strncmp(text, "cuda:", 5) == 0 ? text + 5
                         : text && strcmp(text, "cuda") == 0    ? "0"
                                                                : text;
    if (text && read_device(device, strlen(device), &whole.device)) {
        whole.name = "";
        wanted->device_map = &whole;
        wanted->device_map_count = 1;
        return true;
    }
    if (text && text[strspn(text, " \t\n")] == '{') {
        wanted->device_map_json = text;
        return true;
    }
    if (text && (strchr(text, '/') || strchr(text, '.'))) { /* no strategy has these in its name */
        wanted->device_map_file = text;
        return true;
    }
    return cli_value_strategy(run, option, &wanted->strategy, err);
}

static bool read_device(const char *text, size_t length, int32_t *device)
{
    char name[CLI_DEVICE_TEXT];
    for (int32_t known = HEFT_DEVICE_MPS; known < 0; known++) {
        const char *own = cli_device(known, name);
        if (strlen(own) == length && strncmp(own, text, length) == 0) {
            *device = known;
            return true;
        }
    }
    *device = (int32_t)strtol(text, NULL, 10);
    return length > 0 && length <= 4 && strspn(text, "0123456789") >= length;
}

/* One "DEVICE=SIZE"; a disk may stand alone, and has no limit then. */
static bool read_budget(const cli_run *run, size_t option, const char *text, size_t length,
                        heft_budget *budget, heft_error *err)
{
    const char *equal = memchr(text, '=', length);
    const size_t name = equal ? (size_t)(equal - text) : length;
    char size[64] = "";
    uint64_t bytes = 0;
    heft_error reason = {0};
    if (!read_device(text, name, &budget->device)) {
        return refuse(run, option, err,
                      "is not a list of budgets such as 0=20GB,1=20GB,cpu=30GB,disk");
    }
    if (!equal && budget->device == HEFT_DEVICE_DISK) {
        budget->bytes = (double)INFINITY;
        return true;
    }
    if (!equal || length - name - 1 >= sizeof size) {
        return refuse(run, option, err,
                      "is not a list of budgets such as 0=20GB,1=20GB,cpu=30GB,disk");
    }
    memcpy(size, equal + 1, length - name - 1);
    if (heft_size_parse(size, &bytes, &reason) != HEFT_OK) {
        return refuse_as(run, option, err, &reason);
    }
    budget->bytes = (double)bytes;
    cli_units_like(size);
    return true;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t';
}

/* A device has one budget. */
static bool check_once(const cli_run *run, size_t option, const heft_budget *budgets, size_t last,
                       heft_error *err)
{
    char name[CLI_DEVICE_TEXT], text[CLI_DEVICE_TEXT + 32];
    for (size_t i = 0; i < last; i++) {
        if (budgets[i].device == budgets[last].device) {
            snprintf(text, sizeof text, "has two budgets for device %s",
                     cli_device(budgets[last].device, name));
            return refuse(run, option, err, text);
        }
    }
    return true;
}

bool cli_value_budgets(const cli_run *run, size_t option, heft_budget **budgets, size_t *count,
                       heft_error *err)
{
    const char *text = run->values[option];
    if (!text) {
        return true;
    }
    *budgets = calloc(strlen(text) + 1, sizeof **budgets);
    if (!*budgets) {
        return refuse(run, option, err, "is too long for the available memory");
    }
    for (;;) {
        text += strspn(text, " \t");
        const size_t length = strcspn(text, ",");
        size_t own = length;
        while (own > 0 && is_space(text[own - 1])) {
            own--;
        }
        if (!read_budget(run, option, text, own, &(*budgets)[(*count)++], err) ||
            !check_once(run, option, *budgets, *count - 1, err)) {
            return false;
        }
        if (!text[length]) {
            return true;
        }
        text += length + 1;
    }
}
