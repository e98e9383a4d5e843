/* ext.h - what the files of the extension module `heft._heft` share.
 *
 * The module is a thin layer over the public headers: it checks arguments, releases the GIL, calls
 * heft, and turns a status into a Python exception. It is built for CPython's limited API 3.11.
 *
 * Rules, each of which a test relies on (python/README.md says more):
 *   GIL       every call of heft that reads, casts, maps, writes or waits is between call_begin() and
 *             call_end(). What heft calls back without the GIL (progress, log, release) takes it, or
 *             does without it.
 *   lifetime  a Python object owns one object of heft. A Tensor of a checkpoint holds its Checkpoint;
 *             an exported tensor (DLPack, buffer) holds a heft_tensor, and no Python object.
 *   release   memory that heft drops is freed without the GIL, on any thread. A Python buffer that
 *             heft drops is queued, and released by the next call.
 */
#ifndef HEFT_PYTHON_EXT_H
#define HEFT_PYTHON_EXT_H

#define PY_SSIZE_T_CLEAN /* lengths of "y#" are Py_ssize_t */
#include <Python.h>

#include <heft/dlpack.h>
#include <heft/heft.h>

#include <sys/types.h>

/* ---- calls (call.c) -------------------------------------------------------------------------- */
/* One call of heft, on the thread that made it. */
struct call {
    heft_error error;
    PyObject *progress; /* borrowed: callable(what, done, total), or NULL */
    PyThreadState *state;
    struct call *outer;      /* the call whose progress function made this one */
    PyObject *exceptions[3]; /* raised by the progress function or a signal */
    struct log_line *log;    /* newest first */
    int64_t told_ms;         /* when the progress function was last called */
    bool stopped;            /* exceptions are set */
};

/* Create the context of the process. Returns false with an exception. */
bool call_setup(void);
heft_ctx *call_ctx(void);
/* A context of its own, with so many threads that compute; NULL with an exception. */
heft_ctx *call_new_ctx(unsigned threads);
/* Release the GIL for a call. progress: borrowed; NULL or None for none. */
void call_begin(struct call *call, PyObject *progress);
/* Take the GIL again. Returns true if the call succeeded; false with an exception, also where heft
 * succeeded but the progress function or a signal raised: the caller frees the results either way. */
bool call_end(struct call *call, heft_status status);
/* Raise the exception for an error. */
void raise_error(const heft_error *error);
/* Raise a HeftError for a status, of which the format says what it is. Returns NULL. */
void *raise_status(heft_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* ---- arguments (arguments.c) ----------------------------------------------------------------- */
/* The dtype that a name or None (NONE) means. Returns false with an exception. */
bool parse_dtype(PyObject *object, heft_dtype *dtype);
/* A str of the file system's, from UTF-8 or any other bytes. */
PyObject *text_of_path(const char *path);
/* A str from bytes that ought to be UTF-8; what is not is escaped. */
PyObject *text_of(const char *text);
/* A list of the texts that next(object, i) lends until it returns NULL. */
PyObject *list_of_texts(const char *(*next)(const void *object, size_t i), const void *object);
PyObject *tuple_of_sizes(const uint64_t *sizes, size_t count);
/* Set dict[key] to a value, which is taken; NULL is a failure. Returns false with an exception. */
bool put(PyObject *dict, const char *key, PyObject *value);
/* Texts of a sequence, for one call. Free with free_texts(), also after a failure. */
struct texts {
    PyObject *sequence; /* owned */
    const char **list;
    size_t count;
};
bool read_texts(PyObject *object, struct texts *texts);
void free_texts(struct texts *texts);

/* ---- types ----------------------------------------------------------------------------------- */
typedef struct {
    PyObject ob_base;
    heft_checkpoint *checkpoint;
    PyObject *cache; /* dict: what heft._convert keeps as long as the checkpoint is open */
    size_t busy;     /* calls that use it now */
    bool closed;     /* the last call that uses it closes it */
} Checkpoint;

struct dim { /* of the tensor in the checkpoint */
    uint64_t start, stop;
    bool kept; /* false: an index selected one element, and the dimension is gone */
};

typedef struct {
    PyObject ob_base;
    PyObject *name;    /* str */
    Checkpoint *owner; /* NULL: in memory */
    size_t number;     /* in the checkpoint */
    struct dim *dims;  /* [stored_rank] a slice; NULL: the whole tensor; after shape */
    heft_tensor *memory;
    heft_dtype dtype;
    uint32_t rank, stored_rank;
    uint64_t *shape; /* [rank] in one block with dims */
} Tensor;

typedef struct {
    PyObject ob_base;
    heft_ctx *ctx; /* its own, where the number of threads is given; NULL: that of the process */
    heft_model *model;
    PyObject *facts; /* dict */
} Model;

typedef struct Session {
    PyObject ob_base;
    Model *owner;
    heft_session *session;  /* NULL: closed */
    struct Sequence *first; /* of its sequences, which are freed before it */
    bool busy;              /* a call uses it now */
    pid_t process;          /* that made it */
} Session;

typedef struct Sequence {
    PyObject ob_base;
    Session *owner;
    heft_sequence *sequence; /* NULL: closed */
    struct Sequence *next, *previous;
} Sequence;

extern PyTypeObject *checkpoint_type, *tensor_type, *writer_type, *residency_type, *lease_type;
extern PyTypeObject *model_type, *session_type, *sequence_type, *tokenizer_type, *text_stream_type;
PyTypeObject *checkpoint_make_type(PyObject *module);
PyTypeObject *tensor_make_type(PyObject *module);
PyTypeObject *writer_make_type(PyObject *module);
PyTypeObject *residency_make_type(PyObject *module);
PyTypeObject *lease_make_type(PyObject *module);
PyTypeObject *model_make_type(PyObject *module);
PyTypeObject *session_make_type(PyObject *module);
PyTypeObject *sequence_make_type(PyObject *module);
PyTypeObject *tokenizer_make_type(PyObject *module);
PyTypeObject *text_stream_make_type(PyObject *module);

/* ---- checkpoints (checkpoint.c) -------------------------------------------------------------- */
/* Lend the checkpoint to a call until checkpoint_leave(). NULL with an exception if it is closed. */
heft_checkpoint *checkpoint_use(Checkpoint *self);
void checkpoint_leave(Checkpoint *self);
PyObject *checkpoint_open(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *checkpoint_value(PyObject *object, PyObject *args); /* (value.c) */
PyObject *checkpoint_open_bytes(PyObject *module, PyObject *args, PyObject *kwargs);

/* ---- tensors (tensor.c, index.c, export.c) --------------------------------------------------- */
/* A lazy tensor of a checkpoint. */
PyObject *tensor_of_checkpoint(Checkpoint *owner, const heft_checkpoint *ckpt, size_t number);
/* A tensor in memory, which is taken, also on failure. name: borrowed. */
PyObject *tensor_in_memory(PyObject *name, heft_tensor *memory);
/* An empty view with dims of the stored tensor, for a slice to be set. NULL with an exception. */
Tensor *tensor_view(Tensor *self, uint32_t rank);
PyObject *tensor_subscript(Tensor *self, PyObject *key);
PyObject *tensor_slice(PyObject *self, PyObject *args, PyObject *kwargs);
/* How a tensor is brought in. */
enum bring {
    BRING_AS_IS,   /* without a copy if its bytes are stored in one run, or else read */
    BRING_READ,    /* into memory of its own */
    BRING_CONSTANT /* as AS_IS, but read-only */
};
/* Bring a tensor in. Returns an owned tensor, or NULL with an exception. dtype: NONE: as stored. */
heft_tensor *tensor_bring(Tensor *self, enum bring how, heft_dtype dtype, PyObject *progress);
/* Whether BRING_AS_IS would not copy, as far as the slice decides. */
bool tensor_may_map(Tensor *self);
bool tensor_is_contiguous(const heft_tensor *tensor);
PyObject *tensor_dlpack(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *tensor_dlpack_device(PyObject *self, PyObject *unused);
int tensor_getbuffer(PyObject *self, Py_buffer *view, int flags);
void tensor_releasebuffer(PyObject *self, Py_buffer *view);
/* A tensor on the memory of a DLPack capsule, which is used up on success. */
heft_tensor *tensor_of_capsule(PyObject *capsule);
/* A storage on a Python buffer, which stays exported as long as the storage exists. */
heft_storage *storage_of_buffer(PyObject *object);
void drain_buffers(void);
/* Memory of its own, in huge pages if it is large. NULL with an exception. */
heft_storage *storage_new(uint64_t bytes);
PyObject *read_into(PyObject *module, PyObject *args, PyObject *kwargs);

/* ---- operations (load.c, operations.c, plan.c) ----------------------------------------------- */
PyObject *load_tensors(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *convert(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *verify(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *diff(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *plan(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *write_report(const heft_write_report *report);

/* ---- running models (model.c, session.c, inputs.c) ------------------------------------------- */
/* Lend the session to a call until session_leave(). NULL with an exception if it is closed or in use. */
heft_session *session_use(Session *self);
void session_leave(Session *self);
/* What a pass is given: buffers of Python objects, for one call. */
struct inputs {
    PyObject *rows; /* tuple of tuples, owned: keeps sequences alive */
    heft_input *list;
    size_t count;
    Py_buffer *buffers;
    size_t buffer_count;
};
/* Free with inputs_fini(), also after a failure. Returns false with an exception. */
bool inputs_read(PyObject *object, const Session *session, struct inputs *inputs);
void inputs_fini(struct inputs *inputs);
/* A buffer of int32; the caller releases the view if that succeeds. */
bool int32_buffer(PyObject *object, const char *what, Py_buffer *view, size_t *count);
PyObject *pooling(PyObject *module, PyObject *args);

#endif
