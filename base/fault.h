/* Fault points: named places where a test makes something go wrong.
 *
 *   MUSTER_FAULT=link.send:3,rank.step@1:40,rank.token:77=abort
 *
 * name[@rank]:n[=action] means: the n-th time that point is passed (for points with a value: the value n is seen),
 * act. Actions: fail (the default: the point reports it), abort (SIGKILL ourselves), stop (SIGSTOP ourselves), sleep
 * (hang for ever, still breathing). Builds without tests, or with -DMUSTER_FAULTS=OFF, have none of it. A name that no
 * point carries is an error at start; the points are listed in fault.c, and passing one that is not is an assertion.
 * Points cost one predictable branch when nothing is set.
 *
 * Threads: any. */
#ifndef MU_BASE_FAULT_H
#define MU_BASE_FAULT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#ifdef MUSTER_FAULTS
/* Reads MUSTER_FAULT. rank is what @rank is compared with (-1: not a rank). Call once at the start. */
enum mu_status mu_fault_init(int rank, struct mu_err *err);
bool mu_fault_hit(const char *name);                  /* counts a pass; true = fail here */
bool mu_fault_value(const char *name, int64_t value); /* true = this value was named */
#else
static inline enum mu_status mu_fault_init(int rank, struct mu_err *err)
{
    (void)rank;
    (void)err;
    return MU_OK;
}
static inline bool mu_fault_hit(const char *name)
{
    (void)name;
    return false;
}
static inline bool mu_fault_value(const char *name, int64_t value)
{
    (void)name;
    (void)value;
    return false;
}
#endif

#endif
