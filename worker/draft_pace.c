/* The model computes where the ids are sampled and between steps, so all streams wait for it: unlike guesses that are
 * found in the text (sched_draft.c) these cost time of their own. In the time T between two ids of a stream all m streams
 * get one. With n guesses for each of g of them, each of which is right with probability r if those before it were,
 *
 *     ids(n) = m + g·(r + r² + … + rⁿ)          us(n) = T + n·(g·t + d)
 *
 * t being what a draft adds to a step and d what a step of the model takes, which makes one more guess for all of them;
 * both are measured. The n with the most ids a microsecond is asked for, each sequence taking the others for its like;
 * where that is 0 it is left alone for a while, since a text may change, twice as long each time that guesses do not last.
 *
 * Before the first guess the model has to read the sequence. Whether that pays depends on how long the answer will yet
 * be, which nobody knows: as long as it has been, and EXPECTED ids at least. Each time that guesses did not last, half as
 * much is expected of them. */
#include "worker/draft_pace.h"

#include <math.h>

enum {
    FIRST_PAUSE = 64,
    NEAR = 16, /* ids that are read with the first guess */
    EXPECTED = 128,
    FIRST_DEPTH = 2, /* while nothing is known of a guess's cost */
};

/* ---- costs ---- */

void mu_draft_average(double *mean, double value)
{
    if (*mean > 0 && value > 4 * *mean) value = 4 * *mean;
    *mean = *mean > 0 ? *mean + (value - *mean) / 8 : value;
}

double mu_draft_us(const struct mu_draft_costs *c)
{
    /* Until there was one it is a guess, and never so bad that none is tried: the first prompt is read by cold caches. */
    if (!c->draft_known) return c->token_us > 0 ? fmin(c->token_us, c->gap_us / 4) : c->gap_us / 4;
    return fmax(c->draft_us, c->gap_us / 64); /* nothing is free */
}

/* A process can only be held up, never be faster than it is: a look that shows a shorter gap is believed at once by half. */
void mu_draft_costs_gap(struct mu_draft_costs *c, double us, double n_stream)
{
    if (mu_draft_costs_look(c) && us < c->gap_us) {
        c->gap_us = (c->gap_us + us) / 2;
        c->gap_streams = (c->gap_streams + n_stream) / 2;
    } else {
        mu_draft_average(&c->gap_us, us);
        mu_draft_average(&c->gap_streams, n_stream);
    }
    c->n_blind = 0;
}

/* While prompts keep coming no step shows the gap, however many streams begin or end meanwhile. A stream more adds a token to a
 * step, which costs what one of a prompt does. With fewer it is shorter by as much at most, and by their share at most,
 * since a step has costs of its own. */
double mu_draft_costs_gap_of(const struct mu_draft_costs *c, double n_stream)
{
    if (!(c->gap_us > 0)) return 0;
    double us = c->gap_us + (n_stream - c->gap_streams) * c->token_us;
    return n_stream < c->gap_streams ? fmax(us, c->gap_us * n_stream / c->gap_streams) : us;
}

bool mu_draft_costs_look(const struct mu_draft_costs *c)
{
    return c->n_blind >= MU_DRAFT_LOOK;
}

/* A difference of two times that scatter may be negative now and then: without these its mean would be too large. One far
 * above the others is believed only a bit, the first one too. */
void mu_draft_costs_added(struct mu_draft_costs *c, double us)
{
    double before = mu_draft_us(c);
    c->n_blind++;
    if (!c->draft_known) c->draft_us = before;
    c->draft_known = true;
    us = fmax(-c->gap_us, fmin(us, 2 * before));
    c->draft_us += (us - c->draft_us) / 8;
}

void mu_draft_costs_took(struct mu_draft_costs *c, const struct mu_draft_took *took)
{
    if (took->n_read) mu_draft_average(&c->read_us, fmax((double)took->read_us / took->n_read, 1e-3));
    if (!took->n_step) return;
    if (c->guess_old) c->guess_us = 0;
    mu_draft_average(&c->guess_us, fmax((double)took->step_us / took->n_step, 1e-3));
    c->guess_old = false;
    c->n_refused = 0;
}

void mu_draft_costs_refused(struct mu_draft_costs *c)
{
    if (++c->n_refused < MU_DRAFT_REFUSALS) return;
    c->n_refused = 0;
    c->draft_us /= 2;
    c->guess_us /= 2;
    c->guess_old = true;
}

/* ---- pace ---- */

struct depth { /* n guesses; ids a microsecond of all streams with them; ids that they add */
    uint32_t n;
    double rate, gain;
};

static struct depth depth_of(const struct mu_draft_costs *c, double right, const struct mu_draft_place *at,
                             uint32_t most)
{
    double n_stream = at->n_stream, n_together = at->n_together;
    struct depth best = {.rate = at->least_gain * n_stream / c->gap_us};
    double reach = 1, gain = 0;
    if (!(c->guess_us > 0) && most > FIRST_DEPTH) most = FIRST_DEPTH;
    for (uint32_t n = 1; n <= most; n++) {
        gain += reach *= right;
        double rate = (n_stream + n_together * gain) / (c->gap_us + n * (n_together * mu_draft_us(c) + c->guess_us));
        if (rate > best.rate) best = (struct depth){n, rate, gain};
    }
    return best;
}

/* What it has to read first costs all streams less than the guesses will spare this one. */
static bool reading_pays(const struct mu_draft_pace *p, const struct mu_draft_costs *c, const struct mu_draft_place *at,
                         const struct depth *d)
{
    uint32_t behind = at->n_ids - p->n_read, been = at->n_new, left = at->n_left;
    if (behind <= NEAR || !(c->read_us > 0)) return true;
    if (been < EXPECTED) been = EXPECTED;
    if (left > been) left = been;
    double spared = c->gap_us - (c->gap_us + d->n * (at->n_together * mu_draft_us(c) + c->guess_us)) / (1 + d->gain);
    double failed = p->pause ? (double)p->pause / FIRST_PAUSE : 1;
    return behind * c->read_us * at->n_stream < left * spared / failed;
}

void mu_draft_pace_rest(struct mu_draft_pace *p, uint32_t n_ids)
{
    /* Where guesses were asked for as long as the next pause would be, they did pay. */
    if (!p->pause || n_ids - p->quiet >= p->pause) p->pause = FIRST_PAUSE;
    p->quiet = n_ids < UINT32_MAX - p->pause ? n_ids + p->pause : UINT32_MAX;
    if (p->pause < UINT32_MAX / 4) p->pause *= 2;
    p->right = MU_DRAFT_HOPE;
}

uint32_t mu_draft_pace_wanted(struct mu_draft_pace *p, const struct mu_draft_costs *c, const struct mu_draft_place *at,
                              double hope, uint32_t most, double *rate_out)
{
    if (at->n_ids < p->quiet || !most) return 0;
    double right = p->right > 0 ? p->right : hope;
    struct depth d = depth_of(c, right, at, most);
    *rate_out = d.rate;
    if (d.n && reading_pays(p, c, at, &d)) return d.n;
    struct mu_draft_place all = *at;
    all.n_together = at->n_stream;
    if (!d.n && depth_of(c, right, &all, most).n) return 0; /* it waits for company */
    if (p->right > 0)
        mu_draft_pace_rest(p, at->n_ids);
    else
        p->quiet = at->n_ids + FIRST_PAUSE; /* by what others have come to: it has not failed itself */
    return 0;
}

void mu_draft_pace_learn(struct mu_draft_pace *p, double *hope, uint32_t n_draft, uint32_t n_taken)
{
    if (!(p->right > 0)) p->right = hope ? *hope : MU_DRAFT_HOPE;
    for (uint32_t i = 0; i < n_draft && i <= n_taken; i++) {
        double hit = i < n_taken;
        p->right += (hit - p->right) / 8;
        if (hope) *hope += (hit - *hope) / 64;
    }
}
