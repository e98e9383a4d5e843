/* natural.c - the order in which layers.2 stands before layers.10.
 *
 * Source: docs/sharding.md. */
#include "base/base.h"

#include <ctype.h>

/* Transformers' natural key: parts between dots; whole numbers by value and before text; text by
 * its letters, then by the number at its end. */
int heft__compare_natural_part(const char *a, size_t a_length, const char *b, size_t b_length)
{
    size_t a_text = a_length, b_text = b_length;
    while (a_text > 0 && isdigit((unsigned char)a[a_text - 1])) {
        a_text--;
    }
    while (b_text > 0 && isdigit((unsigned char)b[b_text - 1])) {
        b_text--;
    }
    size_t shorter = a_text < b_text ? a_text : b_text;
    int order = memcmp(a, b, shorter);
    if (order == 0 && a_text != b_text) {
        order = a_text < b_text ? -1 : 1;
    }
    const char *a_number = a + a_text, *b_number = b + b_text;
    size_t a_digits = a_length - a_text, b_digits = b_length - b_text;
    if (order != 0) {
        return order;
    }
    while (a_digits > 1 && *a_number == '0') {
        a_number++;
        a_digits--;
    }
    while (b_digits > 1 && *b_number == '0') {
        b_number++;
        b_digits--;
    }
    if (a_digits != b_digits) {
        return a_digits < b_digits ? -1 : 1;
    }
    return memcmp(a_number, b_number, a_digits);
}

int heft__compare_natural(const char *a, const char *b)
{
    for (;;) {
        size_t a_length = strcspn(a, "."), b_length = strcspn(b, ".");
        int order = heft__compare_natural_part(a, a_length, b, b_length);
        if (order != 0) {
            return order;
        }
        if (!a[a_length] || !b[b_length]) {
            return a[a_length] ? 1 : b[b_length] ? -1 : 0;
        }
        a += a_length + 1;
        b += b_length + 1;
    }
}
