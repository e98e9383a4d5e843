/* scenarios.h - the commands that write, and what stands at their destination before. */
#ifndef HEFT_TESTS_FAULTS_SCENARIOS_H
#define HEFT_TESTS_FAULTS_SCENARIOS_H

#include <stdbool.h>
#include <stddef.h>

enum {
    REPLACES = 1, /* something that is there: with and without an exchange of folders */
    PLAIN = 2,    /* no --force: a second run may say that the destination exists */
    ONE_FILE = 4, /* the destination is a file, or one file of a folder: its weights stay */
    RESUMES = 8,  /* a failure may leave finished work */
    ANY_TIMES =
        16, /* it reads what it wrote, and may fail in that; what is there is not written again */
    ANSWERS = 32 /* 1 is an answer: there are files that it cannot read */
};

/* In commands: {H} heft, {P} this program, {R} the folder of all inputs, {D} the destination. */
typedef struct scenario {
    const char *name;
    const char *before;  /* folder of {R}/before that is copied to {D}; NULL: nothing is there */
    const char *command; /* split at spaces */
    int what;
    const char *first; /* run before and killed half way; NULL: none */
    const char *rival; /* second process of a race; NULL: none */
} scenario;

extern const scenario scenarios[];
extern const size_t scenario_count;

/* Make all inputs below `root`. */
void scenarios_prepare(const char *root, const char *heft, const char *self);
/* Split a command into at most `cap` words, with its placeholders replaced; the words are the caller's. */
void scenarios_split(const char *command, const char *destination, char **words, size_t cap);
/* Run a command to its end; its exit code. */
int scenarios_run(const char *command, const char *destination);

#endif
