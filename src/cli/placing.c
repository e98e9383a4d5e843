/* placing.c - what commands share that have a device map. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

const char *cli_device(int32_t device, char dst[CLI_DEVICE_TEXT])
{
    switch (device) {
    case HEFT_DEVICE_CPU:
        return "cpu";
    case HEFT_DEVICE_DISK:
        return "disk";
    case HEFT_DEVICE_MPS:
        return "mps";
    default:
        snprintf(dst, CLI_DEVICE_TEXT, "%d", device);
        return dst;
    }
}

/* "12345678 bytes" as "12.3 MB", once in a line. */
static void warn_line(cli_run *run, const char *line)
{
    const char *unit = strstr(line, " bytes"), *number = unit;
    while (number && number > line && number[-1] >= '0' && number[-1] <= '9') {
        number--;
    }
    char *text = NULL, size[32];
    if (number == unit ||
        asprintf(&text, "%.*s%s%s", (int)(number - line), line,
                 cli_bytes(strtoull(number, NULL, 10), size), unit + strlen(" bytes")) < 0) {
        text = NULL;
    }
    cli_warn(run, text ? text : line);
    free(text);
}

bool cli_plan_warn(cli_run *run, const heft_plan *plan)
{
    for (size_t i = 0; heft_plan_warning(plan, i); i++) {
        char *lines = strdup(heft_plan_warning(plan, i));
        if (!lines) {
            return false;
        }
        for (char *rest = lines, *line; (line = strsep(&rest, "\n"));) {
            warn_line(run, line);
        }
        free(lines);
    }
    return true;
}

void cli_plan_put_warnings(cli_json *json, const heft_plan *plan)
{
    for (size_t i = 0; plan && heft_plan_warning(plan, i); i++) {
        cli_json_string(json, NULL, heft_plan_warning(plan, i));
    }
}
