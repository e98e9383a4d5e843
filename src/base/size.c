/* size.c - `200MB`, `1.5 GiB`, `4096`.
 *
 * Decimals are kept as digits and not as a double: 0.29GB is 290000000 and not a byte less. The
 * reference parses a double and cuts; docs/differences.md names the difference. */
#include "base/base.h"

#include <ctype.h>

static const struct {
    const char *name; /* lower case */
    uint64_t bytes;
} units[] = {
    {"",    1                },
    {"kb",  1000             },
    {"mb",  1000000          },
    {"gb",  1000000000       },
    {"tb",  1000000000000    },
    {"kib", (uint64_t)1 << 10},
    {"mib", (uint64_t)1 << 20},
    {"gib", (uint64_t)1 << 30},
    {"tib", (uint64_t)1 << 40},
};

static heft_status refuse(const char *text, heft_error *err)
{
    return heft__fail(
        err, HEFT_INVALID_ARG,
        "size '%.60s' is not a number of bytes or a number with KB, MB, GB, TB, KiB, MiB, "
        "GiB or TiB, such as 200MB",
        text);
}

static const char *skip_space(const char *p)
{
    while (*p == ' ' || *p == '\t') {
        p++;
    }
    return p;
}

/* The bytes of the unit at p, which must end there; 0 if it is none. */
static uint64_t unit_bytes(const char *p)
{
    char name[4] = "";
    size_t length = 0;
    for (; *p && *p != ' ' && *p != '\t'; p++) {
        if (length == sizeof name - 1) {
            return 0;
        }
        name[length++] = (char)tolower((unsigned char)*p);
    }
    if (*skip_space(p)) {
        return 0;
    }
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(name, units[i].name) == 0) {
            return units[i].bytes;
        }
    }
    return 0;
}

heft_status heft_size_parse(const char *text, uint64_t *bytes, heft_error *err)
{
    if (!text || !bytes) {
        return heft__fail(err, HEFT_INVALID_ARG, "size text or result is NULL");
    }
    const uint64_t most = INT64_MAX;
    const char *p = skip_space(text), *fraction = NULL;
    uint64_t whole = 0;
    bool digits = false, too_large = false;
    for (; isdigit((unsigned char)*p); p++) {
        digits = true;
        too_large |= !heft__mul_u64(whole, 10, &whole) ||
                     !heft__add_u64(whole, (uint64_t)(*p - '0'), &whole);
    }
    if (*p == '.') {
        fraction = ++p;
        for (; isdigit((unsigned char)*p); p++) {
            digits = true;
        }
    }
    uint64_t unit = unit_bytes(skip_space(p));
    if (!digits || unit == 0 || (fraction && unit == 1)) {
        return refuse(text, err);
    }
    uint64_t total;
    too_large |= !heft__mul_u64(whole, unit, &total);
    /* The fraction from its last digit to its first: truncating at each step truncates the
     * whole. A unit is at most 2^40, so the first 18 digits decide everything. */
    int used = 0;
    while (fraction && used < 18 && isdigit((unsigned char)fraction[used])) {
        used++;
    }
    uint64_t part = 0;
    while (used > 0) {
        part = ((uint64_t)(fraction[--used] - '0') * unit + part) / 10;
    }
    too_large |= !heft__add_u64(total, part, &total);
    if (too_large || total > most) {
        return heft__fail(err, HEFT_INVALID_ARG, "size '%.60s' exceeds %llu bytes", text,
                          (unsigned long long)most);
    }
    *bytes = total;
    return HEFT_OK;
}
