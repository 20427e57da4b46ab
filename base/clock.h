/* Time. Monotonic nanoseconds everywhere; a deadline is an absolute monotonic time. Wall-clock time is for logs only. */
#ifndef MU_BASE_CLOCK_H
#define MU_BASE_CLOCK_H

#include <stdint.h>

#define MU_MS      1000000LL
#define MU_SEC     1000000000LL
#define MU_FOREVER INT64_MAX

int64_t mu_now_ns(void); /* CLOCK_MONOTONIC */

/* Milliseconds from now until deadline, for poll(): 0 if it has passed, at most INT_MAX, -1 for MU_FOREVER. Rounds
 * up. */
int mu_ms_until(int64_t deadline_ns);
void mu_sleep_ms(int ms);

#endif
