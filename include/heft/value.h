/* heft/value.h - the whole value in a file of torch.save(): a training checkpoint with its dicts, lists and
 * numbers, not only the tensors of its state dict. Nothing of the file is executed: a value is described in
 * parts, and the caller makes of them what it likes. */
#ifndef HEFT_VALUE_H
#define HEFT_VALUE_H

#include <heft/checkpoint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** What a part of a value is. The members of heft_value that a kind sets are in brackets; kinds from
 * HEFT_VALUE_LIST on begin values that lie inside of them: `count` values follow, and then an END. */
typedef enum heft_value_kind {
    HEFT_VALUE_END,         /* of the last value that began and has not ended */
    HEFT_VALUE_NONE,        /* None */
    HEFT_VALUE_BOOL,        /* [integer] 0 or 1 */
    HEFT_VALUE_INTEGER,     /* [integer] */
    HEFT_VALUE_BIG_INTEGER, /* [text, length] beyond 64 bits: two's complement, little-endian */
    HEFT_VALUE_FLOAT,       /* [real] */
    HEFT_VALUE_COMPLEX,     /* [real, imaginary] */
    HEFT_VALUE_TEXT,        /* [text, length] a str: UTF-8, in which Python may encode surrogates;
                             * the bytes were not checked */
    HEFT_VALUE_STRING,      /* [text, length] a str of Python 2: bytes of any encoding */
    HEFT_VALUE_BYTES,       /* [text, length] */
    HEFT_VALUE_BYTE_ARRAY,  /* [text, length] */
    HEFT_VALUE_DTYPE,       /* [text, length] "float32" of torch.float32 */
    HEFT_VALUE_SCHEME,      /* [text, length] "per_tensor_affine", as of quantization */
    HEFT_VALUE_LAYOUT,      /* [text, length] "torch.strided" */
    HEFT_VALUE_DEVICE,      /* [text, length] "cpu", "cuda:0" */
    /* [text, length] "list", "OrderedDict": what a DEFAULT_DICT makes for its missing keys */
    HEFT_VALUE_TYPE,
    /* [number] the tensor's in the checkpoint; [parameter, requires_grad]; with `attributes`, one value
     * and an END follow */
    HEFT_VALUE_TENSOR,
    /* [number] a tensor that is all of a storage, of bytes if that has no dtype */
    HEFT_VALUE_STORAGE,
    /* [text, length] an object, or a tensor of a kind, that heft does not read: its class, or the
     * function that makes it */
    HEFT_VALUE_OBJECT,
    /* [number] the value that began with that part, once more: the same object in Python. That value
     * has ended. */
    HEFT_VALUE_SAME,
    HEFT_VALUE_LIST,
    HEFT_VALUE_TUPLE,
    HEFT_VALUE_SET,
    HEFT_VALUE_FROZEN_SET,
    HEFT_VALUE_SIZE,         /* torch.Size: integers */
    HEFT_VALUE_DICT,         /* a key, its value, a key, ...: of a key that occurs twice, the last
                              * value counts */
    HEFT_VALUE_ORDERED_DICT, /* the same; a pickled torch.nn.Module is one, its state dict */
    HEFT_VALUE_COUNTER,
    HEFT_VALUE_DEFAULT_DICT /* first what makes missing values: TYPE, NONE or OBJECT; then as DICT */
} heft_value_kind;

/** One part of a value. Pointers are lent by the checkpoint. */
typedef struct heft_value {
    size_t struct_size; /* set by HEFT_SIZED */
    heft_value_kind kind;
    bool attributes; /* the last value inside holds the attributes of the object: a dict, or of a
                      * TENSOR also None or a tuple of that and those in slots */
    bool parameter;  /* the tensor is a torch.nn.Parameter */
    bool requires_grad;
    uint64_t offset; /* byte of the pickle that makes it, from where offsets of errors count */
    uint64_t count;  /* of the values inside: keys and values each count */
    uint64_t number;
    int64_t integer;
    double real, imaginary;
    const char *text; /* a NUL may be in it, and none need end it */
    size_t length;    /* bytes of text */
} heft_value;

/**
 * Fill `value` with part i of the whole value of a checkpoint that was opened with
 * heft_checkpoint_options.whole_value. Parts are in order: 0 begins the value, and the last one ends it.
 *
 * @param ckpt   borrowed
 * @param i      number of the part
 * @param value  filled; initialized with HEFT_SIZED by the caller
 * @return       false past the end, for a NULL pointer and for a struct_size of 0; then nothing is filled
 *
 * Shape    {'epoch': 3, 'w': [T, T]} is DICT (count 4), TEXT 'epoch', INTEGER 3, TEXT 'w', LIST (count 2),
 *          TENSOR 0, SAME 5, END, END. No value contains itself, and all nest at most
 *          heft_limits.pickle_depth deep.
 * Memory   no heap: opening made the parts, of at most the memory that limits allow for a pickle
 *          (value_bytes); 16 bytes each.
 * Source   docs/formats/pickle.md [6].
 * Threads  any number at once.
 */
HEFT_API bool heft_checkpoint_value(const heft_checkpoint *ckpt, size_t i, heft_value *value);

#ifdef __cplusplus
}
#endif
#endif
