/* A request of record: everything needed to go on with it after any gang has died.
 *
 * That is the prompt's ids, the ids emitted so far and the parameters; what the client has seen (text, stop strings,
 * half characters) is a pure function of
 * (request, emitted ids) and lives here too. Ids are committed before the client hears of them: an engine's message
 * counts only where its first position is
 * the number of ids that are already committed.
 *
 *   WAITING ──submit──▶ RUNNING ──last id, stop string──▶ TELLING ──its client has read so far──▶ DONE (freed)
 *      ▲                   │
 *      └──── gang died ────┘                                  an error, or a client that reads nothing: DONE from anywhere
 *
 * Where a rank was the cause, deaths + 1; PROBATION further ids set it back to 0. At 2 the request is a suspect: it
 * runs
 * alone until it has got PROBATION ids further, then steps aside for the next suspect, if there is one; it fails by
 * name
 * if a rank dies meanwhile. Deaths of mpirun or the worker accuse nobody.
 *
 * A call of Generate that asks for n completions is n requests, its choices. They wait, run, are lost with a gang and end
 * one by one, each with its own seed; struct mu_choices is what they share. The call ends with the last of them. One that
 * fails ends the call, and on_done of the call then takes the others back.
 *
 * Owner: the hub thread. */
#ifndef MU_COORDINATOR_REQUEST_H
#define MU_COORDINATOR_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/fair.h"
#include "coordinator/embed.h"
#include "model/sampling.h"
#include "model/tokenizer.h"
#include "muster/v1/internal.pb-c.h"
#include "muster/v1/muster.pb-c.h"
#include "proto/priority.h"
#include "transport/rpc.h"

enum mu_request_state { MU_REQ_WAITING, MU_REQ_RUNNING, MU_REQ_TELLING };
enum {
    MU_REQ_MAX_STOPS = 16,
    MU_REQ_MAX_STOP_BYTES = 256,
    MU_REQ_MAX_KEY_BYTES = 256,
    MU_REQ_PROBATION = 8,
    MU_REQ_SUSPECT_DEATHS = 2
};

struct mu_choices {
    uint64_t id;                         /* choice 0 has it too */
    struct mu_rpc_call *call;            /* retained */
    Muster__V1__GenerateRequest *params; /* owned */
    int32_t *prompt;                     /* owned */
    size_t n_prompt, n_left, n_holder;   /* n_left: choices that have not ended; n_holder: whose memory needs this */
    uint64_t seed;
    bool told_first;                          /* the first reply went out */
    bool over;                                /* a choice has failed, and the call with it */
    int64_t arrived_ns, started_ns, first_ns; /* the first of any choice; 0: not yet */
    size_t n_completion;                      /* tokens of the choices that have ended */
    /* Prompt tokens that the gang had cached when it gave choice 0 its first id. Not another's: the choices after it find
     * what it has computed, which nobody has been spared. */
    uint32_t n_cached;
    int resumed; /* most of any of them */
};

struct mu_request {
    uint64_t id;
    struct mu_request *next;             /* the hub's list, in order of arrival */
    struct mu_choices *choices;          /* held; NULL where embed is set */
    uint32_t choice;                     /* which of them */
    struct mu_rpc_call *call;            /* the choices'; NULL where embed is set */
    Muster__V1__GenerateRequest *params; /* likewise */
    struct mu_embed_call *embed;         /* held; NULL: it generates. Else nothing is emitted, its vector ends it */
    size_t embed_at;                     /* which of the call's inputs */
    int32_t *prompt;                     /* the choices'; owned where embed is set */
    size_t n_prompt;
    int32_t *emitted;         /* owned, room for max_tokens */
    size_t n_emitted, n_sent; /* n_sent: ids told to the client (return_ids, logprobs) */
    size_t max_tokens;
    uint64_t seed; /* the choice's */
    /* Where the client wants them, those of the ids from number logprob_from on; what is told may be forgotten. Owned. */
    float *logprob;
    int32_t *top_id;    /* [ids][n_top] */
    float *top_logprob; /* likewise */
    size_t n_top, logprob_from, logprob_cap;
    enum mu_request_state state;
    enum mu_priority priority;
    uint64_t key;           /* its number */
    int flow;               /* in the hub's shares; -1: not there yet */
    bool charged;           /* its prompt */
    int deaths;             /* gangs that died while it was running, since it last proved harmless */
    int resumed;            /* all of them */
    bool alone;             /* running as a suspect */
    bool leaving;           /* RUNNING, but the leader was asked to give it back: another suspect wants to be alone */
    size_t probation_until; /* emitted ids that clear it */
    Muster__V1__Finish finish;
    struct mu_streamer streamer;
    char *text; /* all text so far */
    size_t text_len, text_cap, text_sent;
    size_t stop_from; /* text before it came with the first min_tokens: no stop string begins there */
    bool blocked;     /* the client reads slowly; try again at the next tick */
    /* Since when it has taken nothing, as far as the hub has seen (0: it has not looked), and what was queued then. */
    int64_t unread_ns;
    size_t unread_bytes;
    int64_t started_ns;
};

/* Takes over call (already retained), params and prompt, also on failure of memory (NULL: all freed, the call
 * finished). n_holder is 1, and n_left the request's n. */
struct mu_choices *mu_choices_create(uint64_t id, struct mu_rpc_call *call, Muster__V1__GenerateRequest *params,
                                     int32_t *prompt, size_t n_prompt, uint64_t seed);
void mu_choices_release(struct mu_choices *c); /* NULL is fine */
/* How many a request asks for. */
static inline uint32_t mu_choices_n(const Muster__V1__GenerateRequest *q)
{
    return q->n ? q->n : 1;
}
/* NULL: out of memory; nothing is changed then. */
struct mu_request *mu_request_create(uint64_t id, struct mu_choices *choices, uint32_t choice, size_t max_tokens,
                                     const struct mu_tokenizer *tok);
/* Input `at` of a call of Embed, whose ids it takes over. NULL: out of memory. */
struct mu_request *mu_request_create_embed(uint64_t id, struct mu_embed_call *call, size_t at);
void mu_request_free(struct mu_request *r);

enum mu_commit {
    MU_COMMIT_OK,
    MU_COMMIT_OLD, /* all known already */
    MU_COMMIT_GAP, /* positions, or log probabilities, are missing */
    MU_COMMIT_NOMEM
};
/* The commit rule. Appends the new ones of a message's ids, with their log probabilities where the client wants them;
 * decides whether the request is at its end (finish != NONE). */
enum mu_commit mu_request_commit(struct mu_request *r, const Muster__Internal__V1__RequestTokens *t,
                                 const struct mu_tokenizer *tok);
/* Tells the client what is new; with a finish decided also that, and with the last choice's usage and the end. Returns
 * true when r can go: its choice is told whole, or the call is over. */
bool mu_request_flush(struct mu_request *r);
/* Ends the call with an error status. */
void mu_request_fail(struct mu_request *r, enum mu_rpc_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* What is wrong with a priority and a key as they came; NULL: nothing. */
const char *mu_request_refuse_share(Muster__V1__Priority priority, const char *key);
static inline bool mu_request_suspect(const struct mu_request *r)
{
    return r->deaths >= MU_REQ_SUSPECT_DEATHS;
}

#endif
