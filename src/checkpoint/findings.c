/* findings.c - what a survey finds, as a list; which of it fails an opening and which is a warning. */
#include "checkpoint/checkpoint.h"

#include <stdio.h>

#define FINDINGS_MOST 10000

/* ---- the list -------------------------------------------------------------------------------- */
static bool reserve(heft__findings *findings)
{
    if (findings->count < findings->cap) {
        return true;
    }
    const size_t cap = findings->cap ? findings->cap * 2 : 8;
    heft__finding *list = heft__arena_array(findings->arena, cap, sizeof *list);
    if (!list) {
        return false;
    }
    if (findings->count) {
        memcpy(list, findings->list, findings->count * sizeof *list);
    }
    findings->list = list;
    findings->cap = cap;
    return true;
}

/* The list is full: the last line counts what is left out, and is as severe as the worst of it. */
static heft_status count_more(heft__findings *findings, const heft__finding *finding,
                              heft_error *err)
{
    heft__finding *last = &findings->list[findings->count - 1];
    if (findings->more++ == 0) {
        const heft__finding first = {.kind = "more",
                                     .severity = finding->severity,
                                     .status = finding->status,
                                     .file = "",
                                     .tensor = "",
                                     .path = "",
                                     .offset = HEFT_NO_OFFSET,
                                     .message =
                                         "more was found than is listed: the list ends here"};
        if (!reserve(findings)) {
            return heft__fail_nomem(err, sizeof first);
        }
        findings->list[findings->count++] = first;
    } else if (finding->severity > last->severity) {
        last->severity = finding->severity;
        last->status = finding->status;
    }
    return HEFT_OK;
}

static heft_status add(heft__findings *findings, const heft__finding *finding, const char *message,
                       size_t length, heft_error *err)
{
    if (findings->more > 0 || findings->count == FINDINGS_MOST) {
        return count_more(findings, finding, err);
    }
    heft__finding copy = *finding;
    const char **texts[] = {&copy.file, &copy.tensor, &copy.path};
    copy.message = heft__arena_text(findings->arena, message, length);
    bool good = copy.message && reserve(findings);
    for (size_t i = 0; i < sizeof texts / sizeof texts[0] && good; i++) {
        const char *text = *texts[i] ? *texts[i] : "";
        *texts[i] = heft__arena_text(findings->arena, text, strlen(text));
        good = *texts[i] != NULL;
    }
    if (!good) {
        return heft__fail_nomem(err, length);
    }
    findings->list[findings->count++] = copy;
    return HEFT_OK;
}

heft_status heft__find(heft__findings *findings, const heft__finding *finding, heft_error *err,
                       const char *format, ...)
{
    char message[sizeof err->message];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    return add(findings, finding, message, strlen(message), err);
}

heft_status heft__find_failure(heft__findings *findings, const char *kind, const char *file,
                               const heft_error *failure, heft_error *err)
{
    if (failure->status == HEFT_NOMEM || failure->status == HEFT_CANCELLED ||
        failure->status == HEFT_INVALID_ARG) {
        if (err) {
            *err = *failure;
        }
        return failure->status;
    }
    const heft__finding finding = {.kind = kind,
                                   .severity = HEFT__FAULT,
                                   .status = failure->status,
                                   .sys_errno = failure->sys_errno,
                                   .file = file,
                                   .tensor = failure->item,
                                   .path = failure->path,
                                   .offset = failure->offset};
    return add(findings, &finding, failure->message, strlen(failure->message), err);
}

/* ---- judging --------------------------------------------------------------------------------- */
static heft_status fail_with(const heft__finding *finding, heft_error *err)
{
    heft_status status =
        heft__fail_at(err, finding->status, finding->offset, "%s", finding->message);
    if (err) {
        err->sys_errno = finding->sys_errno;
    }
    heft__add_item(status, err, finding->tensor);
    return heft__add_path(status, err, finding->path);
}

heft_status heft__checkpoint_judge(const heft_checkpoint *ckpt, bool trust_shards, heft_error *err)
{
    const heft__severity least = trust_shards ? HEFT__FAULT : HEFT__CONTRADICTION;
    for (size_t i = 0; i < ckpt->findings.count; i++) {
        if (ckpt->findings.list[i].severity >= least) {
            return fail_with(&ckpt->findings.list[i], err);
        }
    }
    return HEFT_OK;
}

heft_status heft__checkpoint_warn(heft_checkpoint *ckpt, heft_error *err)
{
    for (size_t i = 0; i < ckpt->findings.count; i++) {
        const heft__finding *finding = &ckpt->findings.list[i];
        if (finding->severity == HEFT__FAULT || finding->severity == HEFT__NOTE) {
            continue;
        }
        if (!(*finding->tensor ? heft__warn(&ckpt->warnings, "%s: tensor '%s': %s", finding->file,
                                            finding->tensor, finding->message)
                               : heft__warn(&ckpt->warnings, "%s", finding->message))) {
            return heft__fail_nomem(err, 0);
        }
    }
    return HEFT_OK;
}
