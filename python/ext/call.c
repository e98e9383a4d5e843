/* call.c - calls of heft: the GIL, progress, signals, log lines and errors.
 *
 * heft calls back on the thread that called it. The call in progress on a thread is in a thread-local
 * pointer, so that one context serves all threads and objects. */
#include "ext.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TELL_MS = 50 }; /* between two calls of a progress function, and two looks for signals */

struct log_line {
    struct log_line *next;
    char text[];
};

static heft_ctx *the_ctx;
static _Thread_local struct call *current;

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool tell(struct call *call, const heft_progress *progress)
{
    if (PyErr_CheckSignals() != 0) {
        return false;
    }
    if (!call->progress) {
        return true;
    }
    PyObject *result = PyObject_CallFunction(
        call->progress, "sKK", progress->what ? progress->what : "",
        (unsigned long long)progress->done_bytes, (unsigned long long)progress->total_bytes);
    Py_XDECREF(result);
    return result != NULL;
}

static bool on_progress(void *user, const heft_progress *progress)
{
    (void)user;
    struct call *call = current;
    const int64_t now = now_ms();
    if (!call) {
        return true;
    }
    if (call->stopped) {
        return false;
    }
    const bool last = progress->total_bytes > 0 && progress->done_bytes >= progress->total_bytes;
    if (now - call->told_ms < TELL_MS && !(last && call->progress)) {
        return true;
    }
    call->told_ms = now;
    PyEval_RestoreThread(call->state);
    if (!tell(call, progress)) {
        call->stopped = true;
        PyErr_Fetch(&call->exceptions[0], &call->exceptions[1], &call->exceptions[2]);
    }
    call->state = PyEval_SaveThread();
    return !call->stopped;
}

static void on_log(void *user, const char *line)
{
    (void)user;
    const size_t size = strlen(line) + 1;
    struct log_line *entry = current ? malloc(sizeof *entry + size) : NULL;
    if (entry) { /* a line that finds no memory is lost */
        memcpy(entry->text, line, size);
        entry->next = current->log;
        current->log = entry;
    }
}

heft_ctx *call_new_ctx(unsigned threads)
{
    heft_ctx *ctx = heft_ctx_new(&HEFT_OPTIONS(heft_ctx_options, .threads = threads,
                                               .progress = on_progress, .log = on_log));
    return ctx ? ctx : (heft_ctx *)PyErr_NoMemory();
}

bool call_setup(void)
{
    the_ctx = the_ctx ? the_ctx : call_new_ctx(0);
    return the_ctx != NULL;
}

heft_ctx *call_ctx(void)
{
    return the_ctx;
}

void call_begin(struct call *call, PyObject *progress)
{
    *call = (struct call){.progress = progress == Py_None ? NULL : progress, .outer = current};
    call->told_ms = now_ms();
    current = call;
    call->state = PyEval_SaveThread();
}

/* Hand the lines to the logger "heft", oldest first. Never raises. */
static void write_log(struct log_line *lines)
{
    struct log_line *first = NULL;
    while (lines) {
        struct log_line *next = lines->next;
        lines->next = first;
        first = lines;
        lines = next;
    }
    PyObject *kind, *value, *trace, *module = NULL;
    PyErr_Fetch(&kind, &value, &trace);
    if (first) {
        module = PyImport_ImportModule("heft._errors");
    }
    while (first) {
        struct log_line *next = first->next;
        PyObject *text = module ? text_of(first->text) : NULL;
        PyObject *result = text ? PyObject_CallMethod(module, "log", "O", text) : NULL;
        Py_XDECREF(text);
        Py_XDECREF(result);
        PyErr_Clear();
        free(first);
        first = next;
    }
    PyErr_Clear();
    Py_XDECREF(module);
    PyErr_Restore(kind, value, trace);
}

bool call_end(struct call *call, heft_status status)
{
    PyEval_RestoreThread(call->state);
    current = call->outer;
    drain_buffers();
    if (call->log) {
        write_log(call->log);
    }
    if (call->stopped) {
        PyErr_Restore(call->exceptions[0], call->exceptions[1], call->exceptions[2]);
        return false;
    }
    if (status != HEFT_OK) {
        if (call->error.status == HEFT_OK) {
            call->error.status = status;
            call->error.offset = HEFT_NO_OFFSET;
        }
        raise_error(&call->error);
        return false;
    }
    return true;
}

void raise_error(const heft_error *error)
{
    PyObject *module = PyImport_ImportModule("heft._errors");
    PyObject *message = text_of(error->message), *path = text_of_path(error->path),
             *item = text_of(error->item);
    PyObject *offset = error->offset == HEFT_NO_OFFSET ? Py_NewRef(Py_None)
                                                       : PyLong_FromUnsignedLongLong(error->offset);
    if (module && message && path && item && offset) {
        PyObject *raised =
            PyObject_CallMethod(module, "make", "sOOOOi", heft_status_name(error->status), message,
                                path, item, offset, error->sys_errno);
        if (raised) {
            PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
            Py_DECREF(raised);
        }
    }
    Py_XDECREF(module);
    Py_XDECREF(message);
    Py_XDECREF(path);
    Py_XDECREF(item);
    Py_XDECREF(offset);
}

void *raise_status(heft_status status, const char *format, ...)
{
    heft_error error = {.status = status, .offset = HEFT_NO_OFFSET};
    va_list list;
    va_start(list, format);
    vsnprintf(error.message, sizeof error.message, format, list);
    va_end(list);
    raise_error(&error);
    return NULL;
}
