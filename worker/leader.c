/* The leader's loop, on the compute thread.
 *
 *   commands ──► scheduler ──► step n+1 ──► doorbells of all other ranks
 *                   ▲             │
 *                   │             └──► own FIFO ──► step n: mu_shard_step ──► ids
 *                   └─────────────────────────────────────────────────────────┘ └──► outbox ──► Engine stream
 *
 * With several stages the steps of the FIFO are under way in earlier stages while the leader, which is in the last one,
 * runs the oldest: so it plans ahead as far as the scheduler lets it, then runs its own part.
 *
 * A request whose form (constraint.h) has to be made first waits beside the scheduler until it is there.
 *
 * A draft model (drafter.h) is asked between steps, on this thread: for the sequences that the scheduler names, just before
 * the step that takes its guesses is planned. Its time is no step's, also where one waits for the leader meanwhile.
 *
 * Waiting. Nothing in here waits for the Engine stream or for a client. With nothing to run it spins for a moment, then
 * sleeps in poll() on the queue and the doorbells; a doorbell that closes says that a rank is gone. */
#include "worker/leader.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "shard/plan_draft.h"
#include "worker/constraint.h"
#include "worker/spin.h"

enum {
    MAX_WAITING = 4096,
    BELL_SEND_MS = 5000,
    STATS_MS = 500,
    IDLE_POLL_MS = 1000,
    RETRY_POLL_MS = 5, /* while the outbox could not be emptied */
    MAX_PLAN_BYTES = 1 << 30,
    /* Larger plans are not sent ahead of the step that runs: a follower that computes reads no doorbell, and once the
     * sockets' buffers are full the leader would wait for it while it waits for the leader's part of that step. */
    AHEAD_PLAN_BYTES = 64 << 10,
};

struct leader {
    const struct mu_leader_options *opt;
    struct mu_sched *sched;
    struct mu_constraints *constraints;
    struct mu_step **step; /* [max_in_flight + 1]: the FIFO's and the one being formed */
    int64_t *planned_ns;   /* [n_step] */
    int64_t done_ns;       /* of the step before */
    int n_step, head, n_fifo;
    struct mu_sched_event *events; /* [n_slot] */
    struct mu_writer plan;
    struct mu_engine_command **unmade; /* submitted, and their forms are being made */
    size_t n_unmade, cap_unmade;
    bool held; /* the newest step of the FIFO, in plan, waits for those before it */
    int64_t stats_ns;
    uint64_t stats_steps;
};

enum mu_status mu_leader_plan_bytes(const struct mu_serving *v, int n_vocab, size_t *bytes_out, struct mu_err *err)
{
    *bytes_out = mu_step_max_bytes(v, n_vocab);
    if (*bytes_out <= MAX_PLAN_BYTES) return MU_OK;
    return mu_fail(err, MU_ELIMIT,
                   "a step of %d sequences of %d tokens, of a vocabulary of %d, may not fit one message: use a smaller "
                   "--parallel or --ctx",
                   v->n_slot, v->n_ctx, n_vocab);
}

/* ---- commands ---- */

static enum mu_status command_submit(struct leader *l, const struct mu_engine_command *c, struct mu_err *err)
{
    const struct mu_sched_request *r = &c->request;
    struct mu_sched_event e = {.request = r->id, .position = (uint32_t)r->n_emitted, .id = -1, .finished = true};
    struct mu_err why = MU_ERR_INIT;
    bool finished = false;
    e.error = mu_constraints_add(l->constraints, r->id, &c->constraint, &why);
    bool added = e.error == MU_OK;
    if (e.error == MU_OK) e.error = mu_sched_submit(l->sched, r, &finished, &why);
    if (e.error == MU_OK && !finished) return MU_OK;
    if (added && c->constraint.kind != MU_CONSTRAINT_NONE) mu_constraints_drop(l->constraints, r->id);
    return mu_engine_put(l->opt->engine, &e, NULL, e.error != MU_OK ? why.text : NULL, err);
}

/* Whether a request waits for its form: then the command is kept. */
static bool command_wait(struct leader *l, struct mu_engine_command *c)
{
    if (l->n_unmade == l->cap_unmade) {
        size_t cap = l->cap_unmade * 2 + 16;
        struct mu_engine_command **p = mu_reallocarray(l->unmade, cap, sizeof *p);
        if (!p) return false; /* then everybody waits for it */
        l->unmade = p;
        l->cap_unmade = cap;
    }
    if (mu_constraints_begin(l->constraints, &c->constraint)) return false;
    l->unmade[l->n_unmade++] = c;
    return true;
}

/* Those whose forms are there now, in their order. */
static enum mu_status unmade_submit(struct leader *l, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    size_t n = 0;
    for (size_t i = 0; i < l->n_unmade; i++) {
        struct mu_engine_command *c = l->unmade[i];
        if (st == MU_OK && mu_constraints_begin(l->constraints, &c->constraint)) {
            st = command_submit(l, c, err);
            mu_free(c);
        } else {
            l->unmade[n++] = c;
        }
    }
    l->n_unmade = n;
    return st;
}

static enum mu_status unmade_cancel(struct leader *l, uint64_t request, struct mu_err *err)
{
    for (size_t i = 0; i < l->n_unmade; i++) {
        struct mu_engine_command *c = l->unmade[i];
        struct mu_sched_event e = {.request = request,
                                   .position = (uint32_t)c->request.n_emitted,
                                   .id = -1,
                                   .finished = true,
                                   .error = MU_ECANCELLED};
        if (c->request.id != request) continue;
        memmove(l->unmade + i, l->unmade + i + 1, (--l->n_unmade - i) * sizeof *l->unmade);
        mu_free(c);
        return mu_engine_put(l->opt->engine, &e, NULL, NULL, err);
    }
    return MU_OK;
}

static enum mu_status command_do(struct leader *l, const struct mu_engine_command *c, struct mu_err *err)
{
    struct mu_sched_event e;
    if (c->kind == MU_ENGINE_SUBMIT) return command_submit(l, c, err);
    if (mu_sched_cancel(l->sched, c->request.id, &e) != MU_OK) return unmade_cancel(l, c->request.id, err);
    mu_constraints_drop(l->constraints, c->request.id);
    return mu_engine_put(l->opt->engine, &e, NULL, NULL, err);
}

static enum mu_status commands_drain(struct leader *l, struct mu_err *err)
{
    for (;;) {
        struct mu_engine_command *c;
        enum mu_status st = mu_engine_next(l->opt->engine, &c, err);
        if (st == MU_OK && !c && mu_constraints_made(l->constraints)) st = unmade_submit(l, err);
        if (st != MU_OK || !c) return st;
        if (c->kind == MU_ENGINE_SUBMIT && command_wait(l, c)) continue;
        st = command_do(l, c, err);
        mu_free(c);
        if (st != MU_OK) return st;
    }
}

/* ---- steps ---- */

static enum mu_status plan_ring(struct leader *l, struct mu_err *err)
{
    int64_t deadline = mu_now_ns() + BELL_SEND_MS * MU_MS;
    for (int i = 0; i < l->opt->plan->n_rank; i++) {
        if (!l->opt->bells[i]) continue;
        enum mu_status st = mu_bell_send(l->opt->bells[i], MU_BELL_PLAN, l->plan.data, l->plan.len, deadline, err);
        if (st != MU_OK) return st;
    }
    return MU_OK;
}

/* Tells everybody, or holds the plan back until nothing else runs. With penalties and masks a plan has megabytes: it is not
 * written for nobody. */
static enum mu_status step_ring(struct leader *l, const struct mu_step *step, struct mu_err *err)
{
    if (l->opt->plan->n_rank == 1) return MU_OK;
    mu_writer_reset(&l->plan);
    mu_step_encode(step, &l->plan);
    if (!l->plan.ok)
        return mu_fail(err, MU_ENOMEM, "step %llu: no memory for its plan", (unsigned long long)step->number);
    l->held = l->plan.len > AHEAD_PLAN_BYTES && l->n_fifo > 0;
    return l->held ? MU_OK : plan_ring(l, err);
}

static enum mu_status drafts_make(struct leader *l, struct mu_err *err)
{
    struct mu_draft_ask ask[MU_DRAFT_SEATS];
    struct mu_draft_took took;
    uint32_t read_most;
    int n = l->opt->drafter ? mu_sched_ask_drafts(l->sched, ask, &read_most) : 0;
    if (!n) return MU_OK;
    mu_record_op(l->opt->record, MU_OP_COMPUTE, MU_RECORD_NOBODY);
    enum mu_status st = mu_drafter_ask(l->opt->drafter, ask, n, read_most, &took, err);
    mu_record_op(l->opt->record, MU_OP_PLAN, MU_RECORD_NOBODY);
    if (st != MU_OK) return st;
    mu_sched_answer_drafts(l->sched, ask, n, &took);
    l->done_ns = mu_now_ns();
    return MU_OK;
}

static enum mu_status steps_plan(struct leader *l, struct mu_err *err)
{
    enum mu_status st;
    if (l->held && l->n_fifo > 1) return MU_OK;
    if (l->held) {
        l->held = false;
        if ((st = plan_ring(l, err)) != MU_OK) return st;
    }
    if ((st = drafts_make(l, err)) != MU_OK) return st;
    while (!l->held) {
        struct mu_step *step = l->step[(l->head + l->n_fifo) % l->n_step];
        if (!mu_sched_next(l->sched, step)) return MU_OK;
        if ((st = step_ring(l, step, err)) != MU_OK) return st;
        l->planned_ns[(l->head + l->n_fifo) % l->n_step] = mu_now_ns();
        l->n_fifo++;
    }
    return MU_OK;
}

/* Where a constraint could not go on, it knows more than that nothing was allowed. */
static const char *error_text(const struct leader *l, const struct mu_sched_event *e)
{
    if (e->error == MU_ENONFINITE) return "the model's output is not finite for this request";
    if (e->error != MU_EINVAL) return NULL;
    const char *why = mu_constraints_why(l->constraints, e->request);
    return why ? why : "no token is allowed to come next: logit_bias, min_tokens or the format leave none";
}

/* The oldest step: our share, then what became of its sequences. */
static enum mu_status step_run(struct leader *l, struct mu_err *err)
{
    const struct mu_step *step = l->step[l->head];
    struct mu_rank_record *record = l->opt->record;
    struct mu_step_result result;
    atomic_store_explicit(&record->step, step->number, memory_order_relaxed);
    mu_record_op(record, MU_OP_COMPUTE, MU_RECORD_NOBODY);
    enum mu_status st = mu_shard_step(l->opt->shard, step, &result, err);
    mu_record_op(record, MU_OP_PLAN, MU_RECORD_NOBODY);
    mu_record_tick(record);
    if (st != MU_OK) return st;
    int64_t now = mu_now_ns(), began = l->planned_ns[l->head] > l->done_ns ? l->planned_ns[l->head] : l->done_ns;
    int64_t us = (now - began) / 1000;
    l->done_ns = now;
    mu_sched_took(l->sched, us < UINT32_MAX ? (uint32_t)us : UINT32_MAX);
    int n = mu_sched_complete(l->sched, step->number, result.id, l->events);
    if (n < 0)
        return mu_fail(err, MU_EINTERNAL, "step %llu is not the oldest in flight", (unsigned long long)step->number);
    l->head = (l->head + 1) % l->n_step;
    l->n_fifo--;
    for (int i = 0; i < n && st == MU_OK; i++) {
        const struct mu_sched_event *e = &l->events[i];
        int d_model = l->opt->model->cfg.d_model;
        if (e->embed.pooling && e->error == MU_OK)
            st =
                mu_engine_put_vector(l->opt->engine, e, result.state + (size_t)e->slot * (size_t)d_model, d_model, err);
        else
            st = mu_engine_put(l->opt->engine, e, e->logprobs ? &result.logprobs[e->seq] : NULL, error_text(l, e), err);
        if (e->finished) mu_constraints_drop(l->constraints, e->request);
    }
    return st;
}

/* ---- idle ---- */

/* Whatever a rank sends after its hello, or the end of its connection, ends the gang. */
static enum mu_status bells_check(struct leader *l, struct mu_err *err)
{
    for (int i = 0; i < l->opt->plan->n_rank; i++) {
        struct mu_bell_frame f;
        int got = l->opt->bells[i] ? mu_bell_poll(l->opt->bells[i], &f, err) : 0;
        if (got < 0) return err->code;
        if (got > 0) return mu_fail(err, MU_EPROTO, "rank %d sent something on its doorbell", i);
    }
    return MU_OK;
}

/* Twice a second while busy, and what it came to before going to sleep. */
static void stats_put(struct leader *l, bool idle)
{
    struct mu_sched_counts c;
    int64_t now = mu_now_ns();
    if (now < l->stats_ns && !idle) return;
    mu_sched_count(l->sched, &c);
    l->stats_ns = now + STATS_MS * MU_MS;
    if (c.steps == l->stats_steps) return;
    l->stats_steps = c.steps;
    mu_engine_put_stats(l->opt->engine, &c);
}

static enum mu_status idle_wait(struct leader *l, bool outbox_empty, struct mu_err *err)
{
    struct pollfd p[MU_MAX_RANKS + 2];
    nfds_t n = 0;
    mu_record_op(l->opt->record, MU_OP_IDLE, MU_RECORD_NOBODY);
    for (struct mu_spin spin = mu_spin_start(); mu_spin_turn(&spin);)
        if (mu_engine_waiting(l->opt->engine)) return MU_OK;
    stats_put(l, true);
    p[n++] = (struct pollfd){.fd = mu_engine_fd(l->opt->engine), .events = POLLIN};
    p[n++] = (struct pollfd){.fd = mu_constraints_fd(l->constraints), .events = POLLIN}; /* negative: passed over */
    for (int i = 0; i < l->opt->plan->n_rank; i++)
        if (l->opt->bells[i]) p[n++] = (struct pollfd){.fd = mu_bell_fd(l->opt->bells[i]), .events = POLLIN};
    if (poll(p, n, outbox_empty ? IDLE_POLL_MS : RETRY_POLL_MS) < 0 && errno != EINTR)
        return mu_fail(err, MU_EIO, "leader: poll: %s", strerror(errno));
    return bells_check(l, err);
}

/* A mask may take a second, and a step may want many: each is progress. */
static bool allow(void *leader, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out)
{
    struct leader *l = leader;
    mu_record_tick(l->opt->record);
    return mu_constraints_allow(l->constraints, request, emitted, n, mask_out);
}

/* ---- life ---- */

static enum mu_status leader_init(struct leader *l, const struct mu_leader_options *opt, struct mu_err *err)
{
    enum mu_status st;
    struct mu_sched_options so = {.serving = opt->serving,
                                  .n_stage = opt->plan->n_stage,
                                  .n_vocab = opt->model->cfg.n_vocab,
                                  .max_waiting = MAX_WAITING,
                                  .n_ctx_short = opt->model->cfg.n_ctx_short,
                                  .no_prefix_cache = opt->no_prefix_cache,
                                  .no_speculation = opt->no_speculation};
    if (opt->drafter) {
        so.n_draft_seat = opt->draft_serving.n_slot;
        so.n_draft_ctx = opt->draft_serving.n_ctx;
    }
    size_t plan_bytes;
    l->opt = opt;
    MU_TRY(st, mu_constraints_create(opt->model->gguf, opt->model->cfg.n_vocab, &l->constraints, err), out);
    so.allow = allow;
    so.allow_ctx = l;
    MU_TRY(st, mu_leader_plan_bytes(&opt->serving, opt->model->cfg.n_vocab, &plan_bytes, err), out);
    mu_writer_init(&l->plan, plan_bytes);
    MU_TRY(st, mu_sched_create(&so, &l->sched, err), out);
    l->n_step = mu_sched_max_in_flight(l->sched) + 1;
    l->step = mu_calloc((size_t)l->n_step, sizeof *l->step);
    l->planned_ns = mu_calloc((size_t)l->n_step, sizeof *l->planned_ns);
    l->events = mu_calloc((size_t)opt->serving.n_slot, sizeof *l->events);
    if (!l->step || !l->planned_ns || !l->events)
        return mu_fail(err, MU_ENOMEM, "out of memory for the leader's steps");
    for (int i = 0; i < l->n_step; i++) MU_TRY(st, mu_step_create(&opt->serving, so.n_vocab, &l->step[i], err), out);
out:
    return st;
}

static enum mu_status leader_loop(struct leader *l, struct mu_err *err)
{
    enum mu_status st;
    for (;;) {
        mu_record_op(l->opt->record, MU_OP_PLAN, MU_RECORD_NOBODY);
        MU_TRY(st, commands_drain(l, err), out);
        MU_TRY(st, steps_plan(l, err), out);
        if (l->n_fifo) MU_TRY(st, step_run(l, err), out);
        st = mu_engine_flush(l->opt->engine, err);
        if (st != MU_OK && st != MU_EAGAIN) goto out;
        bool empty = st == MU_OK;
        stats_put(l, false);
        if (!l->n_fifo && !mu_engine_waiting(l->opt->engine)) {
            /* Sequences that have just got their ids are planned before anything sleeps. */
            MU_TRY(st, steps_plan(l, err), out);
            if (!l->n_fifo) MU_TRY(st, idle_wait(l, empty, err), out);
        }
    }
out:
    return st;
}

enum mu_status mu_leader_run(const struct mu_leader_options *opt, struct mu_err *err)
{
    struct leader l = {0};
    enum mu_status st = leader_init(&l, opt, err);
    if (st == MU_OK) st = leader_loop(&l, err);
    for (int i = 0; l.step && i < l.n_step; i++) mu_free(l.step[i]);
    mu_free(l.step);
    mu_free(l.planned_ns);
    mu_free(l.events);
    mu_writer_free(&l.plan);
    while (l.n_unmade) mu_free(l.unmade[--l.n_unmade]);
    mu_free(l.unmade);
    mu_sched_destroy(l.sched);
    mu_constraints_destroy(l.constraints);
    return st;
}
