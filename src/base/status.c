/* status.c - the status table and the error that says what, where and at which byte.
 *
 * Messages may carry names out of hostile files: everything that a terminal could take for a
 * command is escaped here, in one place. */
#include "base/base.h"

#include <errno.h>

static const struct {
    const char *name, *text;
    int exit_code;
} statuses[] = {
#define STATUS_ROW(name, exit_code, text) [HEFT_##name] = {#name, text, exit_code},
    HEFT_STATUS_TABLE(STATUS_ROW)
#undef STATUS_ROW
};

#define STATUS_COUNT (sizeof statuses / sizeof statuses[0])

const char *heft_status_name(heft_status status)
{
    return (size_t)status < STATUS_COUNT ? statuses[status].name : "UNKNOWN";
}

const char *heft_status_text(heft_status status)
{
    return (size_t)status < STATUS_COUNT ? statuses[status].text : "unknown status";
}

int heft_status_exit_code(heft_status status)
{
    return (size_t)status < STATUS_COUNT ? statuses[status].exit_code : 3;
}

const char *heft_version(void)
{
    return HEFT_VERSION;
}

/* Copy text into dst[cap] with control bytes and broken UTF-8 as \xNN; cut with "..." where it does
 * not fit. */
static void copy_escaped(char *dst, size_t cap, const char *text, size_t length)
{
    size_t at = 0, done = 0;
    while (done < length) {
        size_t valid = heft__utf8_invalid_at((const uint8_t *)text + done, length - done);
        size_t stop = done + valid;
        for (; done < stop; done++) {
            unsigned char byte = (unsigned char)text[done];
            bool control = byte < 0x20 || byte == 0x7f;
            if (at + (control ? 4u : 1u) + 4 > cap) {
                goto cut;
            }
            if (control) {
                at += (size_t)snprintf(dst + at, cap - at, "\\x%02x", byte);
            } else {
                dst[at++] = (char)byte;
            }
        }
        if (done < length) {
            if (at + 8 > cap) {
                goto cut;
            }
            at += (size_t)snprintf(dst + at, cap - at, "\\x%02x", (unsigned char)text[done++]);
        }
    }
    dst[at] = '\0';
    return;
cut:
    /* not in the middle of a character */
    while (at > 0 && ((unsigned char)dst[at - 1] & 0xC0) == 0x80) {
        at--;
    }
    if (at > 0 && (unsigned char)dst[at - 1] >= 0xC0) {
        at--;
    }
    memcpy(dst + at, "...", 4);
}

/* GNU's strerror_r returns the text, which need not be in the buffer; POSIX's fills the buffer and
 * returns 0. Which one there is (glibc, musl) its type says. */
static inline const char *text_of_gnu(const char *text, const char *buffer)
{
    (void)buffer;
    return text;
}

static inline const char *text_of_posix(int failed, const char *buffer)
{
    return failed ? "unknown error" : buffer;
}

static const char *errno_text(int sys_errno, char *buffer, size_t cap)
{
    return _Generic(strerror_r(sys_errno, buffer, cap), int
                    : text_of_posix, default
                    : text_of_gnu)(strerror_r(sys_errno, buffer, cap), buffer);
}

static void fill(heft_error *err, heft_status status, int sys_errno, uint64_t offset,
                 const char *format, va_list args) __attribute__((format(printf, 5, 0)));
static void fill(heft_error *err, heft_status status, int sys_errno, uint64_t offset,
                 const char *format, va_list args)
{
    char text[1024];
    int length = vsnprintf(text, sizeof text, format, args);
    if (sys_errno && length >= 0 && (size_t)length < sizeof text) {
        char reason[128];
        snprintf(text + length, sizeof text - (size_t)length, ": %s",
                 errno_text(sys_errno, reason, sizeof reason));
    }
    *err = (heft_error){.status = status, .sys_errno = sys_errno, .offset = offset};
    copy_escaped(err->message, sizeof err->message, text, strlen(text));
}

heft_status heft__fail(heft_error *err, heft_status status, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, status, 0, HEFT_NO_OFFSET, format, args);
        va_end(args);
    }
    return status;
}

heft_status heft__fail_at(heft_error *err, heft_status status, uint64_t offset, const char *format,
                          ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, status, 0, offset, format, args);
        va_end(args);
    }
    return status;
}

heft_status heft__fail_errno(heft_error *err, int sys_errno, const char *format, ...)
{
    heft_status status = HEFT_IO;
    if (sys_errno == ENOENT || sys_errno == ENOTDIR) {
        status = HEFT_NOT_FOUND;
    } else if (sys_errno == ENOMEM) {
        status = HEFT_NOMEM;
    }
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, status, sys_errno, HEFT_NO_OFFSET, format, args);
        va_end(args);
    }
    return status;
}

heft_status heft__fail_io(heft_error *err, int sys_errno, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        fill(err, HEFT_IO, sys_errno, HEFT_NO_OFFSET, format, args);
        va_end(args);
    }
    return HEFT_IO;
}

heft_status heft__fail_nomem(heft_error *err, uint64_t bytes)
{
    return heft__fail(err, HEFT_NOMEM, "no memory for %llu bytes", (unsigned long long)bytes);
}

heft_status heft__add_path(heft_status status, heft_error *err, const char *path)
{
    if (status != HEFT_OK && err && !err->path[0] && path) {
        size_t length = strlen(path), cap = sizeof err->path;
        if (length < cap) {
            copy_escaped(err->path, cap, path, length);
        } else { /* the end of a path says more than its start */
            memcpy(err->path, "...", 3);
            copy_escaped(err->path + 3, cap - 3, path + length - (cap - 16), cap - 16);
        }
    }
    return status;
}

heft_status heft__add_limit(heft_status status, heft_error *err, const char *name)
{
    if (err && status == HEFT_LIMIT && err->status == status) {
        char text[40];
        const size_t length = (size_t)snprintf(text, sizeof text, " (limit %s)", name),
                     most = sizeof err->message - 1 - length, at = strlen(err->message);
        memcpy(err->message + (at < most ? at : most), text, length + 1);
    }
    return status;
}

heft_status heft__add_item(heft_status status, heft_error *err, const char *item)
{
    if (status != HEFT_OK && err && !err->item[0] && item) {
        copy_escaped(err->item, sizeof err->item, item, strnlen(item, sizeof err->item));
    }
    return status;
}

int heft_error_format(const heft_error *err, char *dst, size_t cap)
{
    char offset[40] = "";
    if (err->offset != HEFT_NO_OFFSET) {
        snprintf(offset, sizeof offset, "byte %llu: ", (unsigned long long)err->offset);
    }
    return snprintf(dst, cap, "%s%s%s%s%s%s", err->path, err->path[0] ? ": " : "", err->item,
                    err->item[0] ? ": " : "", offset, err->message);
}

void heft_error_print(const heft_error *err, FILE *stream)
{
    char line[sizeof(heft_error) + 64];
    heft_error_format(err, line, sizeof line);
    fprintf(stream, "%s\n", line);
}
