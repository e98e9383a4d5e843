/* support_pickle.h - pickles that tests write by hand, and what comes out of them. */
#ifndef HEFT_TEST_SUPPORT_PICKLE_H
#define HEFT_TEST_SUPPORT_PICKLE_H

#include "format/pickle.h"

#define PK(text) text, sizeof(text) - 1
#define STORAGE(key, numel)                                                                        \
    "(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" key "X\3\0\0\0cpuK" numel "tQ"
#define NAME(letter) "X\1\0\0\0" letter
#define KEY(length, text) "X" length "\0\0\0" text
/* A pickled torch.nn.Module with these dicts, which are filled. */
#define MODULE(parameters, buffers, modules, more)                                                 \
    "ca\nNet\n)\x81}(" KEY("\x0b", "_parameters") parameters KEY("\x08", "_buffers")               \
        buffers KEY("\x08", "_modules") modules more "ub"

struct built {
    heft__file file;
    heft__quota quota;
    heft__pickle pickle;
};

/* Run a pickle and fill the file of `built` from it: the tensors of its state dict, or its whole value. The
 * storage "z" has no record. Always call test_pickle_unbuild(). */
heft_status test_pickle_build(heft_ctx *on, bool whole_value, struct built *built,
                              const void *bytes, size_t length, heft_error *err);
void test_pickle_unbuild(struct built *built);

#endif
