/* file_names.c - what the files of a checkpoint are called.
 *
 *   STEM[.V].EXT   STEM.EXT.index[.V].json   STEM[.V]-00001-of-00003.EXT
 *   TENSOR.EXT and an index with a fixed name, where each tensor is a file
 *
 * Source: docs/sharding.md [1]. */
#include "format/format.h"

#include <ctype.h>

static bool is_given(const char *text)
{
    return text && *text;
}

bool heft__ends_with(const char *text, const char *end)
{
    const size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

static const char *stem_of(heft__arena *arena, const heft__format *format, const char *variant)
{
    const bool given = is_given(variant);
    return heft__arena_format(arena, "%s%s%s", format->stem, given ? "." : "",
                              given ? variant : "");
}

const char *heft__weights_single(heft__arena *arena, const heft__format *format,
                                 const char *variant)
{
    const char *stem = stem_of(arena, format, variant);
    return stem ? heft__arena_format(arena, "%s.%s", stem, format->extension) : NULL;
}

const char *heft__weights_index(heft__arena *arena, const heft__format *format, const char *variant)
{
    const bool given = is_given(variant);
    return format->index_name
               ? format->index_name
               : heft__arena_format(arena, "%s.%s.index%s%s.json", format->stem, format->extension,
                                    given ? "." : "", given ? variant : "");
}

const char *heft__weights_shard(heft__arena *arena, const heft__format *format, const char *variant,
                                size_t number, size_t count)
{
    const char *stem = stem_of(arena, format, variant);
    return stem ? heft__arena_format(arena, "%s-%05zu-of-%05zu.%s", stem, number, count,
                                     format->extension)
                : NULL;
}

const char *heft__weights_of_tensor(heft__arena *arena, const heft__format *format,
                                    const char *tensor)
{
    return heft__arena_format(arena, "%s.%s", tensor, format->extension);
}

/* At least five digits at p, as "%05zu" prints them; NULL if not, else where they end. */
static const char *number_at(const char *p)
{
    const char *start = p;
    while (isdigit((unsigned char)*p)) {
        p++;
    }
    return p - start >= 5 ? p : NULL;
}

/* Whether what follows the stem is "-00001-of-00003.EXT". */
static bool is_numbered(const char *p, const char *extension)
{
    p = *p == '-' ? number_at(p + 1) : NULL;
    p = p && strncmp(p, "-of-", 4) == 0 ? number_at(p + 4) : NULL;
    return p && *p == '.' && strcmp(p + 1, extension) == 0;
}

bool heft__is_shard_name(const char *name, const heft__format *format, const char *variant)
{
    const char *p = name;
    if (format->file_each) {
        const size_t length = strlen(name), tail = strlen(format->extension) + 1;
        return length > tail && name[length - tail] == '.' &&
               strcmp(name + length - tail + 1, format->extension) == 0;
    }
    if (strncmp(p, format->stem, strlen(format->stem)) != 0) {
        return false;
    }
    p += strlen(format->stem);
    if (is_given(variant)) {
        if (*p != '.' || strncmp(p + 1, variant, strlen(variant)) != 0) {
            return false;
        }
        p += 1 + strlen(variant);
    }
    return is_numbered(p, format->extension);
}
