#include "hub_fixture.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

void tell_worker(struct world *w, enum mu_event_kind kind)
{
    struct mu_event ev = {.kind = kind, .text = "the worker was killed by the test"};
    assert_int_equal(mu_hub_post(&w->hub, &ev), MU_OK);
}

struct world *world_open(const struct world_options *o)
{
    struct world *w = calloc(1, sizeof *w);
    struct mu_hub *h = &w->hub;
    struct mu_err err = MU_ERR_INIT;
    struct mu_rpc_method methods[16], engine[4];
    char address[128];
    mu_rpc_init();
    vocabulary_open(&w->v);
    snprintf(w->model.name, sizeof w->model.name, "fake");
    w->model.cfg.n_vocab = N_VOCAB;
    w->model.cfg.d_model = FAKE_D_MODEL;
    w->model.cfg.pooling = MU_POOL_MEAN;
    w->opt = (struct mu_serve_options){
        .model_path = "/nowhere/fake.gguf", .max_waiting = o->max_waiting, .unread_timeout_ms = o->unread_timeout_ms};
    h->opt = &w->opt;
    h->model = &w->model;
    h->tok = w->v.tok;
    h->serving.n_ctx = 2000;
    h->started_ns = mu_now_ns();
    h->gang.epoch = 1000;
    memset(h->gang.secret, 7, sizeof h->gang.secret);
    snprintf(h->engine_address, sizeof h->engine_address, "unix:/tmp/mu-fake-engine-%d", (int)getpid());
    h->outcome_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(mu_queue_create(MU_HUB_EVENTS, &h->events, &err), MU_OK);
    assert_int_equal(mu_queue_create(mu_hub_places(MU_HUB_TEXTS, MU_PRIORITY_INTERACTIVE), &h->texts, &err), MU_OK);
    const char *front[] = {"127.0.0.1:0", NULL}, *internal[] = {h->engine_address, NULL};
    struct mu_rpc_server_options fo = {
        .addresses = front, .methods = methods, .n_method = mu_front_methods(h, methods, 16)};
    struct mu_rpc_server_options io = {
        .addresses = internal, .methods = engine, .n_method = mu_engine_methods(h, engine, 4)};
    methods[0].max_queued_bytes = o->client_queue_bytes;
    engine[0].max_queued_bytes = o->engine_queue_bytes;
    if (mu_rpc_server_start(&fo, &w->front, &err) || mu_rpc_server_start(&io, &w->internal, &err))
        fail_msg("%s", err.text);
    h->front = w->front;
    fake_gang_start(&w->gang);
    atomic_store(&w->gang.max_sequences, o->max_sequences);
    assert_int_equal(mu_rpc_channel_open(w->gang.address, &h->worker, &err), MU_OK);
    snprintf(address, sizeof address, "127.0.0.1:%d", mu_rpc_server_port(w->front, 0));
    assert_int_equal(mu_rpc_channel_open(address, &w->channel, &err), MU_OK);
    return w;
}

void world_run_texts(struct world *w)
{
    assert_int_equal(pthread_create(&w->text_thread, NULL, mu_text_main, &w->hub), 0);
}

void world_run_hub(struct world *w)
{
    assert_int_equal(pthread_create(&w->hub_thread, NULL, mu_hub_main, &w->hub), 0);
    tell_worker(w, MU_EV_WORKER_UP);
}

struct world *world_start(int max_waiting, int max_sequences)
{
    struct world *w = world_open(&(struct world_options){.max_waiting = max_waiting, .max_sequences = max_sequences});
    world_run_texts(w);
    world_run_hub(w);
    return w;
}

void world_stop(struct world *w)
{
    struct mu_event ev = {.kind = MU_EV_STOP};
    struct mu_hub *h = &w->hub;
    assert_int_equal(mu_hub_post(h, &ev), MU_OK);
    pthread_join(w->hub_thread, NULL);
    assert_null(h->requests);
    assert_int_equal(h->n_waiting + h->n_returned + h->n_running, 0);
    for (int i = 0; i < MU_PRIORITY_COUNT; i++) assert_int_equal(h->fair.n_user[i], 0);
    mu_queue_close(h->texts);
    pthread_join(w->text_thread, NULL);
    assert_int_equal(atomic_load(&h->n_texts) + atomic_load(&h->texts_bytes), 0);
    fake_gang_stop(&w->gang);
    mu_rpc_channel_close(w->channel);
    mu_rpc_server_stop(w->front, 100);
    mu_rpc_server_stop(w->internal, 0);
    mu_rpc_channel_close(h->worker);
    mu_queue_destroy(h->events, mu_event_free);
    mu_queue_destroy(h->texts, mu_text_job_free);
    close(h->outcome_fd);
    vocabulary_close(&w->v);
    mu_rpc_shutdown();
    free(w);
}

struct client *ask_as(struct world *w, Muster__V1__Priority priority, const char *key, size_t n_prompt,
                      int32_t prompt_id, uint32_t n, uint64_t seed, int64_t deadline_ns)
{
    Muster__V1__GenerateRequest q = MUSTER__V1__GENERATE_REQUEST__INIT;
    Muster__V1__Ids ids = MUSTER__V1__IDS__INIT;
    Muster__V1__Sampling s = MUSTER__V1__SAMPLING__INIT;
    int32_t prompt[100];
    for (size_t i = 0; i < n_prompt; i++) prompt[i] = prompt_id;
    ids.n_id = n_prompt;
    ids.id = prompt;
    s._seed_case = MUSTER__V1__SAMPLING___SEED_SEED;
    s.seed = seed;
    q.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS;
    q.ids = &ids;
    q.sampling = &s;
    q.max_tokens = n;
    q.return_ids = q.ignore_end = true;
    q.priority = priority;
    q.key = (char *)key;
    return client_start(w->channel, &q, deadline_ns, true);
}

struct client *ask(struct world *w, size_t n_prompt, int32_t prompt_id, uint32_t n, uint64_t seed, int64_t deadline_ns)
{
    return ask_as(w, MUSTER__V1__PRIORITY__PRIORITY_NORMAL, "", n_prompt, prompt_id, n, seed, deadline_ns);
}

void expect_whole(struct client *c, uint64_t seed, size_t n)
{
    client_wait(c, 30000);
    if (c->code != MU_RPC_OK) fail_msg("seed %d: %s", (int)seed, c->status);
    assert_int_equal(c->n_ids, n);
    assert_int_equal(c->n_text, n);
    for (size_t i = 0; i < n; i++) {
        assert_int_equal(c->ids[i], fake_id(seed, i));
        assert_int_equal(c->text[i], fake_id(seed, i) - ID_BYTE);
    }
    assert_int_equal(c->completion_tokens, n);
}

int launches(struct world *w)
{
    return atomic_load(&w->gang.n_launch);
}
int submits(struct world *w)
{
    pthread_mutex_lock(&w->gang.lock);
    int n = w->gang.n_submit;
    pthread_mutex_unlock(&w->gang.lock);
    return n;
}

Muster__V1__ClusterStatusReply *world_status(struct world *w)
{
    Muster__V1__ClusterStatusRequest q = MUSTER__V1__CLUSTER_STATUS_REQUEST__INIT;
    ProtobufCMessage *m;
    struct mu_err err = MU_ERR_INIT;
    if (mu_rpc_unary(w->channel, "/muster.v1.Muster/ClusterStatus", &q.base,
                     &muster__v1__cluster_status_reply__descriptor, mu_now_ns() + 5 * MU_SEC, &m, &err))
        fail_msg("%s", err.text);
    return (Muster__V1__ClusterStatusReply *)m;
}
