/* safetensors.h - private to the layer: the halves of the format that its table joins. */
#ifndef HEFT__FORMAT_SAFETENSORS_H
#define HEFT__FORMAT_SAFETENSORS_H

#include "format/format.h"

heft_status heft__safetensors_check(const heft__out_tensor *tensor, heft_error *err);
heft_status heft__safetensors_lay_out(heft_ctx *ctx, const heft__out_file *file, heft__layout **out,
                                      heft_error *err);
heft_status heft__safetensors_write(heft__layout *layout, const heft__out_io *io, heft_error *err);
void heft__safetensors_layout_free(heft__layout *layout);

#endif
