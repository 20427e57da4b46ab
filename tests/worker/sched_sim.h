/* A simulated gang for the scheduler: ranks that believe nothing (positions must follow on, pages must be there, and
 * written by one sequence alone), and a "model" whose next id is a hash of all ids that it reads in the sequence's
 * pages, so that any mistake in sharing, preemption, resumption or ordering changes what comes out. After every call
 * pages are checked against the tables that name them.
 *
 * Request i has number i + 1000 and seed i; its sampling, biases and adapter are functions of i. */
#ifndef MU_TESTS_SCHED_SIM_H
#define MU_TESTS_SCHED_SIM_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "worker/sched_parts.h"

enum { VOCAB = 97, MAX_REQUESTS = 1200, MAX_CTX = 400, MAX_SLOTS = 12, MAX_PAGES = 64, MAX_FLIGHT = 8, N_ADAPTER = 3 };

void rng_begin(uint64_t seed);
uint32_t rng(uint32_t n); /* [0, n) */

/* What the model says after ids[n]. */
int32_t model_next(const int32_t *ids, size_t n);

struct request {
    int32_t ids[MAX_CTX];                  /* prompt, then what must come */
    uint32_t n_prompt, n_emitted, n_total; /* n_total: where it ends; n_emitted: told at submission */
    uint32_t max_tokens;
    int32_t end_id; /* -1: none */
    uint32_t n_got; /* emitted ids known */
    uint32_t n_cached;
    enum mu_priority priority;
    uint64_t key;
    uint64_t n_computed; /* tokens */
    bool submitted, done, cancelled, cancel_asked;
};

enum { NO_PAGE = UINT32_MAX };

struct slot { /* what a rank holds */
    uint32_t n, page[MAX_PAGES], n_page;
    uint32_t n_sure;            /* without drafts */
    uint32_t window[MAX_PAGES]; /* by place; NO_PAGE: none */
    int request;                /* whose ids they are; meaningful while n > 0 */
};

struct cell { /* of a page */
    int32_t id;
    uint32_t pos;
    uint8_t far, rough; /* how it was computed */
    uint16_t adapter;
    float scale;
    uint64_t step;
    uint32_t slot; /* that wrote it */
};

struct sim {
    struct mu_sched_options opt;
    struct mu_sched *s;
    struct mu_step *step[MAX_FLIGHT];
    int32_t sampled[MAX_FLIGHT][MAX_SLOTS];
    int head, n;
    struct slot slot[MAX_SLOTS];
    struct cell cell[MAX_PAGES][MU_PAGE_TOKENS];
    struct cell window_cell[MAX_PAGES][MU_PAGE_TOKENS]; /* of layers with a window, where they have their own pages */
    struct request *req;
    int n_req, n_done;
    uint64_t expect_number, n_tok, n_overlap, n_draft, n_outgrown, n_shared,
        n_gone; /* n_shared: times that a sequence began after page 0; n_gone: window pages out of sight */
    struct mu_sched_event events[MAX_SLOTS];
};

/* ---- the gang ---- */

void sim_open(struct sim *m, int n_stage, int n_slot, uint32_t n_page, int n_ctx, int step_tokens);
/* With layers that see so many tokens; 0: none. */
void sim_open_window(struct sim *m, int n_stage, int n_slot, uint32_t n_page, int n_ctx, int step_tokens, int window);
void sim_close(struct sim *m); /* nobody may be left */

bool sim_next(struct sim *m);     /* plans a step and computes it; false: there is none */
void sim_complete(struct sim *m); /* the oldest step in flight, which must be there */
void event_take(struct sim *m, const struct mu_sched_event *e);
void run_dry(struct sim *m); /* until nothing is left to do */
void forget(struct sim *m);  /* cancels what is left */

/* ---- requests ---- */

/* For mu_sched_options.allow: bits from what it is asked with; none for some requests. */
bool sim_allow(void *ctx, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out);
uint16_t adapter_of(int i);
void request_submit(struct sim *m, int i);
/* A request that is known in every detail: n_prompt ids that begin as salt says, then max_tokens. */
void request_of(struct sim *m, int i, enum mu_priority priority, uint64_t key, uint32_t salt, uint32_t n_prompt,
                uint32_t max_tokens);
void request_salted(struct sim *m, int i, uint32_t salt, uint32_t n_prompt, uint32_t max_tokens);
void request_plain(struct sim *m, int i, uint32_t n_prompt, uint32_t max_tokens); /* salt: i */
/* To a scheduler without a gang; *finished is set in any case. */
enum mu_status try_submit(struct mu_sched *s, struct mu_sched_request q, bool *finished, struct mu_err *err);

#endif
