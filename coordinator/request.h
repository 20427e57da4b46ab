/* A request of record: everything needed to go on with it after any gang has died.
 *
 * That is the prompt's ids, the ids emitted so far and the parameters; what the client has seen (text, stop strings,
 * half characters) is a pure function of
 * (request, emitted ids) and lives here too. Ids are committed before the client hears of them: an engine's message
 * counts only where its first position is
 * the number of ids that are already committed.
 *
 *   WAITING ──submit──▶ RUNNING ──last id, stop string, error──▶ DONE (freed)
 *      ▲                   │
 *      └──── gang died ────┘
 *
 * Where a rank was the cause, deaths + 1; PROBATION further ids set it back to 0. At 2 the request is a suspect: it
 * runs
 * alone until it has got PROBATION ids further, then steps aside for the next suspect, if there is one; it fails by
 * name
 * if a rank dies meanwhile. Deaths of mpirun or the worker accuse nobody.
 *
 * Owner: the hub thread. */
#ifndef MU_COORDINATOR_REQUEST_H
#define MU_COORDINATOR_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/fair.h"
#include "coordinator/embed.h"
#include "model/tokenizer.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"

enum mu_request_state { MU_REQ_WAITING, MU_REQ_RUNNING };
enum {
    MU_REQ_MAX_STOPS = 16,
    MU_REQ_MAX_STOP_BYTES = 256,
    MU_REQ_MAX_KEY_BYTES = 256,
    MU_REQ_PROBATION = 8,
    MU_REQ_SUSPECT_DEATHS = 2
};

struct mu_request {
    uint64_t id;
    struct mu_request *next;             /* the hub's list, in order of arrival */
    struct mu_rpc_call *call;            /* retained; NULL where embed is set */
    Muster__V1__GenerateRequest *params; /* owned copy; likewise */
    struct mu_embed_call *embed;         /* held; NULL: it generates. Else nothing is emitted, its vector ends it */
    size_t embed_at;                     /* which of the call's inputs */
    int32_t *prompt;                     /* owned */
    size_t n_prompt;
    int32_t *emitted;         /* owned, room for max_tokens */
    size_t n_emitted, n_sent; /* n_sent: ids told to the client (return_ids) */
    size_t max_tokens;
    uint64_t seed;
    uint32_t n_cached; /* prompt tokens that the gang had cached when it gave the first id */
    enum mu_request_state state;
    enum mu_priority priority;
    uint64_t key;           /* its number */
    int flow;               /* in the hub's shares; -1: not there yet */
    int deaths;             /* gangs that died while it was running, since it last proved harmless */
    int resumed;            /* all of them */
    bool alone;             /* running as a suspect */
    bool leaving;           /* RUNNING, but the leader was asked to give it back: another suspect wants to be alone */
    size_t probation_until; /* emitted ids that clear it */
    Muster__V1__Finish finish;
    struct mu_streamer streamer;
    char *text; /* all text so far */
    size_t text_len, text_cap, text_sent;
    bool told_first; /* the first reply went out */
    bool blocked;    /* the client reads slowly; try again at the next tick */
    int64_t arrived_ns, started_ns, first_ns;
};

/* Takes over call (already retained), params and prompt, also on failure of memory (NULL: all freed, the call
 * finished). */
struct mu_request *mu_request_create(uint64_t id, struct mu_rpc_call *call, Muster__V1__GenerateRequest *params,
                                     int32_t *prompt, size_t n_prompt, size_t max_tokens,
                                     const struct mu_tokenizer *tok);
/* Input `at` of a call of Embed, whose ids it takes over. NULL: out of memory. */
struct mu_request *mu_request_create_embed(uint64_t id, struct mu_embed_call *call, size_t at);
void mu_request_free(struct mu_request *r);

enum mu_commit { MU_COMMIT_OK, MU_COMMIT_OLD /* all known already */, MU_COMMIT_GAP, MU_COMMIT_NOMEM };
/* The commit rule. Appends the new ones of ids[n], which start at position first; decides whether the request is at
 * its end (finish != NONE). */
enum mu_commit mu_request_commit(struct mu_request *r, size_t first, const int32_t *ids, size_t n,
                                 const struct mu_tokenizer *tok);
/* Tells the client what is new; with a finish decided also usage and the end. Returns true when the call is finished
 * and r can go. */
bool mu_request_flush(struct mu_request *r);
/* Ends the call with an error status. */
void mu_request_fail(struct mu_request *r, enum mu_rpc_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* What is wrong with a priority and a key as they came; NULL: nothing. */
const char *mu_request_refuse_share(Muster__V1__Priority priority, const char *key);
enum mu_priority mu_request_priority(Muster__V1__Priority priority);
static inline bool mu_request_suspect(const struct mu_request *r)
{
    return r->deaths >= MU_REQ_SUSPECT_DEATHS;
}

#endif
