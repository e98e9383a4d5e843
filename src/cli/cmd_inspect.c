/* cmd_inspect.c - heft inspect PATH: what is in a checkpoint; of a config.json alone: the empty
 * model, as it would be saved. */
#include "cli/cli.h"

#include <errno.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define OPTIONS(X)                                                                                 \
    X(CLASS, "class", "NAME", "class of the empty model (default: from the config)")               \
    X(TREE, "tree", NULL, "show modules with totals instead of tensors")                           \
    X(FILTER, "filter", "GLOB", "list only tensors whose names match, such as '*.mlp.*'")          \
    X(SORT, "sort", "KEY", "order of the list: name, or bytes, the largest first")                 \
    X(HTML, "html", "FILE",                                                                        \
      "write an HTML treemap of the tensors instead of a list; -: to stdout")                      \
    X(VARIANT, "variant", "V", "read model.V.safetensors, ...")                                    \
    X(SUBFOLDER, "subfolder", "DIR", "read the checkpoint in PATH/DIR")                            \
    X(FORMAT, "format", "F",                                                                       \
      "read only this format: safetensors, bin or offload (default: any, safetensors first)")

enum { OPTIONS(CLI_OPTION_ID) OPTION_COUNT };

static const cli_option options[] = {OPTIONS(CLI_OPTION_ROW)};

/* ---- dtypes ---------------------------------------------------------------------------------- */
struct dtype_sum {
    heft_dtype dtype;
    size_t tensors;
    uint64_t bytes;
};

/* Tensors and bytes of each dtype, in the order of the first tensors; what is tied counts once. Returns how many
 * there are. */
static size_t sum_dtypes(const cli_listing *list, struct dtype_sum sums[HEFT_DTYPE_COUNT])
{
    size_t count = 0;
    for (size_t i = 0; i < list->count; i++) {
        const heft_tensor_info *info = &list->infos[i];
        size_t k = 0;
        while (k < count && sums[k].dtype != info->dtype) {
            k++;
        }
        if (k == count && count < HEFT_DTYPE_COUNT) {
            sums[count++] = (struct dtype_sum){.dtype = info->dtype};
        }
        if (k < count && !list->repeated[i]) {
            sums[k].tensors++;
            sums[k].bytes += info->size_bytes; /* a checkpoint has at most 2^63 */
        }
    }
    return count;
}

/* An object, so that a list of tensors is the only one with "dtype" in it. */
static void put_dtypes(cli_json *json, const cli_listing *list)
{
    struct dtype_sum sums[HEFT_DTYPE_COUNT];
    const size_t count = sum_dtypes(list, sums);
    cli_json_open(json, "dtypes", '{');
    for (size_t k = 0; k < count; k++) {
        cli_json_open(json, heft_dtype_name(sums[k].dtype), '{');
        cli_json_u64(json, "tensors", sums[k].tensors);
        cli_json_u64(json, "bytes", sums[k].bytes);
        cli_json_close(json, '}');
    }
    cli_json_close(json, '}');
}

static void print_dtypes(const cli_listing *list)
{
    struct dtype_sum sums[HEFT_DTYPE_COUNT];
    const size_t count = sum_dtypes(list, sums);
    for (size_t k = 0; k < count; k++) {
        char bytes[32], number[32];
        printf("dtype       %s: %s tensor%s, %s\n", heft_dtype_name(sums[k].dtype),
               cli_grouped(sums[k].tensors, number), sums[k].tensors == 1 ? "" : "s",
               cli_bytes(sums[k].bytes, bytes));
    }
}

/* ---- which tensors, in which order ----------------------------------------------------------- */
static int by_name(const void *left, const void *right)
{
    return strcmp((*(const heft_tensor_info *const *)left)->name,
                  (*(const heft_tensor_info *const *)right)->name);
}

/* The largest first, equal ones in their order. */
static int by_bytes(const void *left, const void *right)
{
    const heft_tensor_info *a = *(const heft_tensor_info *const *)left,
                           *b = *(const heft_tensor_info *const *)right;
    return a->size_bytes != b->size_bytes ? (a->size_bytes < b->size_bytes ? 1 : -1)
                                          : (a > b) - (a < b);
}

/* False without memory. */
static bool choose_tensors(const cli_run *run, cli_listing *list)
{
    const char *filter = run->values[OPTION_FILTER], *sort = run->values[OPTION_SORT];
    list->shown = calloc(list->count + 1, sizeof *list->shown);
    for (size_t i = 0; list->shown && i < list->count; i++) {
        if (!filter || fnmatch(filter, list->infos[i].name, 0) == 0) {
            list->shown[list->shown_count++] = &list->infos[i];
        }
    }
    if (list->shown && sort) {
        qsort(list->shown, list->shown_count, sizeof *list->shown,
              strcmp(sort, "name") == 0 ? by_name : by_bytes);
    }
    return list->shown != NULL;
}

static bool check_sort(const cli_run *run, heft_error *err)
{
    const char *sort = run->values[OPTION_SORT];
    if (sort && strcmp(sort, "name") != 0 && strcmp(sort, "bytes") != 0) {
        return cli_refuse(err, "--sort", "'%.60s' is not a key: expected name or bytes", sort);
    }
    return true;
}

/* ---- JSON ------------------------------------------------------------------------------------ */
static void put_files(cli_json *json, const heft_checkpoint *ckpt)
{
    cli_json_open(json, "files", '[');
    for (size_t i = 0; ckpt && i < heft_checkpoint_file_count(ckpt); i++) {
        const heft_file_info *file = heft_checkpoint_file(ckpt, i);
        cli_json_open(json, NULL, '{');
        cli_json_string(json, "name", file->name);
        cli_json_u64(json, "bytes", file->size_bytes);
        cli_json_u64(json, "tensors", file->tensors);
        cli_json_close(json, '}');
    }
    cli_json_close(json, ']');
}

static void put_tensors(cli_json *json, const cli_listing *list)
{
    cli_json_open(json, "tensors", '[');
    for (size_t i = 0; i < list->shown_count; i++) {
        const heft_tensor_info *info = list->shown[i];
        cli_json_open(json, NULL, '{');
        cli_json_string(json, "name", info->name);
        cli_json_string(json, "dtype", heft_dtype_name(info->dtype));
        cli_json_shape(json, "shape", info->shape, info->rank);
        cli_json_string(json, "file", info->file);
        if (info->offset == HEFT_NO_OFFSET) {
            cli_json_null(json, "offset");
        } else {
            cli_json_u64(json, "offset", info->offset);
        }
        cli_json_u64(json, "bytes", info->size_bytes);
        cli_json_close(json, '}');
    }
    cli_json_close(json, ']');
}

static void put_modules(cli_json *json, const heft_model *model)
{
    cli_json_open(json, "modules", '[');
    for (size_t i = 0; i < heft_model_module_count(model); i++) {
        const heft_module *module = heft_model_module(model, i);
        cli_json_open(json, NULL, '{');
        cli_json_string(json, "path", module->path);
        cli_json_string(json, "class", module->class_name);
        cli_json_string(json, "kind", heft_module_kind_name(module->kind));
        cli_json_open(json, "parameters", '[');
        for (size_t k = 0; k < module->parameter_count; k++) {
            const heft_parameter *parameter = heft_model_parameter(model, module->parameters[k]);
            if (parameter->kind != HEFT_PARAMETER_BUFFER_TRANSIENT) {
                cli_json_string(json, NULL, parameter->role);
            }
        }
        cli_json_close(json, ']');
        cli_json_u64(json, "bytes", module->bytes);
        cli_json_bool(json, "no_split", module->no_split);
        cli_json_bool(json, "unit", module->unit);
        cli_json_close(json, '}');
    }
    cli_json_close(json, ']');
}

static void put_ties(cli_json *json, const cli_listing *list)
{
    size_t begin = 0;
    cli_json_open(json, "tied", '[');
    for (size_t g = 0; g < list->tied_count; g++) {
        cli_json_strings(json, NULL, list->tied + begin, list->tied_ends[g] - begin);
        begin = list->tied_ends[g];
    }
    cli_json_close(json, ']');
}

static void put_metadata(cli_json *json, const heft_checkpoint *ckpt)
{
    const char *key, *value;
    cli_json_open(json, "metadata", '{');
    for (size_t i = 0; ckpt && (key = heft_checkpoint_metadata(ckpt, i, &value)); i++) {
        cli_json_string(json, key, value);
    }
    cli_json_close(json, '}');
}

static void put_skipped(cli_json *json, const heft_checkpoint *ckpt)
{
    const char *text;
    cli_json_open(json, "skipped", '[');
    for (size_t i = 0; ckpt && (text = heft_checkpoint_skipped(ckpt, i)); i++) {
        cli_json_string(json, NULL, text);
    }
    cli_json_close(json, ']');
}

static void put_warnings(cli_json *json, const heft_checkpoint *ckpt,
                         const heft_quantization *quantization)
{
    const char *text;
    cli_json_open(json, "warnings", '[');
    for (size_t i = 0; ckpt && (text = heft_checkpoint_warning(ckpt, i)); i++) {
        cli_json_string(json, NULL, text);
    }
    if (quantization && quantization->warning) {
        cli_json_string(json, NULL, quantization->warning);
    }
    cli_json_close(json, ']');
}

static bool print_json(const cli_run *run, const cli_listing *list,
                       const heft_quantization *quantization)
{
    cli_json json = {.out = stdout};
    bool good = true;
    cli_json_open(&json, NULL, '{');
    cli_json_string(&json, "format", list->format);
    if (list->model) {
        cli_json_string(&json, "class", heft_model_class(list->model));
        cli_json_string(&json, "model_type", heft_model_type(list->model));
    }
    cli_put_quantization(&json, quantization);
    cli_json_string(&json, "index", list->ckpt ? heft_checkpoint_index(list->ckpt) : NULL);
    put_files(&json, list->ckpt);
    put_tensors(&json, list);
    if (list->model) {
        put_modules(&json, list->model);
    }
    put_dtypes(&json, list);
    put_ties(&json, list);
    put_metadata(&json, list->ckpt);
    cli_json_u64(&json, "total_size", list->total_size);
    cli_json_u64(&json, "total_parameters", list->total_parameters);
    put_skipped(&json, list->ckpt);
    put_warnings(&json, list->ckpt, quantization);
    if (run->values[OPTION_TREE]) {
        good = cli_tree_json(list, &json, "tree");
    }
    cli_json_close(&json, '}');
    cli_json_end(&json);
    return good;
}

/* ---- text ------------------------------------------------------------------------------------ */
static void print_pair(const char *label, const char *text)
{
    printf("%-11s ", label);
    cli_put(stdout, text);
    putchar('\n');
}

static void print_summary(const cli_listing *list, const heft_quantization *quantization)
{
    char bytes[32], number[32];
    print_pair("format", list->format);
    if (list->model) {
        print_pair("class", heft_model_class(list->model));
    }
    if (list->ckpt && heft_checkpoint_index(list->ckpt)) {
        print_pair("index", heft_checkpoint_index(list->ckpt));
    }
    cli_print_quantization("quantized   ", quantization);
    if (!list->ckpt) {
        print_pair("weights", "none: this is the empty model that the config describes");
    }
    printf("tensors     %zu\n", list->count);
    printf("parameters  %s\n", cli_grouped(list->total_parameters, number));
    printf("total       %s (%s bytes)\n", cli_bytes(list->total_size, bytes),
           cli_grouped(list->total_size, number));
    print_dtypes(list);
    const char *key, *value, *skipped;
    for (size_t i = 0; list->ckpt && (key = heft_checkpoint_metadata(list->ckpt, i, &value)); i++) {
        printf("metadata    ");
        cli_put(stdout, key);
        fputs(" = ", stdout);
        cli_put(stdout, value);
        putchar('\n');
    }
    for (size_t i = 0; list->ckpt && (skipped = heft_checkpoint_skipped(list->ckpt, i)); i++) {
        print_pair("skipped", skipped);
    }
    size_t begin = 0;
    for (size_t g = 0; g < list->tied_count; g++) {
        printf("tied        ");
        for (size_t i = begin; i < list->tied_ends[g]; i++) {
            fputs(i > begin ? " = " : "", stdout);
            cli_put(stdout, list->tied[i]);
        }
        begin = list->tied_ends[g];
        putchar('\n');
    }
}

static bool print_files(const heft_checkpoint *ckpt)
{
    static const char *const titles[] = {"file", ">tensors", ">bytes"};
    cli_table table = {.titles = titles, .columns = 3, .has_head = true};
    char text[32];
    for (size_t i = 0; i < heft_checkpoint_file_count(ckpt); i++) {
        const heft_file_info *file = heft_checkpoint_file(ckpt, i);
        cli_table_add(&table, file->name);
        cli_table_add(&table, cli_grouped(file->tensors, text));
        cli_table_add(&table, cli_grouped(file->size_bytes, text));
    }
    return cli_table_print(&table, 0, stdout);
}

static bool print_tensors(const cli_listing *list)
{
    static const char *const stored[] = {"tensor", "dtype", "shape", ">bytes", "file", ">offset"};
    cli_table table = {.titles = stored, .columns = list->ckpt ? 6 : 4, .has_head = true};
    table.optional = list->ckpt ? 2 : 0; /* file and offset */
    char text[32], shape[256];
    for (size_t i = 0; i < list->shown_count; i++) {
        const heft_tensor_info *info = list->shown[i];
        cli_table_add(&table, info->name);
        cli_table_add(&table, heft_dtype_name(info->dtype));
        cli_table_add(&table, cli_shape(info->shape, info->rank, shape));
        cli_table_add(&table, cli_grouped(info->size_bytes, text));
        if (list->ckpt) {
            snprintf(text, sizeof text, info->offset == HEFT_NO_OFFSET ? "-" : "%" PRIu64,
                     info->offset);
            cli_table_add(&table, info->file);
            cli_table_add(&table, text);
        }
    }
    return cli_table_print(&table, 0, stdout);
}

static bool print_text(cli_run *run, const cli_listing *list, const heft_quantization *quantization)
{
    const char *warning;
    for (size_t i = 0; list->ckpt && (warning = heft_checkpoint_warning(list->ckpt, i)); i++) {
        cli_warn(run, warning);
    }
    if (quantization && quantization->warning) {
        cli_warn(run, quantization->warning);
    }
    print_summary(list, quantization);
    if (run->values[OPTION_FILTER]) {
        printf("listed      %zu of %zu tensors\n", list->shown_count, list->count);
    }
    if (list->ckpt) {
        putchar('\n');
        if (!print_files(list->ckpt)) {
            return false;
        }
    }
    if (run->values[OPTION_HTML] && !run->values[OPTION_TREE]) {
        return true;
    }
    putchar('\n');
    return run->values[OPTION_TREE] ? cli_tree_print(list, stdout) : print_tensors(list);
}

static int print_listing(cli_run *run, cli_listing *list, const heft_quantization *quantization,
                         bool good)
{
    const char *page = run->values[OPTION_HTML];
    heft_error err = {0};
    good = good && choose_tensors(run, list);
    if (good && page && !cli_treemap_write(run, list, run->arguments[0], page, &err)) {
        cli_listing_fini(list);
        return cli_fail(run, &err);
    }
    const bool silent = page && (strcmp(page, "-") == 0 || (run->quiet && !run->json));
    good = good && (silent      ? true
                    : run->json ? print_json(run, list, quantization)
                                : print_text(run, list, quantization));
    cli_listing_fini(list);
    return good ? 0 : cli_fail_nomem(run);
}

/* ---- the empty model ------------------------------------------------------------------------- */
static int inspect_model(cli_run *run, const heft_config *config, heft_format format)
{
    heft_error err = {0};
    heft_model *model = NULL;
    int code;
    if (heft_model_new(run->ctx, config, run->values[OPTION_CLASS], heft_config_dtype(config),
                       &model, &err) == HEFT_OK) {
        cli_listing list;
        bool good = cli_listing_of_model(
            &list, model, format == HEFT_FORMAT_AUTO ? HEFT_FORMAT_SAFETENSORS : format);
        code = print_listing(run, &list, NULL, good);
    } else {
        code = cli_fail(run, &err);
    }
    heft_model_free(model);
    return code;
}

/* ---- the command ----------------------------------------------------------------------------- */
static int inspect_checkpoint(cli_run *run, const heft_source *source)
{
    heft_error err = {0};
    if (heft_source_check_index(source, &err) != HEFT_OK) {
        return cli_fail(run, &err);
    }
    if (run->values[OPTION_CLASS]) {
        cli_warn(run, "--class is ignored: this folder contains weights");
    }
    cli_listing list;
    bool good = cli_listing_of_source(&list, source);
    return print_listing(run, &list, heft_source_quantization(source), good);
}

static int run_inspect(cli_run *run)
{
    heft_error err = {0};
    heft_source *source = NULL;
    heft_checkpoint_options where =
        HEFT_OPTIONS(heft_checkpoint_options, .variant = run->values[OPTION_VARIANT],
                     .subfolder = run->values[OPTION_SUBFOLDER]);
    if (!cli_value_format(run, OPTION_FORMAT, &where.prefer, &err) || !check_sort(run, &err)) {
        return cli_fail(run, &err);
    }
    const char *page = run->values[OPTION_HTML];
    if (page && strcmp(page, "-") == 0 && (run->json || run->values[OPTION_TREE])) {
        cli_refuse(&err, "--html", "'-' writes the page to standard output, where %s goes",
                   run->json ? "the JSON document" : "the tree");
        return cli_fail(run, &err);
    }
    if (heft_source_open(run->ctx, run->arguments[0],
                         &HEFT_OPTIONS(heft_source_options, .checkpoint = &where), &source,
                         &err) != HEFT_OK) {
        return cli_fail(run, &err);
    }
    int code = heft_source_checkpoint(source)
                   ? inspect_checkpoint(run, source)
                   : inspect_model(run, heft_source_config(source), where.prefer);
    heft_source_close(source);
    return code;
}

const cli_command cli_cmd_inspect = {
    .name = "inspect",
    .arguments = "PATH",
    .argument_count = 1,
    .summary = "Show what a checkpoint contains, or the model that a config.json describes",
    .about = "PATH is a checkpoint folder, a weight file, an index file or a config.json. For a "
             "config.json, or a folder\nthat contains one and no weights, shows the empty model as "
             "it would be saved.\n",
    .options = options,
    .option_count = OPTION_COUNT,
    .dies_at_once = true,
    .run = run_inspect,
};
