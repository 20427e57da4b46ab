/* The local transport with faults, the same at every run with the same seed.
 *
 * A wrapper: each operation holds the local one and how many tests it still pretends not to be complete. The order of
 * messages is the local transport's. From its fault on, a silent rank's operations neither start nor complete, which
 * its peers see as a silence; a rank that is gone fails every operation that it is part of. */
#include "comm_fake.h"

#include <stdatomic.h>
#include <stdbool.h>

#include "base/alloc.h"

struct shared {
    atomic_int n_open;
    struct mu_comm_fake spec;
    atomic_bool fault_on; /* the faulty rank has reached its operation */
};

struct mu_comm_op {
    struct mu_comm_op *inner; /* NULL: never started */
    int peer, polls_left;
};

struct fake {
    struct mu_comm head;
    struct mu_comm *inner;
    struct shared *shared;
    uint64_t random;
    long n_op;
};

static struct fake *fake_of(struct mu_comm *c)
{
    return (struct fake *)c;
}

/* splitmix64 (Steele, Lea, Flood, OOPSLA 2014). */
static uint64_t random_next(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool is_faulty(const struct fake *f, int peer)
{
    const struct mu_comm_fake *spec = &f->shared->spec;
    return atomic_load(&f->shared->fault_on) && (f->head.rank == spec->fault_rank || peer == spec->fault_rank);
}

static enum mu_status gone_fail(struct fake *f, int peer, struct mu_err *err)
{
    mu_fail(err, MU_EPEER, "rank %d: the connection to rank %d is gone", f->head.rank, peer);
    if (err) err->rank = peer;
    return MU_EPEER;
}

/* Counts an operation; *started_out false: it is swallowed. */
static enum mu_status op_begin(struct fake *f, int peer, struct mu_comm_op **op_out, bool *started_out,
                               struct mu_err *err)
{
    const struct mu_comm_fake *spec = &f->shared->spec;
    if (f->head.rank == spec->fault_rank && spec->fault != MU_FAULT_NONE && ++f->n_op == spec->fault_at)
        atomic_store(&f->shared->fault_on, true);
    if (is_faulty(f, peer) && spec->fault == MU_FAULT_GONE) return gone_fail(f, peer, err);
    struct mu_comm_op *op = mu_calloc(1, sizeof *op);
    if (!op) return mu_fail(err, MU_ENOMEM, "no memory for a message with rank %d", peer);
    op->peer = peer;
    if (spec->max_delay_polls > 0)
        op->polls_left = (int)(random_next(&f->random) % ((uint64_t)spec->max_delay_polls + 1));
    *started_out = !(is_faulty(f, -1) && f->head.rank == spec->fault_rank);
    *op_out = op;
    return MU_OK;
}

static enum mu_status op_started(enum mu_status st, struct mu_comm_op *op, struct mu_comm_op **op_out)
{
    if (st != MU_OK)
        mu_free(op);
    else
        *op_out = op;
    return st;
}

static enum mu_status fake_isend(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_comm_op **op_out,
                                 struct mu_err *err)
{
    struct fake *f = fake_of(c);
    struct mu_comm_op *op;
    bool start;
    enum mu_status st = op_begin(f, to, &op, &start, err);
    if (st != MU_OK) return st;
    if (start) st = f->inner->ops->isend(f->inner, to, buf, len, &op->inner, err);
    return op_started(st, op, op_out);
}

static enum mu_status fake_irecv(struct mu_comm *c, int from, void *buf, size_t len, struct mu_comm_op **op_out,
                                 struct mu_err *err)
{
    struct fake *f = fake_of(c);
    struct mu_comm_op *op;
    bool start;
    enum mu_status st = op_begin(f, from, &op, &start, err);
    if (st != MU_OK) return st;
    if (start) st = f->inner->ops->irecv(f->inner, from, buf, len, &op->inner, err);
    return op_started(st, op, op_out);
}

static void fake_drop(struct mu_comm *c, struct mu_comm_op *op)
{
    struct fake *f = fake_of(c);
    if (op->inner) f->inner->ops->drop(f->inner, op->inner);
    mu_free(op);
}

static int fake_test(struct mu_comm *c, struct mu_comm_op *op, struct mu_err *err)
{
    struct fake *f = fake_of(c);
    if (is_faulty(f, op->peer)) {
        if (f->shared->spec.fault == MU_FAULT_GONE) {
            gone_fail(f, op->peer, err);
            fake_drop(c, op);
            return -1;
        }
        if (c->rank == f->shared->spec.fault_rank) return 0;
    }
    if (!op->inner) return 0;
    if (op->polls_left > 0) {
        op->polls_left--;
        return 0;
    }
    int done = f->inner->ops->test(f->inner, op->inner, err);
    if (done != 0) mu_free(op);
    return done;
}

static void fake_progress(struct mu_comm *c)
{
    fake_of(c)->inner->ops->progress(fake_of(c)->inner);
}

static void fake_close(struct mu_comm *c)
{
    struct fake *f = fake_of(c);
    mu_comm_close(f->inner);
    if (f->shared && atomic_fetch_sub(&f->shared->n_open, 1) == 1) mu_free(f->shared);
    mu_free(f);
}

static const struct mu_comm_ops fake_ops = {
    .name = "fake",
    .isend = fake_isend,
    .irecv = fake_irecv,
    .test = fake_test,
    .drop = fake_drop,
    .progress = fake_progress,
    .close = fake_close,
};

enum mu_status mu_comm_fake_open(int n_rank, const struct mu_comm_fake *spec, struct mu_comm **comms_out,
                                 struct mu_err *err)
{
    struct mu_comm *inner[MU_COMM_MAX_RANKS];
    enum mu_status st = mu_comm_local_open(n_rank, inner, err);
    if (st != MU_OK) return st;
    struct fake *made[MU_COMM_MAX_RANKS] = {NULL};
    struct shared *shared = mu_calloc(1, sizeof *shared);
    bool ok = shared != NULL;
    if (shared) shared->spec = *spec;
    for (int i = 0; i < n_rank && ok; i++) {
        struct fake *f = made[i] = mu_calloc(1, sizeof *f);
        ok = f != NULL;
        if (!ok) break;
        f->head = *inner[i];
        f->head.ops = &fake_ops;
        f->inner = inner[i];
        f->random = spec->seed + (uint64_t)i;
        f->shared = shared;
    }
    if (!ok) {
        for (int i = 0; i < n_rank; i++) {
            mu_comm_close(inner[i]);
            mu_free(made[i]);
        }
        mu_free(shared);
        return mu_fail(err, MU_ENOMEM, "no memory for %d ranks in one process", n_rank);
    }
    atomic_init(&shared->n_open, n_rank);
    for (int i = 0; i < n_rank; i++) comms_out[i] = &made[i]->head;
    return MU_OK;
}
