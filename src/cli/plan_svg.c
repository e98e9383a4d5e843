/* plan_svg.c - a plan as one picture: devices as columns, their modules in order, sizes to scale.
 *
 * Colors follow the reader's light or dark mode. A column is as high as its budget where that is
 * known; what is on it grows from the bottom. Modules that are too thin for a label share one. */
#include "cli/cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define COLUMN 150
#define GAP 30
#define HEIGHT 420
#define TOP 60
#define LABEL_HEIGHT 12 /* that a label needs */
#define LABEL 22        /* bytes of a name, from its end */

static void put_text(FILE *out, const char *text)
{
    for (; *text; text++) {
        switch (*text) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc((unsigned char)*text < 0x20 ? '?' : *text, out);
        }
    }
}

/* The bytes that the whole height stands for: the largest of budgets in use and of what is placed. */
static double scale_of(const heft_plan *plan)
{
    heft_budget budget;
    double placed, most = 1;
    for (size_t i = 0; heft_plan_device(plan, i, &budget, &placed); i++) {
        if (placed > most) {
            most = placed;
        }
        if (budget.device >= 0 && isfinite(budget.bytes) && budget.bytes > most) {
            most = budget.bytes;
        }
    }
    return most;
}

/* Modules of one device, in order, from the bottom of its column up. */
struct column {
    FILE *out;
    double scale; /* bytes of the whole height */
    double y;     /* of the top of what was drawn, in the column */
    const char *
        *thin;    /* [plan's entries] names since the last label, too thin for one of their own */
    double *tops; /* [plan's entries] where each of them ends */
    size_t thin_count;
    double thin_from; /* where the first of them began */
};

/* The end of a name, from a character on. */
static const char *name_end(const char *name)
{
    const size_t length = strlen(name);
    const char *end = name + (length > LABEL ? length - LABEL : 0);
    while (((unsigned char)*end & 0xc0) == 0x80) {
        end++;
    }
    return end;
}

static void put_label(FILE *out, const char *name, double y)
{
    const char *end = name_end(name);
    fprintf(out, "<text x=\"5\" y=\"%.2f\" class=\"in\">%s", y + 4, end > name ? "…" : "");
    put_text(out, end);
    fputs("</text>", out);
}

/* One label for the thin names [first, first + count): their folded name; else how many they are. */
static bool label_run(struct column *c, size_t first, size_t count, bool *one)
{
    const double from = first > 0 ? c->tops[first - 1] : c->thin_from,
                 height = from - c->tops[first + count - 1];
    char text[48];
    size_t folded = 0;
    cli_folded *rows = cli_names_fold(c->thin + first, NULL, count, &folded, NULL);
    snprintf(text, sizeof text, "%zu modules", count);
    if (rows && height >= LABEL_HEIGHT && (folded == 1 || !one)) {
        put_label(c->out, folded == 1 ? rows[0].name : text, from - height / 2);
    }
    if (one) {
        *one = folded == 1;
    }
    cli_names_free(rows, folded);
    return rows != NULL;
}

/* Thin neighbors that fold into one name have one label. */
static bool label_thin(struct column *c)
{
    size_t folded = 0, first = 0;
    bool good = true, one = true;
    if (c->thin_count > 0) {
        cli_folded *rows = cli_names_fold(c->thin, NULL, c->thin_count, &folded, NULL);
        good = rows != NULL;
        for (size_t i = 0; good && one && i < folded; i++) {
            good = label_run(c, first, rows[i].count, &one);
            first += one ? rows[i].count : 0;
        }
        cli_names_free(rows, folded);
    }
    if (good && first < c->thin_count) { /* names of several kinds take turns */
        good = label_run(c, first, c->thin_count - first, NULL);
    }
    c->thin_count = 0;
    c->thin_from = c->y;
    return good;
}

static bool draw_module(struct column *c, const char *name, double bytes, size_t number)
{
    const double height = bytes / c->scale * HEIGHT;
    char text[32];
    bool good = true;
    const char *shown = *name ? name : "the whole model";
    if (height >= LABEL_HEIGHT) {
        good = label_thin(c);
    }
    c->y -= height;
    fprintf(c->out, "<rect x=\"0\" y=\"%.2f\" width=\"%d\" height=\"%.2f\" class=\"m%zu\"><title>",
            c->y, COLUMN, height, number % 2);
    put_text(c->out, shown);
    fprintf(c->out, ": %s</title></rect>", cli_bytes((uint64_t)bytes, text));
    if (height >= LABEL_HEIGHT) {
        put_label(c->out, shown, c->y + height / 2);
        c->thin_from = c->y;
    } else {
        c->tops[c->thin_count] = c->y;
        c->thin[c->thin_count++] = name;
    }
    return good;
}

/* The labels of thin modules are drawn behind them. */
static bool draw_modules(FILE *out, const heft_plan *plan, int32_t device, int x, double scale)
{
    struct column c = {.out = out, .scale = scale, .y = HEIGHT, .thin_from = HEIGHT};
    size_t number = 0;
    c.thin = calloc(heft_plan_count(plan) + 1, sizeof *c.thin);
    c.tops = calloc(heft_plan_count(plan) + 1, sizeof *c.tops);
    bool good = c.thin && c.tops;
    fprintf(out, "<svg x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\">", x, TOP, COLUMN, HEIGHT);
    for (size_t i = 0; good && i < heft_plan_count(plan); i++) {
        int32_t on;
        double bytes;
        const char *name = heft_plan_entry(plan, i, &on, &bytes);
        if (on == device && bytes > 0) {
            good = draw_module(&c, name, bytes, number++);
        }
    }
    good = good && label_thin(&c);
    fputs("</svg>", out);
    free(c.thin);
    free(c.tops);
    return good;
}

/* False without memory. */
static bool draw(FILE *out, const heft_plan *plan)
{
    const double scale = scale_of(plan);
    heft_budget budget;
    double placed;
    int columns = 0, x = GAP;
    bool good = true;
    char name[CLI_DEVICE_TEXT], used[32], limit[32];
    while (heft_plan_device(plan, (size_t)columns, &budget, &placed)) {
        columns++;
    }
    const int width = GAP + columns * (COLUMN + GAP), height = TOP + HEIGHT + GAP;
    fprintf(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" role=\"img\" width=\"%d\" height=\"%d\" "
        "viewBox=\"0 0 %d "
        "%d\"><style>text{font:12px "
        "sans-serif;fill:#1c1c1c}.in{font-size:10px;fill:#fff}.m0,.m1{shape-rendering:crispEdges}"
        ".head{font-weight:bold;font-size:14px}.back{fill:#fff}.room{fill:none;stroke:#999;"
        "stroke-dasharray:4 3}.m0{fill:#1f6b52}.m1{fill:#2a7f62}"
        "@media(prefers-color-scheme:dark){text{fill:#e6e6e6}.back{fill:#161616}.room{stroke:"
        "#777}.m0{fill:#28795d}.m1{fill:#1d5f49}}</style>"
        "<rect class=\"back\" width=\"%d\" height=\"%d\"/>",
        width, height, width, height, width, height);
    for (size_t i = 0; good && heft_plan_device(plan, i, &budget, &placed);
         i++, x += COLUMN + GAP) {
        const bool limited = isfinite(budget.bytes);
        const double room =
            limited && budget.bytes < scale ? budget.bytes / scale * HEIGHT : HEIGHT;
        fprintf(out, "<text x=\"%d\" y=\"24\" class=\"head\">%s</text><text x=\"%d\" y=\"42\">", x,
                cli_device(budget.device, name), x);
        fprintf(out, "%s%s%s</text>", cli_bytes((uint64_t)placed, used),
                limited ? " of " : ", no limit",
                limited ? cli_bytes((uint64_t)budget.bytes, limit) : "");
        good = draw_modules(out, plan, budget.device, x, scale);
        fprintf(out, "<rect x=\"%d\" y=\"%.2f\" width=\"%d\" height=\"%.2f\" class=\"room\"/>", x,
                TOP + HEIGHT - room, COLUMN, room);
    }
    fputs("</svg>\n", out);
    return good;
}

bool cli_plan_svg(cli_run *run, const heft_plan *plan, const char *path, heft_error *err)
{
    char *picture = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&picture, &size);
    bool good = out && draw(out, plan) && !ferror(out);
    good = out && fclose(out) == 0 && good;
    good = good ? heft_file_write(run->ctx, path, picture, size, err) == HEFT_OK
                : cli_refuse(err, "--svg", "cannot allocate memory for the names");
    free(picture);
    return good;
}
