/* pickle.c - a machine for pickles of protocols 2 to 5 that builds inert values and calls nothing.
 *
 *   stream  opcode operand*  opcode operand*  ...  STOP
 *   stack   cells of 16 bytes; MARK is a number in a list beside it, and no opcode reaches below
 * the last MARK memo    index -> cell
 *
 * One table says what each opcode is called, what follows it and how many items it takes. REDUCE
 * leaves a CALL with its two items; pickle_tensors.c recognizes what it knows. Trusted: nothing. A
 * name outside the fixed list stands for nothing: what is made by it (REDUCE, NEWOBJ) is an opaque
 * CALL, which keeps what it is given (BUILD, SETITEMS, APPENDS, ADDITEMS) as inert items. Names that
 * only an attack has, opcodes that name or call something by another way (INST, OBJ, EXT, PERSID)
 * and the text opcodes of protocols 0 and 1 are refused where they stand.
 * Integers of over 255 bytes are refused unread; up to 64 bits they have their value, between these
 * only their place. No recursion. Memory: the stream, values, stack, marks and memo together take at
 * most heft__pickle_most(). Source: docs/formats/pickle.md. */
#include "format/pickle.h"

#define UNSET 0xFF /* kind of a cell of the memo that nothing was put in */
#define BIG_INTEGER_MOST 255
#define PROTOCOL_MOST 5
#define NAME_MOST 512 /* bytes of a module or of a name */

enum operand {
    OPERAND_NONE,
    OPERAND_U8,
    OPERAND_U16,
    OPERAND_U32,
    OPERAND_I32,
    OPERAND_U64,
    OPERAND_DATA8, /* a length of 1 byte, then as many bytes */
    OPERAND_DATA32,
    OPERAND_DATA_I32,
    OPERAND_DATA64,
    OPERAND_LINES /* two lines */
};

struct vm {
    heft__pickle *pickle;
    heft_ctx *ctx;
    const uint8_t *bytes;
    size_t length, at, frame_end; /* at: after what was read */
    uint32_t op_at;               /* the opcode being done */
    heft__pk_cell *stack;
    size_t count, cap;
    uint32_t *marks; /* stack heights */
    size_t mark_count, mark_cap;
    heft__pk_cell *memo;
    size_t memo_cap, memo_puts;
    heft__pk_object *nothing;  /* the empty tuple */
    uint64_t number;           /* the operand, if it is one */
    uint32_t data, data_bytes; /* the operand, if it is bytes */
    bool stopped;
};

struct opcode {
    const char *name;
    uint8_t operand, needs; /* items it takes or looks at */
    uint8_t kind;           /* heft__pk_kind that it makes or fills, where that is all it does */
    bool takes_mark;
    heft_status (*run)(struct vm *vm, const struct opcode *op, heft_error *err);
};

/* ---- memory ---------------------------------------------------------------------------------- */
/* heft__array_reserve(), counted. */
static heft_status reserve(struct vm *vm, void **array, size_t count, size_t *cap, size_t size,
                           heft_error *err)
{
    heft_status status = HEFT_OK;
    if (count < *cap) {
        return HEFT_OK;
    }
    const size_t before = *cap;
    status = heft__pickle_take(vm->pickle, (before ? before : 16) * (uint64_t)size,
                               vm->pickle->origin + vm->op_at, err);
    return status != HEFT_OK || heft__array_reserve(vm->ctx, array, count, cap, size)
               ? status
               : heft__fail_nomem(err, size);
}

static heft_status new_object(struct vm *vm, uint32_t count, heft__pk_object **out, heft_error *err)
{
    return heft__pk_new(vm->pickle, vm->op_at, count, out, err);
}

/* ---- errors and the stack -------------------------------------------------------------------- */
static heft_status malformed(struct vm *vm, const struct opcode *op, const char *what,
                             heft_error *err)
{
    return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at, "%s %s", op->name, what);
}

/* Whether more bytes after the span could have helped. */
static void note_cut(struct vm *vm)
{
    vm->pickle->truncated = vm->at >= vm->frame_end;
}

/* Items above the last mark. */
static size_t reachable(const struct vm *vm)
{
    return vm->count - (vm->mark_count ? vm->marks[vm->mark_count - 1] : 0);
}

static heft_status push(struct vm *vm, heft__pk_cell cell, heft_error *err)
{
    cell.at = vm->op_at;
    heft_status status = reserve(vm, (void **)&vm->stack, vm->count, &vm->cap, sizeof cell, err);
    if (status == HEFT_OK) {
        vm->stack[vm->count++] = cell;
    }
    return status;
}

static heft_status push_object(struct vm *vm, heft__pk_kind kind, heft__pk_object *object,
                               heft_error *err)
{
    return push(vm, (heft__pk_cell){.kind = (uint8_t)kind, .as.object = object}, err);
}

static heft__pk_cell *top(struct vm *vm)
{
    return &vm->stack[vm->count - 1];
}

/* Drop the last mark; *count items lay above it and still do. */
static void open_mark(struct vm *vm, size_t *count)
{
    *count = vm->count - vm->marks[--vm->mark_count];
}

/* ---- constants, numbers, texts --------------------------------------------------------------- */
static heft_status run_none(struct vm *vm, const struct opcode *op, heft_error *err)
{
    (void)op;
    return push(vm, (heft__pk_cell){.kind = HEFT__PK_NONE}, err);
}

static heft_status run_bool(struct vm *vm, const struct opcode *op, heft_error *err)
{
    (void)op;
    const int64_t value = vm->bytes[vm->op_at] == 0x88;
    return push(vm, (heft__pk_cell){.kind = HEFT__PK_BOOL, .as.integer = value}, err);
}

static heft_status run_integer(struct vm *vm, const struct opcode *op, heft_error *err)
{
    int64_t value =
        op->operand == OPERAND_I32 ? (int32_t)(uint32_t)vm->number : (int64_t)vm->number;
    return push(vm, (heft__pk_cell){.kind = HEFT__PK_INT, .as.integer = value}, err);
}

/* Two's complement, little-endian, any length; no bytes are 0. */
static heft_status run_long(struct vm *vm, const struct opcode *op, heft_error *err)
{
    heft__pk_cell cell = {.kind = HEFT__PK_INT};
    if (vm->data_bytes > BIG_INTEGER_MOST) {
        return heft__fail_at(err, HEFT_LIMIT, vm->pickle->origin + vm->op_at,
                             "%s: integer of %u bytes, the limit is %d", op->name, vm->data_bytes,
                             BIG_INTEGER_MOST);
    }
    if (vm->data_bytes > 8) {
        cell.kind = HEFT__PK_BIGINT;
        cell.as.text.start = vm->data;
        cell.as.text.length = vm->data_bytes;
        return push(vm, cell, err);
    }
    uint64_t value = 0;
    for (uint32_t i = 0; i < vm->data_bytes; i++) {
        value |= (uint64_t)vm->bytes[vm->data + i] << (8 * i);
    }
    if (vm->data_bytes > 0 && vm->data_bytes < 8 &&
        vm->bytes[vm->data + vm->data_bytes - 1] & 0x80) {
        value |= UINT64_MAX << (8 * vm->data_bytes);
    }
    cell.as.integer = (int64_t)value;
    return push(vm, cell, err);
}

/* The one big-endian number of a pickle. */
static heft_status run_float(struct vm *vm, const struct opcode *op, heft_error *err)
{
    (void)op;
    heft__pk_cell cell = {.kind = HEFT__PK_FLOAT};
    uint64_t bits = __builtin_bswap64(vm->number);
    memcpy(&cell.as.real, &bits, sizeof bits);
    return push(vm, cell, err);
}

/* A string or bytes. */
static heft_status run_data(struct vm *vm, const struct opcode *op, heft_error *err)
{
    const uint8_t code = vm->bytes[vm->op_at];
    heft__pk_cell cell = {.kind = op->kind};
    cell.global = code == 'U' || code == 'T' || code == 0x96 ? HEFT__PKG_INERT : HEFT__PKG_NONE;
    cell.as.text.start = vm->data;
    cell.as.text.length = vm->data_bytes;
    return push(vm, cell, err);
}

/* ---- containers ------------------------------------------------------------------------------ */
static heft_status run_empty(struct vm *vm, const struct opcode *op, heft_error *err)
{
    heft__pk_object *object = NULL;
    heft_status status = new_object(vm, 0, &object, err);
    return status == HEFT_OK ? push_object(vm, (heft__pk_kind)op->kind, object, err) : status;
}

static heft_status run_empty_tuple(struct vm *vm, const struct opcode *op, heft_error *err)
{
    (void)op;
    if (!vm->nothing) {
        heft_status status = new_object(vm, 0, &vm->nothing, err);
        if (status != HEFT_OK) {
            return status;
        }
    }
    return push_object(vm, HEFT__PK_TUPLE, vm->nothing, err);
}

/* Replace the topmost `count` items by one object that holds them. */
static heft_status gather(struct vm *vm, heft__pk_kind kind, size_t count, heft_error *err)
{
    heft__pk_object *object = NULL;
    heft_status status = new_object(vm, (uint32_t)count, &object, err);
    if (status != HEFT_OK) {
        return status;
    }
    vm->count -= count;
    if (count) {
        memcpy(object->items, vm->stack + vm->count, count * sizeof *object->items);
    }
    return push_object(vm, kind, object, err);
}

static heft_status run_tuple_fixed(struct vm *vm, const struct opcode *op, heft_error *err)
{
    return gather(vm, HEFT__PK_TUPLE, op->needs, err);
}

static heft_status run_tuple(struct vm *vm, const struct opcode *op, heft_error *err)
{
    size_t count;
    open_mark(vm, &count);
    return count ? gather(vm, HEFT__PK_TUPLE, count, err) : run_empty_tuple(vm, op, err);
}

static heft_status run_frozenset(struct vm *vm, const struct opcode *op, heft_error *err)
{
    size_t count;
    (void)op;
    open_mark(vm, &count);
    heft_status status = gather(vm, HEFT__PK_SET, count, err);
    if (status == HEFT_OK) {
        top(vm)->as.object->class = HEFT__PKG_INERT;
    }
    return status;
}

/* Move the items above the mark, or one item (a dict: two), into the container below them. */
static heft_status run_fill(struct vm *vm, const struct opcode *op, heft_error *err)
{
    size_t count = op->needs - 1u;
    if (op->takes_mark) {
        open_mark(vm, &count);
    }
    if (reachable(vm) < count + 1) {
        return malformed(vm, op, "needs a container below the mark", err);
    }
    heft__pk_cell *items = vm->stack + vm->count - count, *target = items - 1;
    if (target->kind != op->kind && !heft__pk_is_opaque(target)) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at, "%s on %s", op->name,
                             heft__pk_kind_name(target));
    }
    if (op->kind == HEFT__PK_DICT && count % 2) {
        return malformed(vm, op, "has a key without a value", err);
    }
    heft_status status =
        heft__pk_append(vm->pickle, vm->op_at, target->as.object, items, count, err);
    vm->count -= count;
    return status;
}

/* ---- stack and memo -------------------------------------------------------------------------- */
static heft_status run_mark(struct vm *vm, const struct opcode *op, heft_error *err)
{
    (void)op;
    heft_status status =
        reserve(vm, (void **)&vm->marks, vm->mark_count, &vm->mark_cap, sizeof *vm->marks, err);
    if (status == HEFT_OK) {
        vm->marks[vm->mark_count++] = (uint32_t)vm->count;
    }
    return status;
}

static heft_status run_pop(struct vm *vm, const struct opcode *op, heft_error *err)
{
    if (reachable(vm)) {
        vm->count--;
    } else if (vm->mark_count) {
        vm->mark_count--; /* popping a MARK is how picklers undo one */
    } else {
        return malformed(vm, op, "needs 1 item, stack has 0", err);
    }
    return HEFT_OK;
}

static heft_status run_pop_mark(struct vm *vm, const struct opcode *op, heft_error *err)
{
    size_t count;
    (void)op, (void)err;
    open_mark(vm, &count);
    vm->count -= count;
    return HEFT_OK;
}

static heft_status run_dup(struct vm *vm, const struct opcode *op, heft_error *err)
{
    (void)op;
    return push(vm, *top(vm), err);
}

/* Picklers number their puts from 0 (or 1) on. Gaps are borne, but the table stays in step with the
 * puts: an index by itself allocates nothing. */
static heft_status memo_put(struct vm *vm, const struct opcode *op, uint64_t index, heft_error *err)
{
    if (index >= vm->length || index > vm->memo_puts * 8 + 4096) {
        return heft__fail_at(err, HEFT_LIMIT, vm->pickle->origin + vm->op_at,
                             "%s: memo index %llu after %zu puts in a pickle of %zu bytes",
                             op->name, (unsigned long long)index, vm->memo_puts, vm->length);
    }
    while (vm->memo_cap <= index) {
        const size_t before = vm->memo_cap;
        heft_status status =
            reserve(vm, (void **)&vm->memo, before, &vm->memo_cap, sizeof *vm->memo, err);
        if (status != HEFT_OK) {
            return status;
        }
        for (size_t i = before; i < vm->memo_cap; i++) {
            vm->memo[i].kind = UNSET;
        }
    }
    vm->memo[index] = *top(vm);
    vm->memo_puts++;
    return HEFT_OK;
}

static heft_status run_put(struct vm *vm, const struct opcode *op, heft_error *err)
{
    return memo_put(vm, op, vm->number, err);
}

static heft_status run_memoize(struct vm *vm, const struct opcode *op, heft_error *err)
{
    return memo_put(vm, op, vm->memo_puts, err);
}

static heft_status run_get(struct vm *vm, const struct opcode *op, heft_error *err)
{
    if (vm->number >= vm->memo_cap || vm->memo[vm->number].kind == UNSET) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at,
                             "%s: memo %llu is not set", op->name, (unsigned long long)vm->number);
    }
    heft__pk_cell cell = vm->memo[vm->number];
    return push(vm, cell, err);
}

/* ---- names and calls ------------------------------------------------------------------------- */
static heft__pk_cell text_cell(const struct vm *vm, const char *text, size_t length)
{
    heft__pk_cell cell = {.kind = HEFT__PK_TEXT};
    cell.as.text.start = (uint32_t)((const uint8_t *)text - vm->bytes);
    cell.as.text.length = (uint32_t)length;
    return cell;
}

static heft_status push_global(struct vm *vm, const char *module, size_t module_length,
                               const char *name, size_t name_length, heft_error *err)
{
    heft__pk_cell cell = {0};
    const heft__pk_cell texts[2] = {text_cell(vm, module, module_length),
                                    text_cell(vm, name, name_length)};
    const bool known = heft__pk_find_global(module, module_length, name, name_length, &cell);
    if (!known && heft__pk_is_harmful(module, module_length, name, name_length)) {
        return heft__fail_at(err, HEFT_REFUSED, vm->pickle->origin + vm->op_at,
                             "pickle global '%.*s.%.*s' is refused",
                             (int)(module_length < 200 ? module_length : 200), module,
                             (int)(name_length < 200 ? name_length : 200), name);
    }
    cell.as.text = texts[1].as.text;
    heft_status status = HEFT_OK;
    if (!known) {
        status = new_object(vm, 2, &cell.as.object, err);
        if (status == HEFT_OK) {
            memcpy(cell.as.object->items, texts, sizeof texts);
        }
    }
    return status == HEFT_OK ? push(vm, cell, err) : status;
}

/* The two lines of GLOBAL and INST: the operand is `data`, of `data_bytes` bytes with both line
 * ends. */
static void split_lines(const struct vm *vm, const char **module, size_t *module_length,
                        const char **name, size_t *name_length)
{
    const char *text = (const char *)vm->bytes + vm->data;
    const char *end = memchr(text, '\n', vm->data_bytes);
    *module = text;
    *module_length = (size_t)(end - text);
    *name = end + 1;
    *name_length = vm->data_bytes - *module_length - 2;
}

static heft_status run_global(struct vm *vm, const struct opcode *op, heft_error *err)
{
    const char *module, *name;
    size_t module_length, name_length;
    (void)op;
    split_lines(vm, &module, &module_length, &name, &name_length);
    return push_global(vm, module, module_length, name, name_length, err);
}

static heft_status run_stack_global(struct vm *vm, const struct opcode *op, heft_error *err)
{
    heft__pk_cell name = vm->stack[vm->count - 1], module = vm->stack[vm->count - 2];
    if (name.kind != HEFT__PK_TEXT || module.kind != HEFT__PK_TEXT) {
        return malformed(vm, op, "needs two strings", err);
    }
    vm->count -= 2;
    return push_global(vm, heft__pk_text(vm->pickle, &module), module.as.text.length,
                       heft__pk_text(vm->pickle, &name), name.as.text.length, err);
}

/* OrderedDict(pairs) of python 2 and Counter(dict): what they are given becomes their items. A
 * defaultdict is given its factory. */
static heft_status fill_dict(struct vm *vm, const struct opcode *op, heft__pk_object *dict,
                             const heft__pk_object *args, heft_error *err)
{
    heft_status status = HEFT_OK;
    if (args->count == 0) {
        return HEFT_OK;
    }
    if (args->count == 1 && args->items[0].kind == HEFT__PK_DICT) {
        const heft__pk_object *from = args->items[0].as.object;
        return heft__pk_append(vm->pickle, vm->op_at, dict, from->items, from->count, err);
    }
    if (args->count != 1 || args->items[0].kind != HEFT__PK_LIST) {
        return malformed(vm, op, "of a dict class needs no argument, a dict or a list of pairs",
                         err);
    }
    const heft__pk_object *pairs = args->items[0].as.object;
    for (uint32_t i = 0; i < pairs->count && status == HEFT_OK; i++) {
        const heft__pk_cell *pair = &pairs->items[i];
        if ((pair->kind != HEFT__PK_TUPLE && pair->kind != HEFT__PK_LIST) ||
            pair->as.object->count != 2) {
            return malformed(vm, op, "of a dict class needs pairs", err);
        }
        status = heft__pk_append(vm->pickle, vm->op_at, dict, pair->as.object->items, 2, err);
    }
    return status;
}

/* Note what a dict has besides its items: `_metadata` for one. */
static heft_status note(struct vm *vm, const heft__pk_attributes *noted, heft_error *err)
{
    heft_status status;
    heft__pk_attributes *attributes =
        heft__pk_take(vm->pickle, vm->op_at, sizeof *attributes, &status, err);
    if (!attributes) {
        return status;
    }
    *attributes = *noted;
    attributes->next = vm->pickle->attributes;
    vm->pickle->attributes = attributes;
    return HEFT_OK;
}

static heft_status reduce_dict(struct vm *vm, const struct opcode *op, uint8_t class,
                               heft_error *err)
{
    heft__pk_object *dict = NULL;
    const heft__pk_object *args = top(vm)->as.object;
    const bool has_factory = class == HEFT__PKG_DEFAULT_DICT && args->count == 1;
    heft_status status = new_object(vm, 0, &dict, err);
    if (status == HEFT_OK) {
        dict->ordered = class != HEFT__PKG_COUNTER;
        dict->class = class;
        status = has_factory
                     ? note(vm, &(heft__pk_attributes){.of = dict, .factory = args->items}, err)
                     : fill_dict(vm, op, dict, args, err);
    }
    if (status == HEFT_OK) {
        vm->count -= 2;
        status = push_object(vm, HEFT__PK_DICT, dict, err);
    }
    return status;
}

static heft_status run_reduce(struct vm *vm, const struct opcode *op, heft_error *err)
{
    const heft__pk_cell *callee = top(vm) - 1, *args = top(vm);
    if ((callee->kind != HEFT__PK_GLOBAL && !heft__pk_is_opaque(callee)) ||
        callee->global == HEFT__PKG_CONSTANT || callee->global == HEFT__PKG_DTYPE) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at, "%s on %s", op->name,
                             heft__pk_kind_name(callee));
    }
    if (args->kind != HEFT__PK_TUPLE) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at,
                             "%s needs a tuple of arguments, found %s", op->name,
                             heft__pk_kind_name(args));
    }
    if (callee->global == HEFT__PKG_ORDERED_DICT || callee->global == HEFT__PKG_COUNTER ||
        callee->global == HEFT__PKG_DEFAULT_DICT) {
        return reduce_dict(vm, op, callee->global, err);
    }
    return gather(vm, HEFT__PK_CALL, 2, err);
}

/* Its state is what torch._utils._rebuild_tensor takes: storage, offset, size and stride. */
static heft_status build_tensor(struct vm *vm, const struct opcode *op, heft_error *err)
{
    heft__pk_object *object = (top(vm) - 1)->as.object;
    const heft__pk_cell *state = top(vm);
    if (state->kind != HEFT__PK_TUPLE || state->as.object->count != 4 ||
        heft__pk_is_other_storage(&object->items[0], &state->as.object->items[0])) {
        return malformed(vm, op, "of a tensor needs its storage, offset, size and stride", err);
    }
    object->items[0].global = HEFT__PKG_REBUILD_TENSOR;
    object->items[1] = *state;
    vm->count--;
    return HEFT_OK;
}

/* An OrderedDict gets attributes; an opaque object keeps its state; a tensor without values gets them;
 * nothing else in the list has one. */
static heft_status run_build(struct vm *vm, const struct opcode *op, heft_error *err)
{
    const heft__pk_cell *target = top(vm) - 1, *state = top(vm);
    if (heft__pk_is_opaque(target)) {
        heft__pk_object *object = target->as.object;
        object->built = object->count == 2 && state->kind == HEFT__PK_DICT;
        vm->count--;
        return heft__pk_append(vm->pickle, vm->op_at, object, state, 1, err);
    }
    if (heft__pk_is_bare_tensor(vm->pickle, target)) {
        return build_tensor(vm, op, err);
    }
    if (target->kind != HEFT__PK_DICT || !target->as.object->ordered) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at, "%s on %s", op->name,
                             heft__pk_kind_name(target));
    }
    if (state->kind != HEFT__PK_DICT) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at,
                             "%s of an OrderedDict with %s", op->name, heft__pk_kind_name(state));
    }
    vm->count--;
    return note(vm, &(heft__pk_attributes){.of = target->as.object, .state = *state}, err);
}

static heft_status run_persid(struct vm *vm, const struct opcode *op, heft_error *err)
{
    (void)op;
    const uint64_t at = vm->pickle->origin + vm->op_at;
    heft_status status = heft__pk_check_id(vm->pickle, top(vm), at, err);
    if (status == HEFT_OK && heft__pk_is_module_id(vm->pickle, top(vm))) {
        *top(vm) = top(vm)->as.object->items[1]; /* the class itself */
        return HEFT_OK;
    }
    heft__pk_persid *persid =
        status == HEFT_OK ? heft__pk_take(vm->pickle, vm->op_at, sizeof *persid, &status, err)
                          : NULL;
    if (!persid) {
        return status;
    }
    *persid = (heft__pk_persid){
        .object = {.items = &persid->id, .count = 1, .cap = 1, .at = vm->op_at},
          .id = *top(vm)
    };
    if (vm->pickle->last_persid) {
        vm->pickle->last_persid->next = persid;
    } else {
        vm->pickle->first_persid = persid;
    }
    vm->pickle->last_persid = persid;
    vm->count--;
    return push_object(vm, HEFT__PK_PERSID, &persid->object, err);
}

/* ---- refused opcodes ------------------------------------------------------------------------- */
static heft_status run_refused(struct vm *vm, const struct opcode *op, heft_error *err)
{
    return heft__fail_at(err, HEFT_REFUSED, vm->pickle->origin + vm->op_at,
                         "pickle opcode %s is refused", op->name);
}

static heft_status run_inst(struct vm *vm, const struct opcode *op, heft_error *err)
{
    const char *module, *name;
    size_t module_length, name_length;
    split_lines(vm, &module, &module_length, &name, &name_length);
    return heft__fail_at(err, HEFT_REFUSED, vm->pickle->origin + vm->op_at,
                         "pickle opcode %s of global '%.*s.%.*s' is refused", op->name,
                         (int)(module_length < 200 ? module_length : 200), module,
                         (int)(name_length < 200 ? name_length : 200), name);
}

static heft_status run_newobj(struct vm *vm, const struct opcode *op, heft_error *err)
{
    const heft__pk_cell *type = top(vm) - (op->needs - 1);
    if ((type->kind == HEFT__PK_GLOBAL && type->global == HEFT__PKG_UNKNOWN) ||
        heft__pk_is_opaque(type) || /* a class that a call returned, of which nothing is known */
        (op->needs == 2 && heft__pk_is_tensor_class(vm->pickle, type) &&
         top(vm)->kind == HEFT__PK_TUPLE)) {
        return gather(vm, HEFT__PK_CALL, op->needs, err);
    }
    if (type->kind != HEFT__PK_GLOBAL) {
        return run_refused(vm, op, err);
    }
    return heft__fail_at(err, HEFT_REFUSED, vm->pickle->origin + vm->op_at,
                         "pickle opcode %s of global '%s%.*s' is refused", op->name,
                         type->global == HEFT__PKG_COUNTER ? "collections." : "",
                         (int)type->as.text.length, heft__pk_text(vm->pickle, type));
}

/* ---- framing and the end --------------------------------------------------------------------- */
static heft_status run_proto(struct vm *vm, const struct opcode *op, heft_error *err)
{
    if (vm->op_at != 0) {
        return malformed(vm, op, "occurs inside the stream", err);
    }
    if (vm->number > PROTOCOL_MOST) {
        return heft__fail_at(err, HEFT_UNSUPPORTED, vm->pickle->origin + vm->op_at,
                             "pickle protocol %llu, at most %d is supported",
                             (unsigned long long)vm->number, PROTOCOL_MOST);
    }
    return HEFT_OK;
}

static heft_status run_frame(struct vm *vm, const struct opcode *op, heft_error *err)
{
    if (vm->op_at < vm->frame_end) {
        return malformed(vm, op, "occurs inside a frame", err);
    }
    if (vm->number > vm->length - vm->at) {
        note_cut(vm);
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at,
                             "%s: frame of %llu bytes, %zu left", op->name,
                             (unsigned long long)vm->number, vm->length - vm->at);
    }
    vm->frame_end = vm->at + (size_t)vm->number;
    return HEFT_OK;
}

static heft_status run_stop(struct vm *vm, const struct opcode *op, heft_error *err)
{
    const uint64_t at = vm->pickle->origin + vm->op_at;
    if (vm->mark_count) {
        return heft__fail_at(err, HEFT_FORMAT, at, "%s with %zu open marks", op->name,
                             vm->mark_count);
    }
    if (vm->count != 1) {
        return heft__fail_at(err, HEFT_FORMAT, at, "%s with %zu items on the stack, expected 1",
                             op->name, vm->count);
    }
    vm->pickle->top = vm->stack[0];
    vm->pickle->end = vm->at;
    vm->stopped = true;
    return HEFT_OK;
}

/* ---- the table ------------------------------------------------------------------------------- */
/* clang-format off */
static const struct opcode opcodes[256] = {
    [0x80] = {"PROTO",            OPERAND_U8,       0, 0,              false, run_proto},
    [0x95] = {"FRAME",            OPERAND_U64,      0, 0,              false, run_frame},
    ['.']  = {"STOP",             OPERAND_NONE,     0, 0,              false, run_stop},
    ['(']  = {"MARK",             OPERAND_NONE,     0, 0,              false, run_mark},
    ['0']  = {"POP",              OPERAND_NONE,     0, 0,              false, run_pop},
    ['1']  = {"POP_MARK",         OPERAND_NONE,     0, 0,              true,  run_pop_mark},
    ['2']  = {"DUP",              OPERAND_NONE,     1, 0,              false, run_dup},
    ['N']  = {"NONE",             OPERAND_NONE,     0, 0,              false, run_none},
    [0x88] = {"NEWTRUE",          OPERAND_NONE,     0, 0,              false, run_bool},
    [0x89] = {"NEWFALSE",         OPERAND_NONE,     0, 0,              false, run_bool},
    ['K']  = {"BININT1",          OPERAND_U8,       0, 0,              false, run_integer},
    ['M']  = {"BININT2",          OPERAND_U16,      0, 0,              false, run_integer},
    ['J']  = {"BININT",           OPERAND_I32,      0, 0,              false, run_integer},
    [0x8A] = {"LONG1",            OPERAND_DATA8,    0, 0,              false, run_long},
    [0x8B] = {"LONG4",            OPERAND_DATA_I32, 0, 0,              false, run_long},
    ['G']  = {"BINFLOAT",         OPERAND_U64,      0, 0,              false, run_float},
    [0x8C] = {"SHORT_BINUNICODE", OPERAND_DATA8,    0, HEFT__PK_TEXT,  false, run_data},
    ['X']  = {"BINUNICODE",       OPERAND_DATA32,   0, HEFT__PK_TEXT,  false, run_data},
    [0x8D] = {"BINUNICODE8",      OPERAND_DATA64,   0, HEFT__PK_TEXT,  false, run_data},
    ['U']  = {"SHORT_BINSTRING",  OPERAND_DATA8,    0, HEFT__PK_TEXT,  false, run_data},
    ['T']  = {"BINSTRING",        OPERAND_DATA_I32, 0, HEFT__PK_TEXT,  false, run_data},
    ['C']  = {"SHORT_BINBYTES",   OPERAND_DATA8,    0, HEFT__PK_BYTES, false, run_data},
    ['B']  = {"BINBYTES",         OPERAND_DATA32,   0, HEFT__PK_BYTES, false, run_data},
    [0x8E] = {"BINBYTES8",        OPERAND_DATA64,   0, HEFT__PK_BYTES, false, run_data},
    [0x96] = {"BYTEARRAY8",       OPERAND_DATA64,   0, HEFT__PK_BYTES, false, run_data},
    ['}']  = {"EMPTY_DICT",       OPERAND_NONE,     0, HEFT__PK_DICT,  false, run_empty},
    [']']  = {"EMPTY_LIST",       OPERAND_NONE,     0, HEFT__PK_LIST,  false, run_empty},
    [')']  = {"EMPTY_TUPLE",      OPERAND_NONE,     0, 0,              false, run_empty_tuple},
    [0x8F] = {"EMPTY_SET",        OPERAND_NONE,     0, HEFT__PK_SET,   false, run_empty},
    ['t']  = {"TUPLE",            OPERAND_NONE,     0, 0,              true,  run_tuple},
    [0x85] = {"TUPLE1",           OPERAND_NONE,     1, 0,              false, run_tuple_fixed},
    [0x86] = {"TUPLE2",           OPERAND_NONE,     2, 0,              false, run_tuple_fixed},
    [0x87] = {"TUPLE3",           OPERAND_NONE,     3, 0,              false, run_tuple_fixed},
    [0x91] = {"FROZENSET",        OPERAND_NONE,     0, 0,              true,  run_frozenset},
    ['a']  = {"APPEND",           OPERAND_NONE,     2, HEFT__PK_LIST,  false, run_fill},
    ['e']  = {"APPENDS",          OPERAND_NONE,     0, HEFT__PK_LIST,  true,  run_fill},
    ['s']  = {"SETITEM",          OPERAND_NONE,     3, HEFT__PK_DICT,  false, run_fill},
    ['u']  = {"SETITEMS",         OPERAND_NONE,     0, HEFT__PK_DICT,  true,  run_fill},
    [0x90] = {"ADDITEMS",         OPERAND_NONE,     0, HEFT__PK_SET,   true,  run_fill},
    ['q']  = {"BINPUT",           OPERAND_U8,       1, 0,              false, run_put},
    ['r']  = {"LONG_BINPUT",      OPERAND_U32,      1, 0,              false, run_put},
    [0x94] = {"MEMOIZE",          OPERAND_NONE,     1, 0,              false, run_memoize},
    ['h']  = {"BINGET",           OPERAND_U8,       0, 0,              false, run_get},
    ['j']  = {"LONG_BINGET",      OPERAND_U32,      0, 0,              false, run_get},
    ['c']  = {"GLOBAL",           OPERAND_LINES,    0, 0,              false, run_global},
    [0x93] = {"STACK_GLOBAL",     OPERAND_NONE,     2, 0,              false, run_stack_global},
    ['R']  = {"REDUCE",           OPERAND_NONE,     2, 0,              false, run_reduce},
    ['b']  = {"BUILD",            OPERAND_NONE,     2, 0,              false, run_build},
    ['Q']  = {"BINPERSID",        OPERAND_NONE,     1, 0,              false, run_persid},
    [0x81] = {"NEWOBJ",           OPERAND_NONE,     2, 0,              false, run_newobj},
    [0x92] = {"NEWOBJ_EX",        OPERAND_NONE,     3, 0,              false, run_newobj},
    ['i']  = {"INST",             OPERAND_LINES,    0, 0,              false, run_inst},
    ['o']  = {"OBJ",              OPERAND_NONE,     0, 0,              false, run_refused},
    ['P']  = {"PERSID",           OPERAND_NONE,     0, 0,              false, run_refused},
    [0x82] = {"EXT1",             OPERAND_NONE,     0, 0,              false, run_refused},
    [0x83] = {"EXT2",             OPERAND_NONE,     0, 0,              false, run_refused},
    [0x84] = {"EXT4",             OPERAND_NONE,     0, 0,              false, run_refused},
    [0x97] = {"NEXT_BUFFER",      OPERAND_NONE,     0, 0,              false, run_refused},
    [0x98] = {"READONLY_BUFFER",  OPERAND_NONE,     0, 0,              false, run_refused},
    ['I']  = {"INT",              OPERAND_NONE,     0, 0,              false, run_refused},
    ['L']  = {"LONG",             OPERAND_NONE,     0, 0,              false, run_refused},
    ['F']  = {"FLOAT",            OPERAND_NONE,     0, 0,              false, run_refused},
    ['S']  = {"STRING",           OPERAND_NONE,     0, 0,              false, run_refused},
    ['V']  = {"UNICODE",          OPERAND_NONE,     0, 0,              false, run_refused},
    ['p']  = {"PUT",              OPERAND_NONE,     0, 0,              false, run_refused},
    ['g']  = {"GET",              OPERAND_NONE,     0, 0,              false, run_refused},
    ['d']  = {"DICT",             OPERAND_NONE,     0, 0,              false, run_refused},
    ['l']  = {"LIST",             OPERAND_NONE,     0, 0,              false, run_refused},
};
/* clang-format on */

/* ---- operands -------------------------------------------------------------------------------- */
/* Bytes that an operand may take: up to the end of the frame, if there is one. */
static size_t left(const struct vm *vm)
{
    return (vm->at < vm->frame_end ? vm->frame_end : vm->length) - vm->at;
}

static heft_status read_number(struct vm *vm, const struct opcode *op, size_t width,
                               heft_error *err)
{
    if (left(vm) < width) {
        note_cut(vm);
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at,
                             "operand of %s needs %zu bytes, %zu left", op->name, width, left(vm));
    }
    vm->number = 0;
    for (size_t i = 0; i < width; i++) {
        vm->number |= (uint64_t)vm->bytes[vm->at + i] << (8 * i);
    }
    vm->at += width;
    return HEFT_OK;
}

static heft_status read_data(struct vm *vm, const struct opcode *op, size_t width, heft_error *err)
{
    const bool is_number = op->run == run_long;
    heft_status status = read_number(vm, op, width, err);
    if (status != HEFT_OK) {
        return status;
    }
    if (op->operand == OPERAND_DATA_I32 && vm->number > INT32_MAX) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at,
                             "%s: length %d is negative", op->name, (int32_t)(uint32_t)vm->number);
    }
    if (vm->number > left(vm)) {
        note_cut(vm);
        return heft__fail_at(
            err, HEFT_FORMAT, vm->pickle->origin + vm->op_at, "%s: %s of %llu bytes, %zu left",
            op->name, is_number ? "integer" : "string", (unsigned long long)vm->number, left(vm));
    }
    vm->data = (uint32_t)vm->at;
    vm->data_bytes = (uint32_t)vm->number;
    vm->at += vm->data_bytes;
    return HEFT_OK;
}

static heft_status read_lines(struct vm *vm, const struct opcode *op, heft_error *err)
{
    size_t start = vm->at;
    for (int line = 0; line < 2; line++) {
        size_t most = left(vm) < NAME_MOST + 1 ? left(vm) : NAME_MOST + 1;
        const uint8_t *end = memchr(vm->bytes + vm->at, '\n', most);
        if (!end) {
            if (most <= NAME_MOST) {
                note_cut(vm);
            }
            return malformed(
                vm, op, most > NAME_MOST ? "has a name of more than 512 bytes" : "has no line end",
                err);
        }
        vm->at = (size_t)(end - vm->bytes) + 1;
    }
    vm->data = (uint32_t)start;
    vm->data_bytes = (uint32_t)(vm->at - start);
    return HEFT_OK;
}

static heft_status read_operand(struct vm *vm, const struct opcode *op, heft_error *err)
{
    switch (op->operand) {
    case OPERAND_U8:
        return read_number(vm, op, 1, err);
    case OPERAND_U16:
        return read_number(vm, op, 2, err);
    case OPERAND_U32:
    case OPERAND_I32:
        return read_number(vm, op, 4, err);
    case OPERAND_U64:
        return read_number(vm, op, 8, err);
    case OPERAND_DATA8:
        return read_data(vm, op, 1, err);
    case OPERAND_DATA32:
    case OPERAND_DATA_I32:
        return read_data(vm, op, 4, err);
    case OPERAND_DATA64:
        return read_data(vm, op, 8, err);
    case OPERAND_LINES:
        return read_lines(vm, op, err);
    default:
        return HEFT_OK;
    }
}

/* ---- running --------------------------------------------------------------------------------- */
static heft_status check_items(struct vm *vm, const struct opcode *op, heft_error *err)
{
    if (op->takes_mark && vm->mark_count == 0) {
        return malformed(vm, op, "without MARK", err);
    }
    if (reachable(vm) < op->needs) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->op_at,
                             "%s needs %u items, stack has %zu", op->name, op->needs,
                             reachable(vm));
    }
    return HEFT_OK;
}

static heft_status step(struct vm *vm, heft_error *err)
{
    if (vm->at >= vm->length) {
        note_cut(vm);
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->length,
                             "the pickle ends without STOP");
    }
    const uint8_t code = vm->bytes[vm->at];
    const struct opcode *op = &opcodes[code];
    vm->op_at = (uint32_t)vm->at;
    if (!op->run) {
        return heft__fail_at(err, HEFT_FORMAT, vm->pickle->origin + vm->at,
                             "unknown pickle opcode 0x%02x", code);
    }
    vm->at++;
    heft_status status = read_operand(vm, op, err);
    if (status == HEFT_OK) {
        status = check_items(vm, op, err);
    }
    return status == HEFT_OK ? op->run(vm, op, err) : status;
}

heft_status heft__pickle_run(heft_ctx *ctx, const uint8_t *bytes, size_t length, uint64_t origin,
                             uint64_t file_bytes, heft__pk_ids ids, heft__pickle *pickle,
                             heft_error *err)
{
    *pickle = (heft__pickle){.ctx = ctx,
                             .bytes = bytes,
                             .length = length,
                             .origin = origin,
                             .ids = ids,
                             .used_bytes = length,
                             .most_bytes = heft__pickle_most(ctx, file_bytes)};
    heft__arena_init(&pickle->arena, ctx);
    if (length > UINT32_MAX) {
        return heft__fail_at(err, HEFT_LIMIT, origin, "pickle of %zu bytes, the limit is %u",
                             length, UINT32_MAX);
    }
    struct vm vm = {.pickle = pickle, .ctx = ctx, .bytes = bytes, .length = length};
    heft_status status = HEFT_OK;
    while (status == HEFT_OK && !vm.stopped) {
        status = step(&vm, err);
    }
    heft__free(ctx, vm.stack, vm.cap * sizeof *vm.stack);
    heft__free(ctx, vm.marks, vm.mark_cap * sizeof *vm.marks);
    heft__free(ctx, vm.memo, vm.memo_cap * sizeof *vm.memo);
    pickle->used_bytes -=
        (vm.cap + vm.memo_cap) * sizeof *vm.stack + vm.mark_cap * sizeof *vm.marks;
    return status;
}
