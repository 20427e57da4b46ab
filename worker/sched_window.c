/* Pages of layers with a window (shard/plan.h has the picture).
 *
 * A sequence has its full pages from admission on; its window pages come with the tokens of each step, and those that its
 * next token does not see go before that. So it holds a span at most, and as many are set aside for it when it is let in
 * (fewer, where it ends before it is so long): a sequence that runs never lacks one, and none is preempted for one.
 *
 *   n_fed        the first position that a step not yet formed computes. Decodes wait for the id before them, drafts that
 *                were wrong are written again from there, and chunks in flight end there
 *   goes         what n_fed does not see. Steps in flight may see it, but ranks run steps in order: whoever writes the page
 *                next does so in a later step than they are, or in the one that is being formed, which begins at n_fed
 *   comes        what the step writes
 *
 * A page that is full is published under the identity of the full page of the same tokens (kv_pool.h), which stands for all
 * tokens up to its end. A prefix is found where its full pages are and the window pages that the token after it sees:
 *
 *   full pages     [0][1][2][3][4][5]           identities of the tokens
 *   window pages       [1][2]   [4][5]          a window of 64: after 3 full pages, and after 6, the next token misses none
 *                                               of the two that it sees; 6 are taken
 *
 * Window pages of identities that are forgotten are never found again, and go as the oldest do. */
#include <assert.h>

#include "worker/sched_parts.h"

static uint32_t first_seen(const struct mu_sched *s, uint32_t pos)
{
    return mu_plan_window_first(s->opt.serving.window, pos);
}

uint32_t mu_sched_window_share(const struct mu_sched *s, const struct seq *q)
{
    if (!s->window) return 0;
    uint32_t span = mu_plan_window_span(&s->opt.serving), all = mu_sched_pages_of(q->n_limit);
    return all < span ? all : span;
}

uint32_t mu_sched_window_lack(const struct mu_sched *s, const struct seq *q)
{
    uint32_t want = s->n_window_taken + mu_sched_window_share(s, q);
    return want > s->n_window ? want - s->n_window : 0;
}

uint32_t mu_sched_window_find(const struct mu_sched *s, struct seq *q, const struct mu_kv_kind *kind, uint32_t n)
{
    uint32_t run = 0, longest = 0; /* run: window pages found, up to the one before i */
    if (!s->window) return n;
    for (uint32_t i = 0; i < n; i++) {
        q->window[i] = mu_kv_pool_find(s->window, kind, mu_kv_pool_identity(s->pool, q->page[i]),
                                       q->ids + (size_t)i * MU_PAGE_TOKENS);
        run = q->window[i] == MU_KV_NOTHING ? 0 : run + 1;
        if (run >= i + 1 - first_seen(s, (i + 1) * MU_PAGE_TOKENS)) longest = i + 1;
    }
    return longest;
}

static void tell(const struct seq *q, uint32_t at, struct mu_step *step)
{
    step->window[step->n_window++] =
        (struct mu_step_window){.slot = (uint32_t)q->slot, .at = at, .page = q->window[at]};
}

void mu_sched_window_use(struct mu_sched *s, struct seq *q, uint32_t n, struct mu_step *step)
{
    if (!s->window) return;
    q->window_begin = first_seen(s, n * MU_PAGE_TOKENS);
    q->window_end = n;
    for (uint32_t at = q->window_begin; at < n; at++) {
        mu_kv_pool_retain(s->window, q->window[at]);
        tell(q, at, step);
    }
}

void mu_sched_window_slide(struct mu_sched *s, struct seq *q)
{
    if (!s->window) return;
    for (uint32_t first = first_seen(s, q->n_fed); q->window_begin < first;)
        mu_kv_pool_release(s->window, q->window[q->window_begin++]);
}

void mu_sched_window_take(struct mu_sched *s, struct seq *q, uint32_t end, struct mu_step *step)
{
    for (uint32_t n = mu_sched_pages_of(end); s->window && q->window_end < n; q->window_end++) {
        assert(mu_kv_pool_available(s->window) > 0); /* of its share */
        q->window[q->window_end] = mu_kv_pool_take(s->window);
        tell(q, q->window_end, step);
    }
}

void mu_sched_window_publish(struct mu_sched *s, const struct seq *q, const struct mu_kv_kind *kind, uint32_t at,
                             uint64_t identity)
{
    if (!s->window || at < q->window_begin) return; /* drafts filled it, and it is out of sight already */
    mu_kv_pool_publish(s->window, q->window[at], kind, identity, q->ids + (size_t)at * MU_PAGE_TOKENS);
}

void mu_sched_window_drop(struct mu_sched *s, struct seq *q)
{
    if (!s->window) return;
    while (q->window_end > q->window_begin) mu_kv_pool_release(s->window, q->window[--q->window_end]);
    q->window_begin = q->window_end = 0;
}
