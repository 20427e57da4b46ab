/* A draft model beside a model in this process: what the leader and the scheduler of a gang do for many sequences
 * (worker/sched_model.c), here for one. The same ids come, sooner where guesses are right.
 *
 * Threads: one, that of the gang. */
#ifndef MU_CLI_GUESS_H
#define MU_CLI_GUESS_H

#include "cli/cli.h"
#include "worker/draft.h"
#include "worker/solo.h"

struct mu_guess;

/* Opens the model of that name or path, which must mean the same by its ids as o's. */
enum mu_status mu_guess_open(const char *name, const struct mu_opened *o, struct mu_guess **guess_out,
                             struct mu_err *err);
void mu_guess_close(struct mu_guess *g); /* NULL is fine */
const struct mu_model *mu_guess_model(const struct mu_guess *g);

/* Loads it for a gang of one rank with these limits, on that rank's threads, until it is taken away, which is to be before
 * the gang is closed. */
enum mu_status mu_guess_attach(struct mu_guess *g, struct mu_solo *solo, const struct mu_model *model,
                               const struct mu_serving *serving, struct mu_err *err);
void mu_guess_detach(struct mu_guess *g); /* NULL is fine */

struct mu_guess_place {
    const int32_t *ids; /* [n_ids] of slot 0; all but the last are in its cache */
    size_t n_ids;
    size_t n_new, n_left; /* of these the ones that were generated; those that may yet come */
    const struct mu_sampling *sampling;
};
struct mu_guess_result {
    int32_t id[1 + MU_MAX_DRAFT]; /* [n] what follows; all but the last are in the cache now, as is the last of ids */
    int n;
    int n_guessed, n_right;
};
/* At least one id more, in one step of the gang. */
enum mu_status mu_guess_next(struct mu_guess *g, struct mu_solo *solo, const struct mu_guess_place *at,
                             struct mu_guess_result *result_out, struct mu_err *err);

#endif
