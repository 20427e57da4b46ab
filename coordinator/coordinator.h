/* The coordinator (`muster serve`): front doors, tokenizing, the requests of record, gang supervision. */
#ifndef MU_COORDINATOR_COORDINATOR_H
#define MU_COORDINATOR_COORDINATOR_H

#include <stdbool.h>
#include <stdint.h>

#include "model/adapter.h"
#include "shard/plan.h"

struct mu_serve_options {
    const char *model_path;
    const char *model_name;                /* in a store: requests may ask for it by this; NULL: none */
    const char *draft_path;                /* a model that guesses next ids; NULL: none */
    const char *template_path;             /* a file of Jinja source instead of the model's own; NULL: that */
    const char *template_text;             /* the model's own in its store, Jinja source; NULL: the one in its file */
    const char *quantize;                  /* a type's name (mu_model_quantize), or NULL */
    enum mu_kv_type kv;                    /* how the cache is kept */
    bool rough;                            /* prompts on GPUs: struct mu_serving */
    const char *split;                     /* "auto" or a split */
    enum mu_device_wish device;            /* what auto may use; what a split must */
    const char *listen;                    /* "127.0.0.1:7400" */
    const char *worker;                    /* NULL: start one on this machine; else its address */
    int threads;                           /* per rank; 0: shared out */
    int context;                           /* tokens a request may hold; 0: the model's, at most 8,192 */
    int parallel;                          /* sequences active at once; 0: 32 */
    int max_waiting;                       /* requests waiting beyond those; 0: 1,024 */
    int stall_timeout_ms;                  /* 0: 3,000 */
    int unread_timeout_ms;                 /* a client that takes or says nothing for so long is gone; 0: 60,000 */
    bool no_prefix_cache;                  /* every prompt is computed whole */
    bool no_speculation;                   /* every id in a step of its own */
    bool quiet;                            /* no banner on stdout */
    const struct mu_adapter_spec *adapter; /* [n_adapter] loaded beside the model */
    int n_adapter;
    bool own_adapter; /* the first of them is the model's own: requests that name none get it */
};
/* Runs until SIGINT/SIGTERM; returns the exit status. On stdout, once ready: "muster: serving NAME on ADDRESS, split
 * 2:1/1, pid N" (the port that was really
 * bound). Everything started is gone when it returns. */
int mu_serve_main(const struct mu_serve_options *opt);

#endif
