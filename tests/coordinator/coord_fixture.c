#include "coord_fixture.h"

#include <stdlib.h>
#include <unistd.h>

#include "model/gguf_write.h"

void vocabulary_open(struct vocabulary *v)
{
    static char text[256][8], longest[LONG_BYTES];
    struct mu_str tokens[N_VOCAB] = {{"<unk>", 5}, {"<s>", 3}, {"</s>", 4}};
    int32_t types[N_VOCAB] = {2, 3, 3};
    float scores[N_VOCAB] = {0};
    for (int i = 0; i < 256; i++) {
        int n = snprintf(text[i], sizeof text[i], "<0x%02X>", (unsigned)i);
        tokens[ID_BYTE + i] = (struct mu_str){text[i], (size_t)n};
        types[ID_BYTE + i] = 6;
    }
    memset(longest, 'L', sizeof longest);
    tokens[ID_XYZ] = (struct mu_str){"xyz", 3};
    tokens[ID_LONG] = (struct mu_str){longest, sizeof longest};
    types[ID_XYZ] = types[ID_LONG] = 1;
    char path[] = "/tmp/mu-coordinator-XXXXXX";
    struct mu_err err = MU_ERR_INIT;
    struct mu_gguf_writer *w;
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(mu_gguf_writer_open(path, &w, &err), MU_OK);
    mu_gguf_put_str(w, "tokenizer.ggml.model", "llama", 5);
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, N_VOCAB);
    mu_gguf_put_i32s(w, "tokenizer.ggml.token_type", types, N_VOCAB);
    mu_gguf_put_f32s(w, "tokenizer.ggml.scores", scores, N_VOCAB);
    mu_gguf_put_u32(w, "tokenizer.ggml.eos_token_id", ID_END);
    assert_int_equal(mu_gguf_writer_close(w, 1, &err), MU_OK);
    if (mu_gguf_open(path, &v->gguf, &err) || mu_tokenizer_open(v->gguf, &v->tok, &err)) fail_msg("%s", err.text);
    unlink(path);
    assert_true(mu_tokenizer_is_end(v->tok, ID_END));
}

void vocabulary_close(struct vocabulary *v)
{
    mu_tokenizer_close(v->tok);
    mu_gguf_close(v->gguf);
}

static void choice_take(struct client_choice *c, const Muster__V1__GenerateReply *r)
{
    if (strlen(c->text) + strlen(r->text) < sizeof c->text) strcat(c->text, r->text);
    for (size_t i = 0; i < r->n_ids && c->n_ids < CHOICE_IDS; i++) c->ids[c->n_ids++] = r->ids[i];
    for (size_t i = 0; i < r->n_logprobs && c->n_logprob < CHOICE_IDS; i++) {
        const Muster__V1__TokenLogprob *t = r->logprobs[i];
        c->n_wrong += r->n_ids > 0 && (r->n_ids != r->n_logprobs || t->id != r->ids[i]);
        c->n_top += t->n_top;
        if (t->n_top) c->last_top = t->top[t->n_top - 1]->id;
        for (size_t k = 0; k < t->n_top; k++) c->n_wrong += t->top[k]->piece.len != 1;
        c->logprob[c->n_logprob++] = t->logprob;
    }
    if (r->finish) c->finish = r->finish;
}

static void on_message(struct mu_rpc_stream *s, const ProtobufCMessage *msg, void *ctx)
{
    (void)s;
    struct client *c = ctx;
    const Muster__V1__GenerateReply *r = (const Muster__V1__GenerateReply *)msg;
    while (!atomic_load(&c->reads)) mu_sleep_ms(1);
    pthread_mutex_lock(&c->lock);
    if (!c->n_reply) {
        snprintf(c->request_id, sizeof c->request_id, "%s", r->request_id);
        c->seed = r->seed;
    }
    c->n_reply++;
    c->after_finish += c->n_finish >= (int)c->n_choice || (r->index < CHOICES && c->choice[r->index].finish);
    if (r->index < CHOICES) choice_take(&c->choice[r->index], r);
    size_t n = strlen(r->text);
    if (c->n_text + n < sizeof c->text) memcpy(c->text + c->n_text, r->text, n + 1);
    c->n_text += n;
    for (size_t i = 0; i < r->n_ids && c->n_ids < CLIENT_IDS; i++) c->ids[c->n_ids++] = r->ids[i];
    if (r->finish) {
        c->n_finish++;
        c->finish = r->finish;
    }
    if (r->usage) {
        c->n_usage++;
        c->prompt_tokens = r->usage->prompt_tokens;
        c->cached_tokens = r->usage->cached_tokens;
        c->completion_tokens = r->usage->completion_tokens;
        c->resumed = r->usage->resumed;
    }
    pthread_mutex_unlock(&c->lock);
    mu_sleep_ms(atomic_load(&c->rests_ms));
}

static void on_done(struct mu_rpc_stream *s, enum mu_rpc_code code, const char *text, void *ctx)
{
    (void)s;
    struct client *c = ctx;
    c->code = code;
    snprintf(c->status, sizeof c->status, "%s", text ? text : "");
    atomic_store(&c->done, true);
}

struct client *client_start(struct mu_rpc_channel *channel, const Muster__V1__GenerateRequest *q, int64_t deadline_ns,
                            bool reads)
{
    struct mu_err err = MU_ERR_INIT;
    struct client *c = calloc(1, sizeof *c);
    assert_non_null(c);
    pthread_mutex_init(&c->lock, NULL);
    atomic_store(&c->reads, reads);
    c->n_choice = q->n ? q->n : 1;
    struct mu_rpc_stream_callbacks cb = {on_message, on_done, c};
    if (mu_rpc_stream_open(channel, "/muster.v1.Muster/Generate", &muster__v1__generate_reply__descriptor, 0,
                           deadline_ns, mu_now_ns() + 5 * MU_SEC, &cb, &c->stream, &err)) {
        atomic_store(&c->done, true);
        c->code = MU_RPC_RESOURCE_EXHAUSTED;
        snprintf(c->status, sizeof c->status, "%s", err.text);
        return c;
    }
    if (mu_rpc_stream_send(c->stream, &q->base)) mu_rpc_stream_cancel(c->stream);
    mu_rpc_stream_half_close(c->stream);
    return c;
}

void client_wait(struct client *c, int ms)
{
    WAIT_FOR(atomic_load(&c->done), ms);
    assert_int_equal(c->after_finish, 0);
    assert_true(c->n_finish <= (int)c->n_choice);
    if (c->code != MU_RPC_OK) return;
    assert_int_equal(c->n_finish, c->n_choice);
    assert_int_equal(c->n_usage, 1);
}

void client_free(struct client *c)
{
    if (!c) return;
    if (c->stream) mu_rpc_stream_release(c->stream);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

size_t client_ids(struct client *c)
{
    pthread_mutex_lock(&c->lock);
    size_t n = c->n_ids;
    pthread_mutex_unlock(&c->lock);
    return n;
}
