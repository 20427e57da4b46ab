/* A whole coordinator in one process, for tests of the hub: front, engine server, hub and text threads, with a worker
 * and leaders that are a fake_gang; and streams whose ids are known beforehand. */
#ifndef MU_TESTS_HUB_FIXTURE_H
#define MU_TESTS_HUB_FIXTURE_H

#include "fake_gang.h"

struct world {
    struct vocabulary v;
    struct mu_model model;
    struct mu_serve_options opt;
    struct mu_hub hub;
    struct fake_gang gang;
    struct mu_rpc_server *front, *internal;
    struct mu_rpc_channel *channel;
    pthread_t hub_thread, text_thread;
};

struct world_options { /* 0: the default, but for max_sequences */
    int max_waiting;
    int max_sequences; /* of the gang */
    int unread_timeout_ms;
    size_t client_queue_bytes; /* that a call of Generate may queue for sending */
    size_t engine_queue_bytes; /* and the stream to the leader */
};
/* Servers and a fake gang, but neither hub nor text thread yet: what clients ask for waits in the queues. */
struct world *world_open(const struct world_options *o);
void world_run_texts(struct world *w);                         /* starts the text thread */
void world_run_hub(struct world *w);                           /* and the hub, whose worker is up */
struct world *world_start(int max_waiting, int max_sequences); /* all of it */
void world_stop(struct world *w);                              /* nothing may be left: no request, no share, no text */
Muster__V1__ClusterStatusReply *world_status(struct world *w); /* the caller's, with mu_rpc_message_free */
void tell_worker(struct world *w, enum mu_event_kind kind);

/* A stream of n ids after n_prompt times prompt_id, which will be those of its seed. */
struct client *ask_as(struct world *w, Muster__V1__Priority priority, const char *key, size_t n_prompt,
                      int32_t prompt_id, uint32_t n, uint64_t seed, int64_t deadline_ns);
struct client *ask(struct world *w, size_t n_prompt, int32_t prompt_id, uint32_t n, uint64_t seed, int64_t deadline_ns);
void expect_whole(struct client *c, uint64_t seed, size_t n); /* waits for its end */

/* So far. */
int launches(struct world *w);
int submits(struct world *w);

#endif
