/* A server and a channel to it in one process, and streams that write down what they hear. */
#ifndef MU_TESTS_RPC_TEST_CLIENT_H
#define MU_TESTS_RPC_TEST_CLIENT_H

#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/clock.h"
#include "rpc_test_service.h"

#define TOKENIZE "/muster.v1.Muster/Tokenize"
#define GENERATE "/muster.v1.Muster/Generate"
#define ATTACH   "/muster.internal.v1.Engine/Attach"

int64_t in_ms(int ms);

/* A condition that another thread brings about. */
#define WAIT_FOR(condition, ms)                                               \
    do {                                                                      \
        int64_t until_ = in_ms(ms);                                           \
        while (!(condition) && mu_now_ns() < until_) mu_sleep_ms(1);          \
        if (!(condition)) fail_msg("not within %d ms: %s", (ms), #condition); \
    } while (0)

struct fixture {
    struct test_service service;
    struct mu_rpc_server *server;
    struct mu_rpc_channel *channel;
    char address[64];
};

struct fixture *fixture_start(size_t limit_bytes);
/* Also checks that every call that began has ended. */
void fixture_stop(struct fixture *f);

/* Checks the answer. */
enum mu_status tokenize(struct mu_rpc_channel *c, const char *text, int ms, size_t *n_out, struct mu_err *err);

struct hearing {
    atomic_int n_message, n_done;
    atomic_int wrong; /* seeds out of order, messages after the end */
    atomic_int code;
    char text[1024];
    sem_t *gate;                      /* if set, each message waits for it */
    struct mu_rpc_channel *call_back; /* if set, each message makes a unary call over it */
    atomic_int call_back_status;
};

void hear_message(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx);
void hear_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx);
struct mu_rpc_stream *open_stream(struct mu_rpc_channel *c, const char *path, const ProtobufCMessageDescriptor *type,
                                  size_t max_bytes, int64_t deadline_ns, struct hearing *h);
struct mu_rpc_stream *generate(struct mu_rpc_channel *c, const char *kind, uint32_t n, int64_t deadline_ns,
                               struct hearing *h);

#endif
