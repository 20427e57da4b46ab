/* The sum of what the ranks take (plan.h) against what is free, in numbers and in words. */
#include "shard/plan_fit.h"

#include <stdio.h>
#include <string.h>

#include "kernels/kernels.h"

enum { LEAST_CTX = 256, ROUND_CTX = 256, MAX_PAGES = 1 << 24 };

void mu_fit_measure(const struct mu_model *model, const struct mu_plan *plan, const struct mu_adapters *adapters,
                    const struct mu_serving *serving, uint64_t free_bytes, struct mu_fit *fit_out)
{
    struct mu_fit fit = {.free = free_bytes, .usable = free_bytes - free_bytes / 16};
    struct mu_serving one = *serving;
    one.n_page = 1;
    if (!mu_kernels()) mu_kernels_init(NULL, NULL); /* packed sizes are the table's; those of the file without */
    for (int i = 0; i < plan->n_rank; i++) {
        struct mu_rank_memory m;
        mu_plan_memory(model, plan, i, &one, &m);
        fit.weights += m.weights + mu_plan_adapter_bytes(model, plan, i, adapters);
        fit.scratch += m.scratch;
        fit.page += m.kv;
    }
    *fit_out = fit;
}

uint64_t mu_fit_room(const struct mu_fit *fit)
{
    uint64_t fixed = fit->weights + fit->scratch;
    uint64_t pages = fit->usable > fixed && fit->page ? (fit->usable - fixed) / fit->page : 0;
    return pages < MAX_PAGES ? pages : MAX_PAGES;
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

void mu_fit_describe(const struct mu_fit *fit, const struct mu_serving *serving, char text[MU_FIT_TEXT])
{
    char weights[24], scratch[24], kv[24], have[24], ctx[24], tokens[24], held[144];
    uint64_t whole = (uint64_t)mu_fit_pages_of(serving->n_ctx) * (uint64_t)serving->n_slot;
    count_text((uint64_t)serving->n_ctx, ctx, sizeof ctx);
    count_text((uint64_t)serving->n_page * MU_PAGE_TOKENS, tokens, sizeof tokens);
    if (serving->n_page >= whole)
        snprintf(held, sizeof held, "%d × %s tokens (%s)", serving->n_slot, ctx, mu_kv_type_name(serving->kv));
    else
        snprintf(held, sizeof held, "%s tokens (%s), shared by up to %d sequences of at most %s", tokens,
                 mu_kv_type_name(serving->kv), serving->n_slot, ctx);
    snprintf(text, MU_FIT_TEXT, "weights %s, KV %s for %s, scratch %s, of %s free",
             size_text(fit->weights, weights, sizeof weights), size_text(fit->page * serving->n_page, kv, sizeof kv),
             held, size_text(fit->scratch, scratch, sizeof scratch), size_text(fit->free, have, sizeof have));
}

/* The longest context of which n_slot sequences fit, rounded down to something that reads well; 0: none. */
static int ctx_that_fits(const struct mu_fit *fit, int n_slot, int most)
{
    uint64_t tokens = mu_fit_room(fit) / (uint64_t)n_slot * MU_PAGE_TOKENS;
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
    int slots = (int)(mu_fit_room(fit) / mu_fit_pages_of(v->n_ctx));
    int ctx = ctx_that_fits(fit, asked & MU_FIT_SLOTS ? v->n_slot : 1, v->n_ctx);
    list[0] = '\0';
    if (slots > 0 && slots < v->n_slot && asked & MU_FIT_SLOTS) add(list, bytes, "--parallel", slots);
    if (ctx >= 2 && ctx < v->n_ctx) add(list, bytes, "--ctx", ctx);
    if (v->kv != MU_KV_Q8_0) {
        struct mu_serving small = *v;
        struct mu_fit q8 = *fit;
        small.kv = MU_KV_Q8_0;
        q8.page = 0;
        for (int i = 0; i < plan->n_rank; i++) q8.page += mu_plan_kv_page_bytes(model, plan, i, small.kv);
        int n = ctx_that_fits(&q8, asked & MU_FIT_SLOTS ? v->n_slot : 1, v->n_ctx);
        if (n == v->n_ctx) add(list, bytes, "--kv q8_0", 0);
        if (n > ctx && n < v->n_ctx) add(list, bytes, "--kv q8_0 with --ctx", n);
    }
    if (!list[0])
        snprintf(list, bytes, "a smaller model, one of smaller types (--quantize), or a machine with more memory");
}

enum mu_status mu_fit_settle(const struct mu_fit *fit, const struct mu_model *model, const struct mu_plan *plan,
                             unsigned asked, struct mu_serving *v, struct mu_err *err)
{
    uint64_t room = mu_fit_room(fit), one, whole;
    int shorter = ctx_that_fits(fit, 1, v->n_ctx), least = v->n_ctx < LEAST_CTX ? v->n_ctx : LEAST_CTX;
    bool all = (asked & MU_FIT_CTX) && (asked & MU_FIT_SLOTS);
    if (!(asked & MU_FIT_CTX) && shorter >= least) v->n_ctx = shorter;
    one = mu_fit_pages_of(v->n_ctx);
    whole = one * (uint64_t)v->n_slot;
    if (room >= (v->n_page ? v->n_page : all ? whole : one)) {
        if (!v->n_page) v->n_page = (uint32_t)(whole < room ? whole : room);
        return MU_OK;
    }
    struct mu_serving want = *v;
    char text[MU_FIT_TEXT], instead[256];
    if (!want.n_page && !all) want.n_slot = 1;
    if (!want.n_page) want.n_page = (uint32_t)(all ? whole : one);
    mu_fit_describe(fit, &want, text);
    advise(fit, model, plan, asked, v, instead, sizeof instead);
    return mu_fail(err, MU_ENOMEM, "the model does not fit this machine: %s; what would fit: %s", text, instead);
}
