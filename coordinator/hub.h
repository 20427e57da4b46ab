/* The hub: one thread that owns the requests of record and the gang. Everybody else (gRPC's poll threads, the text
 * thread, the main thread) hands it events through
 * a bounded queue.
 *
 *   front.c   Generate … status calls ──▶ text.c (tokenizes) ──▶ ┐
 *   engine.c  Attach, tokens, stream ended ────────────────────▶ ├─ hub.c ──▶ request.c (commit, text) ──▶ the client's call
 *   replica.c    launched, ready, died ───────────────────────────▶ │      └──▶ replica.c (submit, cancel, relaunch)
 *   serve.c   worker started/ended, stop ──────────────────────▶ ┘
 */
#ifndef MU_COORDINATOR_HUB_H
#define MU_COORDINATOR_HUB_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/queue.h"
#include "coordinator/coordinator.h"
#include "coordinator/request.h"
#include "model/chat_template.h"
#include "model/model.h"
#include "muster/v1/internal.pb-c.h"
#include "shard/plan.h"
#include "transport/rpc.h"

enum mu_event_kind {
    MU_EV_GENERATE,     /* call, msg = GenerateRequest, ids: a tokenized prompt */
    MU_EV_EMBED,        /* embed: a call with tokenized inputs */
    MU_EV_CALLS_OVER,   /* calls_over is set */
    MU_EV_STATUS,       /* call: ClusterStatus */
    MU_EV_MODEL_STATUS, /* call: ModelStatus */
    MU_EV_ATTACH,       /* call: the leader's stream, msg = EngineUp with attach */
    MU_EV_ENGINE_UP,    /* call, msg = EngineUp */
    MU_EV_ENGINE_DONE,  /* call */
    MU_EV_GANG,         /* msg = GangEvent */
    MU_EV_GANG_DONE,    /* epoch, code, text: the StartGang stream is over */
    MU_EV_WORKER_UP,    /* msg = Node, may be NULL: the worker answers; channel is set */
    MU_EV_WORKER_DOWN,  /* text */
    MU_EV_STOP
};

struct mu_event {
    enum mu_event_kind kind;
    struct mu_rpc_call *call;    /* retained */
    ProtobufCMessage *msg;       /* owned */
    struct mu_embed_call *embed; /* held */
    int32_t *ids;                /* owned */
    size_t n_ids;
    uint64_t epoch;
    enum mu_rpc_code code;
    char text[MU_ERR_TEXT];
};

enum mu_replica_state { MU_REPLICA_DOWN, MU_REPLICA_STARTING, MU_REPLICA_READY, MU_REPLICA_STOPPING };

struct mu_replica {
    enum mu_replica_state state;
    uint64_t epoch;
    struct mu_rpc_stream *stream;           /* StartGang, of this epoch */
    struct mu_rpc_call *engine;             /* the leader's stream; retained */
    bool rank_ready;                        /* GangReady was seen */
    Muster__Internal__V1__GangReady *ready; /* ranks; owned */
    int mpirun_pid;
    int64_t started_ns, retry_ns; /* launch time; when to launch again (DOWN) */
    bool attached;                /* this epoch's one attach has been */
    /* Something ended, and whoever knows why (the worker, or the process that watches the worker) has until verdict_ns
     * to say so; then verdict is what is believed. 0: nothing ended. */
    int64_t verdict_ns;
    bool worker_silent; /* what ended is the connection to the worker */
    char verdict[MU_ERR_TEXT];
    int failures; /* deaths in a row without a token */
    unsigned relaunches;
    uint64_t steps;
    uint64_t drafted, drafts_taken, model_drafted, model_drafts_taken; /* guesses, as EngineStats has them */
    uint32_t max_sequences;
    char last_failure[MU_ERR_TEXT];
    unsigned char secret[32];
    bool was_ready; /* ever */
};

/* How conversations become prompts; read-only while serving. */
struct mu_chat {
    struct mu_chat_template *template; /* NULL: there is none that works; why_not says so */
    const char *source;                /* of the template; NULL where there is none, or it is no UTF-8 */
    char *bos, *eos;                   /* texts of the tokens */
    char why_not[MU_ERR_TEXT];
};

struct mu_hub {
    const struct mu_serve_options *opt;
    struct mu_model *model;
    struct mu_model *draft;       /* NULL: there is none */
    struct mu_adapters *adapters; /* in the order that every gang gets them */
    struct mu_tokenizer *tok;
    struct mu_chat chat;
    struct mu_serving serving;
    struct mu_split split;
    char split_text[MU_SPLIT_TEXT];
    char engine_address[128];
    struct mu_rpc_channel *worker; /* set by MU_EV_WORKER_UP's sender before the event */
    struct mu_rpc_server *front;   /* for health */
    int32_t end_ids[64];           /* ids that end a generation */
    size_t n_end_ids;
    Muster__V1__Node *node; /* the worker's inventory; owned */
    struct mu_queue *events;
    struct mu_queue *texts; /* jobs for the text thread, which sorts them */
    struct mu_replica gang;
    struct mu_request *requests; /* list in order of arrival, and so of ids */
    struct mu_request **end;     /* where the next one comes */
    size_t n_waiting, n_running;
    size_t n_returned; /* of those that wait: a death has sent them back */
    size_t n_running_of[MU_PRIORITY_COUNT];
    struct mu_fair fair;                 /* whose request is submitted next */
    int64_t pace_ns, ended_ns;           /* how fast running requests end, one after another; when the last one did */
    bool pump_again;                     /* the engine's stream was full; try once more soon */
    _Atomic size_t n_texts, texts_bytes; /* messages that wait for the text thread, in the queue or sorted */
    uint64_t next_request, tokens_generated;
    int64_t started_ns;
    bool worker_up, stopping;
    atomic_bool calls_over; /* calls of Generate or Embed have ended since the hub last looked which */
    /* Written by the hub, read by the main thread: */
    _Atomic int outcome; /* 0 running, 1 ready once, 2 cannot serve (fatal has the reason), 3 stopped */
    char fatal[MU_ERR_TEXT];
    _Atomic bool worker_hung; /* the worker's connection is lost although nobody said that it ended */
    int outcome_fd;           /* eventfd, readable when one of these changed */
};

enum { MU_HUB_EVENTS = 1 << 16 }; /* most in the queue */
enum { MU_HUB_TEXTS = 4096 };     /* that wait for the text thread */
enum { MU_HUB_WAITING = 1024 };   /* requests, where --queue does not say */

/* Of n places those for a priority: batch fills three quarters, so that others need not be sent away for it; for
 * interactive ones there are always a few more. */
static inline size_t mu_hub_places(size_t n, enum mu_priority priority)
{
    return priority == MU_PRIORITY_BATCH ? n - n / 4 : priority == MU_PRIORITY_INTERACTIVE ? n + n / 8 + 1 : n;
}

/* Any thread. Takes over the event's fields on success; on failure (full or closed queue) the caller still owns
 * them. */
enum mu_status mu_hub_post(struct mu_hub *h, const struct mu_event *ev);
/* The same for what clients ask for: they get half of the queue, the rest is the gang's, whose tokens must never be
 * refused because of a flood of questions. */
enum mu_status mu_hub_post_client(struct mu_hub *h, const struct mu_event *ev);
/* How long a client may take nothing of its answer, or be silent. */
int mu_hub_unread_timeout_ms(const struct mu_hub *h);
void mu_event_free(void *event); /* releases what it owns */
void *mu_hub_main(void *hub);    /* the thread's body; after MU_EV_STOP it closes the queue and returns */
void mu_hub_tell_outcome(struct mu_hub *h, int outcome);

/* ---- chat.c, text thread ---- */
/* The template named in opt, which must work, or the model's, which need not. */
enum mu_status mu_chat_open(struct mu_hub *h, struct mu_err *err);
void mu_chat_close(struct mu_chat *c);
/* The prompt of a conversation; *bos_out: it begins with the BOS text, so that none is to be added. Freed with mu_free. */
enum mu_status mu_chat_prompt(const struct mu_hub *h, const Muster__V1__Chat *chat, char **text_out, size_t *len_out,
                              bool *bos_out, struct mu_err *err);

/* ---- replica.c, hub thread ---- */
void mu_replica_start(struct mu_hub *h); /* opens StartGang with a new epoch */
void mu_replica_on_event(struct mu_hub *h, const Muster__Internal__V1__GangEvent *ev);
void mu_replica_on_stream_done(struct mu_hub *h, uint64_t epoch, enum mu_rpc_code code, const char *text);
void mu_replica_on_attach(struct mu_hub *h, struct mu_rpc_call *call, const Muster__Internal__V1__EngineUp *up);
void mu_replica_on_engine_done(struct mu_hub *h, struct mu_rpc_call *call);
enum {
    MU_DEATH_PERMANENT = 1, /* starting again the same way cannot help */
    MU_DEATH_BLAME = 2,     /* a rank did it, so one of the requests may be the cause */
};
void mu_replica_died(struct mu_hub *h, unsigned how, const char *reason);
void mu_replica_tick(struct mu_hub *h, int64_t now_ns);
int64_t mu_replica_next_ns(const struct mu_hub *h);             /* when it wants a tick; MU_FOREVER */
bool mu_replica_submit(struct mu_hub *h, struct mu_request *r); /* false: the stream is full or gone */
bool mu_replica_cancel(struct mu_hub *h, uint64_t request);     /* false: not sent; its next ids ask again */
void mu_replica_stop(struct mu_hub *h);

/* ---- hub.c, for replica.c ---- */
/* The gang died: all running ones wait again. blame: and are suspected. */
void mu_hub_requests_lost(struct mu_hub *h, bool blame, const char *reason);
void mu_hub_fail_all(struct mu_hub *h, enum mu_rpc_code code, const char *text);
void mu_hub_pump(struct mu_hub *h); /* submits what may run */

/* ---- the other threads' parts ---- */
size_t mu_front_methods(struct mu_hub *h, struct mu_rpc_method *methods_out, size_t max);
size_t mu_engine_methods(struct mu_hub *h, struct mu_rpc_method *methods_out, size_t max);
void *mu_text_main(void *hub); /* the text thread's body; ends when h->texts is closed */
struct mu_text_job;
void mu_text_job_free(void *job);
enum mu_text_kind { MU_TEXT_GENERATE, MU_TEXT_EMBED, MU_TEXT_TOKENIZE, MU_TEXT_DETOKENIZE };
/* Takes over msg; retains call. Answers the call itself where the job cannot be taken. */
void mu_text_post(struct mu_hub *h, enum mu_text_kind kind, struct mu_rpc_call *call, ProtobufCMessage *msg);
/* Whether a request's `model` means the one that is served. */
bool mu_hub_is_model(const struct mu_hub *h, const char *name);

#endif
