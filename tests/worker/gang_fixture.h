/* A worker process, an Engine server inside the test, and what became of requests and gangs: for tests of real gangs.
 *
 * Callbacks on gRPC's threads write under `lock`; the test's thread waits on `changed`, always with a deadline. */
#ifndef MU_TESTS_GANG_FIXTURE_H
#define MU_TESTS_GANG_FIXTURE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "muster/v1/internal.pb-c.h"
#include "shard/split.h"
#include "transport/rpc.h"

enum { FX_REQUESTS = 8, FX_PROMPT = 40, FX_TOKENS = 48, FX_WAIT_S = 90 };

struct fx_request {
    int32_t prompt[FX_PROMPT], want[FX_TOKENS], got[FX_TOKENS];
    uint32_t n_prompt, n_got;
    float temperature;
    uint64_t seed;
    bool finished;
    uint32_t error_code;
    char error[200];
};

struct fixture {
    char dir[64], worker_address[128], engine_address[128], model[512];
    pid_t worker;
    struct mu_rpc_server *server;
    struct mu_rpc_channel *channel; /* to the worker */
    struct mu_rpc_stream *events;
    uint8_t secret[32];

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct mu_rpc_call *engine; /* the attached leader */
    uint64_t epoch;
    uint32_t kv_pages, step_tokens; /* of gangs started from now on; 0: 64 tokens, all the pages wanted */
    int bad_attach;
    struct fx_request req[FX_REQUESTS];
    uint64_t n_token; /* all that came */
    bool launched, ready, died, done;
    int mpirun_pid, n_rank, rank_pid[MU_MAX_RANKS], leader;
    int culprit, permanent;
    char reason[512];
    enum mu_rpc_code done_code;
    char done_text[256];
    uint64_t loaded_bytes;
};

/* The worker and the Engine server; path_env NULL: the PATH we have. */
void fx_open(struct fixture *f, const char *path_env);
void fx_close(struct fixture *f);
/* SIGTERM; its exit status within 10 s, else the test fails. */
int fx_worker_end(struct fixture *f, int sig);

/* What mu_solo says for every request: filled into want. */
void fx_expect(struct fixture *f);
void fx_requests_reset(struct fixture *f);

/* Each waits until the deadline of FX_WAIT_S and fails the test where it does not come. */
void fx_gang_start(struct fixture *f, uint64_t epoch, const char *split, const char *model);
void fx_wait_launched(struct fixture *f);
void fx_wait_ready(struct fixture *f);
void fx_wait_died(struct fixture *f);
void fx_submit(struct fixture *f, int i); /* with what it has got so far as emitted */
void fx_cancel(struct fixture *f, int i);
void fx_wait_tokens(struct fixture *f, uint64_t n_more);
void fx_wait_finished(struct fixture *f, int i);
void fx_check(struct fixture *f, int i); /* got is want */
bool fx_alive(int pid);                  /* and not a zombie that its new parent has not looked at yet */
int fx_children(int pid);                /* how many, zombies too */
/* No process of the gang is there any more, and the worker has no child left, not even a zombie; fails otherwise. */
void fx_nothing_left(struct fixture *f);
/* The events' stream is released and its state forgotten; after died. */
void fx_gang_forget(struct fixture *f);

#endif
