/* Tables of adjustments, and their application. See adjust.h.
 *
 * A table is sorted by id: a new id is found by halving and put in its place by moving those above it, which for some
 * thousand ids costs less than a microsecond, and the copy in a step is in the order that ranks search. */
#include "shard/adjust.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

struct entry {
    int32_t id;
    float bias;
    uint32_t n_generated, n_window;
    bool ends;
};

struct mu_adjusts {
    struct mu_sampling sampling;
    size_t n_prompt, n_ids;
    size_t n;
    struct entry entry[]; /* as many as there can ever be */
};

/* ---- the table ---- */

/* Where id is, or would be. */
static size_t place_of(const struct mu_adjusts *a, int32_t id)
{
    size_t low = 0, high = a->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (a->entry[mid].id < id)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

static struct entry *entry_of(struct mu_adjusts *a, int32_t id)
{
    size_t at = place_of(a, id);
    struct entry *e = &a->entry[at];
    if (at < a->n && e->id == id) return e;
    memmove(e + 1, e, (a->n - at) * sizeof *e);
    a->n++;
    *e = (struct entry){.id = id};
    return e;
}

/* Tokens that repeat_penalty looks back; 0: none. */
static size_t window_of(const struct mu_sampling *p)
{
    return !mu_sampling_repeats(p) ? 0 : p->repeat_last_n ? p->repeat_last_n : SIZE_MAX;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* A prompt may have a hundred thousand ids: they are sorted first, and then each is new at the table's end. */
static enum mu_status ids_count(struct mu_adjusts *a, const struct mu_adjusts_options *opt, struct mu_err *err)
{
    enum { GENERATED = 1, WINDOW = 2, SHIFT = 2 };
    size_t window = window_of(&a->sampling), n = 0;
    uint64_t *seen = mu_reallocarray(NULL, opt->n_ids ? opt->n_ids : 1, sizeof *seen);
    if (!seen) return mu_fail(err, MU_ENOMEM, "out of memory for the penalties of %zu tokens", opt->n_ids);
    for (size_t i = 0; i < opt->n_ids; i++) {
        uint64_t how = (i >= opt->n_prompt && mu_sampling_counts(&a->sampling) ? GENERATED : 0) |
                       (opt->n_ids - i <= window ? WINDOW : 0);
        if (how) seen[n++] = (uint64_t)(uint32_t)opt->ids[i] << SHIFT | how;
    }
    qsort(seen, n, sizeof *seen, by_value);
    for (size_t i = 0; i < n; i++) {
        int32_t id = (int32_t)(seen[i] >> SHIFT);
        struct entry *e = a->n ? &a->entry[a->n - 1] : NULL;
        if (!e || e->id != id) {
            e = &a->entry[a->n++];
            *e = (struct entry){.id = id};
        }
        e->n_generated += (seen[i] & GENERATED) != 0;
        e->n_window += (seen[i] & WINDOW) != 0;
    }
    mu_free(seen);
    return MU_OK;
}

enum mu_status mu_adjusts_create(const struct mu_adjusts_options *opt, struct mu_adjusts **adjusts_out,
                                 struct mu_err *err)
{
    const struct mu_sampling *p = opt->sampling;
    bool follows = mu_sampling_repeats(p) || mu_sampling_counts(p);
    size_t n_end = p->min_tokens ? opt->n_end : 0, n_ids = opt->max_ids > opt->n_ids ? opt->max_ids : opt->n_ids;
    size_t cap = (follows ? n_ids : 0) + opt->n_bias + n_end;
    *adjusts_out = NULL;
    if (!cap) return MU_OK;
    if (cap > (size_t)opt->n_vocab) cap = (size_t)opt->n_vocab;
    struct mu_adjusts *a = mu_calloc(1, sizeof *a + cap * sizeof a->entry[0]);
    if (!a) return mu_fail(err, MU_ENOMEM, "out of memory for the penalties of %zu tokens", cap);
    a->sampling = *p;
    a->n_prompt = opt->n_prompt;
    a->n_ids = opt->n_ids;
    if (follows && ids_count(a, opt, err) != MU_OK) {
        mu_free(a);
        return MU_ENOMEM;
    }
    for (size_t i = 0; i < opt->n_bias; i++) entry_of(a, opt->bias[i].id)->bias = opt->bias[i].bias;
    for (size_t i = 0; i < n_end; i++)
        if (opt->end_ids[i] >= 0 && opt->end_ids[i] < opt->n_vocab) entry_of(a, opt->end_ids[i])->ends = true;
    *adjusts_out = a;
    return MU_OK;
}

void mu_adjusts_destroy(struct mu_adjusts *a)
{
    mu_free(a);
}

void mu_adjusts_push(struct mu_adjusts *a, const int32_t *ids, size_t n_ids)
{
    if (!a) return;
    size_t window = window_of(&a->sampling);
    int32_t id = ids[n_ids - 1];
    a->n_ids = n_ids;
    if (window) entry_of(a, id)->n_window++;
    if (n_ids > window && window) entry_of(a, ids[n_ids - 1 - window])->n_window--;
    if (n_ids > a->n_prompt && mu_sampling_counts(&a->sampling)) entry_of(a, id)->n_generated++;
}

void mu_adjusts_put(const struct mu_adjusts *a, struct mu_step *step, struct mu_step_seq *seq)
{
    if (!a) return;
    bool early = a->n_ids - a->n_prompt < a->sampling.min_tokens;
    seq->adjust_off = step->n_adjust;
    for (size_t i = 0; i < a->n; i++) {
        const struct entry *e = &a->entry[i];
        uint8_t flags = (uint8_t)((e->n_window ? MU_ADJUST_SEEN : 0) | (e->ends && early ? MU_ADJUST_FORBID : 0));
        if (!flags && !e->n_generated && e->bias == 0.0f) continue; /* it has left the window */
        step->adjust[step->n_adjust++] =
            (struct mu_step_adjust){.id = e->id, .bias = e->bias, .n_generated = e->n_generated, .flags = flags};
    }
    seq->n_adjust = step->n_adjust - seq->adjust_off;
}

/* ---- its application ---- */

static float adjusted(const struct mu_sampling *p, const struct mu_step_adjust *a, float x)
{
    x = x + a->bias;
    if ((a->flags & MU_ADJUST_SEEN) && mu_sampling_repeats(p))
        x = x > 0.0f ? x / p->repeat_penalty : x * p->repeat_penalty;
    if (a->n_generated > 0) {
        float count = (float)a->n_generated * p->frequency_penalty;
        x = x - (count + p->presence_penalty);
    }
    return a->flags & MU_ADJUST_FORBID ? MU_LOGIT_FORBIDDEN : x;
}

/* What the mask does not allow. Most masks allow nearly all ids or nearly none, so eight bytes of it are looked at together. */
static void forbid(const uint8_t *mask, float *x, int n, int first)
{
    for (int i = 0; i < n;) {
        int id = first + i;
        uint64_t some = 1, all = ~UINT64_C(0);
        if (id % 8 == 0 && n - i >= 64) memcpy(&some, mask + id / 8, sizeof some);
        if (some == all) {
            i += 64;
        } else if (some == 0) {
            for (int k = 0; k < 64; k++) x[i + k] = MU_LOGIT_FORBIDDEN;
            i += 64;
        } else {
            int end = i + 64 - id % 8 < n ? i + 64 - id % 8 : n;
            for (; i < end; i++) {
                id = first + i;
                x[i] = mask[id / 8] >> id % 8 & 1 ? x[i] : MU_LOGIT_FORBIDDEN;
            }
        }
    }
}

void mu_adjust_apply(const struct mu_sampling *p, const struct mu_step_adjust *adjust, uint32_t n_adjust,
                     const uint8_t *mask, float *x, int n, int first)
{
    uint32_t low = 0, high = n_adjust; /* the first one at or after `first` */
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (adjust[mid].id < first)
            low = mid + 1;
        else
            high = mid;
    }
    for (; low < n_adjust && adjust[low].id < first + n; low++)
        x[adjust[low].id - first] = adjusted(p, &adjust[low], x[adjust[low].id - first]);
    if (mask) forbid(mask, x, n, first);
}
