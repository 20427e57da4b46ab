/* See fair.h. Flows are found by walking over all of them: there are as many as keys with requests, and KEPT_FLOWS. */
#include "base/fair.h"

#include "base/alloc.h"

enum { KEPT_FLOWS = 256 };

static const uint64_t step_of[MU_PRIORITY_COUNT] = {1, 4, 16}; /* of a priority's clock, for one unit: 16 / weight */

void mu_fair_free(struct mu_fair *f)
{
    mu_free(f->flow);
    *f = (struct mu_fair){0};
}

/* Its flow, a forgotten one's place, or a new place; NULL: no memory. */
static struct mu_fair_flow *flow_of(struct mu_fair *f, enum mu_priority priority, uint64_t key)
{
    struct mu_fair_flow *idle = NULL;
    for (size_t i = 0; i < f->n_flow; i++) {
        struct mu_fair_flow *w = &f->flow[i];
        if (w->priority == priority && w->key == key) return w;
        if (!w->n_user && (!idle || w->clock < idle->clock)) idle = w;
    }
    if (!idle || f->n_flow < KEPT_FLOWS) {
        if (f->n_flow == f->cap) {
            size_t cap = f->cap ? 2 * f->cap : 16;
            struct mu_fair_flow *more = mu_reallocarray(f->flow, cap, sizeof *more);
            if (!more) return NULL;
            f->flow = more;
            f->cap = cap;
        }
        idle = &f->flow[f->n_flow++];
    }
    *idle = (struct mu_fair_flow){.key = key, .priority = priority};
    return idle;
}

/* Where a flow begins: where the last of those is who wait, or where nobody does, at the furthest that is or was there; and
 * no earlier than where all of them would be had each got the same. */
static uint64_t flow_floor(const struct mu_fair *f, enum mu_priority priority)
{
    uint64_t least = UINT64_MAX, most = f->floor[priority], even = f->even[priority];
    for (size_t i = 0; i < f->n_flow; i++) {
        const struct mu_fair_flow *w = &f->flow[i];
        if (w->priority != priority || !w->n_user) continue;
        if (w->n_waiting && w->clock < least) least = w->clock;
        if (w->clock > most) most = w->clock;
    }
    uint64_t begin = least < UINT64_MAX ? least : most;
    return begin > even ? begin : even;
}

static uint64_t class_floor(const struct mu_fair *f)
{
    uint64_t least = UINT64_MAX, most = f->class_floor;
    for (int i = 0; i < MU_PRIORITY_COUNT; i++) {
        if (f->n_waiting[i] && f->clock[i] < least) least = f->clock[i];
        if (f->n_user[i] && f->clock[i] > most) most = f->clock[i];
    }
    return least < UINT64_MAX ? least : most;
}

/* Who has nothing that waits had all that it asked for. */
static void level(struct mu_fair *f, struct mu_fair_flow *w)
{
    enum mu_priority p = w->priority;
    uint64_t of_flow = w->n_waiting ? 0 : flow_floor(f, p), of_class = f->n_waiting[p] ? 0 : class_floor(f);
    if (w->clock < of_flow) w->clock = of_flow;
    if (f->clock[p] < of_class) f->clock[p] = of_class;
}

int mu_fair_enter(struct mu_fair *f, enum mu_priority priority, uint64_t key)
{
    struct mu_fair_flow *w = flow_of(f, priority, key);
    if (!w) return -1;
    level(f, w);
    if (!w->n_user++) f->n_present[priority]++;
    f->n_user[priority]++;
    return (int)(w - f->flow);
}

/* Where all of them would be is no further than the furthest that is left. Not than they are on average: who waits and has
 * used much would be caught up with ever more slowly. */
static void even_lower(struct mu_fair *f, enum mu_priority p)
{
    uint64_t most = f->n_present[p] ? 0 : UINT64_MAX;
    for (size_t i = 0; i < f->n_flow; i++) {
        const struct mu_fair_flow *w = &f->flow[i];
        if (w->priority == p && w->n_user && w->clock > most) most = w->clock;
    }
    if (f->even[p] > most) f->even[p] = most;
}

void mu_fair_leave(struct mu_fair *f, int flow)
{
    struct mu_fair_flow *w = &f->flow[flow];
    enum mu_priority p = w->priority;
    f->n_user[p]--;
    if (!--w->n_user) {
        f->n_present[p]--;
        if (w->clock > f->floor[p]) f->floor[p] = w->clock;
        even_lower(f, p);
    }
    if (!f->n_user[p] && f->clock[p] > f->class_floor) f->class_floor = f->clock[p];
}

void mu_fair_wait(struct mu_fair *f, int flow)
{
    level(f, &f->flow[flow]); /* what had a place may have lost it */
    f->flow[flow].n_waiting++;
    f->n_waiting[f->flow[flow].priority]++;
}

void mu_fair_unwait(struct mu_fair *f, int flow)
{
    f->flow[flow].n_waiting--;
    f->n_waiting[f->flow[flow].priority]--;
}

void mu_fair_charge(struct mu_fair *f, int flow, uint64_t used)
{
    struct mu_fair_flow *w = &f->flow[flow];
    enum mu_priority p = w->priority;
    w->clock += used;
    f->clock[p] += used * step_of[p];
    f->rest[p] += used;
    f->even[p] += f->rest[p] / f->n_present[p];
    f->rest[p] %= f->n_present[p];
}

int mu_fair_compare_priorities(const struct mu_fair *f, enum mu_priority a, enum mu_priority b)
{
    if (f->clock[a] != f->clock[b]) return f->clock[a] < f->clock[b] ? -1 : 1;
    return (a > b) - (a < b);
}

int mu_fair_compare(const struct mu_fair *f, int a, int b)
{
    const struct mu_fair_flow *x = &f->flow[a], *y = &f->flow[b];
    if (x->priority != y->priority) return mu_fair_compare_priorities(f, x->priority, y->priority);
    return (x->clock > y->clock) - (x->clock < y->clock);
}

bool mu_fair_goes_ahead(const struct mu_fair *f, enum mu_priority a, enum mu_priority b, uint64_t used)
{
    return a < b && f->clock[a] < f->clock[b] + used * step_of[b];
}

uint64_t mu_fair_key(const char *text)
{
    uint64_t h = 1469598103934665603u; /* FNV-1a */
    for (; *text; text++) h = (h ^ (unsigned char)*text) * 1099511628211u;
    return h;
}
