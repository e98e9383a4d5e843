/* inject.c - calls of a traced process, counted and changed. See inject.h. */
#include "inject.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined __x86_64__
#define ARCH AUDIT_ARCH_X86_64
#elif defined __aarch64__
#define ARCH AUDIT_ARCH_AARCH64
#else
#error "x86-64 or aarch64"
#endif

/* What a call is: where its names are, and what it needs of the disk. */
enum { FD = 1, WRITES = 2, SPACE = 4, OPENS = 8, LENGTH = 16 };

static const struct call {
    long number;
    const char *name;
    int path, to; /* arguments; -1: none */
    int what;
    int flags; /* argument with the flags of an open, or with the length of a write */
} calls[] = {
#ifdef SYS_open
    {SYS_open,            "open",            0,  -1, WRITES | SPACE | OPENS,       1 },
    {SYS_creat,           "creat",           0,  -1, WRITES | SPACE,               -1},
    {SYS_rename,          "rename",          0,  1,  WRITES | SPACE,               -1},
    {SYS_link,            "link",            0,  1,  WRITES | SPACE,               -1},
    {SYS_unlink,          "unlink",          0,  -1, WRITES,                       -1},
    {SYS_rmdir,           "rmdir",           0,  -1, WRITES,                       -1},
    {SYS_mkdir,           "mkdir",           0,  -1, WRITES | SPACE,               -1},
    {SYS_chmod,           "chmod",           0,  -1, WRITES,                       -1},
#endif
#ifdef SYS_renameat
    {SYS_renameat,        "renameat",        1,  3,  WRITES | SPACE,               -1},
#endif
    {SYS_openat,          "openat",          1,  -1, WRITES | SPACE | OPENS,       2 },
    {SYS_write,           "write",           -1, -1, FD | WRITES | SPACE | LENGTH, 2 },
    {SYS_pwrite64,        "pwrite64",        -1, -1, FD | WRITES | SPACE | LENGTH, 2 },
    {SYS_writev,          "writev",          -1, -1, FD | WRITES | SPACE,          -1},
    {SYS_pwritev,         "pwritev",         -1, -1, FD | WRITES | SPACE,          -1},
    {SYS_copy_file_range, "copy_file_range", -1, -1, WRITES | SPACE | LENGTH,      4 },
    {SYS_sendfile,        "sendfile",        -1, -1, FD | WRITES | SPACE | LENGTH, 3 },
    {SYS_fsync,           "fsync",           -1, -1, FD | WRITES,                  -1},
    {SYS_fdatasync,       "fdatasync",       -1, -1, FD | WRITES,                  -1},
    {SYS_ftruncate,       "ftruncate",       -1, -1, FD | WRITES,                  -1},
    {SYS_fallocate,       "fallocate",       -1, -1, FD | WRITES | SPACE,          -1},
    {SYS_renameat2,       "renameat2",       1,  3,  WRITES | SPACE,               -1},
    {SYS_linkat,          "linkat",          1,  3,  WRITES | SPACE,               -1},
    {SYS_unlinkat,        "unlinkat",        1,  -1, WRITES,                       -1},
    {SYS_mkdirat,         "mkdirat",         1,  -1, WRITES | SPACE,               -1},
    {SYS_fchmod,          "fchmod",          -1, -1, FD | WRITES,                  -1},
    {SYS_fchmodat,        "fchmodat",        1,  -1, WRITES,                       -1},
    {SYS_fchown,          "fchown",          -1, -1, FD | WRITES,                  -1},
    {SYS_fchownat,        "fchownat",        1,  -1, WRITES,                       -1},
    {SYS_utimensat,       "utimensat",       -1, -1, FD | WRITES,                  -1},
    {SYS_flock,           "flock",           -1, -1, FD,                           -1},
    {SYS_close,           "close",           -1, -1, FD,                           -1},
    {SYS_getdents64,      "getdents64",      -1, -1, FD,                           -1},
};
#define CALLS (sizeof calls / sizeof calls[0])

/* ---- registers --------------------------------------------------------------------------------- */
static bool get_registers(pid_t pid, struct user_regs_struct *r)
{
    struct iovec io = {r, sizeof *r};
    return ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &io) == 0;
}

static void set_registers(pid_t pid, struct user_regs_struct *r)
{
    struct iovec io = {r, sizeof *r};
    (void)ptrace(PTRACE_SETREGSET, pid, NT_PRSTATUS, &io);
}

static long number_of(const struct user_regs_struct *r)
{
#if defined __x86_64__
    return (long)r->orig_rax;
#else
    return (long)r->regs[8];
#endif
}

static unsigned long long *argument(struct user_regs_struct *r, int i)
{
#if defined __x86_64__
    unsigned long long *const all[] = {&r->rdi, &r->rsi, &r->rdx, &r->r10, &r->r8, &r->r9};
    return all[i];
#else
    return &r->regs[i];
#endif
}

/* The call is not made and fails. */
static void fail_call(pid_t pid, struct user_regs_struct *r, int error)
{
#if defined __x86_64__
    r->orig_rax = (unsigned long long)-1;
    r->rax = (unsigned long long)-(long long)error;
#else
    int none = -1;
    struct iovec io = {&none, sizeof none};
    (void)ptrace(PTRACE_SETREGSET, pid, NT_ARM_SYSTEM_CALL, &io);
    r->regs[0] = (unsigned long long)-(long long)error;
#endif
    set_registers(pid, r);
}

static void read_text(pid_t pid, unsigned long long from, char *to, size_t cap)
{
    size_t done = 0;
    while (done < cap - 1) { /* page by page: the next one may not be there */
        size_t part = 4096 - (size_t)((from + done) % 4096);
        part = part < cap - 1 - done ? part : cap - 1 - done;
        struct iovec here = {to + done, part}, there = {(void *)(uintptr_t)(from + done), part};
        const ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
        if (got <= 0 || memchr(to + done, '\0', (size_t)got)) {
            done += got > 0 ? (size_t)got : 0;
            break;
        }
        done += (size_t)got;
    }
    to[done] = '\0';
}

/* ---- the child --------------------------------------------------------------------------------- */
#define LOAD(member)                                                                               \
    (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
#define JUMP(value, yes, no)                                                                       \
    (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, yes, no)
#define RETURN(value) (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, value)

static void run_child(const inject_job *job)
{
    const size_t stops = job->action == INJECT_NOTHING ? 0 : CALLS;
    struct sock_filter filter[CALLS + 10];
    size_t used = 0;
    filter[used++] = LOAD(arch);
    filter[used++] = JUMP(ARCH, 1, 0);
    filter[used++] = RETURN(SECCOMP_RET_ALLOW);
    if (job->no_exchange) { /* with any flag, which is the low half of the fifth argument */
        filter[used++] = LOAD(nr);
        filter[used++] = JUMP(SYS_renameat2, 0, 3);
        filter[used++] = LOAD(args[4]);
        filter[used++] = JUMP(0, 1, 0);
        filter[used++] = RETURN(SECCOMP_RET_ERRNO | EINVAL);
    }
    filter[used++] = LOAD(nr);
    for (size_t i = 0; i < stops; i++) {
        filter[used++] = JUMP((unsigned)calls[i].number, (unsigned char)(stops - i), 0);
    }
    filter[used++] = RETURN(SECCOMP_RET_ALLOW);
    filter[used++] = RETURN(SECCOMP_RET_TRACE);
    struct sock_fprog program = {(unsigned short)used, filter};
    const int null = open("/dev/null", O_RDWR);
    const bool traced = job->action != INJECT_NOTHING;
    if ((traced && ptrace(PTRACE_TRACEME, 0, 0, 0) != 0) || null < 0 || dup2(null, 0) < 0 ||
        dup2(null, 1) < 0 || dup2(job->output, 2) < 0) {
        _exit(126);
    }
    close(null);
    if (traced) {
        (void)raise(SIGSTOP);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
        _exit(126);
    }
    execv(job->argv[0], job->argv);
    _exit(127);
}

/* ---- one call ---------------------------------------------------------------------------------- */
static const struct call *find_call(long number)
{
    for (size_t i = 0; i < CALLS; i++) {
        if (calls[i].number == number) {
            return &calls[i];
        }
    }
    return NULL;
}

/* Whether the call writes for one that comes after a lasting failure. */
static bool fails_later(const inject_job *job, const struct call *call, struct user_regs_struct *r)
{
    if (!(call->what & WRITES) || (job->error == ENOSPC && !(call->what & SPACE))) {
        return false;
    }
    return !(call->what & OPENS) ||
           (*argument(r, call->flags) & (O_CREAT | O_WRONLY | O_RDWR)) != 0;
}

static void shorten(pid_t pid, const struct call *call, struct user_regs_struct *r)
{
    if ((call->what & LENGTH) && *argument(r, call->flags) > 1) {
        *argument(r, call->flags) /= 2;
        set_registers(pid, r);
    }
}

/* The call that a thread is about to make: what it is, and whether it is counted. */
static bool look(inject_job *job, pid_t pid, struct user_regs_struct *r, inject_call *at,
                 const struct call **call)
{
    *call = get_registers(pid, r) ? find_call(number_of(r)) : NULL;
    if (!*call) {
        return false;
    }
    *at = (inject_call){.pid = pid, .name = (*call)->name, .fd = -1};
    if ((*call)->path >= 0) {
        read_text(pid, *argument(r, (*call)->path), at->path, sizeof at->path);
    }
    if ((*call)->to >= 0) {
        read_text(pid, *argument(r, (*call)->to), at->to, sizeof at->to);
    }
    if ((*call)->what & FD) {
        at->fd = (int)*argument(r, 0);
    }
    if (job->count == 0 && !strstr(at->path, job->text)) {
        return false;
    }
    return at->fd < 0 || at->fd > 2; /* what is printed is not what is tested */
}

static void at_call(inject_job *job, pid_t pid)
{
    struct user_regs_struct r;
    inject_call at;
    const struct call *call;
    if (!look(job, pid, &r, &at, &call)) {
        return;
    }
    job->count++;
    if (job->watch) {
        job->watch(job->user, &at);
    }
    if (job->hit) {
        if (job->action == INJECT_FAIL_LATER && fails_later(job, call, &r)) {
            fail_call(pid, &r, job->error);
        }
        return;
    }
    if (job->count != job->n || job->action == INJECT_COUNT) {
        return;
    }
    job->hit = true;
    job->at = at;
    switch (job->action) {
    case INJECT_FAIL:
    case INJECT_FAIL_LATER:
        fail_call(pid, &r, job->error);
        break;
    case INJECT_SHORT:
        shorten(pid, call, &r);
        break;
    case INJECT_KILL_AFTER: {
        int status;
        (void)ptrace(PTRACE_SYSCALL, pid, 0, 0);
        (void)waitpid(pid, &status, __WALL);
        (void)kill(job->child, SIGKILL);
        break;
    }
    case INJECT_KILL:
        (void)kill(job->child, SIGKILL);
        break;
    case INJECT_PAUSE:
        job->paused = true;
        break;
    case INJECT_NOTHING:
    case INJECT_COUNT:
        break;
    }
}

/* ---- the loop ---------------------------------------------------------------------------------- */
static void run_on(inject_job *job)
{
    while (!job->ended && !job->paused) {
        int status;
        const pid_t pid = waitpid(-1, &status, __WALL);
        if (pid < 0 && errno == EINTR) {
            continue;
        }
        if (pid < 0) {
            job->ended = true;
            job->code = 126;
        } else if (job->other && pid == job->other) {
            job->other_ended = true;
            job->other_status = status;
        } else if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (pid == job->child) {
                job->ended = true;
                job->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
            }
        } else {
            int deliver = 0;
            if (status >> 8 == (SIGTRAP | PTRACE_EVENT_SECCOMP << 8)) {
                at_call(job, pid);
                if (job->paused) {
                    return;
                }
            } else if (status >> 16 == 0 && WSTOPSIG(status) != SIGSTOP) {
                deliver = WSTOPSIG(status);
            }
            (void)ptrace(PTRACE_CONT, pid, 0, (long)deliver);
        }
    }
}

pid_t inject_start(const inject_job *job)
{
    const pid_t child = fork();
    if (child == 0) {
        run_child(job);
    }
    return child;
}

bool inject_run(inject_job *job)
{
    int status;
    job->child = inject_start(job);
    if (job->child > 0 && job->action == INJECT_NOTHING) {
        run_on(job);
        return job->code != 126;
    }
    if (job->child < 0 || waitpid(job->child, &status, __WALL) != job->child ||
        !WIFSTOPPED(status) ||
        ptrace(PTRACE_SETOPTIONS, job->child, 0,
               (long)(PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE |
                      PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC)) != 0) {
        return false;
    }
    (void)ptrace(PTRACE_CONT, job->child, 0, 0);
    run_on(job);
    return job->code != 126;
}

void inject_go(inject_job *job)
{
    if (job->paused) {
        job->paused = false;
        (void)ptrace(PTRACE_CONT, job->at.pid, 0, 0);
        run_on(job);
    }
}
