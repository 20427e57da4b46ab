/* The residual from stage to stage where both are on devices that are linked: from memory to memory, in the queue.
 *
 *   stage s      … pass k │ DEV_MARK │ send k │ DEV_MARK_SENT │ upload k+1 │ pass k+1 …
 *                                         └───────────┐
 *   stage s+1         … upload k │ recv k │ DEV_MARK_RECEIVED │ pass k │ DEV_MARK …
 *
 * A link of all ranks of two neighbouring stages, and none of it for anything else: who sends to whom is
 * mu_plan_residual_from's, all on one machine. A send lasts until it is received, so the queue stands until the next stage
 * has come to this step; the host does not wait for that, and prepares the next one.
 *
 * That nothing waits in a circle: let a transfer be numbered (step; 2s for stage s's gathers, 2s + 1 for what goes from s to
 * s + 1). Every rank queues its own in ascending order, those with one number in that of ranks; so the least of all
 * that are not done waits for nobody.
 *
 * A transfer that does not come about must say whose fault it is. A wait for the pass cannot know, so before the first wait of
 * a step the host waits for the last step's send and for this one's residual, by name (mu_dev_wait). That is also why these
 * are not recorded with the pass, which has no marks in it: a decode replays what lies between them. */
#include <stdio.h>

#include "shard/device.h"

/* With the stages first_stage and the next; they are numbered in the link as in the gang. id NULL: there is none. */
static enum mu_status hop_open(struct mu_shard *s, struct dev_hop *hop, int first_stage, const unsigned char *id,
                               struct mu_err *err)
{
    struct dev *v = s->dev;
    if (!id) return MU_OK;
    const struct mu_plan_stage *a = &s->plan.stage[first_stage], *b = a + 1;
    hop->first = a->first_rank;
    enum mu_status st =
        v->ops->link_open(v->d, id, a->n_rank + b->n_rank, s->rank - hop->first, v->timeout_ms, &hop->link, err);
    if (st == MU_OK) return MU_OK;
    return mu_err_wrap(err, "rank %d on GPU %d: the link between the GPUs of stages %d and %d", s->rank, v->index,
                       first_stage, first_stage + 1);
}

enum mu_status mu_dev_hops_open(struct mu_shard *s, const struct mu_shard_options *opt, struct mu_err *err)
{
    struct dev *v = s->dev;
    if (!s->first_stage) v->before.rank[v->before.n++] = mu_plan_residual_from(&s->plan, NULL, s->rank);
    for (int i = s->rank + 1; i < s->plan.n_rank; i++)
        if (mu_plan_residual_from(&s->plan, NULL, i) == s->rank) v->after.rank[v->after.n++] = i;
    enum mu_status st = hop_open(s, &v->before, s->me.stage - 1, opt->device_link[MU_LINK_BEFORE], err);
    return st == MU_OK ? hop_open(s, &v->after, s->me.stage, opt->device_link[MU_LINK_AFTER], err) : st;
}

static void hop_close(struct dev *v, struct dev_hop *hop)
{
    if (hop->link) v->ops->link_close(hop->link);
    hop->link = NULL;
    hop->under_way = false;
}

void mu_dev_hops_close(struct mu_shard *s)
{
    hop_close(s->dev, &s->dev->before);
    hop_close(s->dev, &s->dev->after);
}

void mu_dev_hop_recv(struct queue *r)
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    struct dev_hop *hop = &v->before;
    if (s->record) mu_record_op(s->record, MU_OP_RECV, hop->rank[0]); /* a device may do it at once */
    r->ops->link_recv(hop->link, hop->rank[0] - hop->first, r->x,
                      (size_t)r->n_tok * (size_t)s->cfg.d_model * sizeof *r->x);
    r->ops->mark(v->d, DEV_MARK_RECEIVED);
    hop->under_way = true;
    if (s->record) mu_record_op(s->record, MU_OP_COMPUTE, MU_RECORD_NOBODY);
}

void mu_dev_hop_send(struct queue *r)
{
    struct mu_shard *s = r->s;
    struct dev *v = r->v;
    struct dev_hop *hop = &v->after;
    r->ops->mark(v->d, DEV_MARK);
    if (!mu_dev_hops_wait(s)) return; /* before their marks are put again */
    for (int i = 0; i < hop->n; i++)
        r->ops->link_send(hop->link, hop->rank[i] - hop->first, r->x,
                          (size_t)r->n_tok * (size_t)s->cfg.d_model * sizeof *r->x);
    r->ops->mark(v->d, DEV_MARK_SENT);
    if (!mu_dev_wait(s, DEV_MARK, "the forward pass")) return; /* what was uploaded may be written again */
    hop->under_way = hop->n > 0;
}

/* "the residual to ranks 2, 3" */
static void describe(const struct dev_hop *hop, const char *way, char *text, size_t size)
{
    int at = snprintf(text, size, "the residual %s rank%s", way, hop->n > 1 ? "s" : "");
    for (int i = 0; i < hop->n && at < (int)size; i++)
        at += snprintf(text + at, size - (size_t)at, "%s %d", i ? "," : "", hop->rank[i]);
}

static bool hop_wait(struct mu_shard *s, struct dev_hop *hop, int mark, enum mu_rank_op op, int64_t *spent_ns)
{
    char what[128];
    if (!hop->under_way) return true;
    hop->under_way = false;
    describe(hop, op == MU_OP_RECV ? "from" : "to", what, sizeof what);
    int64_t start = mu_talk_begin(s, op, hop->rank[0]);
    bool done = mu_dev_wait_mark(s, mark, what);
    mu_talk_end(s, op, start, spent_ns);
    if (done) s->dev->n_hop++;
    return done;
}

bool mu_dev_hops_wait(struct mu_shard *s)
{
    return hop_wait(s, &s->dev->after, DEV_MARK_SENT, MU_OP_SEND, &s->send_ns) &&
           hop_wait(s, &s->dev->before, DEV_MARK_RECEIVED, MU_OP_RECV, &s->recv_ns);
}

int mu_dev_hop_test(struct mu_shard *s, struct mu_err *err)
{
    struct dev *v = s->dev;
    if (!v->after.under_way) return 1;
    if (v->ops->test(v->d, DEV_MARK_SENT) == 0) return 0;
    if (hop_wait(s, &v->after, DEV_MARK_SENT, MU_OP_SEND, &s->send_ns)) return 1;
    if (err) *err = s->err;
    return -1;
}

uint64_t mu_shard_device_hops(const struct mu_shard *s)
{
    return s->dev->n_hop;
}
