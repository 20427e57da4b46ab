/* The machine that was measured, and who else used it meanwhile.
 *
 * /proc/stat counts every core's time by what it went to; what our own processes and their children used is known, so
 * the rest is others'. Steal is time that a hypervisor gave to somebody else. A CFS quota that was used up, a processor
 * that got too hot and one that runs slower than it could are told by the kernel where it knows.
 * Source: proc(5); Linux Documentation/ABI/testing/sysfs-devices-system-cpu (cpufreq, thermal_throttle). */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cgroup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/topo.h"
#include "cli/bench.h"
#include "kernels/kernels.h"

/* What docs/benchmarking.md says of them. */
static const double MOST_OTHERS = 0.05, MOST_STEAL = 0.02, MOST_THROTTLED = 0.01, LEAST_MHZ = 0.7;

struct moment {
    int64_t at_ns;
    double busy_s, steal_s, own_s, self_s; /* CPU seconds; own: with children that have ended */
    uint64_t throttled_us, heat;
};

struct mu_bench_watch {
    struct moment begin;
    struct mu_topo topo;
    double load_average, quota_cpus;
};

static double cpu_seconds(int who)
{
    struct rusage u;
    if (getrusage(who, &u)) return 0;
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

/* A small file's first number; false: there is none. */
static bool number_of(const char *path, uint64_t *out)
{
    FILE *f = fopen(path, "re");
    bool ok = f && fscanf(f, "%" SCNu64, out) == 1;
    if (f) fclose(f);
    return ok;
}

static uint64_t heat_of(const struct mu_topo *t)
{
    uint64_t sum = 0, n;
    char path[128];
    for (int i = 0; i < t->n_cpu; i++) {
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/thermal_throttle/core_throttle_count", t->cpus[i]);
        if (number_of(path, &n)) sum += n;
    }
    return sum;
}

/* Mean of our cores; 0 where the kernel does not tell. */
static double mhz_of(const struct mu_topo *t, const char *name)
{
    double sum = 0;
    char path[128];
    for (int i = 0; i < t->n_core; i++) {
        uint64_t khz;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/%s", t->cpus[i], name);
        if (!number_of(path, &khz)) return 0;
        sum += (double)khz / 1e3;
    }
    return t->n_core ? sum / t->n_core : 0;
}

static struct moment moment_now(const struct mu_topo *topo, double *quota_out)
{
    struct moment m = {.at_ns = mu_now_ns()};
    struct mu_cgroup group;
    double v[8] = {0}, hz = (double)sysconf(_SC_CLK_TCK);
    FILE *f = fopen("/proc/stat", "re");
    if (f &&
        fscanf(f, "cpu %lf %lf %lf %lf %lf %lf %lf %lf", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6], &v[7]) >= 7) {
        m.busy_s = (v[0] + v[1] + v[2] + v[5] + v[6]) / hz; /* all but idle, iowait and steal */
        m.steal_s = v[7] / hz;
    }
    if (f) fclose(f);
    m.self_s = cpu_seconds(RUSAGE_SELF);
    m.own_s = m.self_s + cpu_seconds(RUSAGE_CHILDREN);
    mu_cgroup_read("", &group);
    m.throttled_us = group.throttled_us;
    m.heat = heat_of(topo);
    *quota_out = group.cpus;
    return m;
}

enum mu_status mu_bench_watch_begin(struct mu_bench_watch **watch_out, struct mu_err *err)
{
    struct mu_bench_watch *w = mu_calloc(1, sizeof *w);
    if (!w) return mu_fail(err, MU_ENOMEM, "no memory to look at this machine");
    enum mu_status st = mu_topo_read(&w->topo, err);
    if (st) {
        mu_free(w);
        return st;
    }
    FILE *f = fopen("/proc/loadavg", "re");
    if (f && fscanf(f, "%lf", &w->load_average) != 1) w->load_average = 0;
    if (f) fclose(f);
    w->begin = moment_now(&w->topo, &w->quota_cpus);
    *watch_out = w;
    return MU_OK;
}

static double at_least_0(double v)
{
    return v > 0 ? v : 0;
}

void mu_bench_watch_end(struct mu_bench_watch *w, struct mu_bench_machine *machine_out)
{
    if (w && machine_out) {
        const struct mu_topo *t = &w->topo;
        struct mu_bench_machine m = {.n_cpu = t->n_cpu,
                                     .n_core = t->n_core,
                                     .n_usable = t->n_usable,
                                     .n_online = (int)sysconf(_SC_NPROCESSORS_ONLN),
                                     .mem_bytes = t->mem_total_bytes,
                                     .available_bytes = t->mem_available_bytes,
                                     .load_average = w->load_average,
                                     .quota_cpus = w->quota_cpus};
        double quota;
        m.mhz = mhz_of(t, "scaling_cur_freq"); /* at once, while the cores are still as fast as they were */
        m.mhz_max = mhz_of(t, "cpuinfo_max_freq");
        struct moment end = moment_now(t, &quota);
        struct utsname u;
        m.elapsed_s = (double)(end.at_ns - w->begin.at_ns) / 1e9;
        double room = m.elapsed_s * m.n_online, busy = end.busy_s - w->begin.busy_s;
        if (room > 0) {
            m.busy = at_least_0(busy) / room;
            m.others = at_least_0(busy - (end.own_s - w->begin.own_s)) / room;
            m.steal = at_least_0(end.steal_s - w->begin.steal_s) / room;
            m.own_cpus = (end.self_s - w->begin.self_s) / m.elapsed_s;
        }
        m.throttled_s = (double)(end.throttled_us - w->begin.throttled_us) / 1e6;
        m.heat_throttles = end.heat - w->begin.heat;
        snprintf(m.cpu, sizeof m.cpu, "%s", t->cpu_model);
        if (!uname(&u)) snprintf(m.system, sizeof m.system, "%.40s %.60s %.20s", u.sysname, u.release, u.machine);
        *machine_out = m;
    }
    mu_free(w);
}

json_t *mu_bench_machine_json(const struct mu_bench_machine *m)
{
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:I, s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:I, s:f, s:f}",
                     "cpu", m->cpu, "system", m->system, "kernels", mu_kernels() ? mu_kernels()->name : "", "cpus",
                     m->n_cpu, "cores", m->n_core, "usable_cores", m->n_usable, "memory_bytes",
                     (json_int_t)m->mem_bytes, "available_bytes", (json_int_t)m->available_bytes, "load_average",
                     m->load_average, "quota_cpus", m->quota_cpus, "elapsed_s", m->elapsed_s, "busy", m->busy,
                     "others_busy", m->others, "steal", m->steal, "own_cpus", m->own_cpus, "throttled_s",
                     m->throttled_s, "heat_throttles", (json_int_t)m->heat_throttles, "mhz", m->mhz, "mhz_max",
                     m->mhz_max);
}

/* ---- warnings ---- */

void mu_bench_warn(struct mu_bench_warnings *w, const char *fmt, ...)
{
    va_list args;
    if (w->n == MU_BENCH_MAX_WARNINGS) return;
    char *text = w->text[w->n++];
    size_t len = w->of[0] ? (size_t)snprintf(text, sizeof w->text[0], "%s: ", w->of) : 0;
    va_start(args, fmt);
    vsnprintf(text + len, sizeof w->text[0] - len, fmt, args);
    va_end(args);
}

void mu_bench_machine_warn(const struct mu_bench_machine *m, bool alone, struct mu_bench_warnings *w)
{
    if (alone && m->others > MOST_OTHERS)
        mu_bench_warn(
            w,
            "other processes used %.0f%% of the cores meanwhile (load average %.2f at the start): figures are "
            "too low, run it again when they are idle",
            100 * m->others, m->load_average);
    if (m->steal > MOST_STEAL)
        mu_bench_warn(w, "the hypervisor kept %.0f%% of the cores' time for others", 100 * m->steal);
    if (m->throttled_s > MOST_THROTTLED * m->elapsed_s)
        mu_bench_warn(w, "the control group's quota of %.2f CPUs held this back for %.1f s of %.1f s", m->quota_cpus,
                      m->throttled_s, m->elapsed_s);
    if (m->heat_throttles)
        mu_bench_warn(w, "the processor slowed down for its temperature %" PRIu64 " times", m->heat_throttles);
    if (m->mhz > 0 && m->mhz < LEAST_MHZ * m->mhz_max)
        mu_bench_warn(w, "the cores ran at %.0f MHz, of %.0f: look at the frequency governor and at cooling", m->mhz,
                      m->mhz_max);
}

json_t *mu_bench_warnings_json(const struct mu_bench_warnings *w)
{
    json_t *all = json_array();
    for (int i = 0; i < w->n; i++) json_array_append_new(all, mu_text_json(w->text[i]));
    return all;
}
