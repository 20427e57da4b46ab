/* Time: CLOCK_MONOTONIC in nanoseconds. Owns nothing. */
#include "base/clock.h"

#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <time.h>

int64_t mu_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * MU_SEC + ts.tv_nsec;
}

int mu_ms_until(int64_t deadline_ns)
{
    if (deadline_ns == MU_FOREVER) return -1;
    int64_t now = mu_now_ns();
    if (deadline_ns <= now) return 0;
    /* Divide before rounding up: deadline + 999999 may overflow, and a wait that rounds down would spin at the end. */
    int64_t left = deadline_ns - now, ms = left / MU_MS + (left % MU_MS != 0);
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

void mu_sleep_ms(int ms)
{
    if (ms <= 0) return;
    int64_t end = mu_now_ns() + ms * MU_MS;
    struct timespec ts = {.tv_sec = end / MU_SEC, .tv_nsec = end % MU_SEC};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR) {}
}
