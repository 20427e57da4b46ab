/* Requests of record: commit, text, stop strings. See request.h. */
#include "coordinator/request.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"

const char *mu_request_refuse_share(Muster__V1__Priority priority, const char *key)
{
    if ((int)priority < MUSTER__V1__PRIORITY__PRIORITY_NORMAL || (int)priority > MUSTER__V1__PRIORITY__PRIORITY_BATCH)
        return "the priority is not known: 0 is normal, 1 interactive, 2 batch";
    return strlen(key) > MU_REQ_MAX_KEY_BYTES ? "the key is longer than 256 bytes" : NULL;
}

struct mu_choices *mu_choices_create(uint64_t id, struct mu_rpc_call *call, Muster__V1__GenerateRequest *params,
                                     int32_t *prompt, size_t n_prompt, uint64_t seed)
{
    struct mu_choices *c = mu_calloc(1, sizeof *c);
    if (!c) {
        mu_rpc_call_finish(call, MU_RPC_RESOURCE_EXHAUSTED, "no memory for the request");
        mu_rpc_call_release(call);
        mu_rpc_message_free((ProtobufCMessage *)params);
        mu_free(prompt);
        return NULL;
    }
    *c = (struct mu_choices){.id = id,
                             .call = call,
                             .params = params,
                             .prompt = prompt,
                             .n_prompt = n_prompt,
                             .n_left = mu_choices_n(params),
                             .n_holder = 1,
                             .seed = seed,
                             .arrived_ns = mu_now_ns()};
    return c;
}

void mu_choices_release(struct mu_choices *c)
{
    if (!c || --c->n_holder > 0) return;
    mu_rpc_call_release(c->call);
    mu_rpc_message_free((ProtobufCMessage *)c->params);
    mu_free(c->prompt);
    mu_free(c);
}

struct mu_request *mu_request_create(uint64_t id, struct mu_choices *choices, uint32_t choice, size_t max_tokens,
                                     const struct mu_tokenizer *tok)
{
    struct mu_request *r = mu_calloc(1, sizeof *r);
    int32_t *emitted = mu_reallocarray(NULL, max_tokens, sizeof *emitted);
    if (!r || !emitted) {
        mu_free(emitted);
        mu_free(r);
        return NULL;
    }
    choices->n_holder++;
    r->id = id;
    r->choices = choices;
    r->choice = choice;
    r->call = choices->call;
    r->params = choices->params;
    r->prompt = choices->prompt;
    r->n_prompt = choices->n_prompt;
    r->emitted = emitted;
    r->max_tokens = max_tokens;
    r->priority = mu_proto_priority(r->params->priority);
    r->key = mu_fair_key(r->params->key);
    r->flow = -1;
    r->seed = mu_sampling_choice_seed(choices->seed, choice);
    mu_streamer_init(&r->streamer, tok, r->params->parse_special);
    r->streamer.show_marks = r->params->show_marks;
    return r;
}

struct mu_request *mu_request_create_embed(uint64_t id, struct mu_embed_call *call, size_t at)
{
    struct mu_request *r = mu_calloc(1, sizeof *r);
    if (!r) return NULL;
    r->id = id;
    r->embed = call;
    r->embed_at = at;
    call->n_holder++;
    r->prompt = call->input[at].ids;
    r->n_prompt = call->input[at].n_ids;
    call->input[at].ids = NULL;
    r->priority = call->priority;
    r->key = call->key;
    r->flow = -1;
    return r;
}

void mu_request_free(struct mu_request *r)
{
    if (!r) return;
    if (r->embed) mu_free(r->prompt);
    mu_embed_call_release(r->embed);
    mu_choices_release(r->choices);
    mu_free(r->emitted);
    mu_free(r->logprob);
    mu_free(r->top_id);
    mu_free(r->top_logprob);
    mu_free(r->text);
    mu_free(r);
}

/* Where the first stop string begins at or after `from`, or text_len. */
static size_t find_stop(const struct mu_request *r, size_t from)
{
    size_t first = r->text_len;
    for (size_t i = 0; i < r->params->n_stop; i++) {
        const char *hit = memmem(r->text + from, r->text_len - from, r->params->stop[i], strlen(r->params->stop[i]));
        if (hit && (size_t)(hit - r->text) < first) first = (size_t)(hit - r->text);
    }
    return first;
}

/* How many bytes at the end of the text might be the beginning of a stop string: they wait. */
static size_t held_back(const struct mu_request *r)
{
    size_t from = r->text_sent > r->stop_from ? r->text_sent : r->stop_from;
    size_t hold = 0, unsent = r->text_len > from ? r->text_len - from : 0;
    for (size_t i = 0; i < r->params->n_stop; i++) {
        size_t n = strlen(r->params->stop[i]), k = n - 1 < unsent ? n - 1 : unsent;
        for (; k > hold; k--)
            if (!memcmp(r->text + r->text_len - k, r->params->stop[i], k)) hold = k;
    }
    return hold;
}

static uint32_t min_tokens(const struct mu_request *r)
{
    return r->params->sampling ? r->params->sampling->min_tokens : 0;
}

static bool wants_logprobs(const struct mu_request *r)
{
    return r->params->sampling && r->params->sampling->logprobs;
}

static enum mu_commit append(struct mu_request *r, int32_t id, const struct mu_tokenizer *tok)
{
    r->emitted[r->n_emitted++] = id;
    bool end = !r->params->ignore_end && mu_tokenizer_is_end(tok, id);
    if (!end) {
        size_t before = r->text_len;
        if (mu_streamer_push(&r->streamer, id, &r->text, &r->text_len, &r->text_cap)) return MU_COMMIT_NOMEM;
        if (r->n_emitted < min_tokens(r)) r->stop_from = r->text_len;
        if (r->params->n_stop && r->text_len > before) {
            size_t from = before > MU_REQ_MAX_STOP_BYTES ? before - MU_REQ_MAX_STOP_BYTES : 0;
            if (from < r->text_sent) from = r->text_sent; /* what went out did not begin a stop string */
            if (from < r->stop_from) from = r->stop_from;
            size_t stop = find_stop(r, from);
            if (stop < r->text_len) {
                r->text_len = stop;
                r->finish = MUSTER__V1__FINISH__FINISH_STOP;
                return MU_COMMIT_OK;
            }
        }
    }
    if (end)
        r->finish = MUSTER__V1__FINISH__FINISH_END;
    else if (r->n_emitted == r->max_tokens)
        r->finish = MUSTER__V1__FINISH__FINISH_LENGTH;
    if (r->finish && mu_streamer_finish(&r->streamer, &r->text, &r->text_len, &r->text_cap)) return MU_COMMIT_NOMEM;
    return MU_COMMIT_OK;
}

/* The log probabilities of the message are there, for every id as many. */
static bool logprobs_whole(struct mu_request *r, const Muster__Internal__V1__RequestTokens *t)
{
    size_t n_top = t->n_top_id / t->n_id;
    if (t->n_logprob != t->n_id || t->n_top_logprob != t->n_top_id || t->n_top_id % t->n_id ||
        n_top > MU_MAX_TOP_LOGPROBS)
        return false;
    if (r->n_emitted == 0) r->n_top = n_top;
    return n_top == r->n_top;
}

/* Room for one more: what the client has is forgotten first, so that they are as many as it lags behind. */
static bool logprobs_reserve(struct mu_request *r)
{
    size_t cap = r->logprob_cap ? 2 * r->logprob_cap : 64, n_top = r->n_top ? r->n_top : 1;
    if (r->n_emitted - r->logprob_from < r->logprob_cap) return true;
    size_t told = r->n_sent - r->logprob_from, left = r->n_emitted - r->n_sent;
    if (told > 0) {
        memmove(r->logprob, r->logprob + told, left * sizeof *r->logprob);
        memmove(r->top_id, r->top_id + told * r->n_top, left * r->n_top * sizeof *r->top_id);
        memmove(r->top_logprob, r->top_logprob + told * r->n_top, left * r->n_top * sizeof *r->top_logprob);
        r->logprob_from = r->n_sent;
        return true;
    }
    float *logprob = mu_reallocarray(r->logprob, cap, sizeof *logprob);
    if (logprob) r->logprob = logprob;
    int32_t *id = mu_reallocarray(r->top_id, cap, n_top * sizeof *id);
    if (id) r->top_id = id;
    float *top = mu_reallocarray(r->top_logprob, cap, n_top * sizeof *top);
    if (top) r->top_logprob = top;
    if (!logprob || !id || !top) return false;
    r->logprob_cap = cap;
    return true;
}

/* Of the id that is emitted next, number `at` of the message. */
static bool logprobs_append(struct mu_request *r, const Muster__Internal__V1__RequestTokens *t, size_t at)
{
    if (!logprobs_reserve(r)) return false;
    size_t place = r->n_emitted - r->logprob_from;
    r->logprob[place] = t->logprob[at];
    for (size_t i = 0; i < r->n_top; i++) {
        r->top_id[place * r->n_top + i] = t->top_id[at * r->n_top + i];
        r->top_logprob[place * r->n_top + i] = t->top_logprob[at * r->n_top + i];
    }
    return true;
}

enum mu_commit mu_request_commit(struct mu_request *r, const Muster__Internal__V1__RequestTokens *t,
                                 const struct mu_tokenizer *tok)
{
    if (t->first_position > r->n_emitted) return MU_COMMIT_GAP;
    size_t skip = r->n_emitted - t->first_position;
    if (skip >= t->n_id) return MU_COMMIT_OLD;
    if (wants_logprobs(r) && !logprobs_whole(r, t)) return MU_COMMIT_GAP;
    for (size_t i = skip; i < t->n_id && !r->finish; i++) {
        if (wants_logprobs(r) && !logprobs_append(r, t, i)) return MU_COMMIT_NOMEM;
        enum mu_commit c = append(r, t->id[i], tok);
        if (c != MU_COMMIT_OK) return c;
        if (!r->choices->first_ns) r->choices->first_ns = mu_now_ns();
    }
    return MU_COMMIT_OK;
}

/* ---- replies ---- */

/* Of one reply: most clients take no message beyond 4 MiB, and what a slow one has not read adds up. */
enum { REPLY_BYTES = 1 << 18, REPLY_IDS = 1 << 14, REPLY_LOGPROBS = 1 << 8 };
enum { RESUME_BYTES = 1 << 20 }; /* a slow client is not written for until its queue is as short as this */

struct logprobs {                                /* of a reply: one allocation */
    Muster__V1__TokenLogprob *token, **token_at; /* [n] */
    Muster__V1__TopLogprob *top, **top_at;       /* [n][n_top] */
};

static ProtobufCBinaryData piece_of(const struct mu_request *r, int32_t id)
{
    struct mu_str piece = mu_tokenizer_piece(r->streamer.tok, id, r->streamer.show_special);
    return (ProtobufCBinaryData){piece.len, (uint8_t *)piece.p};
}

/* Of the n ids that are told next. NULL: out of memory. */
static struct logprobs *logprobs_make(const struct mu_request *r, size_t n)
{
    size_t n_all = n * r->n_top, first = r->n_sent - r->logprob_from;
    struct logprobs *l = mu_malloc(sizeof *l + n * (sizeof *l->token + sizeof *l->token_at) +
                                   n_all * (sizeof *l->top + sizeof *l->top_at));
    if (!l) return NULL;
    l->token = (Muster__V1__TokenLogprob *)(l + 1);
    l->top = (Muster__V1__TopLogprob *)(l->token + n);
    l->token_at = (Muster__V1__TokenLogprob **)(l->top + n_all);
    l->top_at = (Muster__V1__TopLogprob **)(l->token_at + n);
    for (size_t i = 0; i < n_all; i++) {
        size_t from = first * r->n_top + i;
        muster__v1__top_logprob__init(&l->top[i]);
        l->top[i].id = r->top_id[from];
        l->top[i].logprob = r->top_logprob[from];
        l->top[i].piece = piece_of(r, r->top_id[from]);
        l->top_at[i] = &l->top[i];
    }
    for (size_t i = 0; i < n; i++) {
        Muster__V1__TokenLogprob *t = l->token_at[i] = &l->token[i];
        muster__v1__token_logprob__init(t);
        t->id = r->emitted[r->n_sent + i];
        t->logprob = r->logprob[first + i];
        t->piece = piece_of(r, t->id);
        t->n_top = r->n_top;
        t->top = l->top_at + i * r->n_top;
    }
    return l;
}

/* Of all choices, this last one included. */
static Muster__V1__Usage usage_of(const struct mu_request *r)
{
    const struct mu_choices *c = r->choices;
    Muster__V1__Usage u = MUSTER__V1__USAGE__INIT;
    u.prompt_tokens = (uint32_t)c->n_prompt;
    u.cached_tokens = c->n_cached;
    u.completion_tokens = (uint32_t)(c->n_completion + r->n_emitted);
    u.resumed = (uint32_t)(c->resumed > r->resumed ? c->resumed : r->resumed);
    u.queue_ms = (double)(c->started_ns - c->arrived_ns) / 1e6;
    u.first_token_ms = (double)(c->first_ns - c->arrived_ns) / 1e6;
    u.total_ms = (double)(mu_now_ns() - c->arrived_ns) / 1e6;
    return u;
}

bool mu_request_flush(struct mu_request *r)
{
    struct mu_choices *c = r->choices;
    if (r->blocked && mu_rpc_call_queued(r->call) > RESUME_BYTES) return false;
    size_t until = r->finish ? r->text_len : r->text_len - held_back(r);
    bool scored = wants_logprobs(r);
    size_t n_text = until - r->text_sent, n_ids = r->params->return_ids || scored ? r->n_emitted - r->n_sent : 0;
    size_t most_ids = scored ? REPLY_LOGPROBS : REPLY_IDS;
    if (!n_text && !n_ids && !r->finish && c->told_first) return false;
    bool more = n_text > REPLY_BYTES || n_ids > most_ids, last = r->finish && !more, closes = last && c->n_left == 1;
    if (n_text > REPLY_BYTES) {
        for (until = r->text_sent + REPLY_BYTES; (r->text[until] & 0xC0) == 0x80;) until--; /* whole characters */
        n_text = until - r->text_sent;
    }
    if (n_ids > most_ids) n_ids = most_ids;

    Muster__V1__GenerateReply reply = MUSTER__V1__GENERATE_REPLY__INIT;
    Muster__V1__Usage usage;
    char id[32];
    if (!c->told_first) {
        snprintf(id, sizeof id, "r%llu", (unsigned long long)c->id);
        reply.request_id = id;
        reply.seed = c->seed;
    }
    reply.index = r->choice;
    char *text = mu_strndup(r->text ? r->text + r->text_sent : "", n_text);
    struct logprobs *logprobs = scored && n_ids ? logprobs_make(r, n_ids) : NULL;
    if (!text || (scored && n_ids && !logprobs)) {
        mu_free(text);
        mu_free(logprobs);
        r->blocked = true;
        return false;
    }
    reply.text = text;
    if (r->params->return_ids) {
        reply.ids = r->emitted + r->n_sent;
        reply.n_ids = n_ids;
    }
    if (logprobs) {
        reply.logprobs = logprobs->token_at;
        reply.n_logprobs = n_ids;
    }
    if (last) reply.finish = r->finish;
    if (closes) {
        usage = usage_of(r);
        reply.usage = &usage;
    }
    enum mu_status st = mu_rpc_call_send(r->call, &reply.base);
    mu_free(text);
    mu_free(logprobs);
    if (st == MU_EAGAIN || st == MU_ENOMEM) {
        r->blocked = true;
        return false;
    }
    if (st) { /* the call is over; anything else is a fault of ours, which must not leave a client hanging */
        mu_request_fail(r, MU_RPC_INTERNAL, "its text cannot be sent: %s", mu_status_text(st));
        return true;
    }
    r->blocked = false;
    r->unread_ns = 0;
    c->told_first = true;
    r->text_sent = until;
    r->n_sent += n_ids;
    if (more) return mu_request_flush(r);
    if (!last) return false;
    c->n_left--;
    c->n_completion += r->n_emitted;
    if (r->resumed > c->resumed) c->resumed = r->resumed;
    if (closes) mu_rpc_call_finish(r->call, MU_RPC_OK, "%s", "");
    return true;
}

void mu_request_fail(struct mu_request *r, enum mu_rpc_code code, const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (r->embed) {
        mu_embed_call_fail(r->embed, r->embed_at, code, text);
        return;
    }
    r->choices->over = true;
    if (mu_choices_n(r->params) > 1)
        mu_rpc_call_finish(r->call, code, "request r%llu, choice %u: %s", (unsigned long long)r->choices->id, r->choice,
                           text);
    else
        mu_rpc_call_finish(r->call, code, "request r%llu: %s", (unsigned long long)r->choices->id, text);
}
