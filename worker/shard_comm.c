/* The forward pass's exchanges over a transport.
 *
 * Between stages every rank of the next stage wants the whole residual, and every rank of the previous one has it: each
 * receives it exactly once, from the rank that mu_plan_residual_from says, and perhaps hands it on to others of its stage
 * on its machine. A ticket is the set of sends of one buffer. */
#include "worker/shard_comm.h"

#include "base/alloc.h"

struct ticket {
    int n;
    struct mu_comm_op *op[MU_MAX_RANKS]; /* NULL: complete */
    int peer[MU_MAX_RANKS];
};

struct mu_shard_link {
    struct mu_comm *comm;
    int first, n; /* my stage's ranks */
    int from;     /* who sends me the residual, -1 */
    struct peers {
        int n, rank[MU_MAX_RANKS];
    } after, beside; /* whom I send it to: of the next stage, and what I received, of mine */
    struct ticket ticket[MU_SHARD_TICKETS], handed_on;
    struct mu_comm_batch gather[MU_SHARD_GATHERS];
};

static enum mu_status link_gather(void *ctx, void *buf, const size_t *off, const size_t *len, struct mu_err *err)
{
    struct mu_shard_link *l = ctx;
    return mu_comm_gather(l->comm, l->first, l->n, buf, off, len, err);
}

/* The gang is lost, and their buffers are the caller's again. */
static void gathers_drop(struct mu_shard_link *l)
{
    for (int i = 0; i < MU_SHARD_GATHERS; i++) mu_comm_batch_drop(l->comm, &l->gather[i]);
}

static enum mu_status link_gather_begin(void *ctx, int i, void *buf, const size_t *off, const size_t *len,
                                        struct mu_err *err)
{
    struct mu_shard_link *l = ctx;
    enum mu_status st = mu_comm_gather_begin(l->comm, l->first, l->n, buf, off, len, &l->gather[i], err);
    if (st != MU_OK) gathers_drop(l);
    return st;
}

static enum mu_status link_gather_end(void *ctx, int i, struct mu_err *err)
{
    struct mu_shard_link *l = ctx;
    enum mu_status st = mu_comm_gather_end(l->comm, &l->gather[i], err);
    if (st != MU_OK) gathers_drop(l);
    return st;
}

static void ticket_drop(struct mu_shard_link *l, struct ticket *t)
{
    for (int i = 0; i < t->n; i++) mu_comm_drop(l->comm, t->op[i]);
    t->n = 0;
}

static enum mu_status ticket_send(struct mu_shard_link *l, struct ticket *t, const struct peers *to, const void *buf,
                                  size_t len, struct mu_err *err)
{
    t->n = 0;
    for (int i = 0; i < to->n; i++) {
        struct mu_comm_op *op;
        enum mu_status st = mu_comm_isend(l->comm, to->rank[i], buf, len, &op, err);
        if (st != MU_OK) {
            ticket_drop(l, t);
            return st;
        }
        t->peer[t->n] = to->rank[i];
        t->op[t->n++] = op;
    }
    return MU_OK;
}

static enum mu_status ticket_wait(struct mu_shard_link *l, struct ticket *t, struct mu_err *err)
{
    for (int i = 0; i < t->n; i++) {
        struct mu_comm_op *op = t->op[i];
        if (!op) continue;
        t->op[i] = NULL; /* freed whatever comes */
        enum mu_status st = mu_comm_wait(l->comm, op, t->peer[i], err);
        if (st != MU_OK) {
            ticket_drop(l, t);
            return st;
        }
    }
    t->n = 0;
    return MU_OK;
}

/* Those that it is handed on to wait for it here too, in the same step. */
static enum mu_status link_recv(void *ctx, void *buf, size_t len, struct mu_err *err)
{
    struct mu_shard_link *l = ctx;
    enum mu_status st = mu_comm_recv(l->comm, l->from, buf, len, err);
    if (st == MU_OK) st = ticket_send(l, &l->handed_on, &l->beside, buf, len, err);
    if (st == MU_OK) st = ticket_wait(l, &l->handed_on, err);
    return st;
}

static enum mu_status link_send(void *ctx, const void *buf, size_t len, int ticket, struct mu_err *err)
{
    struct mu_shard_link *l = ctx;
    return ticket_send(l, &l->ticket[ticket], &l->after, buf, len, err);
}

static enum mu_status link_send_wait(void *ctx, int ticket, struct mu_err *err)
{
    struct mu_shard_link *l = ctx;
    return ticket_wait(l, &l->ticket[ticket], err);
}

static int link_send_test(void *ctx, int ticket, struct mu_err *err)
{
    struct mu_shard_link *l = ctx;
    struct ticket *t = &l->ticket[ticket];
    int all = 1;
    for (int i = 0; i < t->n; i++) {
        if (!t->op[i]) continue;
        int done = l->comm->ops->test(l->comm, t->op[i], err);
        if (done != 0) t->op[i] = NULL;
        if (done < 0) {
            ticket_drop(l, t);
            return -1;
        }
        if (done == 0) all = 0;
    }
    if (all) t->n = 0;
    return all;
}

static void link_progress(void *ctx)
{
    mu_comm_progress(((struct mu_shard_link *)ctx)->comm);
}

enum mu_status mu_shard_link_create(struct mu_comm *comm, const struct mu_plan *plan, struct mu_shard_link **link_out,
                                    struct mu_shard_comm *ops_out, struct mu_err *err)
{
    if (comm->n_rank != plan->n_rank)
        return mu_fail(err, MU_EINVAL, "the gang has %d ranks, but the plan %d", comm->n_rank, plan->n_rank);
    struct mu_shard_link *l = mu_calloc(1, sizeof *l);
    if (!l) return mu_fail(err, MU_ENOMEM, "no memory for the exchanges of rank %d", comm->rank);
    const struct mu_plan_rank *me = &plan->rank[comm->rank];
    const struct mu_plan_stage *mine = &plan->stage[me->stage];
    l->comm = comm;
    l->first = mine->first_rank;
    l->n = mine->n_rank;
    l->from = mu_plan_residual_from(plan, comm->node_of, comm->rank);
    for (int i = 0; i < plan->n_rank; i++) {
        struct peers *to = plan->rank[i].stage == me->stage ? &l->beside : &l->after;
        if (mu_plan_residual_from(plan, comm->node_of, i) == comm->rank) to->rank[to->n++] = i;
    }
    *ops_out = (struct mu_shard_comm){.ctx = l,
                                      .gather = link_gather,
                                      .gather_begin = link_gather_begin,
                                      .gather_end = link_gather_end,
                                      .recv = link_recv,
                                      .send = link_send,
                                      .send_wait = link_send_wait,
                                      .send_test = link_send_test,
                                      .progress = link_progress};
    *link_out = l;
    return MU_OK;
}

void mu_shard_link_destroy(struct mu_shard_link *l)
{
    if (!l) return;
    gathers_drop(l);
    for (int t = 0; t < MU_SHARD_TICKETS; t++) ticket_drop(l, &l->ticket[t]);
    mu_free(l);
}
