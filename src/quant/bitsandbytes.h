/* bitsandbytes.h - private to the layer: the 4-bit half of the method. */
#ifndef HEFT__QUANT_BITSANDBYTES_H
#define HEFT__QUANT_BITSANDBYTES_H

#include "quant/quant.h"

bool heft__bitsandbytes4_marked(const heft__quant_table *table, size_t i);
heft_status heft__bitsandbytes4_find(heft__quant_finder *finder, size_t i, heft_error *err);

#endif
