/* The sum of what the ranks take (plan.h) against what is free, in numbers and in words. */
#include "shard/plan_fit.h"

#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"

enum { LEAST_CTX = 256, ROUND_CTX = 256, MAX_PAGES = 1 << 24 };

static struct mu_fit_place place_of(int device, uint64_t free_bytes)
{
    return (struct mu_fit_place){.device = device, .free = free_bytes, .usable = free_bytes - free_bytes / 16};
}

static struct mu_fit_place *place_find(struct mu_fit *fit, int device, const struct mu_plan_node *node)
{
    for (int i = 0; i < fit->n_place; i++)
        if (fit->place[i].device == device) return &fit->place[i];
    bool there = device < node->gpus.n;
    fit->place[fit->n_place] = place_of(device, there ? node->gpus.gpu[device].free_bytes : 0);
    return &fit->place[fit->n_place++];
}

/* Sizes that overflow are UINT64_MAX, and stay so. */
static void more(uint64_t *sum, uint64_t bytes)
{
    *sum = bytes > UINT64_MAX - *sum ? UINT64_MAX : *sum + bytes;
}

static uint64_t times(uint64_t bytes, uint64_t n)
{
    return n && bytes > UINT64_MAX / n ? UINT64_MAX : bytes * n;
}

void mu_fit_measure(const struct mu_model *model, const struct mu_plan *plan, const struct mu_adapters *adapters,
                    const struct mu_serving *serving, const struct mu_plan_node *node, struct mu_fit *fit_out)
{
    struct mu_fit fit = {.serving = *serving, .n_place = 1, .place = {place_of(MU_ON_CPU, node->memory_bytes)}};
    struct mu_serving one = *serving;
    bool embeds = false; /* one of the ranks so far */
    one.n_page = 1;
    one.window = 0;
    if (!mu_kernels()) mu_kernels_init(NULL, NULL); /* packed sizes are the table's; those of the file without */
    for (int i = 0; i < plan->n_rank; i++) {
        struct mu_rank_memory m;
        mu_plan_memory(model, plan, i, &one, &m);
        if (m.mapped && embeds) *(plan->split.device[i] == MU_ON_CPU ? &m.weights : &m.host) -= m.mapped;
        embeds = embeds || m.mapped;
        struct mu_fit_place *place = place_find(&fit, plan->split.device[i], node);
        more(&place->weights, m.weights);
        more(&place->weights, mu_plan_adapter_bytes(model, plan, i, adapters));
        more(&place->scratch, m.scratch);
        more(&place->page, m.kv);
        more(&place->window, mu_plan_kv_window_bytes(model, plan, i, serving->kv));
        more(&fit.place[0].scratch, m.host);
        more(&fit.place[0].weights, m.streamed);
    }
    *fit_out = fit;
}

void mu_fit_add_draft(struct mu_fit *fit, const struct mu_rank_memory *memory)
{
    more(&fit->place[0].draft, memory->weights);
    more(&fit->place[0].draft, memory->kv);
    more(&fit->place[0].draft, memory->scratch);
}

uint64_t mu_fit_kv_bytes(const struct mu_fit_place *p, const struct mu_serving *v)
{
    uint32_t n_window = mu_plan_window_pages(v);
    uint64_t bytes = times(n_window ? p->page - p->window : p->page, v->n_page);
    more(&bytes, times(p->window, n_window));
    return bytes;
}

/* KV pages that a place has room for, where sequences may be so long. */
static uint64_t place_room(const struct mu_fit_place *p, struct mu_serving v)
{
    uint32_t low = 0, high = MAX_PAGES + 1; /* so many fit; so many are not wanted, or do not */
    uint64_t fixed = p->weights;
    more(&fixed, p->scratch);
    more(&fixed, p->draft);
    while (fixed <= p->usable && high - low > 1) {
        v.n_page = low + (high - low) / 2;
        *(mu_fit_kv_bytes(p, &v) <= p->usable - fixed ? &low : &high) = v.n_page;
    }
    return low;
}

static const struct mu_fit_place *fullest(const struct mu_fit *fit, const struct mu_serving *v)
{
    const struct mu_fit_place *least = &fit->place[0];
    for (int i = 1; i < fit->n_place; i++)
        if (place_room(&fit->place[i], *v) < place_room(least, *v)) least = &fit->place[i];
    return least;
}

static uint64_t room_of(const struct mu_fit *fit, const struct mu_serving *v)
{
    return place_room(fullest(fit, v), *v);
}

const struct mu_fit_place *mu_fit_fullest(const struct mu_fit *fit)
{
    return fullest(fit, &fit->serving);
}

uint64_t mu_fit_room(const struct mu_fit *fit)
{
    return room_of(fit, &fit->serving);
}

/* ---- words ---- */

static const char *size_text(uint64_t bytes, char *buf, size_t buf_bytes)
{
    double gb = (double)bytes / 1e9;
    if (gb >= 0.0995)
        snprintf(buf, buf_bytes, gb < 9.995 ? "%.2f GB" : "%.1f GB", gb);
    else
        snprintf(buf, buf_bytes, "%.1f MB", gb * 1000);
    return buf;
}

/* 1234567 → "1,234,567" */
static const char *count_text(uint64_t n, char *buf, size_t buf_bytes)
{
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%llu", (unsigned long long)n), at = 0;
    for (int i = 0; i < len && (size_t)at + 2 < buf_bytes; i++) {
        if (i && (len - i) % 3 == 0) buf[at++] = ',';
        buf[at++] = digits[i];
    }
    buf[at] = '\0';
    return buf;
}

/* "4 × 8,192 tokens (f16)", "(f16, windows of 1,024)" where layers keep no more */
static void held_text(const struct mu_serving *serving, char *buf, size_t buf_bytes)
{
    char ctx[24], tokens[24], window[24], kept[64];
    uint64_t whole = (uint64_t)mu_fit_pages_of(serving->n_ctx) * (uint64_t)serving->n_slot;
    count_text((uint64_t)serving->n_ctx, ctx, sizeof ctx);
    count_text((uint64_t)serving->n_page * MU_PAGE_TOKENS, tokens, sizeof tokens);
    snprintf(kept, sizeof kept, "%s", mu_kv_type_name(serving->kv));
    if (mu_plan_window_pages(serving))
        snprintf(kept, sizeof kept, "%s, windows of %s", mu_kv_type_name(serving->kv),
                 count_text((uint64_t)serving->window, window, sizeof window));
    if (serving->n_page >= whole)
        snprintf(buf, buf_bytes, "%d × %s tokens (%s)", serving->n_slot, ctx, kept);
    else
        snprintf(buf, buf_bytes, "%s tokens (%s), shared by up to %d sequences of at most %s", tokens, kept,
                 serving->n_slot, ctx);
}

static void place_describe(const struct mu_fit_place *p, const struct mu_serving *serving, char *text, size_t bytes)
{
    char weights[24], scratch[24], kv[24], have[24], held[192], draft[24], beside[48] = "";
    size_text(p->weights, weights, sizeof weights);
    size_text(p->scratch, scratch, sizeof scratch);
    size_text(mu_fit_kv_bytes(p, serving), kv, sizeof kv);
    size_text(p->free, have, sizeof have);
    held_text(serving, held, sizeof held);
    if (p->draft) snprintf(beside, sizeof beside, ", draft model %s", size_text(p->draft, draft, sizeof draft));
    if (p->page)
        snprintf(text, bytes, "weights %s, KV %s for %s, scratch %s%s, of %s free", weights, kv, held, scratch, beside,
                 have);
    else if (p->weights)
        snprintf(text, bytes, "weights %s to be streamed, scratch %s%s, of %s free", weights, scratch, beside, have);
    else
        snprintf(text, bytes, "%s%s of %s free", scratch, beside, have);
}

void mu_fit_describe(const struct mu_fit *fit, const struct mu_serving *serving, char text[MU_FIT_TEXT])
{
    size_t len = 0;
    text[0] = '\0';
    for (int i = 1; i <= fit->n_place && len < MU_FIT_TEXT - 1; i++) { /* the host comes last */
        const struct mu_fit_place *p = &fit->place[i % fit->n_place];
        if (p->device != MU_ON_CPU)
            len += (size_t)snprintf(text + len, MU_FIT_TEXT - len, "GPU %d: ", p->device);
        else if (fit->n_place > 1)
            len += (size_t)snprintf(text + len, MU_FIT_TEXT - len, "; host: ");
        if (len >= MU_FIT_TEXT) break;
        place_describe(p, serving, text + len, MU_FIT_TEXT - len);
        len += strlen(text + len);
        if (i < fit->n_place - 1 && len < MU_FIT_TEXT) len += (size_t)snprintf(text + len, MU_FIT_TEXT - len, "; ");
    }
}

/* The longest context of which n_slot sequences fit, rounded down to something that reads well; 0: none. */
static int ctx_that_fits(const struct mu_fit *fit, struct mu_serving v, int n_slot, int most)
{
    uint64_t low = 0,
             high = mu_fit_pages_of(most) + 1; /* pages of one: so many fit; so many are not wanted, or do not */
    while (high - low > 1) {
        uint64_t mid = low + (high - low) / 2;
        v.n_ctx = (int)(mid * MU_PAGE_TOKENS);
        *(room_of(fit, &v) >= mid * (uint64_t)n_slot ? &low : &high) = mid;
    }
    uint64_t tokens = low * MU_PAGE_TOKENS;
    if (tokens >= (uint64_t)most) return most;
    int ctx = (int)tokens;
    return ctx >= 4 * ROUND_CTX ? ctx / ROUND_CTX * ROUND_CTX : ctx;
}

/* Another of several possibilities. */
static void add(char *list, size_t bytes, const char *what, int n)
{
    size_t len = strlen(list);
    snprintf(list + len, bytes - len, "%s%s", len ? ", or " : "", what);
    len = strlen(list);
    if (n) snprintf(list + len, bytes - len, " %d", n);
}

/* What to ask for instead. */
static void advise(const struct mu_fit *fit, const struct mu_model *model, const struct mu_plan *plan, unsigned asked,
                   const struct mu_serving *v, char *list, size_t bytes)
{
    int slots = (int)(room_of(fit, v) / mu_fit_pages_of(v->n_ctx));
    int ctx = ctx_that_fits(fit, *v, asked & MU_FIT_SLOTS ? v->n_slot : 1, v->n_ctx);
    list[0] = '\0';
    if (slots > 0 && slots < v->n_slot && asked & MU_FIT_SLOTS) add(list, bytes, "--parallel", slots);
    if (ctx >= 2 && ctx < v->n_ctx) add(list, bytes, "--ctx", ctx);
    if (v->kv != MU_KV_Q8_0) {
        struct mu_serving small = *v;
        struct mu_fit q8 = *fit;
        small.kv = MU_KV_Q8_0;
        for (int k = 0; k < q8.n_place; k++) q8.place[k].page = q8.place[k].window = 0;
        for (int i = 0; i < plan->n_rank; i++)
            for (int k = 0; k < q8.n_place; k++)
                if (q8.place[k].device == plan->split.device[i]) {
                    q8.place[k].page += mu_plan_kv_page_bytes(model, plan, i, small.kv);
                    q8.place[k].window += mu_plan_kv_window_bytes(model, plan, i, small.kv);
                }
        int n = ctx_that_fits(&q8, *v, asked & MU_FIT_SLOTS ? v->n_slot : 1, v->n_ctx);
        if (n == v->n_ctx) add(list, bytes, "--kv q8_0", 0);
        if (n > ctx && n < v->n_ctx) add(list, bytes, "--kv q8_0 with --ctx", n);
    }
    struct mu_fit alone = *fit;
    alone.place[0].draft = 0;
    if (fit->place[0].draft && room_of(&alone, v) >= mu_fit_pages_of(v->n_ctx)) add(list, bytes, "no --draft", 0);
    if (!list[0])
        snprintf(list, bytes, "a smaller model, one of smaller types (--quantize), or a machine with more memory");
}

enum mu_status mu_fit_settle(const struct mu_fit *fit, const struct mu_model *model, const struct mu_plan *plan,
                             unsigned asked, struct mu_serving *v, struct mu_err *err)
{
    uint64_t room, one, whole;
    int shorter = ctx_that_fits(fit, *v, 1, v->n_ctx), least = v->n_ctx < LEAST_CTX ? v->n_ctx : LEAST_CTX;
    bool all = (asked & MU_FIT_CTX) && (asked & MU_FIT_SLOTS);
    if (!(asked & MU_FIT_CTX) && shorter >= least) v->n_ctx = shorter;
    one = mu_fit_pages_of(v->n_ctx);
    whole = one * (uint64_t)v->n_slot;
    room = room_of(fit, v);
    if (room >= (v->n_page ? v->n_page : all ? whole : one)) {
        if (!v->n_page) v->n_page = (uint32_t)(whole < room ? whole : room);
        return MU_OK;
    }
    struct mu_serving want = *v;
    const struct mu_fit_place *full = fullest(fit, v);
    char text[384], instead[256], where[48] = "this machine";
    if (!want.n_page && !all) want.n_slot = 1;
    if (!want.n_page) want.n_page = (uint32_t)(all ? whole : one);
    if (full->device != MU_ON_CPU)
        snprintf(where, sizeof where, "GPU %d", full->device);
    else if (fit->n_place > 1)
        snprintf(where, sizeof where, "this machine's own memory");
    place_describe(full, &want, text, sizeof text);
    advise(fit, model, plan, asked, v, instead, sizeof instead);
    return mu_fail(err, MU_ENOMEM, "the model does not fit %s: %s; what would fit: %s", where, text, instead);
}
