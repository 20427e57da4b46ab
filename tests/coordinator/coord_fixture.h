/* What the coordinator's tests share: a vocabulary of single bytes, clients that write down what they are told, waiting.
 */
#ifndef MU_TESTS_COORD_FIXTURE_H
#define MU_TESTS_COORD_FIXTURE_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "model/tokenizer.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"

/* A condition that another thread brings about, within ms on an idle machine: others may use this one. */
enum { BUSY = 10 };
#define WAIT_FOR(condition, ms)                                                     \
    do {                                                                            \
        int64_t until_ = mu_now_ns() + BUSY * (ms)*MU_MS;                           \
        while (!(condition) && mu_now_ns() < until_) mu_sleep_ms(1);                \
        if (!(condition)) fail_msg("not within %d ms: %s", BUSY *(ms), #condition); \
    } while (0)

/* 0 <unk>, 1 <s>, 2 </s>, then every byte, then longer ones. */
enum { ID_END = 2, ID_BYTE = 3, ID_XYZ = 259, ID_LONG = 260, N_VOCAB = 261, LONG_BYTES = 8000 };
#define B(c) (ID_BYTE + (unsigned char)(c))

struct vocabulary {
    struct mu_gguf *gguf;
    struct mu_tokenizer *tok;
};
void vocabulary_open(struct vocabulary *v);
void vocabulary_close(struct vocabulary *v);

enum { CLIENT_TEXT = 1 << 20, CLIENT_IDS = 4096 };

enum { CHOICES = 4, CHOICE_IDS = 1024 };
struct client_choice { /* what came of one of several completions */
    int32_t ids[CHOICE_IDS];
    float logprob[CHOICE_IDS];
    int32_t last_top; /* the least likely one told with the newest id */
    size_t n_ids, n_logprob, n_top, n_wrong;
    char text[CHOICE_IDS];
    Muster__V1__Finish finish;
};

struct client { /* fields under lock until done */
    pthread_mutex_t lock;
    struct mu_rpc_stream *stream;
    char text[CLIENT_TEXT];
    size_t n_text;
    int32_t ids[CLIENT_IDS];
    size_t n_ids;
    _Atomic int n_reply; /* read by the test at any time */
    int n_finish, after_finish, n_usage;
    uint32_t n_choice; /* asked for */
    struct client_choice choice[CHOICES];
    char request_id[32];
    uint64_t seed;
    Muster__V1__Finish finish;
    uint32_t prompt_tokens, completion_tokens, cached_tokens, resumed;
    atomic_bool reads;   /* false: it does not take the next message */
    atomic_int rests_ms; /* after each message */
    atomic_bool done;
    enum mu_rpc_code code;
    char status[1024];
};
struct client *client_start(struct mu_rpc_channel *c, const Muster__V1__GenerateRequest *q, int64_t deadline_ns,
                            bool reads);
void client_wait(struct client *c, int ms);
void client_free(struct client *c);
size_t client_ids(struct client *c); /* how many so far */

#endif
