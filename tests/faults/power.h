/* power.h - what a disk could hold after a power cut, from the calls of a traced process.
 *
 * Kept are a file's bytes as of its last fsync, and a folder's names as of the folder's last fsync; all
 * of the rest may be lost or kept. A rename is one step: what was moved stands at one place. */
#ifndef HEFT_TESTS_FAULTS_POWER_H
#define HEFT_TESTS_FAULTS_POWER_H

#include "inject.h"

typedef struct power power;

/* Everything below `root` as it is now is on the disk. */
power *power_new(const char *root);
void power_watch(void *user, const inject_call *call); /* for inject_job.watch */
/* Replace what is below root with what the disk holds. Variant 0: all that is not synced is lost; 1: names are
 * kept, bytes are lost; further ones: some of both, by chance that the variant's number seeds. */
void power_cut(power *power, unsigned variant);
void power_free(power *power);

#endif
