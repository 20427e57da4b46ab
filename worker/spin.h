/* Waiting a moment before sleeping: after a step the next one is usually a fraction of a millisecond away, and
 * waking from poll() costs as much as that. Spins with pauses, then yields between looks, so that ranks that share
 * cores get on. */
#ifndef MU_WORKER_SPIN_H
#define MU_WORKER_SPIN_H

#include <sched.h>
#include <stdbool.h>

#include "base/clock.h"
#include "base/pause.h"

enum { MU_SPIN_US = 300, MU_SPIN_PAUSES = 100 };

struct mu_spin {
    int64_t until_ns;
    int n;
};

static inline struct mu_spin mu_spin_start(void)
{
    return (struct mu_spin){mu_now_ns() + MU_SPIN_US * 1000LL, 0};
}

/* One turn; false: it has been long enough, sleep. */
static inline bool mu_spin_turn(struct mu_spin *s)
{
    if (s->n++ < MU_SPIN_PAUSES) {
        mu_cpu_pause();
        return true;
    }
    if (mu_now_ns() >= s->until_ns) return false;
    sched_yield();
    return true;
}

#endif
