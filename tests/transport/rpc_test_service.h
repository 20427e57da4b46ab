/* Muster's messages with made-up services behind them, for the tests of the gRPC wrapper and for foreign clients.
 *
 *   Tokenize    one id per byte of the text, that byte; text "hang" is never answered; "twice" ends with NOT_FOUND, and
 *               what comes after must not count
 *   Detokenize  the bytes that the ids are, valid UTF-8 or not
 *   Generate    by prompt text: "count": max_tokens replies with seed 0, 1, 2 …, then OK; "hang": one reply, no more;
 *               "flood": replies of 64 KiB until the queue is full, then OK; "abort": one reply, then ABORTED;
 *               "keep": as hang, and the call is kept
 *   Attach      each EngineUp is answered by an EngineDown of its epoch; half-close ends it */
#ifndef MU_TESTS_RPC_TEST_SERVICE_H
#define MU_TESTS_RPC_TEST_SERVICE_H

#include <stdatomic.h>

#include "transport/rpc.h"

struct test_service {
    atomic_int n_started, n_done, n_cancelled;
    atomic_int n_flooded;             /* replies that "flood" could queue */
    atomic_long max_queued;           /* bytes, as mu_rpc_call_queued said */
    atomic_llong cancelled_at_ns;     /* when the last cancel was seen */
    struct mu_rpc_call *_Atomic kept; /* "keep": the test releases it */
};

enum { TEST_UNREAD_BYTES = 8 << 20 }; /* max_unread_bytes of the server */

/* Starts a server of all this with health and reflection. address: one or, with a space between, two. limit_bytes: of
 * Tokenize requests, 0 = default. */
enum mu_status test_service_start(struct test_service *t, const char *address, size_t limit_bytes,
                                  struct mu_rpc_server **server_out, struct mu_err *err);

#endif
