/* The text thread: rendering conversations, tokenizing and detokenizing, which take long for long texts, away from gRPC's poll threads and
 * from the hub. What is most urgent comes first: of the longest texts, which take a second each, there may be 64. */
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "coordinator/constraint.h"
#include "coordinator/hub.h"
#include "coordinator/msg.h"

/* Whose text comes first: by priority; Tokenize and Detokenize, which have none and use the gang for nothing, after all. */
enum { LAST_LANE = MU_PRIORITY_COUNT, N_LANE };

struct mu_text_job {
    struct mu_text_job *next; /* in its lane */
    enum mu_text_kind kind;
    struct mu_rpc_call *call; /* retained */
    ProtobufCMessage *msg;    /* owned */
    size_t bytes;             /* of msg, counted in the hub's texts_bytes while it waits */
};

enum { MAX_TEXTS_BYTES = 256 << 20 }; /* that may wait; a queue of the longest texts would take 32 GB */

static int lane_of(enum mu_text_kind kind, const ProtobufCMessage *msg)
{
    if (kind == MU_TEXT_GENERATE) return mu_proto_priority(((const Muster__V1__GenerateRequest *)msg)->priority);
    if (kind == MU_TEXT_EMBED) return mu_proto_priority(((const Muster__V1__EmbedRequest *)msg)->priority);
    return LAST_LANE;
}

void mu_text_job_free(void *job)
{
    struct mu_text_job *j = job;
    if (j->call) mu_rpc_call_release(j->call);
    mu_rpc_message_free(j->msg);
    mu_free(j);
}

void mu_text_post(struct mu_hub *h, enum mu_text_kind kind, struct mu_rpc_call *call, ProtobufCMessage *msg)
{
    struct mu_text_job *j = mu_calloc(1, sizeof *j);
    size_t bytes = protobuf_c_message_get_packed_size(msg);
    if (j) *j = (struct mu_text_job){NULL, kind, mu_rpc_call_retain(call), msg, bytes};
    enum mu_status st = MU_EAGAIN;
    int lane = lane_of(kind, msg);
    enum mu_priority places_of = lane == LAST_LANE ? MU_PRIORITY_BATCH : (enum mu_priority)lane;
    bool room = atomic_fetch_add(&h->n_texts, 1) < mu_hub_places(MU_HUB_TEXTS, places_of);
    room &= atomic_fetch_add(&h->texts_bytes, bytes) + bytes <= mu_hub_places(MAX_TEXTS_BYTES, places_of);
    if (j && room) st = mu_queue_push(h->texts, j);
    if (!st) return;
    atomic_fetch_sub(&h->n_texts, 1);
    atomic_fetch_sub(&h->texts_bytes, bytes);
    if (st == MU_ECANCELLED)
        mu_rpc_call_finish(call, MU_RPC_UNAVAILABLE, "the server is stopping");
    else
        mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED,
                           "busy: %zu texts of %zu bytes are waiting to be tokenized; try again later, in about 1 s",
                           atomic_load(&h->n_texts), atomic_load(&h->texts_bytes));
    if (j)
        mu_text_job_free(j);
    else
        mu_rpc_message_free(msg);
}

static bool ids_known(const struct mu_hub *h, struct mu_rpc_call *call, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= h->model->cfg.n_vocab) {
            mu_rpc_call_finish(call, MU_RPC_INVALID_ARGUMENT,
                               "id %d (number %zu) is not in the vocabulary of %d tokens", ids[i], i + 1,
                               h->model->cfg.n_vocab);
            return false;
        }
    return true;
}

/* text → ids with room for BOS in front where wanted. */
static enum mu_status encode(const struct mu_tokenizer *tok, const char *text, size_t len, bool special, bool bos,
                             int32_t **ids_out, size_t *n_out, struct mu_err *err)
{
    int32_t *ids = NULL;
    size_t n = 0;
    enum mu_status st = mu_tokenizer_encode(tok, text, len, special, &ids, &n, err);
    if (st) return st;
    if (bos && mu_tokenizer_bos(tok) >= 0) {
        int32_t *more = mu_reallocarray(ids, n + 1, sizeof *ids);
        if (!more) {
            mu_free(ids);
            return mu_fail(err, MU_ENOMEM, "no memory for %zu ids", n + 1);
        }
        ids = more;
        memmove(ids + 1, ids, n * sizeof *ids);
        ids[0] = mu_tokenizer_bos(tok);
        n++;
    }
    *ids_out = ids;
    *n_out = n;
    return MU_OK;
}

/* The request without its prompt, which goes on as ids: what waits in the hub by the thousand stays small. */
static ProtobufCMessage *without_prompt(const Muster__V1__GenerateRequest *q)
{
    Muster__V1__GenerateRequest lean = *q;
    lean.prompt_case = MUSTER__V1__GENERATE_REQUEST__PROMPT__NOT_SET;
    lean.text = NULL;
    return mu_msg_copy(&lean.base);
}

/* The ids of a text or of a conversation. */
static enum mu_status encode_prompt(const struct mu_hub *h, const Muster__V1__GenerateRequest *q, int32_t **ids_out,
                                    size_t *n_out, struct mu_err *err)
{
    bool add_bos = mu_tokenizer_add_bos(h->tok), has_bos;
    char *text;
    size_t len;
    if (q->prompt_case == MUSTER__V1__GENERATE_REQUEST__PROMPT_TEXT)
        return encode(h->tok, q->text, strlen(q->text), q->parse_special, add_bos, ids_out, n_out, err);
    enum mu_status st = mu_chat_prompt(h, q->chat, &text, &len, &has_bos, err);
    if (st) return st;
    st = encode(h->tok, text, len, true, add_bos && !has_bos, ids_out, n_out, err);
    mu_free(text);
    return st;
}

static void generate(struct mu_hub *h, struct mu_text_job *j, struct mu_constraint_checks **checks)
{
    struct mu_err err = MU_ERR_INIT;
    const Muster__V1__GenerateRequest *q = (const Muster__V1__GenerateRequest *)j->msg;
    int32_t *ids = NULL;
    size_t n = 0;
    if (mu_constraint_check(checks, q, &err)) { /* whatever is wrong with it, the request is what must change */
        mu_rpc_call_finish(j->call, err.code == MU_ENOMEM ? MU_RPC_RESOURCE_EXHAUSTED : MU_RPC_INVALID_ARGUMENT, "%s",
                           err.text);
        return;
    }
    if (q->prompt_case != MUSTER__V1__GENERATE_REQUEST__PROMPT_IDS) {
        if (encode_prompt(h, q, &ids, &n, &err)) {
            mu_rpc_call_finish(j->call, mu_rpc_code_of(err.code), "%s", err.text);
            return;
        }
    } else {
        n = q->ids->n_id;
        if (!ids_known(h, j->call, q->ids->id, n)) return;
        ids = mu_reallocarray(NULL, n ? n : 1, sizeof *ids);
        if (!ids) {
            mu_rpc_call_finish(j->call, MU_RPC_RESOURCE_EXHAUSTED, "no memory for %zu ids", n);
            return;
        }
        memcpy(ids, q->ids->id, n * sizeof *ids);
    }
    if (!n) {
        mu_rpc_call_finish(j->call, MU_RPC_INVALID_ARGUMENT, "the prompt is empty: it needs one token at least");
    } else if (n >= (size_t)h->serving.n_ctx) {
        mu_rpc_call_finish(
            j->call, MU_RPC_OUT_OF_RANGE,
            "the prompt has %zu tokens, the context here is %d: shorten the prompt, or serve with a larger --ctx", n,
            h->serving.n_ctx);
    } else {
        struct mu_event ev = {
            .kind = MU_EV_GENERATE, .call = j->call, .msg = without_prompt(q), .ids = ids, .n_ids = n};
        enum mu_status st = ev.msg ? mu_hub_post_client(h, &ev) : MU_ENOMEM;
        if (!st) {
            j->call = NULL; /* the event's now */
            return;
        }
        mu_rpc_message_free(ev.msg);
        if (st == MU_ECANCELLED)
            mu_rpc_call_finish(j->call, MU_RPC_UNAVAILABLE, "the server is stopping");
        else
            mu_rpc_call_finish(j->call, MU_RPC_RESOURCE_EXHAUSTED,
                               "the server is too busy; try again later, in about 1 s");
    }
    mu_free(ids);
}

/* Input `at` as ids, in the context or cut to it. false: the call was answered. */
static bool embed_input(struct mu_hub *h, struct mu_text_job *j, const Muster__V1__EmbedRequest *q, size_t at,
                        struct mu_embed_input *out)
{
    const Muster__V1__EmbedInput *in = q->input[at];
    struct mu_err err = MU_ERR_INIT;
    size_t n_ctx = (size_t)h->serving.n_ctx, most = q->truncate ? n_ctx : 0;
    if (in->input_case == MUSTER__V1__EMBED_INPUT__INPUT_TEXT) {
        if (mu_tokenizer_encode_whole(h->tok, in->text, strlen(in->text), q->parse_special, most, &out->ids,
                                      &out->n_ids, &out->cut, &err)) {
            mu_rpc_call_finish(j->call, mu_rpc_code_of(err.code), "input %zu: %s", at + 1, err.text);
            return false;
        }
    } else {
        if (!ids_known(h, j->call, in->ids->id, in->ids->n_id)) return false;
        out->cut = most && in->ids->n_id > most;
        out->n_ids = out->cut ? most : in->ids->n_id;
        out->ids = mu_reallocarray(NULL, out->n_ids, sizeof *out->ids);
        if (!out->ids) {
            mu_rpc_call_finish(j->call, MU_RPC_RESOURCE_EXHAUSTED, "no memory for %zu ids", out->n_ids);
            return false;
        }
        memcpy(out->ids, in->ids->id, out->n_ids * sizeof *out->ids);
    }
    if (!out->n_ids)
        mu_rpc_call_finish(j->call, MU_RPC_INVALID_ARGUMENT, "input %zu has no tokens", at + 1);
    else if (out->n_ids > n_ctx)
        mu_rpc_call_finish(j->call, MU_RPC_OUT_OF_RANGE,
                           "input %zu has %zu tokens, the context here is %zu: shorten it, set truncate, or serve with "
                           "a larger --ctx",
                           at + 1, out->n_ids, n_ctx);
    else
        return true;
    return false;
}

static void embed(struct mu_hub *h, struct mu_text_job *j)
{
    const Muster__V1__EmbedRequest *q = (const Muster__V1__EmbedRequest *)j->msg;
    struct mu_event ev = {.kind = MU_EV_EMBED, .embed = mu_embed_call_create(j->call, q, &h->model->cfg)};
    if (!ev.embed) {
        mu_rpc_call_finish(j->call, MU_RPC_RESOURCE_EXHAUSTED, "no memory for %zu inputs", q->n_input);
        return;
    }
    for (size_t i = 0; i < q->n_input; i++)
        if (mu_rpc_call_cancelled(j->call) || !embed_input(h, j, q, i, &ev.embed->input[i])) goto refused;
    enum mu_status st = mu_hub_post_client(h, &ev);
    if (!st) return; /* the event's now */
    if (st == MU_ECANCELLED)
        mu_rpc_call_finish(j->call, MU_RPC_UNAVAILABLE, "the server is stopping");
    else
        mu_rpc_call_finish(j->call, MU_RPC_RESOURCE_EXHAUSTED, "the server is too busy; try again later, in about 1 s");
refused:
    mu_embed_call_release(ev.embed);
}

static void tokenize(struct mu_hub *h, struct mu_text_job *j)
{
    const Muster__V1__TokenizeRequest *q = (const Muster__V1__TokenizeRequest *)j->msg;
    struct mu_err err = MU_ERR_INIT;
    Muster__V1__TokenizeReply reply = MUSTER__V1__TOKENIZE_REPLY__INIT;
    if (encode(h->tok, q->text, strlen(q->text), q->parse_special, q->add_bos, &reply.ids, &reply.n_ids, &err)) {
        mu_rpc_call_finish(j->call, mu_rpc_code_of(err.code), "%s", err.text);
        return;
    }
    mu_rpc_call_reply(j->call, &reply.base);
    mu_free(reply.ids);
}

static void detokenize(struct mu_hub *h, struct mu_text_job *j)
{
    const Muster__V1__DetokenizeRequest *q = (const Muster__V1__DetokenizeRequest *)j->msg;
    if (!ids_known(h, j->call, q->ids, q->n_ids)) return;
    Muster__V1__DetokenizeReply reply = MUSTER__V1__DETOKENIZE_REPLY__INIT;
    struct mu_streamer s; /* what is no UTF-8 looks as it does in a stream */
    char *text = NULL;
    size_t len = 0, cap = 0;
    enum mu_status st = MU_OK;
    mu_streamer_init(&s, h->tok, q->show_special);
    s.whole = true;
    for (size_t i = 0; i < q->n_ids && !st && len <= MU_RPC_REPLY_BYTES; i++) /* a longer one is refused anyway */
        st = mu_streamer_push(&s, q->ids[i], &text, &len, &cap);
    if (!st) st = mu_streamer_finish(&s, &text, &len, &cap);
    reply.text = text;
    if (!st)
        mu_rpc_call_reply(j->call, &reply.base);
    else
        mu_rpc_call_finish(j->call, MU_RPC_RESOURCE_EXHAUSTED, "no memory for the text of %zu ids", q->n_ids);
    mu_free(text);
}

struct lane {
    struct mu_text_job *first, *last;
};

static struct lane *most_urgent(struct lane *lanes)
{
    for (int i = 0; i < N_LANE; i++)
        if (lanes[i].first) return &lanes[i];
    return NULL;
}

/* The most urgent of all that have come, of one lane the oldest. NULL: the queue is closed, and nothing is left. */
static struct mu_text_job *next_job(struct mu_hub *h, struct lane *lanes)
{
    struct mu_text_job *j;
    struct lane *l = most_urgent(lanes);
    for (int64_t until = l ? 0 : MU_FOREVER; (j = mu_queue_pop(h->texts, until)); until = 0) {
        l = &lanes[lane_of(j->kind, j->msg)];
        *(l->first ? &l->last->next : &l->first) = j;
        l->last = j;
    }
    l = most_urgent(lanes);
    if (!l) return NULL;
    j = l->first;
    l->first = j->next;
    atomic_fetch_sub(&h->n_texts, 1);
    atomic_fetch_sub(&h->texts_bytes, j->bytes);
    return j;
}

void *mu_text_main(void *hub)
{
    struct mu_hub *h = hub;
    struct lane lanes[N_LANE] = {0};
    struct mu_constraint_checks *checks = NULL;
    struct mu_text_job *j;
    while ((j = next_job(h, lanes))) {
        if (mu_queue_closed(h->texts)) { /* the longest texts take a second each: none is begun any more */
            mu_rpc_call_finish(j->call, MU_RPC_UNAVAILABLE, "the server is stopping");
        } else if (!mu_rpc_call_cancelled(j->call)) {
            switch (j->kind) {
            case MU_TEXT_GENERATE: generate(h, j, &checks); break;
            case MU_TEXT_EMBED: embed(h, j); break;
            case MU_TEXT_TOKENIZE: tokenize(h, j); break;
            case MU_TEXT_DETOKENIZE: detokenize(h, j); break;
            }
        }
        mu_text_job_free(j);
    }
    mu_constraint_checks_free(checks);
    return NULL;
}
