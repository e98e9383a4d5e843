/* skeleton.c - the builder with which a family lists what its model consists of.
 *
 * A family's function runs twice. The first run counts and checks, and allocates nothing, so a
 * hostile config is refused before any memory is taken by it; the second fills arrays of the right
 * size. Names are put together in one buffer from a stack of module paths. The first error sticks,
 * nothing is added after it, and it is asked for once, at the end.
 *
 * Source: docs/howto/architecture.md. */
#include "model/skeleton.h"

#define NAMED_PARTS_MOST 32 /* modules that are made of one name; the rest is a role */
#define TREE_BYTES_MOST ((uint64_t)256 << 20) /* that modules take with their paths */

/* ---- errors ---------------------------------------------------------------------------------- */
static bool failed(const heft__skeleton *s)
{
    return s->status != HEFT_OK;
}

bool heft__sk_going(const heft__skeleton *s)
{
    return !failed(s);
}

static void out_of_memory(heft__skeleton *s)
{
    if (!failed(s)) {
        s->status = heft__fail(&s->error, HEFT_NOMEM, "no memory for the names of a model");
    }
}

void heft__sk_fail(heft__skeleton *s, heft_status status, const char *key, const char *format, ...)
{
    if (failed(s)) {
        return;
    }
    char message[400];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    const heft__json_value *value = key ? heft__sk_member(s, key) : NULL;
    s->status =
        heft__fail_at(&s->error, status, value ? value->offset : HEFT_NO_OFFSET, "%s", message);
    heft__add_item(s->status, &s->error, key);
    heft__add_path(s->status, &s->error, s->config->path);
}

/* ---- modules --------------------------------------------------------------------------------- */
/* Append ".text" to the path; false if the name gets too long. */
static bool append(heft__skeleton *s, size_t at, const char *text, size_t length, size_t *end)
{
    size_t dot = at > 0;
    if (length >= sizeof s->path - at - dot) {
        heft__sk_fail(s, HEFT_LIMIT, NULL, "name '%.60s...' is longer than %zu bytes", s->path,
                      sizeof s->path - 1);
        return false;
    }
    if (dot) {
        s->path[at] = '.';
    }
    memcpy(s->path + at + dot, text, length);
    *end = at + dot + length;
    s->path[*end] = '\0';
    return true;
}

/* Note a new module at the path, as a child of the one that is entered. */
static void add_module(heft__skeleton *s, heft_module_kind kind, const char *class_name)
{
    const size_t length = s->path_length, number = s->module_count++;
    const uint64_t most = heft__limits(s->model->ctx)->modules;
    s->tree_bytes += sizeof(heft_module) + length + 1;
    if (s->model->known_family && number >= most) {
        heft__sk_fail(s, HEFT_LIMIT, NULL,
                      "the model has more modules than the limit modules, %llu",
                      (unsigned long long)most);
        return;
    }
    if (number >= UINT32_MAX || s->tree_bytes > TREE_BYTES_MOST) {
        heft__sk_fail(s, HEFT_LIMIT, NULL, "the model has more than %zu modules", number);
        return;
    }
    if (s->filling) {
        const size_t parent = s->chain[s->parts];
        heft_module *module = &s->model->modules[number];
        const char *path = heft__arena_text(&s->model->arena, s->path, length);
        if (!path) {
            out_of_memory(s);
            return;
        }
        const size_t above = strlen(s->model->modules[parent].path);
        *module = (heft_module){.path = path,
                                .name = path + above + (above > 0),
                                .class_name = class_name,
                                .kind = kind,
                                .parent = parent};
    }
    memcpy(s->last, s->path, length + 1);
    s->last_length = length;
    s->chain[s->parts + 1] = (uint32_t)number;
}

/* Modules are entered in the order of a walk through the tree, parents first. So one that was
 * entered before is the last one noted, or an ancestor of it. */
static void note_module(heft__skeleton *s, heft_module_kind kind, const char *class_name)
{
    const size_t length = s->path_length;
    if (s->parts == HEFT__SKELETON_PARTS) {
        heft__sk_fail(s, HEFT_LIMIT, NULL, "module '%.60s...' is nested too deeply", s->path);
    } else if (s->last_length < length || memcmp(s->last, s->path, length) != 0 ||
               (s->last[length] != '\0' && s->last[length] != '.')) {
        add_module(s, kind, class_name);
    }
    s->parts++;
}

/* The class of a module, NULL without memory. Families name the same few over and over. */
static const char *class_text(heft__skeleton *s, const char *class_name)
{
    if (*class_name != '*' || !s->filling) {
        return class_name;
    }
    for (size_t i = 0; i < HEFT__SKELETON_CLASSES; i++) {
        if (s->classes[i][0] && strcmp(s->classes[i][0], class_name) == 0) {
            return s->classes[i][1];
        }
    }
    const char *text = heft__arena_format(&s->model->arena, "%s%s", s->model->family->class_prefix,
                                          class_name + 1);
    s->classes[s->next_class][0] = text ? class_name : NULL;
    s->classes[s->next_class][1] = text;
    s->next_class = (s->next_class + 1) % HEFT__SKELETON_CLASSES;
    return text;
}

static void add_stored(heft__skeleton *s, const heft__packed *packed);

/* What files have in the module that was just entered for the first time. */
static void add_state(heft__skeleton *s)
{
    const size_t found = s->packing && !failed(s)
                             ? heft__map_get(&s->packing->modules, s->path, s->path_length)
                             : HEFT__MAP_NONE;
    if (found != HEFT__MAP_NONE) {
        add_stored(s, &s->packing->state[found]);
    }
}

static void enter(heft__skeleton *s, heft_module_kind kind, const char *class_name,
                  const char *name)
{
    const char *text = failed(s) ? NULL : class_text(s, class_name);
    if (failed(s)) {
        return;
    }
    if (!text) {
        out_of_memory(s);
        return;
    }
    if (s->depth == HEFT__SKELETON_DEPTH) {
        heft__sk_fail(s, HEFT_LIMIT, NULL, "module '%.60s' is nested too deeply", name);
        return;
    }
    s->part_counts[s->depth] = s->parts;
    s->lengths[s->depth++] = s->path_length;
    while (*name && !failed(s)) { /* each part between dots is a module of its own */
        size_t length = strcspn(name, ".");
        const bool last = name[length] == '\0';
        const size_t modules = s->module_count;
        if (append(s, s->path_length, name, length, &s->path_length)) {
            note_module(s, last ? kind : HEFT_MODULE_CONTAINER, last ? text : "ModuleList");
        }
        if (s->module_count > modules) {
            add_state(s);
        }
        name += length + !last;
    }
}

void heft__sk_enter(heft__skeleton *s, heft_module_kind kind, const char *class_name,
                    const char *format, ...)
{
    char name[256];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (length < 0 || (size_t)length >= sizeof name) {
        heft__sk_fail(s, HEFT_LIMIT, NULL, "name of module '%.60s...' is too long", name);
    }
    enter(s, kind, class_name, name);
}

void heft__sk_enter_body(heft__skeleton *s, const char *name)
{
    enter(s, HEFT_MODULE_MODEL, s->model->family->classes[0].name, name);
}

void heft__sk_leave(heft__skeleton *s)
{
    if (!failed(s)) { /* after an error the path is no longer used */
        s->path_length = s->lengths[--s->depth];
        s->parts = s->part_counts[s->depth];
        s->path[s->path_length] = '\0';
    }
}

/* ---- parameters ------------------------------------------------------------------------------ */
/* A copy in the arena, or one that is there already: layers repeat the same few shapes. */
static const uint64_t *keep_shape(heft__skeleton *s, const uint64_t *shape, uint32_t rank)
{
    for (size_t i = 0; i < HEFT__SKELETON_SHAPES; i++) {
        if (s->shapes[i] && heft__shape_equal(s->shapes[i], s->ranks[i], shape, rank)) {
            return s->shapes[i];
        }
    }
    uint64_t *copy = heft__arena_array(&s->model->arena, rank, sizeof *copy);
    if (copy) {
        if (rank > 0) { /* a scalar may come without a shape */
            memcpy(copy, shape, rank * sizeof *copy);
        }
        s->shapes[s->next_shape] = copy;
        s->ranks[s->next_shape] = rank;
        s->next_shape = (s->next_shape + 1) % HEFT__SKELETON_SHAPES;
    }
    return copy;
}

/* Likewise; NULL without memory. */
static const heft__init_rule *keep_rule(heft__skeleton *s, const heft__init_rule *rule)
{
    for (size_t i = 0; i < HEFT__SKELETON_RULES; i++) {
        const heft__init_rule *kept = s->rules[i];
        if (kept && kept->kind == rule->kind && kept->a == rule->a && kept->b == rule->b &&
            kept->low == rule->low && kept->high == rule->high &&
            kept->zero_row == rule->zero_row && kept->rotary == rule->rotary) {
            return kept;
        }
    }
    heft__init_rule *copy = heft__arena_alloc(&s->model->arena, sizeof *copy);
    if (copy) {
        *copy = *rule;
        s->rules[s->next_rule] = copy;
        s->next_rule = (s->next_rule + 1) % HEFT__SKELETON_RULES;
    }
    return copy;
}

/* The path with the family's inner names; NULL if they change nothing. Lies in the arena. */
static const char *inner_name(heft__skeleton *s)
{
    const char *const(*pair)[2] = s->model->family->inner_names;
    const char *name = NULL;
    for (; pair && (*pair)[0] && !failed(s); pair++) {
        const char *path = name ? name : s->path;
        const size_t length = strlen((*pair)[0]);
        for (const char *at = path; at; at = strchr(at, '.')) {
            at += *at == '.';
            if (strncmp(at, (*pair)[0], length) == 0 && (at[length] == '.' || !at[length])) {
                name = heft__arena_format(&s->model->arena, "%.*s%s%s", (int)(at - path), path,
                                          (*pair)[1], at + length);
                if (!name) {
                    out_of_memory(s);
                }
                break;
            }
        }
    }
    return name;
}

/* The place of a parameter that Transformers holds as one tensor. */
static heft__place whole(heft__skeleton *s, const heft_parameter *parameter)
{
    heft__place place = {0};
    const char *name = inner_name(s);
    heft__inner *inner = name ? heft__arena_alloc(&s->model->arena, sizeof *inner) : NULL;
    if (inner) {
        *inner = (heft__inner){name, parameter->shape, parameter->rank, 1, s->inner_count++};
        place.inner = inner;
    } else if (name) {
        out_of_memory(s);
    }
    return place;
}

/* Write one parameter into the place that the first run has counted for it. */
static void fill(heft__skeleton *s, heft_parameter parameter, heft__init_rule rule,
                 heft__place place, size_t name_length)
{
    bool transient = parameter.kind == HEFT_PARAMETER_BUFFER_TRANSIENT;
    size_t at = transient    ? s->saved_total + s->transient_count
                : s->numbers ? s->numbers[s->saved_count]
                             : s->saved_count;
    parameter.name = heft__arena_text(&s->model->arena, s->path, name_length);
    parameter.shape = keep_shape(s, parameter.shape, parameter.rank);
    const heft__init_rule *kept = keep_rule(s, &rule);
    if (!parameter.name || !parameter.shape || !kept) {
        out_of_memory(s);
        return;
    }
    parameter.tied_to = at;
    parameter.module = s->chain[s->parts];
    parameter.role = parameter.name + s->path_length + (s->path_length > 0);
    s->model->parameters[at] = parameter;
    s->model->rules[at] = kept;
    if (s->model->places) {
        s->model->places[at] = place.inner ? place : whole(s, &parameter);
    }
}

static void add_one(heft__skeleton *s, const char *name, heft_parameter parameter,
                    heft__init_rule rule, heft__place place)
{
    const uint64_t most = heft__limits(s->model->ctx)->tensors;
    uint64_t elems;
    size_t length;
    if (failed(s) || !append(s, s->path_length, name, strlen(name), &length)) {
        return;
    }
    if (s->saved_count + s->transient_count >= most) {
        heft__sk_fail(s, HEFT_LIMIT, NULL, "the model has more than %llu tensors (limit tensors)",
                      (unsigned long long)most);
    } else if (!heft__shape_elems(parameter.shape, parameter.rank, &elems) ||
               elems > HEFT__MODEL_BYTES ||
               !heft__dtype_bytes(parameter.dtype, elems, &parameter.size_bytes) ||
               !heft__add_u64(s->total_bytes, parameter.size_bytes, &s->total_bytes) ||
               s->total_bytes > HEFT__MODEL_BYTES) {
        char text[HEFT__SHAPE_TEXT];
        heft__sk_fail(s, HEFT_LIMIT, s->path, "shape %s makes the model larger than %llu bytes",
                      heft__shape_text(parameter.shape, parameter.rank, text),
                      (unsigned long long)HEFT__MODEL_BYTES);
    } else if (s->filling) {
        fill(s, parameter, rule, place, length);
    }
    if (parameter.kind == HEFT_PARAMETER_BUFFER_TRANSIENT) {
        s->transient_count++;
    } else {
        s->saved_count++;
    }
    s->path[s->path_length] = '\0';
}

/* A matrix in a layer, or the matrices of all its experts; not tables, routers and lists of biases. */
static void note_width(heft__skeleton *s, const char *name, const heft_parameter *parameter)
{
    const size_t length = strlen(name);
    bool in_layer = false;
    if (!s->filling || failed(s) || parameter->kind != HEFT_PARAMETER_WEIGHT ||
        parameter->rank < 2 || (length >= 4 && strcmp(name + length - 4, "bias") == 0)) {
        return;
    }
    const heft_module_kind kind = s->model->modules[s->chain[s->parts]].kind;
    for (size_t i = 1; i <= s->parts; i++) {
        in_layer = in_layer || s->model->modules[s->chain[i]].kind == HEFT_MODULE_LAYER;
    }
    const uint64_t width =
        parameter->shape[parameter->rank - 1] + parameter->shape[parameter->rank - 2];
    if (in_layer && kind != HEFT_MODULE_EMBEDDING && kind != HEFT_MODULE_ROUTER &&
        width > s->model->widest) {
        s->model->widest = width;
    }
}

/* What is stored in the place of a parameter; NULL: itself. */
static const heft__packed *packed_as(heft__skeleton *s, const char *name)
{
    size_t length, found;
    if (!s->packing || failed(s) || !append(s, s->path_length, name, strlen(name), &length)) {
        return NULL;
    }
    found = heft__map_get(&s->packing->names, s->path, length);
    s->path[s->path_length] = '\0';
    return found == HEFT__MAP_NONE ? NULL : &s->packing->weights[found];
}

static void add_stored(heft__skeleton *s, const heft__packed *packed)
{
    for (size_t i = 0; i < packed->count; i++) {
        const heft_parameter_spec *spec = &packed->list[i];
        const heft_parameter stored = {.dtype = spec->dtype,
                                       .rank = spec->rank,
                                       .shape = spec->shape,
                                       .kind = HEFT_PARAMETER_WEIGHT};
        add_one(s, spec->name, stored, heft__init_constant(0), (heft__place){0});
    }
}

static void add(heft__skeleton *s, const char *name, heft_parameter parameter, heft__init_rule rule,
                heft__place place)
{
    const heft__packed *packed = packed_as(s, name);
    note_width(s, name, &parameter);
    if (packed) {
        add_stored(s, packed);
    } else {
        add_one(s, name, parameter, rule, place);
    }
}

heft_dtype heft__sk_dtype(const heft__skeleton *s)
{
    return s->model->dtype;
}

/* Whether one of the parts between dots of a path is in a list, or the name. */
static bool has_part(const char *path, const char *name, const char *const *list)
{
    for (; list && *list; list++) {
        const size_t length = strlen(*list);
        for (const char *part = path; part; part = strchr(part, '.')) {
            part += *part == '.';
            if (strcspn(part, ".") == length && memcmp(part, *list, length) == 0) {
                return true;
            }
        }
        if (strcmp(name, *list) == 0) {
            return true;
        }
    }
    return false;
}

static bool keeps_float32(const heft__family *family, heft_dtype dtype, const char *path,
                          const char *name)
{
    const bool half = dtype == HEFT_DTYPE_F16, brain = dtype == HEFT_DTYPE_BF16;
    return (half && has_part(path, name, family->keep_f32)) ||
           ((half || brain) && has_part(path, name, family->keep_f32_strict));
}

bool heft__family_keeps_float32(const heft__family *family, heft_dtype dtype, const char *name)
{
    return keeps_float32(family, dtype, name, "");
}

/* The model's dtype, but where the family keeps float32. */
static heft_dtype dtype_of(const heft__skeleton *s, const char *name)
{
    const heft_dtype dtype = s->model->dtype;
    return s->model->keep_f32 && keeps_float32(s->model->family, dtype, s->path, name)
               ? HEFT_DTYPE_F32
               : dtype;
}

void heft__sk_part(heft__skeleton *s, const char *name, const uint64_t *shape, uint32_t rank,
                   heft__init_rule rule, heft__place place)
{
    heft_parameter parameter = {
        .dtype = dtype_of(s, name), .rank = rank, .shape = shape, .kind = HEFT_PARAMETER_WEIGHT};
    add(s, name, parameter, rule, place);
}

void heft__sk_parameter(heft__skeleton *s, const char *name, const uint64_t *shape, uint32_t rank,
                        heft__init_rule rule)
{
    heft__sk_part(s, name, shape, rank, rule, (heft__place){0});
}

const heft__inner *heft__sk_inner(heft__skeleton *s, const char *name, const uint64_t *shape,
                                  uint32_t rank, uint32_t parts)
{
    size_t length;
    heft__inner *inner = NULL;
    s->has_inner = true;
    if (!s->filling || failed(s) || !append(s, s->path_length, name, strlen(name), &length)) {
        return NULL;
    }
    inner = heft__arena_alloc(&s->model->arena, sizeof *inner);
    const uint64_t *kept = keep_shape(s, shape, rank);
    const char *renamed = inner_name(s);
    if (!renamed) {
        renamed = heft__arena_text(&s->model->arena, s->path, length);
    }
    s->path[s->path_length] = '\0';
    if (!inner || !kept || !renamed) {
        out_of_memory(s);
        return NULL;
    }
    *inner = (heft__inner){renamed, kept, rank, parts, s->inner_count++};
    return inner;
}

void heft__sk_natural_order(heft__skeleton *s)
{
    s->natural_order = true;
}

void heft__sk_buffer(heft__skeleton *s, const char *name, heft_dtype dtype, const uint64_t *shape,
                     uint32_t rank, bool persistent, heft__init_rule rule)
{
    heft_parameter parameter = {
        .dtype = dtype == s->model->dtype ? dtype_of(s, name) : dtype,
        .rank = rank,
        .shape = shape,
        .kind = persistent ? HEFT_PARAMETER_BUFFER : HEFT_PARAMETER_BUFFER_TRANSIENT,
    };
    add(s, name, parameter, rule, (heft__place){0});
}

const void *heft__sk_user(const heft__skeleton *s)
{
    return s->user;
}

void heft__sk_named(heft__skeleton *s, const char *name, heft_dtype dtype, const uint64_t *shape,
                    uint32_t rank)
{
    const heft_parameter parameter = {
        .dtype = dtype, .rank = rank, .shape = shape, .kind = HEFT_PARAMETER_WEIGHT};
    const char *role = name;
    for (const char *dot = strchr(name, '.'); dot && !failed(s) && s->parts < NAMED_PARTS_MOST;
         dot = strchr(dot + 1, '.')) {
        if (dot > name && append(s, 0, name, (size_t)(dot - name), &s->path_length)) {
            note_module(s, HEFT_MODULE_OTHER, "");
            role = dot + 1;
        }
    }
    add(s, role, parameter, heft__init_constant(0), (heft__place){0});
    s->path_length = s->parts = 0;
    s->path[0] = '\0';
}

static void add_cache(heft__skeleton *s, heft__cache cache)
{
    if (!failed(s)) {
        if (s->filling) {
            cache.module = s->chain[s->parts];
            s->model->caches[s->cache_count] = cache;
        }
        s->cache_count++;
    }
}

void heft__sk_cache(heft__skeleton *s, uint64_t token_elems, uint64_t window)
{
    add_cache(s, (heft__cache){.token_elems = token_elems, .most = window});
}

void heft__sk_cache_fixed(heft__skeleton *s, uint64_t token_elems, uint64_t tokens)
{
    add_cache(s, (heft__cache){.token_elems = token_elems, .least = tokens, .most = tokens});
}

void heft__sk_tie(heft__skeleton *s, const char *target, const char *source)
{
    if (failed(s)) {
        return;
    }
    if (s->filling) {
        heft__arena *arena = &s->model->arena;
        heft__skeleton_tie tie = {heft__arena_text(arena, target, strlen(target)),
                                  heft__arena_text(arena, source, strlen(source))};
        if (!tie.target || !tie.source) {
            out_of_memory(s);
            return;
        }
        s->ties[s->tie_count] = tie;
    }
    s->tie_count++;
}

/* ---- the usual modules ----------------------------------------------------------------------- */
heft__init_rule heft__init_constant(float value)
{
    return (heft__init_rule){.kind = HEFT__INIT_CONSTANT, .a = value, .zero_row = -1};
}

static heft__init_rule normal(const heft__skeleton *s, int64_t zero_row)
{
    return (heft__init_rule){.kind = HEFT__INIT_NORMAL, .b = s->std, .zero_row = zero_row};
}

heft__init_rule heft__sk_normal(const heft__skeleton *s)
{
    return normal(s, -1);
}

void heft__sk_std(heft__skeleton *s, double std)
{
    s->std = (float)std;
}

void heft__sk_matrix(heft__skeleton *s, uint64_t in, uint64_t out, bool bias)
{
    heft__sk_parameter(s, "weight", (const uint64_t[]){out, in}, 2, normal(s, -1));
    if (bias) {
        heft__sk_parameter(s, "bias", &out, 1, heft__init_constant(0));
    }
}

void heft__sk_table(heft__skeleton *s, uint64_t rows, uint64_t width, int64_t padding_row)
{
    heft__sk_parameter(s, "weight", (const uint64_t[]){rows, width}, 2, normal(s, padding_row));
}

void heft__sk_linear(heft__skeleton *s, const char *name, uint64_t in, uint64_t out, bool bias)
{
    enter(s, HEFT_MODULE_LINEAR, "Linear", name);
    heft__sk_matrix(s, in, out, bias);
    heft__sk_leave(s);
}

void heft__sk_embedding(heft__skeleton *s, const char *name, uint64_t rows, uint64_t width,
                        int64_t padding_row)
{
    enter(s, HEFT_MODULE_EMBEDDING, "Embedding", name);
    heft__sk_table(s, rows, width, padding_row);
    heft__sk_leave(s);
}

void heft__sk_layer_norm(heft__skeleton *s, const char *name, uint64_t width, bool bias)
{
    enter(s, HEFT_MODULE_NORM, "LayerNorm", name);
    heft__sk_parameter(s, "weight", &width, 1, heft__init_constant(1));
    if (bias) {
        heft__sk_parameter(s, "bias", &width, 1, heft__init_constant(0));
    }
    heft__sk_leave(s);
}

void heft__sk_rms_norm(heft__skeleton *s, const char *name, uint64_t width, float start)
{
    enter(s, HEFT_MODULE_NORM, "*RMSNorm", name);
    heft__sk_parameter(s, "weight", &width, 1, heft__init_constant(start));
    heft__sk_leave(s);
}

void heft__sk_base_prefix(heft__skeleton *s, const char *prefix)
{
    s->model->base_prefix = prefix;
}
