/* What calls cost here: rpc_bench [STREAMS [MESSAGES_A_SECOND [SECONDS]]], default 64 100 5. Unary calls one after
 * another, then paced streams: one thread sends a message on every stream each period, as a gang that decodes a batch
 * does; each message carries the time at which it was sent. Server and client share the process. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/log.h"
#include "muster/v1/muster.pb-c.h"
#include "transport/rpc.h"

enum { MAX_STREAMS = 4096, MAX_SAMPLES = 4 << 20 };

static struct mu_rpc_call *call[MAX_STREAMS];
static atomic_int n_call, n_done;
static float *sample_us;
static int n_sample; /* the channel's poll thread */

static void on_generate(struct mu_rpc_call *c, const ProtobufCMessage *msg, void *ctx)
{
    (void)msg, (void)ctx;
    call[atomic_load(&n_call)] = mu_rpc_call_retain(c);
    atomic_fetch_add(&n_call, 1);
}

static void on_tokenize(struct mu_rpc_call *c, const ProtobufCMessage *msg, void *ctx)
{
    (void)msg, (void)ctx;
    Muster__V1__TokenizeReply r = MUSTER__V1__TOKENIZE_REPLY__INIT;
    mu_rpc_call_reply(c, &r.base);
}

static void on_message(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    (void)s, (void)ctx;
    int64_t sent = (int64_t)((const Muster__V1__GenerateReply *)msg)->seed;
    if (n_sample < MAX_SAMPLES) sample_us[n_sample++] = (float)(mu_now_ns() - sent) / 1e3f;
}

static void on_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s, (void)ctx;
    if (code != MU_RPC_OK) fprintf(stderr, "stream ended: %s %s\n", mu_rpc_code_name(code), text);
    atomic_fetch_add(&n_done, 1);
}

static double cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int by_value(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_samples(const char *what)
{
    qsort(sample_us, (size_t)n_sample, sizeof *sample_us, by_value);
    if (n_sample)
        printf("%s: %d, p50 %.0f us, p99 %.0f us, max %.0f us\n", what, n_sample, (double)sample_us[n_sample / 2],
               (double)sample_us[(long)n_sample * 99 / 100], (double)sample_us[n_sample - 1]);
    n_sample = 0;
}

static int bench_unary(struct mu_rpc_channel *c)
{
    Muster__V1__TokenizeRequest q = MUSTER__V1__TOKENIZE_REQUEST__INIT;
    struct mu_err err = MU_ERR_INIT;
    for (int i = 0; i < 5000; i++) {
        ProtobufCMessage *reply;
        int64_t begin = mu_now_ns();
        if (mu_rpc_unary(c, "/muster.v1.Muster/Tokenize", &q.base, &muster__v1__tokenize_reply__descriptor,
                         begin + 5 * MU_SEC, &reply, &err) != MU_OK) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        mu_rpc_message_free(reply);
        if (i >= 100) sample_us[n_sample++] = (float)(mu_now_ns() - begin) / 1e3f;
    }
    print_samples("unary");
    return 0;
}

static int bench_streams(struct mu_rpc_channel *c, int n_stream, int rate, int seconds)
{
    struct mu_rpc_stream_callbacks cb = {on_message, on_done, NULL};
    static struct mu_rpc_stream *stream[MAX_STREAMS];
    struct mu_err err = MU_ERR_INIT;
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    for (int i = 0; i < n_stream; i++) {
        if (mu_rpc_stream_open(c, "/muster.v1.Muster/Generate", &muster__v1__generate_reply__descriptor, 0, MU_FOREVER,
                               mu_now_ns() + 5 * MU_SEC, &cb, &stream[i], &err) != MU_OK)
            return 1;
        mu_rpc_stream_send(stream[i], &q.base);
        mu_rpc_stream_half_close(stream[i]);
    }
    while (atomic_load(&n_call) < n_stream) mu_sleep_ms(1);
    Muster__V1__GenerateReply r = MUSTER__V1__GENERATE_REPLY__INIT;
    r.text = (char *)" token";
    double cpu = cpu_s();
    int64_t begin = mu_now_ns();
    for (long k = 0; k < (long)rate * seconds; k++) {
        int64_t due = begin + k * MU_SEC / rate;
        while (mu_now_ns() < due) mu_sleep_ms(1);
        for (int i = 0; i < n_stream; i++) {
            r.seed = (uint64_t)mu_now_ns();
            mu_rpc_call_send(call[i], &r.base);
        }
    }
    for (int i = 0; i < n_stream; i++) {
        mu_rpc_call_finish(call[i], MU_RPC_OK, "%s", "");
        mu_rpc_call_release(call[i]);
    }
    while (atomic_load(&n_done) < n_stream) mu_sleep_ms(1);
    double wall = (double)(mu_now_ns() - begin) / 1e9;
    for (int i = 0; i < n_stream; i++) mu_rpc_stream_release(stream[i]);
    printf("%d streams x %d messages/s for %.2f s: %.0f%% of a core, server and client together\n", n_stream, rate,
           wall, (cpu_s() - cpu) / wall * 100);
    print_samples("messages");
    return 0;
}

int main(int argc, char **argv)
{
    int n_stream = argc > 1 ? atoi(argv[1]) : 64, rate = argc > 2 ? atoi(argv[2]) : 100;
    int seconds = argc > 3 ? atoi(argv[3]) : 5;
    const char *const addresses[] = {"127.0.0.1:0", NULL};
    const struct mu_rpc_method methods[] = {
        {.path = "/muster.v1.Muster/Generate",
         .request = &muster__v1__generate_request__descriptor,
         .on_message = on_generate},
        {.path = "/muster.v1.Muster/Tokenize",
         .request = &muster__v1__tokenize_request__descriptor,
         .on_message = on_tokenize},
    };
    const struct mu_rpc_server_options opt = {.addresses = addresses, .methods = methods, .n_method = 2};
    struct mu_rpc_server *server;
    struct mu_rpc_channel *channel;
    struct mu_err err = MU_ERR_INIT;
    char address[64];
    sample_us = malloc(MAX_SAMPLES * sizeof *sample_us);
    if (n_stream < 1 || n_stream > MAX_STREAMS || rate < 1 || seconds < 1 || !sample_us) return 2;
    if (mu_rpc_server_start(&opt, &server, &err) != MU_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    snprintf(address, sizeof address, "127.0.0.1:%d", mu_rpc_server_port(server, 0));
    if (mu_rpc_channel_open(address, &channel, &err) != MU_OK) return 1;
    int rc = bench_unary(channel);
    if (rc == 0) rc = bench_streams(channel, n_stream, rate, seconds);
    mu_rpc_channel_close(channel);
    mu_rpc_server_stop(server, 100);
    free(sample_us);
    return rc;
}
