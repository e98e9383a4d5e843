/* module_tree.c - the tree of modules that the names of the tensors span, with sums.
 *
 *   encoder              96  85,054,464  340.2 MB
 *     layer              96  85,054,464  340.2 MB
 *       {0..11} (each)   16   7,087,872   28.4 MB
 *
 * No tree is built: names are sorted so that a module's tensors are neighbors, and a module is a
 * range of them. Tied tensors count once. Names deeper than 64 parts end there. */
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

#define DEPTH_LIMIT 64

struct node {
    const char *part; /* not ended */
    size_t length;
    size_t begin, end;   /* in the order */
    size_t first;        /* the least number of its tensors */
    size_t child_offset; /* in the names, where its children's parts begin */
    bool module;         /* there is something below it */
    uint64_t elems, bytes;
    size_t same; /* how many numbered siblings this one stands for, itself included */
};

struct tree {
    const cli_listing *list;
    size_t *order; /* numbers of tensors, sorted by name */
    cli_table table;
    cli_json *json;
    bool failed;
};

/* ---- order ----------------------------------------------------------------------------------- */
/* A dot sorts before everything else, so that a module is not torn apart by its neighbors. */
static int compare_names(const char *a, const char *b)
{
    while (*a && *a == *b) {
        a++;
        b++;
    }
    int left = *a == '\0' ? 0 : *a == '.' ? 1 : 1 + (uint8_t)*a;
    int right = *b == '\0' ? 0 : *b == '.' ? 1 : 1 + (uint8_t)*b;
    return left - right;
}

static int by_name(const void *left, const void *right, void *user)
{
    const cli_listing *list = user;
    return compare_names(list->infos[*(const size_t *)left].name,
                         list->infos[*(const size_t *)right].name);
}

static int by_first(const void *left, const void *right)
{
    const struct node *a = left, *b = right;
    return a->first < b->first ? -1 : a->first > b->first;
}

/* ---- children -------------------------------------------------------------------------------- */
static void count_tensor(const struct tree *tree, struct node *node, size_t i)
{
    const heft_tensor_info *info = &tree->list->infos[i];
    node->first = i < node->first ? i : node->first;
    node->module |= strlen(info->name) >= node->child_offset;
    if (!tree->list->repeated[i] &&
        (__builtin_add_overflow(node->elems, tree->list->parameters[i], &node->elems) ||
         __builtin_add_overflow(node->bytes, info->size_bytes, &node->bytes))) {
        node->elems = node->bytes = UINT64_MAX;
    }
}

/* The children of the range, owned, in the order of the tensors; NULL without memory. */
static struct node *find_children(struct tree *tree, size_t begin, size_t end, size_t offset,
                                  size_t *count)
{
    struct node *nodes = calloc(end - begin + 1, sizeof *nodes), *last = NULL;
    *count = 0;
    for (size_t k = begin; nodes && k < end; k++) {
        const char *name = tree->list->infos[tree->order[k]].name;
        if (strlen(name) < offset) {
            continue; /* a tensor with the module's own name */
        }
        const char *part = name + offset;
        size_t length = strcspn(part, ".");
        if (!last || last->length != length || memcmp(last->part, part, length) != 0) {
            last = &nodes[(*count)++];
            *last = (struct node){.part = part,
                                  .length = length,
                                  .begin = k,
                                  .first = SIZE_MAX,
                                  .child_offset = offset + length + 1,
                                  .same = 1};
        }
        last->end = k + 1;
        count_tensor(tree, last, tree->order[k]);
    }
    if (nodes && *count) {
        qsort(nodes, *count, sizeof *nodes, by_first);
    }
    return nodes;
}

static bool folds(const struct node *a, const struct node *b)
{
    uint32_t number;
    return a->module && b->module && a->end - a->begin == b->end - b->begin &&
           a->elems == b->elems && a->bytes == b->bytes &&
           cli_names_number(a->part, a->length, &number) &&
           cli_names_number(b->part, b->length, &number);
}

/* "{0..11}" of nodes[0..count) or the node's own part; owned. */
static char *name_of(const struct node *nodes, size_t count)
{
    if (count == 1) {
        return strndup(nodes->part, nodes->length);
    }
    uint32_t *numbers = calloc(count, sizeof *numbers);
    for (size_t i = 0; numbers && i < count; i++) {
        cli_names_number(nodes[i].part, nodes[i].length, &numbers[i]);
    }
    char *name = numbers ? cli_names_range(numbers, count) : NULL;
    free(numbers);
    return name;
}

/* ---- output ---------------------------------------------------------------------------------- */
static void add_row(struct tree *tree, const char *name, size_t same, size_t depth, size_t tensors,
                    uint64_t elems, uint64_t bytes)
{
    char text[32], *label = NULL;
    if (asprintf(&label, "%*s%s%s", (int)depth * 2, "", name, same > 1 ? " (each)" : "") < 0) {
        tree->failed = true;
        return;
    }
    cli_table_add(&tree->table, label);
    cli_table_add(&tree->table, cli_grouped(tensors, text));
    cli_table_add(&tree->table, cli_grouped(elems, text));
    cli_table_add(&tree->table, cli_bytes(bytes, text));
    free(label);
}

static void open_object(struct tree *tree, const struct node *node, const char *name, size_t same)
{
    cli_json_open(tree->json, NULL, '{');
    cli_json_string(tree->json, "name", name);
    cli_json_u64(tree->json, "count", same);
    cli_json_u64(tree->json, "tensors", node->end - node->begin);
    cli_json_u64(tree->json, "parameters", node->elems);
    cli_json_u64(tree->json, "bytes", node->bytes);
    cli_json_open(tree->json, "modules", '[');
}

static void show_children(struct tree *tree, size_t begin, size_t end, size_t offset, size_t depth);

static void show_node(struct tree *tree, const struct node *nodes, size_t same, size_t depth)
{
    char *name = name_of(nodes, same);
    if (!name) {
        tree->failed = true;
        return;
    }
    if (tree->json) {
        open_object(tree, nodes, name, same);
    } else {
        add_row(tree, name, same, depth, nodes->end - nodes->begin, nodes->elems, nodes->bytes);
    }
    if (nodes->module && depth < DEPTH_LIMIT) {
        show_children(tree, nodes->begin, nodes->end, nodes->child_offset, depth + 1);
    }
    if (tree->json) {
        cli_json_close(tree->json, ']');
        cli_json_close(tree->json, '}');
    }
    free(name);
}

/* Modules, and at the top also tensors that belong to none. */
static void show_children(struct tree *tree, size_t begin, size_t end, size_t offset, size_t depth)
{
    size_t count;
    struct node *nodes = find_children(tree, begin, end, offset, &count);
    tree->failed |= !nodes;
    for (size_t i = 0, next; nodes && i < count && !tree->failed; i = next) {
        for (next = i + 1; next < count && folds(&nodes[i], &nodes[next]);) {
            next++;
        }
        if (nodes[i].module || offset == 0) {
            show_node(tree, &nodes[i], next - i, depth);
        }
    }
    free(nodes);
}

static bool prepare(struct tree *tree, const cli_listing *list)
{
    tree->list = list;
    tree->order = calloc(list->count ? list->count : 1, sizeof *tree->order);
    for (size_t i = 0; tree->order && i < list->count; i++) {
        tree->order[i] = i;
    }
    if (tree->order && list->count) {
        qsort_r(tree->order, list->count, sizeof *tree->order, by_name, (void *)(uintptr_t)list);
    }
    return tree->order != NULL;
}

bool cli_tree_print(const cli_listing *list, FILE *out)
{
    static const char *const titles[] = {"module", ">tensors", ">parameters", ">bytes"};
    struct tree tree = {
        .table = {.titles = titles, .columns = 4, .has_head = true}
    };
    if (!prepare(&tree, list)) {
        return false;
    }
    add_row(&tree, list->model ? heft_model_class(list->model) : "all", 1, 0, list->count,
            list->total_parameters, list->total_size);
    show_children(&tree, 0, list->count, 0, 1);
    bool good = cli_table_print(&tree.table, 0, out) && !tree.failed;
    free(tree.order);
    return good;
}

bool cli_tree_json(const cli_listing *list, cli_json *json, const char *key)
{
    struct tree tree = {.json = json};
    bool good = prepare(&tree, list);
    cli_json_open(json, key, '[');
    if (good) {
        show_children(&tree, 0, list->count, 0, 1);
    }
    cli_json_close(json, ']');
    free(tree.order);
    return good && !tree.failed;
}
