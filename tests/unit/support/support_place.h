/* support_place.h - trees of modules that tests make by paths. */
#ifndef HEFT_TEST_SUPPORT_PLACE_H
#define HEFT_TEST_SUPPORT_PLACE_H

#include "place/place.h"

/* Finish a tree whose modules, in pre-order, have paths and no parents yet. Fails the test if it cannot
 * be. */
void test_tree_finish(heft__tree *tree);

#endif
