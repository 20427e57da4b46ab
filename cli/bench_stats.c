/* Lists, lengths, percentiles, arrivals (bench_stats.h). */
#include "cli/bench_stats.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- texts ---- */

/* A length at the start of text; where it ends, or NULL. */
static const char *length_read(const char *text, int min, int max, int *out)
{
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)*text)) return NULL;
    long v = strtol(text, &end, 10), unit = 1;
    if (*end == 'k' || *end == 'K') unit = 1 << 10;
    if (*end == 'm' || *end == 'M') unit = 1 << 20;
    if (unit > 1) end++;
    if (errno || v > (long)max / unit || v * unit < min) return NULL;
    *out = (int)(v * unit);
    return end;
}

enum mu_status mu_bench_length(const char *text, int min, int max, const char *what, int *length_out,
                               struct mu_err *err)
{
    const char *end = length_read(text, min, max, length_out);
    if (end && !*end) return MU_OK;
    return mu_fail(err, MU_EINVAL, "%s must be a whole number from %d to %d (4k is 4096), not '%s'", what, min, max,
                   text);
}

/* The three dots of "1,2,…,256": after which the list goes on, or NULL. */
static const char *dots_read(const char *p)
{
    static const char *const dots[] = {"...", "…", ".."};
    for (size_t i = 0; i < sizeof dots / sizeof *dots; i++)
        if (!strncmp(p, dots[i], strlen(dots[i]))) return p + strlen(dots[i]);
    return NULL;
}

/* Values between the last one and `until`, each as many times the one before as the last is of its own. */
static bool list_fill(struct mu_bench_list *l, int until)
{
    int n = l->n;
    if (n < 2 || l->at[n - 1] <= l->at[n - 2]) return false;
    double ratio = (double)l->at[n - 1] / l->at[n - 2];
    if (l->at[n - 2] == 0) return false;
    for (double v = l->at[n - 1] * ratio; v < until - 0.5; v *= ratio) {
        if (l->n == MU_BENCH_MAX_LIST) return false;
        l->at[l->n++] = (int)(v + 0.5);
    }
    return true;
}

enum mu_status mu_bench_list(const char *text, int min, int max, const char *what, struct mu_bench_list *list_out,
                             struct mu_err *err)
{
    struct mu_bench_list l = {0};
    bool fill = false;
    for (const char *p = text;;) {
        const char *end = dots_read(p);
        int v;
        if (end && !fill) {
            fill = true;
        } else if ((end = length_read(p, min, max, &v)) && l.n < MU_BENCH_MAX_LIST) {
            if (fill && !list_fill(&l, v)) end = NULL;
            fill = false;
            if (end && l.n < MU_BENCH_MAX_LIST) l.at[l.n++] = v;
        } else {
            end = NULL;
        }
        if (!end || (*end && *end != ',') || (!*end && fill))
            return mu_fail(err, MU_EINVAL,
                           "%s must be at most %d whole numbers from %d to %d with commas between (4k is 4096; "
                           "1,2,...,64 goes on doubling), not '%s'",
                           what, MU_BENCH_MAX_LIST, min, max, text);
        if (!*end) break;
        p = end + 1;
    }
    *list_out = l;
    return MU_OK;
}

enum mu_status mu_bench_rates(const char *text, const char *what, struct mu_bench_rates *rates_out, struct mu_err *err)
{
    struct mu_bench_rates r = {0};
    for (const char *p = text;;) {
        char *end;
        double v = strtod(p, &end);
        if (end == p || (*end && *end != ',') || !(v >= 0.001 && v <= 1e6) || r.n == MU_BENCH_MAX_LIST)
            return mu_fail(err, MU_EINVAL,
                           "%s must be at most %d numbers from 0.001 to 1000000 with commas between, not '%s'", what,
                           MU_BENCH_MAX_LIST, text);
        r.at[r.n++] = v;
        if (!*end) break;
        p = end + 1;
    }
    *rates_out = r;
    return MU_OK;
}

enum mu_status mu_bench_range(const char *text, int min, int max, const char *what, struct mu_bench_range *range_out,
                              struct mu_err *err)
{
    struct mu_bench_range r;
    const char *end = length_read(text, min, max, &r.min), *dots;
    r.max = r.min;
    if (end && (dots = dots_read(end))) end = length_read(dots, r.min, max, &r.max);
    if (!end || *end)
        return mu_fail(err, MU_EINVAL, "%s must be a length or LEAST..MOST from %d to %d (4k is 4096), not '%s'", what,
                       min, max, text);
    *range_out = r;
    return MU_OK;
}

/* A duration at the start of text; where it ends, or NULL. */
static const char *duration_read(const char *text, int64_t *ns_out)
{
    static const struct {
        const char *name;
        double ns;
    } unit[] = {{"us", 1e3}, {"ms", 1e6}, {"s", 1e9}};
    char *end;
    double v = strtod(text, &end);
    if (end == text || !(v > 0 && v <= 1e6)) return NULL;
    for (size_t i = 0; i < sizeof unit / sizeof *unit; i++) {
        if (strncmp(end, unit[i].name, strlen(unit[i].name))) continue;
        *ns_out = (int64_t)(v * unit[i].ns);
        return *ns_out > 0 ? end + strlen(unit[i].name) : NULL;
    }
    return NULL;
}

enum mu_status mu_bench_slo(const char *text, struct mu_bench_slo *slo_out, struct mu_err *err)
{
    struct mu_bench_slo slo = {0};
    struct {
        const char *name;
        int64_t *ns;
    } field[] = {{"ttft=", &slo.ttft_ns}, {"tpot=", &slo.tpot_ns}, {"itl=", &slo.itl_ns}, {"e2e=", &slo.e2e_ns}};
    for (const char *p = text;;) {
        const char *end = NULL;
        for (size_t i = 0; i < sizeof field / sizeof *field && !end; i++)
            if (!strncmp(p, field[i].name, strlen(field[i].name)))
                end = duration_read(p + strlen(field[i].name), field[i].ns);
        if (!end || (*end && *end != ','))
            return mu_fail(err, MU_EINVAL,
                           "--slo must be targets as ttft=500ms,itl=50ms (of ttft, tpot, itl, e2e), not '%s'", text);
        if (!*end) break;
        p = end + 1;
    }
    *slo_out = slo;
    return MU_OK;
}

int mu_bench_hosts(const char *text, int n_rank, int *machine_out)
{
    enum { MAX_HOSTS = 64 }; /* each has room for a rank, and there are no more ranks than that */
    struct {
        const char *name;
        size_t len;
        int n_room, n;
    } host[MAX_HOSTS];
    int n_host = 0, n_used = 0, rank = 0, left = n_rank;
    for (const char *p = text; *p; p += strcspn(p, ","), p += *p == ',') {
        size_t len = strcspn(p, ":,");
        int i = 0, room = p[len] == ':' ? atoi(p + len + 1) : 1;
        while (i < n_host && (host[i].len != len || strncmp(host[i].name, p, len))) i++;
        if (i == MAX_HOSTS) break;
        if (i == n_host) host[n_host++].name = p, host[i].len = len, host[i].n_room = host[i].n = 0;
        host[i].n_room += room > 0 && room < n_rank ? room : n_rank; /* "*": as many as it has cores */
    }
    for (int i = 0; i < n_host; i++) {
        host[i].n = left < host[i].n_room ? left : host[i].n_room;
        left -= host[i].n;
    }
    for (int i = 0; n_host && left > 0; i = (i + 1) % n_host, left--) host[i].n++;
    for (int i = 0; i < n_host; i++) {
        for (int k = 0; k < host[i].n; k++) machine_out[rank++] = i;
        n_used += host[i].n > 0;
    }
    return n_used;
}

void mu_bench_length_format(int n, char *buf, size_t buf_bytes)
{
    if (n >= 1 << 20 && n % (1 << 20) == 0)
        snprintf(buf, buf_bytes, "%dm", n >> 20);
    else if (n >= 1 << 10 && n % (1 << 10) == 0)
        snprintf(buf, buf_bytes, "%dk", n >> 10);
    else
        snprintf(buf, buf_bytes, "%d", n);
}

/* ---- figures ---- */

double mu_bench_percentile(const double *sorted, size_t n, double p)
{
    double at = p / 100 * (double)(n - 1);
    size_t below = (size_t)at;
    if (below + 1 >= n) return sorted[n - 1];
    return sorted[below] + (sorted[below + 1] - sorted[below]) * (at - (double)below);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct mu_bench_spread mu_bench_spread_of(double *v, size_t n)
{
    struct mu_bench_spread s = {.n = n};
    if (!n) return s;
    qsort(v, n, sizeof *v, by_value);
    for (size_t i = 0; i < n; i++) s.mean += v[i] / (double)n;
    s.median = mu_bench_percentile(v, n, 50);
    s.p99 = mu_bench_percentile(v, n, 99);
    s.min = v[0];
    s.max = v[n - 1];
    return s;
}

double mu_bench_noise(const struct mu_bench_spread *s)
{
    return s->n > 1 && s->median > 0 ? (s->max - s->min) / s->median : 0;
}

bool mu_bench_slo_met(const struct mu_bench_slo *slo, double ttft_ms, double tpot_ms, double e2e_ms,
                      const double *gap_ms, size_t n_gap)
{
    if (slo->ttft_ns && !(ttft_ms * 1e6 <= (double)slo->ttft_ns)) return false;
    if (slo->tpot_ns && !(tpot_ms * 1e6 <= (double)slo->tpot_ns)) return false;
    if (slo->e2e_ns && !(e2e_ms * 1e6 <= (double)slo->e2e_ns)) return false;
    return !slo->itl_ns || !n_gap || mu_bench_percentile(gap_ms, n_gap, 99) * 1e6 <= (double)slo->itl_ns;
}

/* ---- chance ---- */

uint64_t mu_bench_random_next(struct mu_bench_random *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double mu_bench_random_unit(struct mu_bench_random *r)
{
    return ((double)(mu_bench_random_next(r) >> 11) + 1) * 0x1p-53;
}

int mu_bench_random_in(struct mu_bench_random *r, const struct mu_bench_range *range)
{
    return range->min + (int)(mu_bench_random_next(r) % ((uint64_t)(range->max - range->min) + 1));
}

static double gap_s(struct mu_bench_arrivals *a)
{
    return -log(mu_bench_random_unit(&a->chance)) / a->rate;
}

struct mu_bench_arrivals mu_bench_arrivals_begin(double rate, int n, uint64_t seed)
{
    struct mu_bench_arrivals a = {.chance = {seed}, .rate = rate, .stretch = 1};
    struct mu_bench_arrivals trial = a;
    double last = 0;
    for (int i = 0; i < n; i++) last += gap_s(&trial);
    if (last > 0) a.stretch = n / rate / last;
    return a;
}

int64_t mu_bench_arrivals_next_ns(struct mu_bench_arrivals *a)
{
    return a->now_ns += (int64_t)(gap_s(a) * a->stretch * 1e9);
}
