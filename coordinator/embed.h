/* A call of Embed: its inputs are requests of record of their own (request.h), which wait, run, are lost with a gang and
 * run again one by one like any other; this is what they come back to. The reply goes out with the last vector. The
 * first input that fails ends the call; on_done of the call then takes the others back.
 *
 * Owner: the text thread until it is posted, then the hub; released with the last request that holds it. */
#ifndef MU_COORDINATOR_EMBED_H
#define MU_COORDINATOR_EMBED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/fair.h"
#include "model/adapter.h"
#include "model/model.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"

/* An input and its vector: at most so many bytes a reply, since gRPC clients take 4 MiB unless told otherwise. */
enum { MU_EMBED_MAX_INPUTS = 1024, MU_EMBED_MAX_REPLY_BYTES = 4000000 };

struct mu_embed_input {
    int32_t *ids; /* owned until a request takes them over */
    size_t n_ids;
    bool cut;
    float *value; /* owned; NULL: not there yet */
};

struct mu_embed_call {
    struct mu_rpc_call *call; /* retained */
    enum mu_pooling pooling;
    uint32_t dimensions; /* as asked for; 0: all */
    bool raw;
    char adapter[MU_ADAPTER_NAME]; /* as asked for; the front door knows it */
    float adapter_scale;           /* 0: 1 */
    enum mu_priority priority;
    uint64_t key;
    size_t n_value; /* of each vector */
    size_t n_left, n_holder;
    bool over;
    unsigned resumed;                         /* most of any input */
    uint32_t cached;                          /* tokens of all inputs */
    int64_t arrived_ns, started_ns, first_ns; /* 0: not yet */
    size_t n_input;
    struct mu_embed_input input[];
};

/* Retains call; n_holder is 1. NULL: out of memory. */
struct mu_embed_call *mu_embed_call_create(struct mu_rpc_call *call, const Muster__V1__EmbedRequest *q,
                                           const struct mu_config *cfg);
void mu_embed_call_release(struct mu_embed_call *e); /* NULL is fine */
/* Input `at` has its vector; with the last one the call is answered. false: it is not of the length expected, or no
 * memory; the call is over. */
bool mu_embed_call_take(struct mu_embed_call *e, size_t at, const float *value, size_t n_value, unsigned resumed,
                        uint32_t cached);
void mu_embed_call_fail(struct mu_embed_call *e, size_t at, enum mu_rpc_code code, const char *text);
/* What is wrong with a request, in text_out; false: nothing. */
bool mu_embed_refuse(const Muster__V1__EmbedRequest *q, const struct mu_config *cfg, size_t max_text_bytes,
                     size_t max_ids, char *text_out, size_t text_bytes);

#endif
