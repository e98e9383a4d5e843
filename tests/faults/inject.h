/* inject.h - run a command and interfere with the n-th of its calls that touch files.
 *
 * Calls are counted from the first one whose path holds a given text. The child is traced; a filter stops
 * it at these calls only. Linux on x86-64 and aarch64. */
#ifndef HEFT_TESTS_FAULTS_INJECT_H
#define HEFT_TESTS_FAULTS_INJECT_H

#include <stdbool.h>
#include <sys/types.h>

typedef enum inject_action {
    INJECT_NOTHING,    /* not traced */
    INJECT_COUNT,      /* only count */
    INJECT_FAIL,       /* the n-th call fails with `error` and is not made */
    INJECT_FAIL_LATER, /* and all later ones that write */
    INJECT_SHORT,      /* the n-th call, if it writes, writes half */
    INJECT_KILL,       /* SIGKILL before the n-th call */
    INJECT_KILL_AFTER, /* after it */
    INJECT_PAUSE       /* stop before it; inject_go() goes on */
} inject_action;

typedef struct inject_call {
    pid_t pid;
    const char *name;
    int fd;                  /* of calls on a descriptor; -1 */
    char path[512], to[512]; /* of calls on names; as the process passes them */
} inject_call;

typedef struct inject_job {
    /* what to run: set by the caller */
    char *const *argv;
    const char *text; /* counting starts at a path that holds it */
    inject_action action;
    int error;
    long n;
    bool no_exchange; /* renameat2 with flags: EINVAL, by the filter */
    int output;       /* descriptor for stderr */
    void (*watch)(void *user, const inject_call *call); /* before each counted call; may be NULL */
    void *user;
    pid_t other; /* a child of the caller's that is not traced; 0 for none */
    /* what happened */
    pid_t child;
    long count;
    bool hit, paused, ended;
    int code; /* exit code, or 128 + signal */
    bool other_ended;
    int other_status;
    inject_call at; /* the n-th call */
} inject_job;

/* Start the command, run it to its end or to the pause; false if it cannot be traced here. */
bool inject_run(inject_job *job);
/* Start a command that is not traced; the caller waits for it. */
pid_t inject_start(const inject_job *job);
/* Go on after a pause. */
void inject_go(inject_job *job);

#endif
