/* plan_svg.c - a plan as one picture: devices as columns, their modules in order, sizes to scale.
 *
 * Colours follow the reader's light or dark mode. A column is as high as its budget where that is
 * known; what is on it grows from the bottom. */
#include "cli/cli.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define COLUMN 150
#define GAP 30
#define HEIGHT 420
#define TOP 60

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

static void draw_modules(FILE *out, const heft_plan *plan, int32_t device, int x, double scale)
{
    double y = TOP + HEIGHT;
    size_t number = 0;
    char text[32];
    for (size_t i = 0; i < heft_plan_count(plan); i++) {
        int32_t on;
        double bytes;
        const char *name = heft_plan_entry(plan, i, &on, &bytes);
        const double height = bytes / scale * HEIGHT;
        if (on != device || bytes <= 0) {
            continue;
        }
        y -= height;
        fprintf(out,
                "<rect x=\"%d\" y=\"%.2f\" width=\"%d\" height=\"%.2f\" class=\"m%zu\"><title>", x,
                y, COLUMN, height, number++ % 2);
        put_text(out, *name ? name : "the whole model");
        fprintf(out, ": %s</title></rect>", cli_bytes((uint64_t)bytes, text));
        if (height >= 12) {
            const size_t length = strlen(name), most = 22;
            fprintf(out, "<text x=\"%d\" y=\"%.2f\" class=\"in\">", x + 5, y + height / 2 + 4);
            fputs(length > most ? "…" : "", out);
            put_text(out, *name ? name + (length > most ? length - most : 0) : "the whole model");
            fputs("</text>", out);
        }
    }
}

static void draw(FILE *out, const heft_plan *plan)
{
    const double scale = scale_of(plan);
    heft_budget budget;
    double placed;
    int columns = 0, x = GAP;
    char name[CLI_DEVICE_TEXT], used[32], limit[32];
    while (heft_plan_device(plan, (size_t)columns, &budget, &placed)) {
        columns++;
    }
    const int width = GAP + columns * (COLUMN + GAP), height = TOP + HEIGHT + GAP;
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d "
            "%d\"><style>text{font:12px sans-serif;fill:#1c1c1c}.in{font-size:10px;fill:#fff}"
            ".head{font-weight:bold;font-size:14px}.back{fill:#fff}.room{fill:none;stroke:#999;"
            "stroke-dasharray:4 3}.m0{fill:#2a7f62}.m1{fill:#35997a}"
            "@media(prefers-color-scheme:dark){text{fill:#e6e6e6}.back{fill:#161616}.room{stroke:"
            "#777}.m0{fill:#2f8f6e}.m1{fill:#226b53}}</style>"
            "<rect class=\"back\" width=\"%d\" height=\"%d\"/>",
            width, height, width, height, width, height);
    for (size_t i = 0; heft_plan_device(plan, i, &budget, &placed); i++, x += COLUMN + GAP) {
        const bool limited = isfinite(budget.bytes);
        const double room =
            limited && budget.bytes < scale ? budget.bytes / scale * HEIGHT : HEIGHT;
        fprintf(out, "<text x=\"%d\" y=\"24\" class=\"head\">%s</text><text x=\"%d\" y=\"42\">", x,
                cli_device(budget.device, name), x);
        fprintf(out, "%s of %s</text>", cli_bytes((uint64_t)placed, used),
                limited ? cli_bytes((uint64_t)budget.bytes, limit) : "no limit");
        draw_modules(out, plan, budget.device, x, scale);
        fprintf(out, "<rect x=\"%d\" y=\"%.2f\" width=\"%d\" height=\"%.2f\" class=\"room\"/>", x,
                TOP + HEIGHT - room, COLUMN, room);
    }
    fputs("</svg>\n", out);
}

bool cli_plan_svg(const heft_plan *plan, const char *path, heft_error *err)
{
    FILE *out = fopen(path, "we");
    if (!out) {
        return cli_refuse(err, "--svg", "cannot write '%.200s': %s", path, strerror(errno));
    }
    draw(out, plan);
    bool good = !ferror(out);
    good = fclose(out) == 0 && good;
    if (!good) {
        err->status = HEFT_IO;
        snprintf(err->message, sizeof err->message, "cannot write '%.200s'", path);
    }
    return good;
}
