/* measure_peak FILE COMMAND...: run a command, and write into FILE its exit code, the peak of its
 * resident memory in bytes, and its processor time in seconds.
 *
 * The kernel counts the memory of the process that starts a command as the command's, so this is as
 * small as can be. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static double seconds(struct timeval time)
{
    return (double)time.tv_sec + (double)time.tv_usec / 1e6;
}

int main(int argc, char **argv)
{
    int status = 0;
    struct rusage usage;
    const pid_t child = argc > 2 ? fork() : -1;
    if (child == 0) {
        execv(argv[2], argv + 2);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) != child) {
        return 2;
    }
    FILE *out = fopen(argv[1], "w");
    if (!out) {
        return 2;
    }
    fprintf(out, "%d %lld %.3f\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status),
            (long long)usage.ru_maxrss * 1024, seconds(usage.ru_utime) + seconds(usage.ru_stime));
    return fclose(out) == 0 ? 0 : 2;
}
