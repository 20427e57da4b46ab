/* See place.h. */
#include "base/place.h"

#include <stdio.h>
#include <string.h>

/* What is decided for all ranks on processors together. */
struct layout {
    int n_cpu_rank, n_thread;
    bool one_a_node, in_order, crowded; /* none of them: as count says, on cores of their own */
    int count[MU_TOPO_MAX_NUMA];        /* ranks on each node */
    int share[MU_TOPO_MAX_NUMA], most;  /* of one_a_node: threads of each node's; the largest */
};

void mu_place_shares(const struct mu_topo *t, int share[MU_TOPO_MAX_NUMA])
{
    int given = 0;
    for (int k = 0; k < t->n_numa; k++) given += share[k] = t->numa[k].n_core * t->n_usable / t->n_core;
    for (; given < t->n_usable; given++) { /* the largest remainder; the first of equal ones */
        int best = 0, best_left = -1;
        for (int k = 0; k < t->n_numa; k++) {
            int left = t->numa[k].n_core * t->n_usable - share[k] * t->n_core;
            if (left <= best_left) continue;
            best = k;
            best_left = left;
        }
        share[best]++;
    }
}

static int cpu_ranks(const struct mu_place_wish *wish, int n_rank)
{
    int n = 0;
    for (int i = 0; i < n_rank; i++) n += !wish[i].on_gpu;
    return n;
}

static bool is_one_a_node(const struct mu_topo *t, const struct mu_place_wish *wish, int n_rank)
{
    int share[MU_TOPO_MAX_NUMA];
    if (t->n_numa < 2 || n_rank != t->n_numa || cpu_ranks(wish, n_rank) != n_rank) return false;
    mu_place_shares(t, share);
    for (int k = 0; k < t->n_numa; k++)
        if (share[k] < 1) return false;
    return true;
}

/* The next rank's node: one where it fits before one where it does not, an empty one before a taken one, then the least
 * full. */
static int node_choose(const struct mu_topo *t, const struct layout *l, bool *fits_out)
{
    int best = -1, best_class = 0;
    double best_load = 0;
    for (int k = 0; k < t->n_numa; k++) {
        int used = (l->count[k] + 1) * l->n_thread;
        int rank_class = (used > t->numa[k].n_core) * 2 + (l->count[k] > 0);
        double load = (double)used / t->numa[k].n_core;
        if (best >= 0 && (rank_class > best_class || (rank_class == best_class && load >= best_load))) continue;
        best = k;
        best_class = rank_class;
        best_load = load;
    }
    *fits_out = best_class < 2;
    return best;
}

static struct layout layout_of(const struct mu_topo *t, const struct mu_place_wish *wish, int n_rank, int n_thread)
{
    struct layout l = {.n_cpu_rank = cpu_ranks(wish, n_rank), .n_thread = n_thread};
    mu_place_shares(t, l.share);
    for (int k = 0; k < t->n_numa; k++)
        if (l.share[k] > l.most) l.most = l.share[k];
    if (is_one_a_node(t, wish, n_rank) && n_thread <= l.most) {
        l.one_a_node = true;
        for (int k = 0; k < t->n_numa; k++) l.count[k] = 1;
        return l;
    }
    bool all_fit = true, fits;
    for (int i = 0; i < l.n_cpu_rank; i++) {
        l.count[node_choose(t, &l, &fits)]++;
        all_fit = all_fit && fits;
    }
    if (all_fit) return l;
    l.in_order = (long)n_thread * l.n_cpu_rank <= t->n_core;
    l.crowded = !l.in_order;
    return l;
}

/* CPUs of a node from the skip-th on, at most n; cores before SMT siblings. */
static int cpus_of_node(const struct mu_topo *t, int node, int skip, int n, int *cpu)
{
    int got = 0;
    for (int i = 0; i < t->n_cpu && got < n; i++)
        if (t->numa_of[i] == node && skip-- <= 0) cpu[got++] = t->cpus[i];
    return got;
}

static void place_on_node(const struct mu_topo *t, int k, int first, bool pinned, struct mu_place *p)
{
    p->numa = t->numa[k].node;
    p->pinned = pinned && first + p->n_thread <= t->numa[k].n_core;
    if (p->pinned)
        p->n_cpu = cpus_of_node(t, p->numa, first, p->n_thread, p->cpu);
    else if (t->n_numa > 1)
        p->n_cpu = cpus_of_node(t, p->numa, 0, t->n_cpu, p->cpu);
}

static void place_in_order(const struct mu_topo *t, int first, bool pinned, struct mu_place *p)
{
    p->numa = t->numa_of[first];
    for (int i = 1; i < p->n_thread; i++)
        if (t->numa_of[first + i] != p->numa) p->numa = -1;
    p->pinned = pinned;
    if (!pinned && p->numa >= 0 && t->n_numa > 1) p->n_cpu = cpus_of_node(t, p->numa, 0, t->n_cpu, p->cpu);
    if (!pinned) return;
    p->n_cpu = p->n_thread;
    memcpy(p->cpu, t->cpus + first, (size_t)p->n_thread * sizeof *p->cpu);
}

void mu_place_rank(const struct mu_topo *t, const struct mu_place_wish *wish, int n_rank, int n_thread,
                   int n_thread_gpu, int rank, struct mu_place *p)
{
    memset(p, 0, sizeof *p);
    p->numa = -1;
    if (wish[rank].on_gpu) {
        p->n_thread = n_thread_gpu;
        for (int k = 0; k < t->n_numa && t->n_numa > 1; k++)
            if (t->numa[k].node == wish[rank].near) place_on_node(t, k, 0, false, p);
        return;
    }
    struct layout l = layout_of(t, wish, n_rank, n_thread);
    bool pinned = t->n_usable == t->n_core && !l.crowded;
    int index = cpu_ranks(wish, rank), k = 0; /* among those on processors */
    p->n_thread = n_thread;
    if (l.in_order) {
        place_in_order(t, index * n_thread, pinned, p);
        return;
    }
    if (l.crowded && l.n_cpu_rank < t->n_numa) return; /* too wide for one node: the system shares them out */
    while (index >= l.count[k]) index -= l.count[k++];
    if (l.one_a_node && n_thread > l.share[k]) p->n_thread = l.share[k];
    place_on_node(t, k, index * n_thread, pinned, p);
}

int mu_place_threads(const struct mu_topo *t, const struct mu_place_wish *wish, int n_rank)
{
    int n_cpu_rank = cpu_ranks(wish, n_rank), left = t->n_usable - (n_rank - n_cpu_rank);
    if (is_one_a_node(t, wish, n_rank)) return layout_of(t, wish, n_rank, 1).most;
    if (n_cpu_rank == 0) return t->n_usable;
    return left > n_cpu_rank ? left / n_cpu_rank : 1;
}

/* The next number after `after`; -1: there is none. */
static int cpu_after(const int *cpu, int n, int after)
{
    int least = -1;
    for (int i = 0; i < n; i++)
        if (cpu[i] > after && (least < 0 || cpu[i] < least)) least = cpu[i];
    return least;
}

void mu_place_cpus_text(const int *cpu, int n_cpu, char *buf, int buf_bytes)
{
    int len = 0;
    buf[0] = '\0';
    for (int first = cpu_after(cpu, n_cpu, -1), last; first >= 0; first = cpu_after(cpu, n_cpu, last)) {
        char one[32];
        for (last = first; cpu_after(cpu, n_cpu, last) == last + 1;) last++;
        int n = snprintf(one, sizeof one, last > first ? "%s%d-%d" : "%s%d", len ? "," : "", first, last);
        if (len + n + 4 > buf_bytes) {
            snprintf(buf + len, (size_t)(buf_bytes - len), "…");
            return;
        }
        memcpy(buf + len, one, (size_t)n + 1);
        len += n;
    }
}
