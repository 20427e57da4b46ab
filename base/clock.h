/* Time. Monotonic nanoseconds everywhere; a deadline is an absolute monotonic time. Wall-clock time is for logs only.
 * Code that decides by time takes a `const struct mu_clock *`, so that tests inject one instead of sleeping. */
#ifndef MU_BASE_CLOCK_H
#define MU_BASE_CLOCK_H

#include <stdint.h>

#define MU_MS      1000000LL
#define MU_SEC     1000000000LL
#define MU_FOREVER INT64_MAX

struct mu_clock {
    int64_t (*now_ns)(void *ctx);
    void *ctx;
};

int64_t mu_now_ns(void);                         /* CLOCK_MONOTONIC */
extern const struct mu_clock mu_clock_monotonic; /* the real one */

static inline int64_t mu_clock_now(const struct mu_clock *c)
{
    return c->now_ns(c->ctx);
}

/* Milliseconds from now until deadline, for poll(): 0 if it has passed, at most INT_MAX, -1 for MU_FOREVER. Rounds
 * up. */
int mu_ms_until(int64_t deadline_ns);
void mu_sleep_ms(int ms);

#endif
