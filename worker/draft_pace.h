/* When to ask a draft model, and for how many ids. Pure arithmetic on what was measured; the essay is draft_pace.c's. */
#ifndef MU_WORKER_DRAFT_PACE_H
#define MU_WORKER_DRAFT_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "worker/draft.h"

/* What steps and guesses cost, as far as it was measured: microseconds, 0: not known yet. Zeroed at the beginning. */
struct mu_draft_costs {
    double gap_us;      /* between two ids of a stream, where nothing but decodes runs: must be known for guesses … */
    double gap_streams; /* … and how many streams there were then */
    double
        token_us; /* what each prefill token adds to a step; a draft is thought to cost as much, until there was one */
    double draft_us; /* what each draft adds to the gap, where that is known: mu_draft_us */
    bool draft_known;
    double guess_us; /* what the model takes for a guess, of all sequences that it is asked for together … */
    double read_us;  /* … and to read an id in bulk */
    int n_blind;     /* steps with guesses since one without was measured: mu_draft_costs_look */
    int n_refused;   /* times that guesses were thought not to pay; MU_DRAFT_REFUSALS of them make … */
    bool guess_old;  /* … this old: the next measure replaces it */
};

/* A mean that forgets slowly. The first value is believed, one far above the others (a process was stopped) only a bit. */
void mu_draft_average(double *mean, double value);
/* What a draft adds to the gap, as far as is known. */
double mu_draft_us(const struct mu_draft_costs *c);
/* A step without guesses made the gap so long, with so many streams. */
void mu_draft_costs_gap(struct mu_draft_costs *c, double us, double n_stream);
/* The gap with so many streams, as far as is known. */
double mu_draft_costs_gap_of(const struct mu_draft_costs *c, double n_stream);
/* Whether the next step is to have none, so that the gap is measured again. */
bool mu_draft_costs_look(const struct mu_draft_costs *c);
/* A draft was measured to add so much; negative where times scatter. */
void mu_draft_costs_added(struct mu_draft_costs *c, double us);
/* The model was asked. */
void mu_draft_costs_took(struct mu_draft_costs *c, const struct mu_draft_took *took);
/* Guesses were thought not to pay. */
void mu_draft_costs_refused(struct mu_draft_costs *c);

struct mu_draft_pace {     /* of one sequence; zeroed at its beginning */
    double right;          /* of its guesses, of late, where those before were right as well; 0: never asked */
    uint32_t quiet, pause; /* not asked before it has so many ids; how long it is left alone next time */
    uint32_t n_read;       /* ids that the model has read */
};

/* What is measured only where guesses are made would be believed for good once it was bad, as on a machine that was busy
 * for a moment. So after this many refusals in a row it is taken for half as much. And what is measured only where none are made
 * would be, once it was too long and all steps had some: so of this many steps in a row one has none. */
enum { MU_DRAFT_REFUSALS = 16, MU_DRAFT_LOOK = 16 };

#define MU_DRAFT_HOPE 0.5 /* what of the guesses may be right, where nothing is known */

struct mu_draft_place {            /* where a sequence is */
    uint32_t n_ids, n_new, n_left; /* ids so far, those of them that were generated, those that it may yet get */
    uint32_t n_stream;             /* sequences that get their ids beside it, itself included … */
    double least_gain;             /* times as many ids a microsecond as without guesses; less is no gain */
    uint32_t n_together;           /* … those of them that guesses may be asked for now, itself included */
};

/* How many guesses to ask for, up to most, at least 1; 0: none now. hope: of one that was never asked. *rate_out: ids a
 * microsecond of all streams with them. */
uint32_t mu_draft_pace_wanted(struct mu_draft_pace *p, const struct mu_draft_costs *c, const struct mu_draft_place *at,
                              double hope, uint32_t most, double *rate_out);
/* n_taken of n_draft guesses were right: then `right` knows it, and *hope (may be NULL), more slowly. */
void mu_draft_pace_learn(struct mu_draft_pace *p, double *hope, uint32_t n_draft, uint32_t n_taken);
/* It makes no guesses here: not asked for a while. */
void mu_draft_pace_rest(struct mu_draft_pace *p, uint32_t n_ids);

#endif
