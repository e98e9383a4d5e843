/* hub.c - org/name[@revision] in the hub's cache on this machine; nothing is ever downloaded.
 *
 *   <cache>/models--org--name/refs/main            the commit, as text
 *   <cache>/models--org--name/snapshots/<commit>   the files, as symlinks into blobs/ or plain
 *
 * The cache is HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else $HF_HOME/hub, where HF_HOME stands for
 * $XDG_CACHE_HOME/huggingface, else ~/.cache/huggingface. A revision is a ref, else a commit; another
 * commit than the one asked for is never taken.
 *
 * Source: docs/loading.md [7]. */
#include "checkpoint/checkpoint.h"

#include <stdlib.h>

#define NAME_MOST 96      /* bytes of org/name */
#define REVISION_MOST 200 /* bytes */
#define COMMIT_MOST 64    /* bytes of a commit in a ref */

struct name {
    char repo[2 * NAME_MOST]; /* "org--name" */
    const char *revision;
};

/* ---- names ----------------------------------------------------------------------------------- */
static bool is_name_byte(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
}

/* A revision may hold slashes ("refs/pr/1"), but no part of it may lead elsewhere. */
static bool is_revision(const char *text)
{
    return *text && strlen(text) <= REVISION_MOST && *text != '/' && !strstr(text, "..") &&
           !strstr(text, "//");
}

/* Whether a path reads as "name", "org/name" or either with "@revision". */
static bool read_name(const char *path, struct name *out)
{
    const size_t length = strcspn(path, "@");
    size_t at = 0, slashes = 0;
    if (length == 0 || length > NAME_MOST || !is_name_byte(path[length - 1]) || *path == '.' ||
        *path == '-') {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        const bool slash = path[i] == '/' && i > 0;
        const bool doubled = i > 0 && path[i] == path[i - 1] && (path[i] == '-' || path[i] == '.');
        if ((!slash && !is_name_byte(path[i])) || doubled || (slashes += slash) > 1) {
            return false;
        }
        out->repo[at++] = slash ? '-' : path[i];
        if (slash) {
            out->repo[at++] = '-';
        }
    }
    out->repo[at] = '\0';
    out->revision = path[length] ? path + length + 1 : "main";
    return is_revision(out->revision);
}

/* ---- the cache ------------------------------------------------------------------------------- */
static const char *given(const char *variable)
{
    const char *value = getenv(variable);
    return value && *value ? value : NULL;
}

/* The value of a variable with a leading ~ expanded. */
static const char *expanded(heft__arena *arena, const char *value)
{
    const char *home = given("HOME");
    return value[0] == '~' && (value[1] == '/' || value[1] == '\0') && home
               ? heft__arena_format(arena, "%s%s", home, value + 1)
               : value;
}

/* NULL if there is no memory; "" if nothing says where it is. */
static const char *cache_folder(heft__arena *arena)
{
    const char *cache = given("HF_HUB_CACHE");
    const char *root = given("HF_HOME");
    cache = cache ? cache : given("HUGGINGFACE_HUB_CACHE");
    if (cache) {
        return expanded(arena, cache);
    }
    if (!root) {
        const char *base = given("XDG_CACHE_HOME");
        if (!base && !given("HOME")) {
            return "";
        }
        base = expanded(arena, base ? base : "~/.cache");
        root = base ? heft__arena_format(arena, "%s/huggingface", base) : NULL;
    }
    root = root ? expanded(arena, root) : NULL;
    return root ? heft__arena_format(arena, "%s/hub", root) : NULL;
}

/* The commit that a ref holds; NULL if there is no such ref. */
static heft_status read_ref(heft__arena *arena, const char *path, const char **commit,
                            heft_error *err)
{
    char *text = NULL;
    size_t length = 0;
    *commit = NULL;
    if (!heft__path_exists(path) || heft__path_is_folder(path)) {
        return HEFT_OK;
    }
    heft_status status = heft__read_file(arena, path, COMMIT_MOST + 2, &text, &length, err);
    if (status != HEFT_OK) {
        return heft__add_path(status, err, path);
    }
    while (length > 0 && strchr(" \r\n", text[length - 1])) {
        length--;
    }
    for (size_t i = 0; i < length; i++) {
        if (!is_name_byte(text[i]) || text[i] == '.') {
            status = heft__fail_at(err, HEFT_FORMAT, i, "expected a commit hash");
            return heft__add_path(status, err, path);
        }
    }
    *commit = heft__arena_text(arena, text, length);
    return *commit ? HEFT_OK : heft__fail_nomem(err, length);
}

bool heft__hub_is_name(const char *path)
{
    struct name name;
    return read_name(path, &name);
}

heft_status heft__hub_find(heft__arena *arena, const char *path, const char **folder,
                           heft_error *err)
{
    struct name name;
    const char *commit = NULL, *cache = cache_folder(arena);
    if (!read_name(path, &name)) {
        return heft__fail(err, HEFT_NOT_FOUND, "neither a path nor a model name");
    }
    const char *repo = cache ? heft__arena_format(arena, "%s/models--%s", cache, name.repo) : NULL;
    const char *ref = repo ? heft__arena_format(arena, "%s/refs/%s", repo, name.revision) : NULL;
    if (!ref) {
        return heft__fail_nomem(err, strlen(path));
    }
    heft_status status = read_ref(arena, ref, &commit, err);
    if (status != HEFT_OK) {
        return status;
    }
    const char *found = heft__arena_format(arena, "%s/snapshots/%s", repo,
                                           commit && *commit ? commit : name.revision);
    if (!found) {
        return heft__fail_nomem(err, strlen(repo));
    }
    if (!heft__path_is_folder(found)) {
        const bool known = heft__path_is_folder(repo);
        status = heft__fail(err, HEFT_NOT_FOUND,
                            "no such file or folder, and not in the hub cache: looked for %.500s",
                            known ? found : repo);
        return heft__add_path(status, err, path);
    }
    *folder = found;
    return HEFT_OK;
}
