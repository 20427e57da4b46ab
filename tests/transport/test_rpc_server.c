/* The gRPC wrapper: how servers and channels stop, connect, listen, and what they say about their health. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/fault.h"
#include "base/io.h"
#include "base/log.h"
#include "grpc/health/v1/health.pb-c.h"
#include "muster/v1/muster.pb-c.h"
#include "rpc_test_client.h"

/* ---- stopping ---- */

static void test_stop_with_open_streams(void **state)
{
    (void)state;
    enum { STREAMS = 8 };
    struct fixture *f = fixture_start(0);
    struct hearing h[STREAMS] = {0};
    struct mu_rpc_stream *s[STREAMS];
    for (int i = 0; i < STREAMS; i++) s[i] = generate(f->channel, i ? "hang" : "keep", 0, MU_FOREVER, &h[i]);
    for (int i = 0; i < STREAMS; i++) WAIT_FOR(atomic_load(&h[i].n_message) == 1, 5000);
    int64_t begin = mu_now_ns();
    mu_rpc_server_stop(f->server, 200);
    int64_t took = mu_now_ns() - begin;
    assert_true(took >= 190 * MU_MS && took < 2000 * MU_MS);
    assert_int_equal(atomic_load(&f->service.n_cancelled), STREAMS);
    for (int i = 0; i < STREAMS; i++) {
        WAIT_FOR(atomic_load(&h[i].n_done), 2000);
        assert_true(atomic_load(&h[i].code) != MU_RPC_OK);
        mu_rpc_stream_release(s[i]);
    }
    /* A call that a handler kept outlives the server, and knows that it is over. */
    struct mu_rpc_call *kept = atomic_load(&f->service.kept);
    Muster__V1__GenerateReply r = MUSTER__V1__GENERATE_REPLY__INIT;
    assert_int_equal(mu_rpc_call_send(kept, &r.base), MU_ECANCELLED);
    assert_true(mu_rpc_call_cancelled(kept));
    assert_int_equal(mu_rpc_call_queued(kept), 0);
    mu_rpc_call_finish(kept, MU_RPC_OK, "%s", "");
    mu_rpc_call_release(kept);
    mu_rpc_channel_close(f->channel);
    free(f);
}

static void *finish_later(void *arg)
{
    mu_sleep_ms(150);
    mu_rpc_call_finish(arg, MU_RPC_OK, "%s", "");
    return NULL;
}

static void test_stop_waits_for_calls(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct hearing h = {0}, late = {0};
    struct mu_rpc_stream *s = generate(f->channel, "keep", 0, MU_FOREVER, &h);
    WAIT_FOR(atomic_load(&f->service.kept), 5000);
    struct mu_rpc_call *kept = atomic_load(&f->service.kept);
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, finish_later, kept), 0);
    int64_t begin = mu_now_ns();
    mu_rpc_server_stop(f->server, 10000);
    int64_t took = mu_now_ns() - begin;
    assert_true(took >= 100 * MU_MS && took < 3000 * MU_MS);
    pthread_join(thread, NULL);
    mu_rpc_call_release(kept);
    WAIT_FOR(atomic_load(&h.n_done), 2000);
    assert_int_equal(atomic_load(&h.code), MU_RPC_OK);
    assert_int_equal(atomic_load(&f->service.n_cancelled), 0);
    mu_rpc_stream_release(s);
    s = generate(f->channel, "hang", 0, in_ms(200), &late); /* nobody is there any more */
    WAIT_FOR(atomic_load(&late.n_done), 6000);
    assert_true(atomic_load(&late.code) != MU_RPC_OK);
    mu_rpc_stream_release(s);
    mu_rpc_channel_close(f->channel);
    free(f);
}

static void test_close_with_open_streams(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct hearing h = {0}, waiting = {0};
    struct mu_rpc_stream *s = generate(f->channel, "hang", 0, MU_FOREVER, &h);
    WAIT_FOR(atomic_load(&h.n_message) == 1, 5000);
    mu_rpc_channel_close(f->channel);
    assert_int_equal(atomic_load(&h.n_done), 1);
    assert_int_equal(atomic_load(&h.code), MU_RPC_CANCELLED);
    mu_rpc_stream_release(s);
    WAIT_FOR(atomic_load(&f->service.n_cancelled) == 1, 1000);
    mu_rpc_server_stop(f->server, 0);
    /* One that never got a connection. */
    struct mu_err err;
    assert_int_equal(mu_rpc_channel_open(f->address, &f->channel, &err), MU_OK);
    s = generate(f->channel, "hang", 0, MU_FOREVER, &waiting);
    mu_rpc_stream_release(s); /* the callbacks still come */
    mu_sleep_ms(150);
    int64_t begin = mu_now_ns();
    mu_rpc_channel_close(f->channel);
    assert_true(mu_now_ns() - begin < 1000 * MU_MS);
    assert_int_equal(atomic_load(&waiting.n_done), 1);
    free(f);
}

static void test_unary_in_callback(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct hearing h = {.call_back = f->channel, .call_back_status = -1};
    struct mu_rpc_stream *s = generate(f->channel, "count", 1, MU_FOREVER, &h);
    WAIT_FOR(atomic_load(&h.n_done), 5000);
    assert_int_equal(atomic_load(&h.call_back_status), MU_EINVAL);
    mu_rpc_stream_release(s);
    fixture_stop(f);
}

/* ---- connections ---- */

/* A port that nobody listens on, or (accept = true) somebody who never says a word. */
static int bare_socket(bool listening, int *port_out)
{
    struct sockaddr_in sa = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof sa;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
    if (listening) assert_int_equal(listen(fd, 16), 0);
    *port_out = ntohs(sa.sin_port);
    return fd;
}

static void test_dead_address(void **state)
{
    (void)state;
    for (int silent = 0; silent < 2; silent++) {
        int port, fd = bare_socket(silent, &port);
        char address[64];
        struct mu_err err = MU_ERR_INIT;
        struct mu_rpc_channel *c;
        snprintf(address, sizeof address, "127.0.0.1:%d", port);
        assert_int_equal(mu_rpc_channel_open(address, &c, &err), MU_OK);
        int64_t begin = mu_now_ns();
        assert_int_equal(tokenize(c, "x", 1000, NULL, &err), MU_EPEER);
        int64_t took = mu_now_ns() - begin;
        assert_true(took > 500 * MU_MS && took < 1000 * MU_MS);
        assert_non_null(strstr(err.text, address));
        assert_non_null(strstr(err.text, silent ? "no answer" : "onnection refused"));

        struct hearing h = {0};
        struct mu_rpc_stream_callbacks cb = {hear_message, hear_done, &h};
        struct mu_rpc_stream *s;
        begin = mu_now_ns();
        assert_int_equal(mu_rpc_stream_open(c, GENERATE, &muster__v1__generate_reply__descriptor, 0, MU_FOREVER,
                                            in_ms(300), &cb, &s, &err),
                         MU_OK);
        WAIT_FOR(atomic_load(&h.n_done), 2000);
        took = mu_now_ns() - begin;
        assert_true(took >= 250 * MU_MS && took < 1000 * MU_MS);
        assert_int_equal(atomic_load(&h.code), MU_RPC_UNAVAILABLE);
        assert_non_null(strstr(h.text, address));
        mu_rpc_stream_release(s);
        mu_rpc_channel_close(c);
        close(fd);
    }
}

static void test_reconnect(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    struct mu_err err = MU_ERR_INIT;
    for (int round = 0; round < 2; round++) {
        assert_int_equal(tokenize(f->channel, "a", 5000, NULL, &err), MU_OK);
        mu_rpc_server_stop(f->server, 0);
        assert_int_equal(tokenize(f->channel, "a", 300, NULL, &err), MU_EPEER);
        if (test_service_start(&f->service, f->address, 0, &f->server, &err) != MU_OK) fail_msg("%s", err.text);
        int64_t begin = mu_now_ns();
        if (tokenize(f->channel, "b", 5000, NULL, &err) != MU_OK) fail_msg("%s", err.text);
        printf("first answer %.0f ms after the restart\n", (double)(mu_now_ns() - begin) / 1e6);
        assert_true(mu_now_ns() - begin < 2500 * MU_MS);
    }
    fixture_stop(f);
}

/* A server in a process of its own, which vanishes: killed (the kernel says so) or stopped (only keepalive does). */
static void server_vanishes(int sig, int within_ms)
{
    char program[512];
    ssize_t len = readlink("/proc/self/exe", program, sizeof program - 32);
    assert_true(len > 0);
    program[len] = '\0';
    strcpy(strrchr(program, '/') + 1, "rpc_test_server");
    int in[2], out[2], port = 0;
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    posix_spawn_file_actions_t fds;
    posix_spawn_file_actions_init(&fds);
    posix_spawn_file_actions_adddup2(&fds, in[0], 0);
    posix_spawn_file_actions_adddup2(&fds, out[1], 1);
    char *argv[] = {program, (char *)"127.0.0.1:0", NULL};
    pid_t pid;
    assert_int_equal(posix_spawn(&pid, program, &fds, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&fds);
    char line[32] = "", address[64];
    struct mu_err err = MU_ERR_INIT;
    for (size_t n = 0; n + 1 < sizeof line && !strchr(line, '\n'); n++) assert_int_equal(read(out[0], line + n, 1), 1);
    assert_int_equal(sscanf(line, "port %d", &port), 1);
    snprintf(address, sizeof address, "127.0.0.1:%d", port);

    struct mu_rpc_channel *c;
    struct hearing h = {0};
    assert_int_equal(mu_rpc_channel_open(address, &c, &err), MU_OK);
    struct mu_rpc_stream *s = generate(c, "hang", 0, MU_FOREVER, &h);
    WAIT_FOR(atomic_load(&h.n_message) == 1, 5000);
    int64_t begin = mu_now_ns();
    kill(pid, sig);
    WAIT_FOR(atomic_load(&h.n_done), within_ms);
    printf("server gone by signal %d: noticed after %.0f ms\n", sig, (double)(mu_now_ns() - begin) / 1e6);
    assert_int_equal(atomic_load(&h.code), MU_RPC_UNAVAILABLE);
    mu_rpc_stream_release(s);
    mu_rpc_channel_close(c);
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    for (int i = 0; i < 2; i++) close(in[i]), close(out[i]);
}

static void test_server_vanishes(void **state)
{
    (void)state;
    server_vanishes(SIGKILL, 1000);
    server_vanishes(SIGSTOP, 6000);
}

/* ---- listening ---- */

static void expect_no_start(const char *address, enum mu_status st, const char *text)
{
    struct test_service service = {0};
    struct mu_rpc_server *server = NULL;
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(test_service_start(&service, address, 0, &server, &err), st);
    if (!strstr(err.text, text)) fail_msg("\"%s\" lacks \"%s\"", err.text, text);
    assert_null(server);
}

/* What gRPC would take for another port, or ask a name server about. */
static void test_no_addresses(void **state)
{
    (void)state;
    static const char *const address[] = {"",
                                          "127.0.0.1",
                                          "127.0.0.1:",
                                          "127.0.0.1:0",
                                          "127.0.0.1:65536",
                                          "127.0.0.1:+7",
                                          "127.0.0.1:7x",
                                          "::1",
                                          "::1:7400",
                                          "[::1]",
                                          "[]:7400",
                                          ":7400",
                                          "[::1:7400",
                                          "dns:///a:7400",
                                          "[",
                                          "127.0.0.1:1,127.0.0.1:2",
                                          "127.0.0.1:99999999999999999999"};
    for (size_t i = 0; i < sizeof address / sizeof *address; i++) {
        struct mu_rpc_channel *c;
        struct mu_err err = MU_ERR_INIT;
        if (mu_rpc_channel_open(address[i], &c, &err) != MU_EINVAL) fail_msg("\"%s\" was taken", address[i]);
        assert_non_null(strstr(err.text, "expected HOST:PORT"));
    }
    static const char *const right[] = {"localhost:65535", "[::1]:1", "127.0.0.1:007400"};
    for (size_t i = 0; i < sizeof right / sizeof *right; i++) {
        struct mu_rpc_channel *c;
        struct mu_err err = MU_ERR_INIT;
        if (mu_rpc_channel_open(right[i], &c, &err) != MU_OK) fail_msg("%s", err.text);
        mu_rpc_channel_close(c);
    }
}

static void test_listen_errors(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    char expected[160];
    snprintf(expected, sizeof expected, "cannot listen on %s: address already in use; choose another with --listen",
             f->address);
    expect_no_start(f->address, MU_EBUSY, expected);
    int port, fd = bare_socket(true, &port); /* not one of ours */
    snprintf(expected, sizeof expected, "127.0.0.1:%d", port);
    expect_no_start(expected, MU_EBUSY, "already in use");
    close(fd);
    expect_no_start("127.0.0.1", MU_EINVAL, "expected HOST:PORT");
    expect_no_start("127.0.0.1:70000", MU_EINVAL, "expected HOST:PORT");
    expect_no_start("127.0.0.1:x", MU_EINVAL, "expected HOST:PORT");
    expect_no_start("::1:7400", MU_EINVAL, "[IPv6]:PORT");
    expect_no_start("192.0.2.1:7400", MU_EIO, "192.0.2.1:7400");
    expect_no_start("", MU_EINVAL, "expected HOST:PORT");
    assert_int_equal(tokenize(f->channel, "x", 5000, NULL, NULL), MU_OK); /* the first one is unharmed */
    fixture_stop(f);
}

static void test_unix_socket(void **state)
{
    (void)state;
    char *dir, address[200], longer[300];
    struct mu_err err = MU_ERR_INIT;
    assert_int_equal(mu_run_dir_create(&dir, &err), MU_OK);
    snprintf(address, sizeof address, "unix:%s/s.sock", dir);
    /* A socket that its process left behind. */
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    assert_true(strlen(address + 5) < sizeof sa.sun_path);
    strcpy(sa.sun_path, address + 5);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof sa), 0);
    assert_int_equal(listen(fd, 1), 0);
    expect_no_start(address, MU_EBUSY, "another process does");
    close(fd);
    struct test_service service = {0};
    struct mu_rpc_server *server;
    if (test_service_start(&service, address, 0, &server, &err) != MU_OK) fail_msg("%s", err.text);
    struct mu_rpc_channel *c;
    assert_int_equal(mu_rpc_channel_open(address, &c, &err), MU_OK);
    if (tokenize(c, "over unix", 5000, NULL, &err) != MU_OK) fail_msg("%s", err.text);
    expect_no_start(address, MU_EBUSY, "another process does");
    assert_int_equal(tokenize(c, "still there", 5000, NULL, &err), MU_OK);
    mu_rpc_channel_close(c);
    mu_rpc_server_stop(server, 100);
    assert_int_not_equal(access(address + 5, F_OK), 0); /* removed */
    FILE *file = fopen(address + 5, "w");
    fclose(file);
    expect_no_start(address, MU_EBUSY, "no socket");
    snprintf(longer, sizeof longer, "unix:%s/%0150d", dir, 0);
    expect_no_start(longer, MU_EINVAL, "1 to 107 bytes");
    snprintf(longer, sizeof longer, "unix:%s/none/s.sock", dir);
    expect_no_start(longer, MU_EIO, "No such file");
    mu_run_dir_remove(dir);
    mu_free(dir);
}

/* What means something in a URI is part of a path's name like anything else, but for the comma, which gRPC splits at. */
static void test_unix_names(void **state)
{
    (void)state;
    static const char *const name[] = {
        "%41", "a?b", "a#b", "a[5].b", "a:b", "\xC3\xA9", "a;b&c=d+e@f!$'()*\"<>^`{|}\\"};
    char *dir, address[200];
    struct mu_err err = MU_ERR_INIT;
    struct mu_rpc_channel *c;
    assert_int_equal(mu_run_dir_create(&dir, &err), MU_OK);
    for (size_t i = 0; i < sizeof name / sizeof *name; i++) {
        struct test_service service = {0};
        struct mu_rpc_server *server;
        snprintf(address, sizeof address, "unix:%s/%s", dir, name[i]);
        if (test_service_start(&service, address, 0, &server, &err) != MU_OK) fail_msg("%s", err.text);
        assert_int_equal(access(address + 5, F_OK), 0);
        assert_int_equal(mu_rpc_channel_open(address, &c, &err), MU_OK);
        assert_string_equal(mu_rpc_channel_address(c), address);
        if (tokenize(c, "x", 5000, NULL, &err) != MU_OK) fail_msg("%s", err.text);
        mu_rpc_channel_close(c);
        mu_rpc_server_stop(server, 100);
        assert_int_not_equal(access(address + 5, F_OK), 0);
    }
    assert_int_equal(mu_rpc_channel_open("unix:/tmp/a,b", &c, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "comma"));
    mu_run_dir_remove(dir);
    mu_free(dir);
}

/* One server on several addresses, and host names. */
static void test_addresses(void **state)
{
    (void)state;
    char *dir, both[300], address[2][200];
    struct mu_err err = MU_ERR_INIT;
    struct test_service service = {0};
    struct mu_rpc_server *server;
    assert_int_equal(mu_run_dir_create(&dir, &err), MU_OK);
    snprintf(address[1], sizeof address[1], "unix:%s/s.sock", dir);
    snprintf(both, sizeof both, "localhost:0 %s", address[1]);
    if (test_service_start(&service, both, 0, &server, &err) != MU_OK) fail_msg("%s", err.text);
    assert_true(mu_rpc_server_port(server, 0) > 0);
    assert_int_equal(mu_rpc_server_port(server, 2), 0);
    snprintf(address[0], sizeof address[0], "localhost:%d", mu_rpc_server_port(server, 0));
    for (int i = 0; i < 2; i++) {
        struct mu_rpc_channel *c;
        assert_int_equal(mu_rpc_channel_open(address[i], &c, &err), MU_OK);
        assert_string_equal(mu_rpc_channel_address(c), address[i]);
        if (tokenize(c, "x", 5000, NULL, &err) != MU_OK) fail_msg("%s", err.text);
        mu_rpc_channel_close(c);
    }
    mu_rpc_server_stop(server, 100);
    mu_run_dir_remove(dir);
    mu_free(dir);
}

/* ---- threads that cannot be started ---- */

#ifdef MUSTER_FAULTS
/* A thread cannot be started: a clear error soon, and not a server that waits for a queue nobody polls. */
static void test_thread_failures(void **state)
{
    (void)state;
    struct test_service service = {0};
    struct mu_rpc_server *server = NULL;
    struct mu_err err = MU_ERR_INIT;
    struct mu_rpc_channel *c = NULL;
    setenv("MUSTER_FAULT", "rpc.thread:1", 1);
    assert_int_equal(mu_fault_init(-1, &err), MU_OK);
    int64_t begin = mu_now_ns();
    assert_int_equal(test_service_start(&service, "127.0.0.1:0", 0, &server, &err), MU_ENOMEM);
    assert_true(mu_now_ns() - begin < 3 * MU_SEC);
    assert_null(server);
    assert_non_null(strstr(err.text, "cannot start a thread for gRPC"));
    setenv("MUSTER_FAULT", "rpc.thread:1", 1);
    assert_int_equal(mu_fault_init(-1, &err), MU_OK);
    assert_int_equal(mu_rpc_channel_open("127.0.0.1:1", &c, &err), MU_ENOMEM);
    assert_null(c);
    unsetenv("MUSTER_FAULT");
    assert_int_equal(mu_fault_init(-1, &err), MU_OK);
    struct fixture *f = fixture_start(0);
    assert_int_equal(tokenize(f->channel, "x", 5000, NULL, NULL), MU_OK);
    fixture_stop(f);
}
#endif

/* ---- memory ---- */

/* The n-th allocation fails, for every n until all goes well: an error or an answer, never a crash or a leak. */
static void test_allocation_failures(void **state)
{
    (void)state;
    enum { MOST = 400 };
    bool well = false;
    int n_failed_start = 0, n_failed_call = 0;
    for (int n = 1; n < MOST && !well; n++) {
        struct test_service service = {0};
        struct mu_rpc_server *server = NULL;
        struct mu_rpc_channel *channel = NULL;
        struct mu_err err = MU_ERR_INIT;
        char address[64];
        mu_alloc_fail_at(n);
        enum mu_status st = test_service_start(&service, "127.0.0.1:0", 0, &server, &err);
        if (st != MU_OK) {
            assert_int_equal(st, MU_ENOMEM);
            assert_null(server);
            n_failed_start++;
            continue;
        }
        snprintf(address, sizeof address, "127.0.0.1:%d", mu_rpc_server_port(server, 0));
        st = mu_rpc_channel_open(address, &channel, &err);
        if (st == MU_OK) st = tokenize(channel, "a text", 2000, NULL, &err);
        if (st != MU_OK) {
            assert_true(st == MU_ENOMEM || st == MU_ELIMIT ||
                        st == MU_EPROTO); /* not MU_EINVAL: it is not the request */
            n_failed_call++;
        }
        long left = mu_alloc_fail_at(0);
        well = st == MU_OK && left < n; /* fewer were made than it takes to fail */
        mu_rpc_channel_close(channel);
        mu_rpc_server_stop(server, 0);
    }
    mu_alloc_fail_at(0);
    assert_true(well);
    assert_true(n_failed_start >= 5 && n_failed_call >= 5);
}

/* ---- health ---- */

struct health_log {
    atomic_int n;
    atomic_int status[16];
    atomic_int done;
};

static void health_message(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    (void)s;
    struct health_log *log = ctx;
    int n = atomic_load(&log->n);
    if (n < 16) atomic_store(&log->status[n], (int)((const Grpc__Health__V1__HealthCheckResponse *)msg)->status);
    atomic_store(&log->n, n + 1);
}

static void health_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s;
    (void)code;
    (void)text;
    atomic_store(&((struct health_log *)ctx)->done, 1);
}

static enum mu_status check_health(struct mu_rpc_channel *c, const char *service, int *status_out)
{
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    q.service = (char *)service;
    ProtobufCMessage *reply;
    enum mu_status st = mu_rpc_unary(c, "/grpc.health.v1.Health/Check", &q.base,
                                     &grpc__health__v1__health_check_response__descriptor, in_ms(5000), &reply, NULL);
    if (st != MU_OK) return st;
    *status_out = (int)((const Grpc__Health__V1__HealthCheckResponse *)reply)->status;
    mu_rpc_message_free(reply);
    return MU_OK;
}

static void test_health(void **state)
{
    (void)state;
    struct fixture *f = fixture_start(0);
    int status;
    assert_int_equal(check_health(f->channel, "", &status), MU_OK);
    assert_int_equal(status, 2); /* whoever asks early is not sent here before it is said */
    mu_rpc_server_set_health(f->server, "", true);
    assert_int_equal(check_health(f->channel, "", &status), MU_OK);
    assert_int_equal(status, 1);
    assert_int_equal(check_health(f->channel, "muster.v1.Muster", &status), MU_ENOENT);
    struct health_log log = {0};
    struct mu_rpc_stream_callbacks cb = {health_message, health_done, &log};
    struct mu_rpc_stream *s;
    struct mu_err err;
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    q.service = (char *)"muster.v1.Muster";
    assert_int_equal(mu_rpc_stream_open(f->channel, "/grpc.health.v1.Health/Watch",
                                        &grpc__health__v1__health_check_response__descriptor, 0, MU_FOREVER,
                                        in_ms(5000), &cb, &s, &err),
                     MU_OK);
    assert_int_equal(mu_rpc_stream_send(s, &q.base), MU_OK);
    mu_rpc_stream_half_close(s);
    WAIT_FOR(atomic_load(&log.n) == 1, 5000);
    mu_rpc_server_set_health(f->server, "muster.v1.Muster", true);
    mu_rpc_server_set_health(f->server, "muster.v1.Muster", true); /* no news */
    mu_rpc_server_set_health(f->server, "other", true);
    mu_rpc_server_set_health(f->server, "muster.v1.Muster", false);
    WAIT_FOR(atomic_load(&log.n) == 3, 5000);
    assert_int_equal(check_health(f->channel, "muster.v1.Muster", &status), MU_OK);
    assert_int_equal(status, 2);
    mu_rpc_server_set_health(f->server, "muster.v1.Muster", true);
    WAIT_FOR(atomic_load(&log.n) == 4, 5000);
    mu_rpc_server_stop(f->server, 5000); /* ends the watch itself: no need for the grace */
    WAIT_FOR(atomic_load(&log.done), 1000);
    static const int expected[] = {3, 1, 2, 1, 2}; /* unknown, serving, not, serving, stopping */
    assert_int_equal(atomic_load(&log.n), 5);
    for (int i = 0; i < 5; i++) assert_int_equal(atomic_load(&log.status[i]), expected[i]);
    mu_rpc_stream_release(s);
    mu_rpc_channel_close(f->channel);
    free(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop_with_open_streams),
        cmocka_unit_test(test_stop_waits_for_calls),
        cmocka_unit_test(test_close_with_open_streams),
        cmocka_unit_test(test_unary_in_callback),
        cmocka_unit_test(test_dead_address),
        cmocka_unit_test(test_reconnect),
        cmocka_unit_test(test_server_vanishes),
        cmocka_unit_test(test_no_addresses),
        cmocka_unit_test(test_listen_errors),
        cmocka_unit_test(test_unix_socket),
        cmocka_unit_test(test_unix_names),
        cmocka_unit_test(test_addresses),
#ifdef MUSTER_FAULTS
        cmocka_unit_test(test_thread_failures),
#endif
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_health),
    };
    mu_log_init("test_rpc_server");
    return cmocka_run_group_tests(tests, NULL, NULL); /* gRPC starts and ends with each test */
}
