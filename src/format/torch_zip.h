/* torch_zip.h - private to the layer: the halves of the format that its table joins. */
#ifndef HEFT__FORMAT_TORCH_ZIP_H
#define HEFT__FORMAT_TORCH_ZIP_H

#include "format/format.h"

heft_status heft__torch_zip_check(const heft__out_tensor *tensor, heft_error *err);
heft_status heft__torch_zip_lay_out(heft_ctx *ctx, const heft__out_file *file, heft__layout **out,
                                    heft_error *err);
heft_status heft__torch_zip_write(heft__layout *layout, const heft__out_io *io, heft_error *err);
void heft__torch_zip_layout_free(heft__layout *layout);

#endif
