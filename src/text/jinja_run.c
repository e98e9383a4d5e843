/* jinja_run.c - statements of a chat template, and a rendering as a whole.
 *
 * Scopes are those of Jinja: a loop's body, a macro, a block that is caught and `with` have their own, in which
 * `set` stays; `if` has not. A macro sees the scope that it stands in, as it is when the macro is called. */
#include "text/jinja.h"

typedef heft__jinja_value value;
typedef heft__jinja_node node;
typedef heft__jinja_run run_t;

/* ---- scopes ----------------------------------------------------------------------------------------------- */
bool heft__jinja_scope_push(run_t *run, heft__jinja_scope *parent)
{
    heft__jinja_scope *scope = heft__jinja_alloc(run, sizeof *scope);
    if (!scope) {
        return false;
    }
    *scope = (heft__jinja_scope){.parent = parent};
    run->scope = scope;
    return true;
}

bool heft__jinja_store(run_t *run, uint32_t name, value given)
{
    heft__jinja_cell *cell = run->scope->cells;
    while (cell && cell->name != name) {
        cell = cell->next;
        run->steps++;
    }
    if (!cell) {
        cell = heft__jinja_alloc(run, sizeof *cell);
        if (!cell) {
            return false;
        }
        *cell = (heft__jinja_cell){.name = name, .next = run->scope->cells};
        run->scope->cells = cell;
    }
    cell->value = given;
    return heft__jinja_work(run, 1);
}

bool heft__jinja_define(run_t *run, const char *name, value given)
{
    const size_t number = heft__map_get(&run->tree->names, name, strlen(name));
    return number == HEFT__MAP_NONE || heft__jinja_store(run, (uint32_t)number, given);
}

/* ns.name = value */
static bool store_member(run_t *run, const node *target, value given)
{
    const node name = {.kind = HEFT__NODE_NAME, .line = target->line, .name = target->name};
    value of;
    if (!heft__jinja_eval(run, &name, &of)) {
        return false;
    }
    if (of.kind != HEFT__JINJA_NAMESPACE) {
        return heft__jinja_wrong(run, "members of namespaces only can be set, not of %s",
                                 heft__jinja_kind_name(of));
    }
    if (target->text.text[0] == '_') {
        return heft__jinja_wrong(run, "a namespace has no member that begins with '_'");
    }
    return heft__jinja_dict_set(run, of.dict,
                                heft__jinja_string(target->text.text, target->text.length), given);
}

bool heft__jinja_assign(run_t *run, const node *target, value given)
{
    heft__jinja_list items;
    size_t i = 0;
    if (target->kind == HEFT__NODE_NAME) {
        return heft__jinja_store(run, target->name, given);
    }
    if (target->kind == HEFT__NODE_NSREF) {
        return store_member(run, target, given);
    }
    if (given.kind == HEFT__JINJA_UNDEFINED) {
        return heft__jinja_wrong(run, "what is undefined has no parts");
    }
    if (!heft__jinja_iterate(run, given, &items)) {
        return false;
    }
    for (const node *n = target->a; n; n = n->next, i++) {
        if (i < items.count && !heft__jinja_assign(run, n, items.items[i])) {
            return false;
        }
    }
    return i == items.count || heft__jinja_wrong(run, "%zu values for %zu names", items.count, i);
}

/* Statements in a scope of their own. */
static bool inner(run_t *run, const node *list)
{
    heft__jinja_scope *outer = run->scope;
    const bool good = heft__jinja_scope_push(run, outer) && heft__jinja_statements(run, list);
    run->scope = outer;
    return good;
}

static bool caught_block(run_t *run, const node *list, value *out)
{
    const size_t mark = heft__jinja_catch(run);
    return inner(run, list) && heft__jinja_caught(run, mark, out);
}

/* ---- statements ------------------------------------------------------------------------------------------- */
static bool run_if(run_t *run, const node *n)
{
    for (; n; n = n->c) {
        bool truth = true;
        value test;
        if (n->a &&
            (!heft__jinja_eval(run, n->a, &test) || !heft__jinja_truth(run, test, &truth))) {
            return false;
        }
        if (truth) {
            return heft__jinja_statements(run, n->b);
        }
    }
    return true;
}

/* The items for which a loop's test holds. */
static bool select_items(run_t *run, const node *n, heft__jinja_list *items)
{
    static const char reason[] = "is not known in the test of a loop";
    heft__jinja_scope *outer = run->scope;
    value kept;
    size_t count = 0;
    bool good = heft__jinja_new_list(run, HEFT__JINJA_LIST, items->count, &kept);
    for (size_t i = 0; good && i < items->count; i++) {
        value test;
        bool truth = false;
        good = heft__jinja_scope_push(run, outer) &&
               heft__jinja_define(
                   run, "loop",
                   (value){
                       .kind = HEFT__JINJA_REFUSED, .string = {reason, sizeof reason - 1}
        }) &&
               heft__jinja_assign(run, n->a, items->items[i]) &&
               heft__jinja_eval(run, n->c, &test) && heft__jinja_truth(run, test, &truth);
        if (good && truth) {
            kept.list->items[count++] = items->items[i];
        }
        run->scope = outer;
    }
    if (good) {
        *items = (heft__jinja_list){.items = kept.list->items, .count = count};
    }
    return good;
}

static bool run_for(run_t *run, const node *n)
{
    heft__jinja_scope *outer = run->scope;
    heft__jinja_list items;
    value over;
    if (!heft__jinja_eval(run, n->b, &over) || !heft__jinja_iterate(run, over, &items) ||
        (n->c && !select_items(run, n, &items))) {
        return false;
    }
    heft__jinja_loop *loop = heft__jinja_alloc(run, sizeof *loop);
    bool good = loop != NULL, ended = false;
    for (size_t i = 0; good && i < items.count && run->flow != HEFT__FLOW_BREAK; i++) {
        *loop = (heft__jinja_loop){.items = items.items, .count = items.count, .index = i};
        run->line = n->line;
        good = heft__jinja_scope_push(run, outer) &&
               heft__jinja_define(run, "loop", (value){.kind = HEFT__JINJA_LOOP, .loop = loop}) &&
               heft__jinja_assign(run, n->a, items.items[i]) && heft__jinja_statements(run, n->d);
        run->scope = outer;
        ended = ended || run->flow == HEFT__FLOW_ON;
        if (run->flow == HEFT__FLOW_CONTINUE) {
            run->flow = HEFT__FLOW_ON;
        }
    }
    run->flow = HEFT__FLOW_ON;
    return good && (ended || inner(run, n->e)); /* unless an item was done to its end, as Jinja */
}

static bool run_set_block(run_t *run, const node *n)
{
    value text, result;
    if (!caught_block(run, n->d, &text)) {
        return false;
    }
    const value *before = run->body;
    run->body = &text;
    result = text;
    const bool good = !n->b || heft__jinja_eval(run, n->b, &result);
    run->body = before;
    return good && heft__jinja_assign(run, n->a, result);
}

static bool run_with(run_t *run, const node *n)
{
    heft__jinja_scope *outer = run->scope;
    bool good = heft__jinja_scope_push(run, outer);
    heft__jinja_scope *own = run->scope;
    for (const node *set = n->a; good && set; set = set->next) {
        value given;
        run->scope = outer;
        good = heft__jinja_eval(run, set->b, &given);
        run->scope = own;
        good = good && heft__jinja_assign(run, set->a, given);
    }
    good = good && heft__jinja_statements(run, n->d);
    run->scope = outer;
    return good;
}

static bool run_macro(run_t *run, const node *n)
{
    heft__jinja_macro *macro = heft__jinja_alloc(run, sizeof *macro);
    if (!macro) {
        return false;
    }
    *macro = (heft__jinja_macro){n, run->scope};
    return heft__jinja_store(run, n->name, (value){.kind = HEFT__JINJA_MACRO, .macro = macro});
}

static bool run_statement(run_t *run, const node *n)
{
    value given;
    run->line = n->line;
    if (n->kind == HEFT__NODE_DATA) {
        return heft__jinja_put(run, n->text.text, n->text.length);
    }
    if (n->kind == HEFT__NODE_OUTPUT) {
        return heft__jinja_eval(run, n->a, &given) && heft__jinja_put_value(run, given);
    }
    if (n->kind == HEFT__NODE_IF) {
        return run_if(run, n);
    }
    if (n->kind == HEFT__NODE_FOR) {
        return run_for(run, n);
    }
    if (n->kind == HEFT__NODE_SET) {
        return heft__jinja_eval(run, n->b, &given) && heft__jinja_assign(run, n->a, given);
    }
    if (n->kind == HEFT__NODE_SET_BLOCK) {
        return run_set_block(run, n);
    }
    if (n->kind == HEFT__NODE_WITH) {
        return run_with(run, n);
    }
    if (n->kind == HEFT__NODE_MACRO) {
        return run_macro(run, n);
    }
    if (n->kind == HEFT__NODE_GENERATION) {
        return inner(run, n->d);
    }
    run->flow = n->kind == HEFT__NODE_BREAK ? HEFT__FLOW_BREAK : HEFT__FLOW_CONTINUE;
    return true;
}

bool heft__jinja_statements(run_t *run, const node *list)
{
    if (run->calls >= HEFT__JINJA_CALLS) {
        return heft__jinja_fail(run, HEFT_LIMIT, "more than %d calls and expressions in each other",
                                HEFT__JINJA_CALLS);
    }
    run->calls++;
    bool good = true;
    for (const node *n = list; good && n && run->flow == HEFT__FLOW_ON; n = n->next) {
        good = heft__jinja_work(run, 1) && run_statement(run, n);
    }
    run->calls--;
    return good;
}

/* ---- macros ----------------------------------------------------------------------------------------------- */
/* The argument for a parameter, NULL if there is none; `place` is its number. */
static const value *argument_for(const heft__jinja_arguments *given, const node *parameter,
                                 size_t place, size_t *used)
{
    const value *found = NULL;
    for (size_t i = 0; i < given->count; i++) {
        const heft__string name = given->list[i].name;
        const bool same = name.text ? name.length == parameter->text.length &&
                                          memcmp(name.text, parameter->text.text, name.length) == 0
                                    : i == place;
        if (same && !found) {
            found = &given->list[i].value;
            (*used)++;
        }
    }
    return found;
}

static bool bind_parameters(run_t *run, const heft__jinja_macro *macro,
                            const heft__jinja_arguments *given)
{
    static const char reason[] = "is not known in a macro";
    const value refused = {
        .kind = HEFT__JINJA_REFUSED, .string = {reason, sizeof reason - 1}
    };
    size_t used = 0, place = 0;
    if (!heft__jinja_define(run, "varargs", refused) ||
        !heft__jinja_define(run, "kwargs", refused) ||
        !heft__jinja_define(run, "caller", heft__jinja_undefined((heft__string){"caller", 6}))) {
        return false;
    }
    for (const node *n = macro->node->a; n; n = n->next, place++) {
        const value *argument = argument_for(given, n, place, &used);
        value chosen = argument ? *argument : heft__jinja_undefined(n->text);
        if ((!argument && n->a && !heft__jinja_eval(run, n->a, &chosen)) ||
            !heft__jinja_store(run, n->name, chosen)) {
            return false;
        }
    }
    return used == given->count ||
           heft__jinja_wrong(run, "the macro '%.*s' takes other arguments",
                             (int)(macro->node->text.length < 64 ? macro->node->text.length : 64),
                             macro->node->text.text);
}

bool heft__jinja_call_macro(run_t *run, const heft__jinja_macro *macro,
                            const heft__jinja_arguments *given, value *out)
{
    heft__jinja_scope *outer = run->scope;
    const size_t mark = heft__jinja_catch(run);
    const value *body = run->body;
    const bool good =
        heft__jinja_scope_push(run, macro->scope) && bind_parameters(run, macro, given) &&
        heft__jinja_statements(run, macro->node->d) && heft__jinja_caught(run, mark, out);
    run->scope = outer;
    run->body = body;
    return good;
}
