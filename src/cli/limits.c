/* limits.c - --limit NAME=N: the members of heft_limits by their names.
 *
 * N is a number, with a unit where the limit counts bytes, or `none`. A message about a limit names the
 * member that raises it, and so the option. */
#include "cli/cli.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define ROW(member)                                                                                \
    {                                                                                              \
#member, offsetof(heft_limits, member), sizeof(((heft_limits *)NULL)->member)              \
    }

static const struct limit {
    const char *name;
    size_t offset, size;
} limits_known[] = {
    ROW(header_bytes), ROW(pickle_bytes), ROW(index_bytes),    ROW(config_bytes),
    ROW(tensors),      ROW(name_bytes),   ROW(shards),         ROW(json_depth),
    ROW(pickle_depth), ROW(rank),         ROW(expanded_bytes), ROW(missing_bytes),
    ROW(modules),      ROW(value_bytes),  ROW(small_tensors),  ROW(tokenizer_bytes),
    ROW(chat_bytes),
};
#define LIMIT_COUNT (sizeof limits_known / sizeof limits_known[0])

static const struct limit *find_limit(const char *name, size_t length)
{
    for (size_t i = 0; i < LIMIT_COUNT; i++) {
        if (strlen(limits_known[i].name) == length &&
            memcmp(limits_known[i].name, name, length) == 0) {
            return &limits_known[i];
        }
    }
    return NULL;
}

/* "header_bytes, pickle_bytes, ..." */
static void list_limits(char *text, size_t cap)
{
    size_t at = 0;
    for (size_t i = 0; i < LIMIT_COUNT && at < cap; i++) {
        at += (size_t)snprintf(text + at, cap - at, "%s%s", i ? ", " : "", limits_known[i].name);
    }
}

static bool read_number(const char *text, bool bytes, uint64_t *value, heft_error *err)
{
    if (bytes) {
        return heft_size_parse(text, value, err) == HEFT_OK;
    }
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    return *text && strspn(text, "0123456789") == strlen(text) && errno != ERANGE;
}

bool cli_limit_set(heft_limits *limits, const char *text, heft_error *err)
{
    const char *equals = strchr(text, '='), *number = equals ? equals + 1 : "";
    const struct limit *limit = equals ? find_limit(text, (size_t)(equals - text)) : NULL;
    const uint64_t most = limit && limit->size == sizeof(uint32_t) ? UINT32_MAX : UINT64_MAX;
    uint64_t value = most;
    heft_error why = {0};
    if (!limit) {
        char names[400];
        list_limits(names, sizeof names);
        return cli_refuse(err, "--limit", "'%.60s' is not NAME=N, where NAME is one of %s", text,
                          names);
    }
    const bool bytes = strstr(limit->name, "_bytes") != NULL;
    if (strcmp(number, "none") != 0 && !read_number(number, bytes, &value, &why)) {
        return *why.message ? cli_refuse(err, "--limit", "%s: %s", limit->name, why.message)
                            : cli_refuse(err, "--limit",
                                         "%s: '%.60s' is no number: expected 1 or more, or none",
                                         limit->name, number);
    }
    if (value == 0) { /* to the library it would be the default */
        return cli_refuse(err, "--limit", "%s: 0 lets nothing pass: expected 1 or more, or none",
                          limit->name);
    }
    value = value < most ? value : most;
    const uint32_t narrow = (uint32_t)value;
    memcpy((char *)limits + limit->offset,
           limit->size == sizeof narrow ? (const void *)&narrow : (const void *)&value,
           limit->size);
    return true;
}

const char *cli_limit_named(const char *message)
{
    static const char word[] = "limit ";
    while ((message = strstr(message, word)) != NULL) {
        message += sizeof word - 1;
        const struct limit *limit =
            find_limit(message, strspn(message, "abcdefghijklmnopqrstuvwxyz_"));
        if (limit) {
            return limit->name;
        }
    }
    return NULL;
}
