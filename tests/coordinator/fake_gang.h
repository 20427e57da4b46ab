/* A worker and the leaders of its gangs in one process, for the hub: StartGang gives a gang that is ready at once, whose
 * "model" is a hash of (seed, position). The test ends it whenever and however it likes. */
#ifndef MU_TESTS_FAKE_GANG_H
#define MU_TESTS_FAKE_GANG_H

#include "coord_fixture.h"
#include "coordinator/hub.h"

enum { FAKE_D_MODEL = 12, FAKE_MPIRUN = 4711, MAX_SUBMITS = 256, MAX_ACTIVE = 64, SAYS = 300 };

struct submitted {
    uint64_t epoch, request;
    size_t n_prompt, n_emitted;
    int embed;    /* its pooling; 0: it generates */
    int n_active; /* of the leader when it came, without itself */
    float repeat_penalty;
    size_t n_bias;
    uint64_t seed;
    int constraint; /* the case of its oneof */
    char constraint_text[64];
};

struct fake_gang {
    struct mu_rpc_server *server;
    char address[64];
    _Atomic int n_launch;
    _Atomic uint64_t epoch;
    atomic_bool holds;      /* leaders compute nothing */
    atomic_bool deaf;       /* they take nothing from the coordinator */
    _Atomic int n_cancel;   /* requests that were cancelled while they ran */
    atomic_bool mute;       /* leaders are not started */
    _Atomic int32_t cached; /* of a prompt that begins with this id all but one token is in the cache; 0: none */
    _Atomic int32_t poison; /* a prompt with this id kills rank 0; 0: none */
    _Atomic int bad_vector; /* embeddings: 1: they fail, 2: they end without a vector, 3: one value too many */
    _Atomic int skip_one;   /* the next message of tokens skips a position */
    _Atomic int32_t bad_id; /* the request that would get this id next fails; 0: none */
    _Atomic int32_t says;   /* the id that everybody gets, SAYS of them a message; 0: fake_id, one a message */
    _Atomic int max_sequences;
    pthread_mutex_t lock;
    struct submitted submit[MAX_SUBMITS];
    int n_submit;
    struct leader *leader; /* these three are guarded by lock */
};

int32_t fake_id(uint64_t seed, size_t position);
float fake_logprob(uint64_t seed, size_t position); /* at most 20 of the likeliest are bytes from 'A' on */
/* Tokens of the prompt that were in its cache, of which there are two at least. */
static inline uint32_t fake_cached(uint64_t seed)
{
    return 1 + (uint32_t)(seed % 2);
}
/* Value i of the embedding of a prompt of n ids that begins with `first`. */
float fake_value(int32_t first, size_t n, size_t i);
void fake_gang_start(struct fake_gang *f);
/* The gang dies; culprit -1: nobody's fault. */
void fake_gang_kill(struct fake_gang *f, int culprit, const char *reason);
/* The leader says how many steps it has made. */
void fake_gang_count(struct fake_gang *f, uint64_t steps);
/* The worker goes without a word: its server is closed. */
void fake_gang_vanish(struct fake_gang *f);
void fake_gang_return(struct fake_gang *f);
void fake_gang_stop(struct fake_gang *f);

#endif
