#include "support_place.h"

#include "support.h"

/* Whether a path lies below another, "" above all. */
static bool lies_below(const char *path, const char *above)
{
    const size_t length = strlen(above);
    return length == 0 || (strncmp(path, above, length) == 0 && path[length] == '.');
}

void test_tree_finish(heft__tree *tree)
{
    heft_error err = {0};
    for (uint32_t i = 1; i < tree->module_count; i++) {
        uint32_t parent = i - 1;
        while (!lies_below(tree->modules[i].path, tree->modules[parent].path)) {
            parent = tree->modules[parent].parent;
        }
        tree->modules[i].parent = parent;
    }
    test_expect_status(heft__tree_finish(tree, &err), HEFT_OK, &err, "finish");
}
