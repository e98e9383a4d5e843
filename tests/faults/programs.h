/* programs.h - see programs.c. */
#ifndef HEFT_TESTS_FAULTS_PROGRAMS_H
#define HEFT_TESTS_FAULTS_PROGRAMS_H

/* Run the one that the first argument names: its exit code; -1: it names none. */
int programs_run(int argc, char **argv);

#endif
