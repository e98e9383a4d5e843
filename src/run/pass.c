/* pass.c - one forward pass: scopes, names, scratch memory, what is brought in.
 *
 * A dry run resolves every name once and remembers it by the address of its text, and counts the scratch
 * memory that a real run then takes from one block. A unit of the residency is acquired when an operation
 * first needs it: it is held until the block (or section) that it belongs to ends, else until the end of the
 * operation.
 * Not done here: what operations compute (pass_*.c), what sequences keep (cache.c). */
#include "run/pass_state.h"

#define ALIGNMENT ((size_t)64)
#define MEMO_LEAST ((size_t)256)
#define ITEM_MODULE ((size_t)-2) /* a module by its path alone */
#define ITEM_ROLE ((size_t)-3)   /* minus a hash of the role */

static size_t aligned(size_t bytes)
{
    return (bytes + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
}

/* ---- errors ----------------------------------------------------------------------------------- */
bool heft__pass_going(const heft__pass *p)
{
    return p->status == HEFT_OK;
}

void heft__number(heft__pass *p, heft__numbering numbering, int64_t padding)
{
    p->numbering = numbering;
    p->padding = (int32_t)padding;
}

void heft__keep_whole(heft__pass *p)
{
    p->whole = true;
}

void heft__keep_whole_behind(heft__pass *p, int64_t id)
{
    p->whole_behind_id = id >= 0 && id <= INT32_MAX;
    p->behind_id = (int32_t)id;
}

void heft__pass_fail(heft__pass *p, heft_status status, const char *format, ...)
{
    if (p->status != HEFT_OK) {
        return;
    }
    char message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    p->status = heft__fail(&p->error, status, "%s", message);
    if (p->depth > 0) {
        const size_t module = p->scopes[p->depth - 1].module;
        const char *path = p->model->modules[module].path;
        heft__add_item(p->status, &p->error, *path ? path : NULL);
    }
}

static void out_of_memory(heft__pass *p, size_t bytes)
{
    if (p->status == HEFT_OK) {
        p->status = heft__fail_nomem(&p->error, bytes);
    }
}

const heft__pass_inputs *heft__inputs(const heft__pass *p)
{
    return &p->in;
}

heft__skeleton *heft__pass_config(heft__pass *p)
{
    return p->config;
}

/* ---- scratch ---------------------------------------------------------------------------------- */
void *heft__pass_take(heft__pass *p, size_t count, size_t size)
{
    uint64_t bytes = 0;
    if (p->status != HEFT_OK) {
        return NULL;
    }
    if (!heft__mul_u64(count, size, &bytes) || bytes > SIZE_MAX / 2 - p->scratch_used) {
        heft__pass_fail(p, HEFT_LIMIT, "the pass needs more scratch memory than there is");
        return NULL;
    }
    const size_t at = p->scratch_used;
    p->scratch_used += aligned((size_t)bytes);
    p->scratch_most = p->scratch_used > p->scratch_most ? p->scratch_used : p->scratch_most;
    if (p->dry) {
        return NULL;
    }
    if (p->scratch_used > p->scratch_bytes) {
        heft__pass_fail(p, HEFT_LIMIT, "the pass takes %zu bytes of scratch memory, %zu planned",
                        p->scratch_used, p->scratch_bytes);
        return NULL;
    }
    return p->scratch + at;
}

size_t heft__mark(const heft__pass *p)
{
    return p->scratch_used;
}

void heft__release(heft__pass *p, size_t mark)
{
    p->scratch_used = mark;
}

heft__rows heft__pass_rows(heft__pass *p, size_t count, size_t width)
{
    uint64_t numbers = 0;
    if (!heft__mul_u64(count, width, &numbers) || numbers > SIZE_MAX / sizeof(float)) {
        heft__pass_fail(p, HEFT_LIMIT, "%zu rows of %zu numbers are too many", count, width);
        return (heft__rows){NULL, count, width};
    }
    return (heft__rows){heft__pass_take(p, (size_t)numbers, sizeof(float)), count, width};
}

static heft_status make_scratch(heft__pass *p, heft_error *err)
{
    if (p->scratch_most > p->scratch_bytes) {
        const size_t bytes = p->scratch_most;
        heft__free(p->ctx, p->scratch_block, p->scratch_bytes + ALIGNMENT);
        p->scratch_bytes = 0;
        p->scratch_block = heft__alloc(p->ctx, bytes + ALIGNMENT);
        if (!p->scratch_block) {
            return heft__fail_nomem(err, bytes + ALIGNMENT);
        }
        p->scratch = (uint8_t *)aligned((size_t)p->scratch_block);
        p->scratch_bytes = bytes;
    }
    return HEFT_OK;
}

/* ---- scratch of threads ------------------------------------------------------------------------ */
static heft_status make_lanes(heft__pass *p, heft_error *err)
{
    const size_t bytes = aligned(p->lane_most);
    if (bytes > p->lane_bytes) {
        heft__free(p->ctx, p->lane_block, p->lane_block_bytes);
        p->lane_bytes = 0;
        p->lane_block_bytes = p->lane_count * bytes + ALIGNMENT;
        p->lane_block = heft__alloc(p->ctx, p->lane_block_bytes);
        if (!p->lane_block) {
            return heft__fail_nomem(err, p->lane_block_bytes);
        }
        p->lane_bytes = bytes;
    }
    return HEFT_OK;
}

bool heft__pass_need_lanes(heft__pass *p, size_t bytes)
{
    p->lane_most = bytes > p->lane_most ? bytes : p->lane_most;
    if (p->status == HEFT_OK && !p->dry && bytes > p->lane_bytes) {
        p->status = make_lanes(p, &p->error);
    }
    return p->status == HEFT_OK;
}

void *heft__pass_lane_take(heft__pass *p)
{
    uint8_t *first = (uint8_t *)aligned((size_t)p->lane_block);
    return first + heft__lane_take(p->lanes, p->lane_count) * p->lane_bytes;
}

void heft__pass_lane_give(heft__pass *p, void *lane)
{
    uint8_t *first = (uint8_t *)aligned((size_t)p->lane_block);
    atomic_store(&p->lanes[(size_t)((uint8_t *)lane - first) / p->lane_bytes], false);
}

void heft__pass_parallel(heft__pass *p, size_t count, heft__work_fn fn, void *user)
{
    heft_error error;
    heft_status status = HEFT_OK;
    if (!heft__pass_live(p) || count == 0) {
        return;
    }
    status = heft__parallel(p->ctx, count, fn, user, &error);
    if (status != HEFT_OK) {
        p->status = status;
        p->error = error;
    }
}

/* ---- names: resolved once, then found by the address of their text -------------------------------- */
static size_t slot_of(const heft__memo *memo, size_t cap, const char *name, size_t module,
                      size_t item)
{
    uint64_t hash = (uint64_t)(uintptr_t)name * 0x9e3779b97f4a7c15U;
    hash ^= ((uint64_t)module + 1) * 0xc2b2ae3d27d4eb4fU ^ (uint64_t)item * 0x165667b19e3779f9U;
    hash ^= hash >> 29;
    size_t i = (size_t)hash & (cap - 1);
    while (memo[i].name &&
           (memo[i].name != name || memo[i].module != module || memo[i].item != item)) {
        i = (i + 1) & (cap - 1);
    }
    return i;
}

static bool memo_grow(heft__pass *p)
{
    const size_t cap = p->memo_cap ? 2 * p->memo_cap : MEMO_LEAST;
    heft__memo *memo = heft__alloc_zero(p->ctx, cap, sizeof *memo);
    if (!memo) {
        out_of_memory(p, cap * sizeof *memo);
        return false;
    }
    for (size_t i = 0; i < p->memo_cap; i++) {
        const heft__memo *old = &p->memo[i];
        if (old->name) {
            memo[slot_of(memo, cap, old->name, old->module, old->item)] = *old;
        }
    }
    heft__free(p->ctx, p->memo, p->memo_cap * sizeof *memo);
    p->memo = memo;
    p->memo_cap = cap;
    return true;
}

static size_t module_here(const heft__pass *p)
{
    return p->depth > 0 ? p->scopes[p->depth - 1].module : 0;
}

static size_t resolve_module(const heft__pass *p, const char *name, size_t item)
{
    char path[256];
    if (item != ITEM_MODULE) {
        snprintf(path, sizeof path, "%.200s.%zu", name, item);
        name = path;
    }
    return heft_model_find_module(p->model, module_here(p), name);
}

/* "path.role" to a number; a role alone is of the module that is entered. */
static size_t resolve_parameter(const heft__pass *p, const char *name, const char *role)
{
    const char *dot = role ? NULL : strrchr(name, '.');
    char path[256];
    size_t module = module_here(p);
    if (role) {
        module = heft_model_find_module(p->model, module, name);
    } else if (dot) {
        snprintf(path, sizeof path, "%.*s", (int)(dot - name), name);
        module = heft_model_find_module(p->model, module, path);
    }
    return module == SIZE_MAX ? HEFT__NONE
                              : heft_model_module_parameter(p->model, module,
                                                            role  ? role
                                                            : dot ? dot + 1
                                                                  : name);
}

/* The value of a name, remembered; `role` tells "weight" from "bias" by its first letter. */
static size_t look_up(heft__pass *p, const char *name, size_t item, const char *role,
                      bool parameter)
{
    if (p->status != HEFT_OK || (4 * p->memo_count >= 3 * p->memo_cap && !memo_grow(p))) {
        return HEFT__NONE;
    }
    const size_t key = parameter ? ITEM_ROLE - (role ? (size_t)(uint8_t)*role : 0) : item;
    const size_t module = module_here(p), i = slot_of(p->memo, p->memo_cap, name, module, key);
    heft__memo *memo = &p->memo[i];
    if (!memo->name) {
        const size_t value =
            parameter ? resolve_parameter(p, name, role) : resolve_module(p, name, item);
        *memo = (heft__memo){.name = name, .module = module, .item = key, .value = value};
        p->memo_count++;
    }
    return memo->value;
}

size_t heft__pass_find(heft__pass *p, const char *name, const char *role)
{
    return look_up(p, name, 0, role, true);
}

size_t heft__pass_find_item(heft__pass *p, const char *list, size_t i)
{
    return look_up(p, list, i, NULL, false);
}

size_t heft__pass_find_expert(heft__pass *p, const char *list, size_t i)
{
    const size_t own = heft__pass_find_item(p, list, i);
    const size_t stack =
        own == HEFT__NONE ? look_up(p, list, ITEM_MODULE, NULL, false) : HEFT__NONE;
    return own != HEFT__NONE     ? heft_residency_find_module(p->residency, own)
           : stack != HEFT__NONE ? heft__unit_of_stacked(p->residency, stack, i)
                                 : HEFT__NONE;
}

bool heft__has(heft__pass *p, const char *name)
{
    return look_up(p, name, ITEM_MODULE, NULL, false) != HEFT__NONE ||
           heft__pass_find(p, name, NULL) != HEFT__NONE;
}

/* ---- scopes ------------------------------------------------------------------------------------ */
enum scope_kind { SCOPE_NAME, SCOPE_BLOCK, SCOPE_SECTION };

static void push(heft__pass *p, const char *name, size_t item, enum scope_kind kind)
{
    if (p->status != HEFT_OK) {
        return;
    }
    if (p->depth == HEFT__PASS_DEPTH) {
        heft__pass_fail(p, HEFT_LIMIT, "modules are nested too deeply at '%s'", name);
        return;
    }
    const size_t module = name ? look_up(p, name, item, NULL, false) : module_here(p);
    if (module == HEFT__NONE) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "the forward pass needs a module '%s' here", name);
        return;
    }
    p->scopes[p->depth++] = (heft__scope){.module = module,
                                          .mark = p->scratch_used,
                                          .releases = kind != SCOPE_NAME,
                                          .data_decides = kind == SCOPE_SECTION,
                                          .unit = HEFT__NONE};
}

/* Let go of a unit. */
static void drop_hold(heft__pass *p, size_t unit, heft_lease *lease)
{
    if (p->dry && unit != HEFT__NONE) {
        p->held_bytes -= heft_residency_unit(p->residency, unit)->brought_bytes;
    }
    heft_lease_free(lease);
}

static void pop(heft__pass *p)
{
    if (p->status != HEFT_OK || p->depth == 0) {
        return; /* leases are freed with the pass */
    }
    heft__scope *scope = &p->scopes[--p->depth];
    drop_hold(p, scope->unit, scope->lease);
    scope->lease = NULL;
    if (scope->releases) {
        heft__release(p, scope->mark);
    }
}

void heft__enter(heft__pass *p, const char *name)
{
    push(p, name, ITEM_MODULE, SCOPE_NAME);
}

void heft__enter_item(heft__pass *p, const char *list, size_t i)
{
    push(p, list, i, SCOPE_NAME);
}

void heft__leave(heft__pass *p)
{
    pop(p);
}

void heft__pass_enter_body(heft__pass *p)
{
    const char *prefix = p->model->base_prefix;
    const bool below = *prefix && look_up(p, prefix, ITEM_MODULE, NULL, false) != HEFT__NONE;
    push(p, below ? prefix : NULL, ITEM_MODULE, SCOPE_NAME);
}

heft__rows heft__body(heft__pass *p)
{
    heft__pass_enter_body(p);
    heft__rows x = p->model->family->body(p);
    heft__leave(p);
    return x;
}

void heft__base_forward(heft__pass *p)
{
    (void)heft__body(p);
}

void heft__block(heft__pass *p, const char *list, size_t i)
{
    if (p->status == HEFT_OK && !p->dry) {
        p->status = heft__tell_progress(p->ctx, "computing", 0, 0, &p->error);
    }
    push(p, list, i, SCOPE_BLOCK);
}

void heft__block_end(heft__pass *p, heft__rows x)
{
    if (heft__pass_live(p) && p->depth > 0 && !p->bad_block && x.x &&
        !p->kernels->finite(x.x, x.count * x.width)) {
        p->bad_block = p->model->modules[module_here(p)].path;
    }
    pop(p);
}

void heft__section(heft__pass *p, const char *list, size_t i)
{
    push(p, list, i, SCOPE_SECTION);
}

void heft__section_of_stack(heft__pass *p, const char *name)
{
    push(p, name, ITEM_MODULE, SCOPE_SECTION);
}

void heft__section_end(heft__pass *p)
{
    pop(p);
}

/* ---- parameters --------------------------------------------------------------------------------- */
static bool unit_has_module(const heft_unit *unit, size_t module)
{
    for (size_t i = 0; i < unit->module_count; i++) {
        if (unit->modules[i] == module) {
            return true;
        }
    }
    return false;
}

/* The scope that holds a unit, or NULL. *keeper is the one that can keep it then: the scope of its module, if
 * that holds nothing yet; NULL is the operation. */
static heft__scope *find_holder(heft__pass *p, size_t unit, heft__scope **keeper)
{
    const heft_unit *shown = heft_residency_unit(p->residency, unit);
    *keeper = NULL;
    for (size_t i = p->depth; i-- > 0;) {
        heft__scope *scope = &p->scopes[i];
        if (scope->unit == unit) {
            return scope;
        }
        if (!*keeper && scope->releases && unit_has_module(shown, scope->module)) {
            *keeper = scope;
        }
    }
    *keeper = *keeper && (*keeper)->unit == HEFT__NONE ? *keeper : NULL;
    return NULL;
}

/* A scope or the operation holds a unit from now on. */
static void keep_hold(heft__pass *p, heft__scope *keeper, size_t unit, heft_lease *lease)
{
    if (keeper) {
        keeper->lease = lease;
        keeper->unit = unit;
    } else {
        p->op_holds[p->op_hold_count++] = (heft__op_hold){unit, lease};
    }
}

static bool has_place(heft__pass *p, const heft__scope *keeper)
{
    if (!keeper && p->op_hold_count == HEFT__PASS_OP_HOLDS) {
        heft__pass_fail(p, HEFT_LIMIT, "an operation needs too many units");
        return false;
    }
    return true;
}

/* A lease on a unit: that of a scope, or a new one. NULL after an error. */
static heft_lease *lease_of(heft__pass *p, size_t unit)
{
    heft__scope *keeper;
    const heft__scope *holder = find_holder(p, unit, &keeper);
    heft_lease *lease = NULL;
    if (holder) {
        return holder->lease;
    }
    if (!has_place(p, keeper)) {
        return NULL;
    }
    p->status = heft_residency_acquire(p->residency, &unit, 1, &lease, &p->error);
    if (p->status == HEFT_OK) {
        keep_hold(p, keeper, unit, lease);
    }
    return lease;
}

/* In a dry run: the unit is held as lease_of() holds it. */
static void note_hold(heft__pass *p, size_t unit)
{
    heft__scope *keeper;
    if (find_holder(p, unit, &keeper)) {
        return;
    }
    for (size_t i = 0; i < p->op_hold_count; i++) {
        if (p->op_holds[i].unit == unit) {
            return;
        }
    }
    if (has_place(p, keeper)) {
        keep_hold(p, keeper, unit, NULL);
        p->held_bytes += heft_residency_unit(p->residency, unit)->brought_bytes;
        p->tally.held_bytes = heft__larger_u64(p->tally.held_bytes, p->held_bytes);
    }
}

/* In a dry run: the unit comes next. Experts are left out, as data decides which of them are used. */
static void note_unit(heft__pass *p, size_t parameter)
{
    const size_t unit = p->residency->unit_of[parameter];
    for (size_t i = p->depth; i-- > 0;) {
        if (p->scopes[i].data_decides) {
            heft__tally_expert(p, parameter);
            return;
        }
    }
    if (p->order_count > 0 && p->order[p->order_count - 1] == unit) {
        return;
    }
    if (!heft__array_reserve(p->ctx, (void **)&p->order, p->order_count, &p->order_cap,
                             sizeof *p->order)) {
        out_of_memory(p, sizeof *p->order);
        return;
    }
    p->order[p->order_count++] = unit;
}

const heft_tensor *heft__pass_view(heft__pass *p, size_t parameter)
{
    const heft_parameter *shown = &p->model->parameters[heft__whole_of(p->residency, parameter)];
    if (p->dry && p->status == HEFT_OK && p->residency->brought_at[parameter] != SIZE_MAX) {
        note_unit(p, parameter);
        note_hold(p, p->residency->unit_of[parameter]);
    }
    if (!heft__pass_live(p)) {
        return NULL;
    }
    if (shown->state == HEFT_PARAMETER_ABSENT && shown->size_bytes > 0) {
        p->status = heft__fail(&p->error, HEFT_MISMATCH, "%s", heft__why_absent(shown->state));
        heft__add_item(p->status, &p->error, shown->name);
        return NULL;
    }
    const heft_tensor *view = &p->residency->views[parameter];
    if (p->residency->brought_at[parameter] != SIZE_MAX) {
        heft_lease *lease = lease_of(p, p->residency->unit_of[parameter]);
        view = lease ? heft_lease_view(lease, parameter) : NULL;
    }
    if (!view && p->status == HEFT_OK) {
        heft__pass_fail(p, HEFT_IO, "parameter '%s' is not in memory", shown->name);
    }
    return view;
}

void heft__pass_end_op(heft__pass *p)
{
    while (p->op_hold_count > 0) {
        const heft__op_hold *hold = &p->op_holds[--p->op_hold_count];
        drop_hold(p, hold->unit, hold->lease);
    }
}

const float *heft__pass_vector(heft__pass *p, size_t parameter, size_t expected)
{
    uint64_t elems = 0;
    const heft_tensor *shown = &p->residency->views[parameter];
    const char *name = p->model->parameters[heft__whole_of(p->residency, parameter)].name;
    if (p->status != HEFT_OK) {
        return NULL;
    }
    (void)heft__shape_elems(shown->shape, shown->rank, &elems);
    if (elems != expected) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' has %llu numbers, %zu expected", name,
                        (unsigned long long)elems, expected);
        return NULL;
    }
    if (shown->dtype != HEFT_DTYPE_F32 && shown->dtype != HEFT_DTYPE_BF16 &&
        shown->dtype != HEFT_DTYPE_F16) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' is %s: heft cannot compute with it",
                        name, heft_dtype_name(shown->dtype));
        return NULL;
    }
    float *vector = heft__pass_take(p, expected, sizeof *vector);
    const heft_tensor *view = heft__pass_view(p, parameter);
    heft__compact_note_other(p, parameter);
    if (!view || !vector) {
        return NULL;
    }
    if (heft__compact_of(p, parameter)) { /* no dry run has seen this use */
        heft__pass_fail(p, HEFT_UNSUPPORTED, "parameter '%s' is compact: only products read it",
                        name);
        return NULL;
    }
    p->kernels->widen(vector, view->data, view->dtype, expected);
    return vector;
}

/* ---- results ------------------------------------------------------------------------------------ */
static heft__result *find_result(const heft__pass *p, const char *name)
{
    for (size_t i = 0; i < p->result_count; i++) {
        if (strcmp(p->results[i].name, name) == 0) {
            return &p->results[i];
        }
    }
    return NULL;
}

const heft__result *heft__pass_result(const heft__pass *p, const char *name)
{
    return find_result(p, name);
}

bool heft__is_asked(const heft__pass *p, const char *name)
{
    return p->dry || find_result(p, name);
}

static void note_name(heft__pass *p, const char *name)
{
    for (size_t i = 0; i < p->name_count; i++) {
        if (strcmp(p->names[i], name) == 0) {
            return;
        }
    }
    if (!heft__array_reserve(p->ctx, (void **)&p->names, p->name_count, &p->name_cap,
                             sizeof *p->names)) {
        out_of_memory(p, sizeof *p->names);
        return;
    }
    p->names[p->name_count++] = name;
}

/* Keep columns as a result, after those of earlier runs: of as many rows. */
static void keep_columns(heft__pass *p, heft__result *result, heft__rows x)
{
    const size_t before = p->appends && result->data ? result->width : 0, width = before + x.width;
    if (before && result->count != x.count) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "columns of '%s' differ in length", result->name);
        return;
    }
    float *data = heft__alloc(p->ctx, x.count * width * sizeof *data);
    if (!data) {
        out_of_memory(p, x.count * width * sizeof *data);
        return;
    }
    for (size_t i = 0; i < x.count; i++) {
        if (before) {
            memcpy(data + i * width, result->data + i * before, before * sizeof *data);
        }
        memcpy(data + i * width + before, x.x + i * x.width, x.width * sizeof *data);
    }
    heft__free(p->ctx, result->data, result->count * result->width * sizeof *data);
    *result = (heft__result){.name = result->name,
                             .kind = HEFT__OUT_COLUMNS,
                             .data = data,
                             .count = x.count,
                             .width = width};
}

/* Keep rows as a result, after those of earlier runs if there are any. */
static void keep(heft__pass *p, heft__result *result, heft__out_kind kind, heft__rows x)
{
    const size_t bytes = x.count * x.width * sizeof(float);
    const size_t before = p->appends ? result->count * result->width * sizeof(float) : 0;
    if (before && result->width != x.width) {
        heft__pass_fail(p, HEFT_UNSUPPORTED, "rows of '%s' differ in width", result->name);
        return;
    }
    float *data = heft__resize(p->ctx, result->data, result->count * result->width * sizeof(float),
                               before + bytes);
    if (!data) {
        out_of_memory(p, before + bytes);
        return;
    }
    if (bytes) {
        memcpy((uint8_t *)data + before, x.x, bytes);
    }
    result->count = (before ? result->count : 0) + x.count;
    result->data = data;
    result->kind = kind;
    result->width = x.width;
}

/* The rows of sequences whose last token is in this pass: the others' come with a later one. */
static heft__rows ended_rows(heft__pass *p, heft__rows x)
{
    heft__rows y = heft__pass_rows(p, x.count, x.width);
    size_t count = 0;
    for (size_t i = 0; heft__pass_live(p) && i < x.count; i++) {
        if (i >= p->in.sequences || p->spans[i].ends) {
            memcpy(y.x + count++ * y.width, x.x + i * x.width, x.width * sizeof *x.x);
        }
    }
    y.count = count;
    return y;
}

void heft__out(heft__pass *p, heft__out_kind kind, const char *name, heft__rows x)
{
    heft__result *result = find_result(p, name);
    const size_t mark = heft__mark(p);
    if (p->dry) {
        note_name(p, name);
    }
    if (kind == HEFT__OUT_SEQUENCES) {
        x = ended_rows(p, x);
    }
    if (result && heft__pass_live(p) && x.count > 0) {
        if (kind == HEFT__OUT_COLUMNS) {
            keep_columns(p, result, x);
        } else {
            keep(p, result, kind, x);
        }
    }
    heft__release(p, mark);
}

void heft__out_hidden_of(heft__pass *p, heft__side side, size_t i, heft__rows x)
{
    static const char *const prefix[] = {"", "encoder_", "decoder_"};
    char name[48];
    snprintf(name, sizeof name, "%shidden_states.%zu", prefix[side], i);
    heft__result *result = find_result(p, name);
    if (result && heft__pass_live(p)) {
        keep(p, result, side == HEFT__SIDE_ENCODER ? HEFT__OUT_ENCODED : HEFT__OUT_TOKENS, x);
    }
}

void heft__out_hidden(heft__pass *p, size_t i, heft__rows x)
{
    heft__out_hidden_of(p, HEFT__SIDE_ONLY, i, x);
}

static void drop_results(heft__pass *p)
{
    for (size_t i = 0; i < p->result_count; i++) {
        heft__result *result = &p->results[i];
        heft__free(p->ctx, result->data, result->count * result->width * sizeof(float));
        *result = (heft__result){.name = result->name};
    }
}

heft_status heft__pass_ask(heft__pass *p, const char *const *names, size_t count, heft_error *err)
{
    drop_results(p);
    heft__free(p->ctx, p->results, p->result_count * sizeof *p->results);
    p->result_count = 0;
    p->results = heft__alloc_zero(p->ctx, count ? count : 1, sizeof *p->results);
    if (!p->results) {
        return heft__fail_nomem(err, count * sizeof *p->results);
    }
    for (; p->result_count < count; p->result_count++) {
        p->results[p->result_count].name = names[p->result_count];
    }
    return HEFT_OK;
}

/* ---- running ------------------------------------------------------------------------------------ */
struct call {
    heft__pass *pass;
    void (*forward)(heft__pass *p);
};

static void call_forward(heft__skeleton *s, void *user)
{
    struct call *call = user;
    heft__pass *p = call->pass;
    p->config = s;
    call->forward(p);
    p->config = NULL;
}

static void begin(heft__pass *p, const heft__pass_run *run)
{
    p->in = run->inputs;
    p->places = run->places;
    p->seen_at = run->seen_at;
    p->spans = run->spans;
    p->encoded_tokens = run->encoded_tokens;
    p->dry = run->dry;
    p->most_keys = run->most_keys;
    p->appends = run->appends;
    p->cross_kept = run->cross_kept;
    p->expected = (heft__expected){.share = 1, .used = 1};
    p->order_count = run->dry ? 0 : p->order_count;
    p->status = HEFT_OK;
    p->bad_block = NULL;
    p->depth = 0;
    p->slot_at = 0;
    p->scratch_used = 0;
    if (p->dry) {
        p->tally = (heft__tally){0};
    } else if (!run->appends) {
        drop_results(p);
        heft__pass_drop_stash(p);
    }
}

/* Whatever came of it: nothing stays held. */
static void end(heft__pass *p)
{
    heft__pass_end_op(p);
    for (size_t i = 0; i < p->depth; i++) {
        heft_lease_free(p->scopes[i].lease);
    }
    for (size_t i = 0; i < HEFT__PASS_DEPTH; i++) {
        p->scopes[i].lease = NULL;
    }
    p->depth = 0;
}

heft_status heft__pass_run_once(heft__pass *p, const heft__pass_run *run, heft_error *err)
{
    struct call call = {p, run->encode ? p->model->family->encode : p->class->forward};
    heft_error error = {0};
    heft_status status = HEFT_OK;
    if (!call.forward) {
        return heft__fail(err, HEFT_UNSUPPORTED, "heft has no forward pass for class %s",
                          p->model->class_name);
    }
    begin(p, run);
    if (!p->dry) {
        status = make_scratch(p, err);
        status = status == HEFT_OK ? make_lanes(p, err) : status;
    }
    if (status != HEFT_OK) {
        return status;
    }
    status = heft__model_read(p->model, call_forward, &call, &error);
    end(p);
    if (p->status != HEFT_OK) { /* came first, or is as good a reason */
        status = p->status;
        error = p->error;
    }
    p->tally.scratch_bytes = p->scratch_most + p->lane_count * p->lane_most;
    if (status != HEFT_OK && err) {
        *err = error;
    }
    return status;
}

heft_status heft__pass_new(const heft_model *model, heft_residency *residency, bool exact,
                           heft__pass **out, heft_error *err)
{
    heft_ctx *ctx = model->ctx;
    const size_t threads = heft__threads(ctx);
    heft__pass *p = heft__alloc_zero(ctx, 1, sizeof *p);
    atomic_bool *lanes = heft__alloc_zero(ctx, threads, sizeof *lanes);
    heft__use *uses = heft__alloc_zero(ctx, model->count + 1, sizeof *uses);
    if (!p || !lanes || !uses) {
        heft__free(ctx, p, sizeof *p);
        heft__free(ctx, lanes, threads * sizeof *lanes);
        heft__free(ctx, uses, (model->count + 1) * sizeof *uses);
        return heft__fail_nomem(err, sizeof *p);
    }
    p->ctx = heft__ctx_ref(ctx);
    p->model = model;
    p->residency = residency;
    p->kernels = heft__kernels_best();
    p->uses = uses;
    p->exact = exact;
    p->cache_dtype = exact || (model->dtype != HEFT_DTYPE_BF16 && model->dtype != HEFT_DTYPE_F16)
                         ? HEFT_DTYPE_F32
                         : model->dtype;
    p->lanes = lanes;
    p->lane_count = threads;
    for (const heft__class *class = model->family->classes; class->name; class ++) {
        p->class = strcmp(class->name, model->class_name) == 0 ? class : p->class;
    }
    if (!p->class) {
        heft__pass_free(p);
        return heft__fail(err, HEFT_UNSUPPORTED, "heft has no forward pass for class %s",
                          model->class_name);
    }
    *out = p;
    return HEFT_OK;
}

void heft__pass_free(heft__pass *p)
{
    if (!p) {
        return;
    }
    heft_ctx *ctx = p->ctx;
    end(p);
    drop_results(p);
    heft__pass_ropes_free(p);
    heft__free(ctx, p->results, p->result_count * sizeof *p->results);
    heft__free(ctx, p->memo, p->memo_cap * sizeof *p->memo);
    heft__free(ctx, p->slots, p->slot_cap * sizeof *p->slots);
    heft__free(ctx, p->order, p->order_cap * sizeof *p->order);
    heft__free(ctx, p->names, p->name_cap * sizeof *p->names);
    heft__pass_drop_stash(p);
    heft__free(ctx, p->scratch_block, p->scratch_bytes + ALIGNMENT);
    heft__free(ctx, p->lane_block, p->lane_block_bytes);
    heft__free(ctx, p->lanes, p->lane_count * sizeof *p->lanes);
    heft__free(ctx, p->uses, (p->model->count + 1) * sizeof *p->uses);
    heft__free(ctx, p, sizeof *p);
    heft_ctx_free(ctx);
}
