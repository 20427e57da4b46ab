/* The scheduler's insides, shared by its own files:
 *
 *   scheduler.c   requests come and go, what became of a step
 *   sched_step.c  the next step: who runs, with how much, into which pages
 *   sched_window.c pages of layers with a window
 *   sched_draft.c guesses at next ids that are found in the ids so far, and where they pay
 *   sched_model.c guesses of a draft model: whom it is asked for */
#ifndef MU_WORKER_SCHED_PARTS_H
#define MU_WORKER_SCHED_PARTS_H

#include "shard/adjust.h"
#include "worker/draft_pace.h"
#include "worker/kv_pool.h"
#include "worker/scheduler.h"

enum { MAX_DRAFT = MU_MAX_DRAFT };

/* What a draft model says of a sequence. */
struct by_model {
    int32_t id[MAX_DRAFT]; /* its guesses … */
    uint32_t n, at;        /* … so many, after so many ids; at 0: none */
    bool flies;            /* the drafts in flight are its */
    struct mu_draft_pace pace;
};

/* Whom a sequence waits for, whose first pages are its own: in this slot, if it is still that one, until so many of them are
 * published; n_page 0: nobody. */
struct behind {
    uint64_t arrival;
    int slot;
    uint32_t n_page;
};

struct seq {
    struct seq *next; /* waiting list */
    uint64_t request;
    uint64_t arrival;   /* age: lower is older */
    uint64_t last_step; /* it took part in; decodes are dealt out by it */
    struct behind behind;
    enum mu_priority priority;
    int flow;        /* in mu_sched.fair */
    uint32_t spared; /* until it has so many ids it gives its pages back like an urgent one */
    int32_t *ids;    /* [n_limit]: prompt and emitted */
    uint32_t n_prompt, n_ids, n_limit;
    uint32_t n_fed; /* ids that the ranks have got, the step in flight included */
    uint32_t *page; /* [pages_of(n_limit)] */
    uint32_t n_page;
    uint32_t *window; /* [pages_of(n_limit)] where layers have window pages: by place; it holds those from */
    uint32_t window_begin, window_end; /* … to before */
    uint32_t n_known;  /* the first so many of them are published or hold what a published one holds; … */
    uint64_t identity; /* … the last of these: kv_pool.h */
    uint32_t n_cached; /* prompt tokens that were not computed when it was let in first */
    bool counted;      /* n_cached is known */
    int slot;          /* -1: waiting */
    int n_flight;      /* steps in flight that it takes part in */
    bool samples;      /* the last one of them yields its next id */
    bool cancelled;
    struct mu_sampling sampling;
    struct mu_adjusts *adjusts; /* of ids[n_ids]; NULL: it needs none */
    bool masked;                /* its ids are of those that mu_sched_options.allow names; known when one is sampled */
    int32_t draft[MAX_DRAFT];   /* in flight */
    uint32_t n_try, quiet;      /* most drafts at once; none before it has so many ids */
    double hits;                /* of drafts, those that were right, of late */
    struct by_model model;
    int32_t end_ids[MU_SCHED_MAX_END_IDS];
    size_t n_end;
    uint16_t adapter;
    float adapter_scale;
    struct mu_embed embed;
};

struct flight { /* a step in flight */
    uint64_t number;
    uint32_t n_prefill, n_drafted; /* its tokens that are no decodes */
    int n_seq, n_decode;
    struct seq **seq; /* [n_slot] */
    bool *samples;    /* [n_slot] */
    uint8_t *n_draft; /* [n_slot]: each one more sequence of the step, behind its own */
};

struct mu_sched {
    struct mu_sched_options opt;
    struct seq *waiting; /* sorted by arrival */
    struct seq **active; /* [n_slot]; NULL: the slot is free */
    struct seq **order;  /* [n_slot] scratch */
    uint32_t *given;     /* [n_page] scratch, zero between calls: of a page's holders, those that would let go of it */
    struct mu_kv_pool *pool;
    struct mu_kv_pool *window;         /* of layers with a window; NULL: theirs are in pool */
    uint32_t n_window, n_window_taken; /* its pages; shares of those who run */
    struct mu_fair fair;
    bool *slot_dirty;      /* [n_slot]: the ranks' tables still have pages there; told with the next step */
    struct flight *flight; /* [max_in_flight], a ring */
    int max_in_flight, flight_head, n_flight;
    int n_active, n_waiting;
    struct mu_draft_costs cost; /* mu_sched_took */
    double hope;                /* what of a draft model's guesses a newcomer may expect to be right */
    uint64_t next_number, next_arrival, n_preempted, n_cached_tokens, n_drafted, n_taken, n_model_drafted,
        n_model_taken;
};

static inline uint32_t mu_sched_pages_of(uint32_t n_ids)
{
    return (n_ids + MU_PAGE_TOKENS - 1) / MU_PAGE_TOKENS;
}

/* Sequences longer than the model's short context turn by other factors, at all their positions. */
static inline bool mu_sched_is_far(const struct mu_sched *s, uint32_t n_ids)
{
    return s->opt.n_ctx_short > 0 && n_ids > (uint32_t)s->opt.n_ctx_short;
}

void mu_sched_wait(struct mu_sched *s, struct seq *q); /* into the waiting list */
void mu_sched_unwait(struct mu_sched *s, struct seq *q);
/* Lets go of the pages of an active sequence that is not in flight; it begins again, in its slot. */
void mu_sched_slot_empty(struct mu_sched *s, struct seq *q);
void mu_sched_slot_release(struct mu_sched *s, struct seq *q); /* and of its slot */

/* ---- window pages; without them these do nothing ---- */
/* What is set aside for a sequence that runs; of that, for a newcomer, how much is wanting. */
uint32_t mu_sched_window_share(const struct mu_sched *s, const struct seq *q);
uint32_t mu_sched_window_lack(const struct mu_sched *s, const struct seq *q);
/* How many of the n full pages in q->page are a prefix with window pages enough, which are in q->window then. */
uint32_t mu_sched_window_find(const struct mu_sched *s, struct seq *q, const struct mu_kv_kind *kind, uint32_t n);
void mu_sched_window_use(struct mu_sched *s, struct seq *q, uint32_t n, struct mu_step *step);
/* Before more of it is put into a step: lets go of what is out of sight. Then: pages up to position end. */
void mu_sched_window_slide(struct mu_sched *s, struct seq *q);
void mu_sched_window_take(struct mu_sched *s, struct seq *q, uint32_t end, struct mu_step *step);
/* Page number `at` is full; identity is that of the full page. */
void mu_sched_window_publish(struct mu_sched *s, const struct seq *q, const struct mu_kv_kind *kind, uint32_t at,
                             uint64_t identity);
void mu_sched_window_drop(struct mu_sched *s, struct seq *q);

/* Its next id may be guessed, as far as is known: nothing but its sampling parameters decides what that is. */
bool mu_sched_guessable(const struct mu_sched *s, const struct seq *q);
/* Of one that is guessable, into q->draft, at most `most`; how many. n_stream: sequences that are decoding. */
uint32_t mu_sched_draft(const struct mu_sched *s, struct seq *q, uint32_t n_stream, uint32_t most);
void mu_sched_draft_learn(struct mu_sched *s, struct seq *q, uint32_t n_draft, uint32_t n_taken);

/* The most ids that may be guessed of q, up to `most`: within its limit, on its side of the short context. */
uint32_t mu_sched_draft_room(const struct mu_sched *s, const struct seq *q, uint32_t most);

/* sched_step.c: sequences that decode, and those, waiting ones as well, that have something to be computed before. */
struct load {
    int n_decoding, n_prefill;
};
struct load mu_sched_load(const struct mu_sched *s);
bool mu_sched_is_decode(const struct seq *q);

/* sched_model.c: its guesses for where q is, into q->draft, at most `most`; how many. */
uint32_t mu_sched_model_drafts(const struct mu_sched *s, struct seq *q, uint32_t most);
void mu_sched_model_learn(struct mu_sched *s, struct seq *q, uint32_t n_draft, uint32_t n_taken);

#endif
