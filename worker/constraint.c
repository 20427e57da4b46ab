/* Requests by a hash of their ids, grammars in a short list by their texts.
 *
 * The thread that makes forms is started by the first one. A job goes down one queue and comes back by another, and with
 * it what it made; both sides need the vocabulary, which is opened once, under a lock. */
#include "worker/constraint.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/pool.h"
#include "base/queue.h"

enum {
    BUCKETS = 1024,
    UNUSED_MAX = 64, /* grammars that nobody uses */
    UNUSED_BYTES = 256 << 20,
    MASKER_BYTES = 32 << 20,
    JOBS_MAX = 256, /* forms in the making */
};

struct language { /* a grammar that met the vocabulary */
    struct language *next;
    struct mu_constraint_text key; /* owns its text */
    struct mu_grammar *grammar;
    struct mu_masker *masker;
    size_t n_user;
    uint64_t used;   /* when it was last: larger is later */
    bool unfinished; /* it could not be made; who adds it will hear why */
};

struct request {
    struct request *next; /* of the bucket */
    uint64_t id;
    struct language *language;
    struct mu_constraint *constraint;
    int32_t *ids; /* [n_read] those that the constraint has accepted */
    size_t n_read, cap;
    char *why;
};

struct mu_constraints {
    const struct mu_gguf *gguf;
    pthread_mutex_t lock; /* guards tok and vocab until they are there */
    struct mu_tokenizer *tok;
    struct mu_constraint_vocab *vocab;
    struct language *languages;
    struct language *making; /* those that the thread has; it reads and fills no more than a language's own fields */
    struct mu_queue *jobs, *done;
    pthread_t thread;
    bool has_thread;
    struct request *bucket[BUCKETS];
    uint32_t *words;
    size_t n_mask; /* bytes of a mask of the model's ids */
    size_t n_compiled;
    uint64_t clock;
};

enum mu_status mu_constraints_create(const struct mu_gguf *g, int n_vocab, struct mu_constraints **c_out,
                                     struct mu_err *err)
{
    struct mu_constraints *c = mu_calloc(1, sizeof *c);
    if (!c) return mu_fail(err, MU_ENOMEM, "no memory for constraints");
    c->gguf = g;
    c->n_mask = ((size_t)n_vocab + 7) / 8;
    pthread_mutex_init(&c->lock, NULL);
    *c_out = c;
    return MU_OK;
}

static enum mu_status vocab_open(struct mu_constraints *c, struct mu_err *err)
{
    enum mu_status st = MU_OK;
    pthread_mutex_lock(&c->lock);
    if (!c->tok) MU_TRY(st, mu_tokenizer_open(c->gguf, &c->tok, err), done);
    if (!c->vocab) st = mu_constraint_vocab_create(c->tok, &c->vocab, err);
done:
    pthread_mutex_unlock(&c->lock);
    return st;
}

/* ---- grammars ---- */

static size_t language_bytes(const struct language *l)
{
    size_t grammar;
    if (l->unfinished) return l->key.len;
    mu_grammar_size(l->grammar, &grammar);
    return grammar + l->key.len + mu_masker_bytes(l->masker);
}

static void language_free(struct language *l)
{
    if (!l) return;
    mu_masker_free(l->masker);
    mu_grammar_free(l->grammar);
    mu_free((char *)l->key.text);
    mu_free(l);
}

/* Those unused for the longest time go, until what is left is within the bounds. Not when a request is added: what was made
 * with its form is unused only because those who asked for it come next. */
static void languages_trim(struct mu_constraints *c)
{
    for (;;) {
        size_t n = 0, bytes = 0;
        struct language **oldest = NULL;
        for (struct language **at = &c->languages; *at; at = &(*at)->next) {
            if ((*at)->n_user) continue;
            n++;
            bytes += language_bytes(*at);
            if (!oldest || (*at)->used < (*oldest)->used) oldest = at;
        }
        if (n <= UNUSED_MAX && bytes <= UNUSED_BYTES) return;
        struct language *gone = *oldest;
        *oldest = gone->next;
        language_free(gone);
    }
}

static bool is_text(const struct language *l, const struct mu_constraint_text *t)
{
    return l->key.kind == t->kind && l->key.len == t->len && !(t->len && memcmp(l->key.text, t->text, t->len));
}

static struct language **language_find(struct language **list, const struct mu_constraint_text *t)
{
    while (*list && !is_text(*list, t)) list = &(*list)->next;
    return list;
}

/* Of a text, and nothing made yet; NULL: no memory. */
static struct language *language_new(const struct mu_constraint_text *t)
{
    struct language *l = mu_calloc(1, sizeof *l);
    char *text = l ? mu_malloc(t->len + 1) : NULL;
    if (!text) {
        mu_free(l);
        return NULL;
    }
    if (t->len) memcpy(text, t->text, t->len);
    l->key = (struct mu_constraint_text){t->kind, text, t->len};
    return l;
}

static enum mu_status language_make(struct mu_constraints *c, struct language *l, struct mu_err *err)
{
    enum mu_status st = vocab_open(c, err);
    if (st == MU_OK)
        st = mu_grammar_compile((enum mu_constraint_kind)l->key.kind, l->key.text, l->key.len, &l->grammar, err);
    if (st == MU_OK) st = mu_masker_create(l->grammar, c->vocab, MASKER_BYTES, &l->masker, err);
    return st;
}

static void language_link(struct mu_constraints *c, struct language *l)
{
    c->n_compiled += !l->unfinished;
    l->used = ++c->clock;
    l->next = c->languages;
    c->languages = l;
}

static enum mu_status language_get(struct mu_constraints *c, const struct mu_constraint_text *t,
                                   struct language **l_out, struct mu_err *err)
{
    struct language **at = language_find(&c->languages, t), *l = *at;
    if (l && !l->unfinished) {
        *l_out = l;
        return MU_OK;
    }
    if (l) *at = l->next;
    language_free(l);
    l = language_new(t);
    if (!l) return mu_fail(err, MU_ENOMEM, "no memory for constraints");
    enum mu_status st = language_make(c, l, err);
    if (st != MU_OK) {
        language_free(l);
        return st;
    }
    language_link(c, l);
    *l_out = l;
    return MU_OK;
}

/* ---- forms made by a thread ---- */

static void *maker_main(void *constraints)
{
    struct mu_constraints *c = constraints;
    for (struct language *l; (l = mu_queue_pop(c->jobs, MU_FOREVER));) {
        l->unfinished = mu_queue_closed(c->jobs) || language_make(c, l, NULL) != MU_OK;
        mu_queue_push(c->done, l); /* has room for all jobs there are */
    }
    return NULL;
}

static bool maker_start(struct mu_constraints *c)
{
    sigset_t all, before;
    if (c->has_thread) return true;
    if (!c->jobs && mu_queue_create(JOBS_MAX, &c->jobs, NULL) != MU_OK) return false;
    if (!c->done && mu_queue_create(JOBS_MAX, &c->done, NULL) != MU_OK) return false;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    mu_pool_unpin(); /* else it makes forms on the CPU that the caller computes on */
    c->has_thread = pthread_create(&c->thread, NULL, maker_main, c) == 0;
    mu_pool_repin();
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return c->has_thread;
}

bool mu_constraints_begin(struct mu_constraints *c, const struct mu_constraint_text *text)
{
    size_t n = 0;
    if (text->kind == MU_CONSTRAINT_NONE || *language_find(&c->languages, text)) return true;
    for (struct language *l = c->making; l; l = l->next, n++) {
        if (is_text(l, text)) return false;
    }
    struct language *l = n < JOBS_MAX && maker_start(c) ? language_new(text) : NULL;
    if (!l) return true;
    l->next = c->making;
    if (mu_queue_push(c->jobs, l) != MU_OK) {
        language_free(l);
        return true;
    }
    c->making = l;
    return false;
}

bool mu_constraints_made(struct mu_constraints *c)
{
    bool any = false;
    for (struct language *l; c->done && (l = mu_queue_pop(c->done, 0)); any = true) {
        if (!any) languages_trim(c); /* who wanted those of last time has added them, or is gone */
        struct language **at = &c->making;
        while (*at != l) at = &(*at)->next;
        *at = l->next;
        language_link(c, l);
    }
    return any;
}

int mu_constraints_fd(const struct mu_constraints *c)
{
    return c->done ? mu_queue_wake_fd(c->done) : -1;
}

static void maker_end(struct mu_constraints *c)
{
    if (c->jobs) mu_queue_close(c->jobs);
    if (c->has_thread) pthread_join(c->thread, NULL); /* after the one that was begun: a second at worst */
    mu_constraints_made(c);
    mu_queue_destroy(c->jobs, NULL);
    mu_queue_destroy(c->done, NULL);
}

/* ---- requests ---- */

static struct request **find(struct mu_constraints *c, uint64_t id)
{
    struct request **at = &c->bucket[id * 0x9E3779B97F4A7C15u >> 54];
    while (*at && (*at)->id != id) at = &(*at)->next;
    return at;
}

static void request_free(struct request *r)
{
    if (!r) return;
    mu_constraint_free(r->constraint);
    if (r->language) r->language->n_user--;
    mu_free(r->ids);
    mu_free(r->why);
    mu_free(r);
}

enum mu_status mu_constraints_add(struct mu_constraints *c, uint64_t request, const struct mu_constraint_text *text,
                                  struct mu_err *err)
{
    enum mu_status st;
    if (text->kind == MU_CONSTRAINT_NONE) return MU_OK;
    struct request **at = find(c, request);
    if (*at) return mu_fail(err, MU_EINVAL, "request %llu has a constraint already", (unsigned long long)request);
    struct request *r = mu_calloc(1, sizeof *r);
    if (!r) return mu_fail(err, MU_ENOMEM, "no memory for constraints");
    r->id = request;
    struct language *l = NULL;
    MU_TRY(st, language_get(c, text, &l, err), fail);
    if (!c->words) c->words = mu_calloc(mu_constraint_mask_words(c->vocab) + 1, sizeof *c->words);
    if (!c->words) {
        st = mu_fail(err, MU_ENOMEM, "no memory for constraints");
        goto fail;
    }
    r->language = l;
    l->n_user++;
    l->used = ++c->clock;
    MU_TRY(st, mu_constraint_create(l->masker, &r->constraint, err), fail);
    *at = r;
    return MU_OK;
fail:
    request_free(r);
    return st;
}

void mu_constraints_drop(struct mu_constraints *c, uint64_t request)
{
    struct request **at = find(c, request), *r = *at;
    if (!r) return;
    *at = r->next;
    r->language->used = ++c->clock;
    request_free(r);
    languages_trim(c);
}

void mu_constraints_forget_all(struct mu_constraints *c)
{
    for (int i = 0; i < BUCKETS; i++) {
        while (c->bucket[i]) {
            struct request *r = c->bucket[i];
            c->bucket[i] = r->next;
            request_free(r);
        }
    }
    languages_trim(c);
}

void mu_constraints_destroy(struct mu_constraints *c)
{
    if (!c) return;
    maker_end(c);
    mu_constraints_forget_all(c);
    while (c->languages) {
        struct language *l = c->languages;
        c->languages = l->next;
        language_free(l);
    }
    mu_constraint_vocab_free(c->vocab);
    mu_tokenizer_close(c->tok);
    pthread_mutex_destroy(&c->lock);
    mu_free(c->words);
    mu_free(c);
}

/* ---- masks ---- */

/* Reads what is new in emitted[n]; all of it where it does not begin with what was read. */
static enum mu_status read_ids(struct request *r, const int32_t *emitted, size_t n, struct mu_err *err)
{
    enum mu_status st;
    if (n < r->n_read || (r->n_read && memcmp(r->ids, emitted, r->n_read * sizeof *emitted))) {
        struct mu_constraint *fresh;
        st = mu_constraint_create(r->language->masker, &fresh, err);
        if (st != MU_OK) return st;
        mu_constraint_free(r->constraint);
        r->constraint = fresh;
        r->n_read = 0;
    }
    if (n > r->cap) {
        size_t cap = n + n / 2 + 64;
        int32_t *ids = mu_reallocarray(r->ids, cap, sizeof *ids);
        if (!ids) return mu_fail(err, MU_ENOMEM, "no memory for constraints");
        r->ids = ids;
        r->cap = cap;
    }
    for (; r->n_read < n; r->n_read++) {
        st = mu_constraint_accept(r->constraint, emitted[r->n_read], err);
        if (st != MU_OK) return st;
        r->ids[r->n_read] = emitted[r->n_read];
    }
    if (!mu_constraint_is_dead(r->constraint)) return MU_OK;
    return mu_fail(err, MU_EINVAL, "the %zu tokens so far are not what the request's constraint allows", n);
}

bool mu_constraints_allow(void *constraints, uint64_t request, const int32_t *emitted, size_t n, uint8_t *mask_out)
{
    struct mu_constraints *c = constraints;
    struct request *r = *find(c, request);
    struct mu_err err = MU_ERR_INIT;
    if (!r) return false;
    memset(mask_out, 0, c->n_mask);
    enum mu_status st = read_ids(r, emitted, n, &err);
    if (st == MU_OK) st = mu_constraint_mask(r->constraint, c->words, &err);
    if (st != MU_OK) {
        mu_warn("constraint", "request %llu: %s", (unsigned long long)request, err.text);
        mu_free(r->why);
        r->why = mu_strdup(err.text);
        return true;
    }
    /* Words of 32 bits are four bytes in order: this program runs on little-endian machines only. */
    size_t have = mu_constraint_mask_words(c->vocab) * sizeof *c->words;
    memcpy(mask_out, c->words, have < c->n_mask ? have : c->n_mask);
    return true;
}

const char *mu_constraints_why(const struct mu_constraints *c, uint64_t request)
{
    const struct request *r = *find((struct mu_constraints *)c, request);
    return r ? r->why : NULL;
}

void mu_constraints_count(const struct mu_constraints *c, struct mu_constraints_counts *counts_out)
{
    *counts_out = (struct mu_constraints_counts){.n_compiled = c->n_compiled};
    for (const struct language *l = c->languages; l; l = l->next) counts_out->n_grammar++;
}
