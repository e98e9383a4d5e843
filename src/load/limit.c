/* limit.c - whether what a load takes fits in the memory that is left, asked before any is taken.
 *
 *   certain   the tensors with memory of their own: copied, cast, initialized, in a shared copy
 *   at most   and buffers, stacks, and what allocations take beside their bytes
 *
 * More of the first than there is means that the kernel would kill the process: a refusal. More of the
 * second may mean it: a warning. Mapped tensors are neither, since their pages can go. Address space
 * is needed for a shared copy as well if another process has built it.
 * Units that a residency brings in are compared in the same way (run/room_left.c).
 * Source: docs/loading.md [9]. */
#include "load/load.h"

/* Whether tensors have memory of their own, other than the small buffers that every model computes. */
static bool needs_memory(const heft__loading *l, const heft__fill_counts *counts)
{
    bool found = counts->own_bytes > 0;
    for (size_t i = 0; l->source && l->model->known_family && i < l->model->count && !found; i++) {
        const bool offloaded = l->store.taken && l->store.taken[i];
        found = l->match.source[i] == HEFT__NO_TENSOR && l->model->parameters[i].tied_to == i &&
                l->model->parameters[i].kind != HEFT_PARAMETER_BUFFER_TRANSIENT && !offloaded;
    }
    return found;
}

/* "12.3 GB"; exact: all digits. */
static const char *put_size(uint64_t bytes, bool exact, char text[32])
{
    static const char *const units[] = {"KB", "MB", "GB", "TB"};
    double value = (double)bytes / 1000;
    size_t unit = 0;
    if (exact || bytes < 1000) {
        snprintf(text, 32, "%llu bytes", (unsigned long long)bytes);
        return text;
    }
    while (value >= 999.95 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1000;
        unit++;
    }
    snprintf(text, 32, "%.1f %s", value, units[unit]);
    return text;
}

/* Both numbers as texts, which differ as the numbers do. */
static void put_sizes(uint64_t need, uint64_t left, char needed[32], char available[32])
{
    put_size(need, false, needed);
    put_size(left, false, available);
    if (strcmp(needed, available) == 0) {
        put_size(need, true, needed);
        put_size(left, true, available);
    }
}

static heft_status compare(const heft__memory_need *need, const heft__most_memory *most,
                           char warning[HEFT__LIMIT_WARNING], heft_error *err)
{
    char needed[32], available[32], limit[32];
    if (need->most <= most->bytes) {
        return HEFT_OK;
    }
    put_size(most->limit, false, limit);
    if (need->certain > most->bytes) {
        put_sizes(need->certain, most->bytes, needed, available);
        return heft__fail(
            err, HEFT_LIMIT,
            "needs %s, but %s are available (%s of %s); %s'over_limit' (--over-limit) loads anyway",
            needed, available, most->reason, limit, need->instead);
    }
    put_sizes(need->most, most->bytes, needed, available);
    snprintf(warning, HEFT__LIMIT_WARNING,
             "may need up to %s while %s, but %s are available (%s of %s)", needed, need->during,
             available, most->reason, limit);
    return HEFT_OK;
}

heft_status heft__limit_memory(const char *machine, const heft__memory_need *need,
                               char warning[HEFT__LIMIT_WARNING], heft_error *err)
{
    heft_machine facts = HEFT_SIZED(heft_machine);
    heft__most_memory most;
    heft__machine_look_below(machine, &facts, &most);
    return compare(need, &most, warning, err);
}

heft_status heft__limit_space(const heft__memory_need *need, char warning[HEFT__LIMIT_WARNING],
                              heft_error *err)
{
    heft__most_memory most = {.reason = "address space limit"};
    return heft__machine_look_at_space(&most.bytes, &most.limit)
               ? compare(need, &most, warning, err)
               : HEFT_OK;
}

static heft_status warn(heft__loading *l, const char *warning, heft_error *err)
{
    return !*warning || heft__warn(&l->memory->warnings, "%s", warning)
               ? HEFT_OK
               : heft__fail_nomem(err, strlen(warning));
}

static heft_status check_memory(heft__loading *l, const heft__memory_need *need, heft_error *err)
{
    char warning[HEFT__LIMIT_WARNING] = "";
    const char *machine = l->source ? l->source->machine : l->model->machine;
    const heft_status status = heft__limit_memory(machine, need, warning, err);
    return status == HEFT_OK ? warn(l, warning, err) : status;
}

static heft_status check_space(heft__loading *l, const heft__memory_need *need, heft_error *err)
{
    char warning[HEFT__LIMIT_WARNING] = "";
    const heft_status status = heft__limit_space(need, warning, err);
    return status == HEFT_OK ? warn(l, warning, err) : status;
}

/* Into an existing model there is no device map. */
static heft__memory_need need_of(const heft__loading *l, uint64_t certain, uint64_t more)
{
    return (heft__memory_need){.certain = certain,
                               .most = certain + more,
                               .during = "loading",
                               .instead =
                                   l->source ? "a device map can leave part of it on disk, " : ""};
}

/* The register of shared copies is locked, and this process is the one to build. */
static heft_status may_build(void *user, uint64_t bytes, heft_error *err)
{
    heft__loading *l = user;
    const uint64_t certain = bytes + heft__loading_initialized(l);
    const heft__memory_need need =
        need_of(l, certain, l->counts.beside_bytes + l->counts.staging_bytes);
    return check_memory(l, &need, err);
}

heft_status heft__loading_check_limit(heft__loading *l, heft_error *err)
{
    heft__fill_options counting = l->fill;
    heft__fill_counts counts = {0};
    l->fill.may_build = NULL;
    if (l->options->over_limit) {
        return HEFT_OK;
    }
    counting.count = true;
    heft_status status = heft__fill(l->model, l->ckpt, &l->match, &counting, &counts, err);
    if (status != HEFT_OK) {
        return status;
    }
    const uint64_t more = counts.beside_bytes + counts.staging_bytes;
    const bool own = needs_memory(l, &counts);
    heft__memory_need need = need_of(l, counts.own_bytes + heft__loading_initialized(l), more);
    if (own) {
        status = check_memory(l, &need, err);
    }
    if (status == HEFT_OK && (own || counts.shared_bytes > 0)) {
        need.certain += counts.shared_bytes;
        need.most += counts.shared_bytes;
        status = check_space(l, &need, err);
    }
    l->fill.may_build = may_build;
    l->fill.may_build_user = l;
    return status;
}
