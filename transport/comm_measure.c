/* How fast two ranks reach each other: what an empty message takes, and how fast long ones are.
 *
 * One of the two sends and the other one answers with as much; half of that is one way. The first messages of a
 * connection open it and let TCP find the link's pace, so they do not count. The median of the rest does: what an
 * exchange meets, not what it could have met. */
#include <stdlib.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "transport/comm.h"

enum { SHORT_BYTES = 8, LONG_BYTES = 512 << 10, SHORT_TURNS = 31, LONG_TURNS = 9, WARM_TURNS = 4 };

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Half of the median turn, in ns. */
static enum mu_status turns(struct mu_comm *c, int peer, void *buf, size_t len, int n, double *ns_out,
                            struct mu_err *err)
{
    double took[SHORT_TURNS];
    enum mu_status st = MU_OK;
    for (int i = -WARM_TURNS; i < n && !st; i++) {
        int64_t start = mu_now_ns();
        bool first = c->rank < peer;
        st = first ? mu_comm_send(c, peer, buf, len, err) : mu_comm_recv(c, peer, buf, len, err);
        if (!st) st = first ? mu_comm_recv(c, peer, buf, len, err) : mu_comm_send(c, peer, buf, len, err);
        if (i >= 0) took[i] = (double)(mu_now_ns() - start);
    }
    if (st) return st;
    qsort(took, (size_t)n, sizeof *took, by_size);
    *ns_out = took[n / 2] / 2;
    return MU_OK;
}

enum mu_status mu_comm_measure(struct mu_comm *c, int peer, double *us_out, double *gbps_out, struct mu_err *err)
{
    enum mu_status st;
    double few_ns, many_ns;
    void *buf = mu_calloc(1, LONG_BYTES);
    if (!buf) return mu_fail(err, MU_ENOMEM, "no memory to measure the link to rank %d", peer);
    MU_TRY(st, turns(c, peer, buf, SHORT_BYTES, SHORT_TURNS, &few_ns, err), done);
    MU_TRY(st, turns(c, peer, buf, LONG_BYTES, LONG_TURNS, &many_ns, err), done);
    double more_ns = many_ns - few_ns;
    *us_out = few_ns / 1e3;
    *gbps_out = LONG_BYTES / (more_ns > 1 ? more_ns : 1);
done:
    mu_free(buf);
    return st;
}
