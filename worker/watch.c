/* The verdict on a gang's records; see watch.h. */
#include "worker/watch.h"

#include <stdio.h>
#include <string.h>

void mu_watch_init(struct mu_watch *w, int n_rank, int64_t breath_ms, int64_t progress_ms)
{
    memset(w, 0, sizeof *w);
    w->n_rank = n_rank;
    w->breath_ms = breath_ms;
    w->progress_ms = progress_ms;
}

#define LOAD(field) atomic_load_explicit(&(field), memory_order_relaxed)

void mu_watch_describe(const struct mu_rank_record *record, char *buf, size_t buf_bytes)
{
    static const char *const op_name[] = {"starting",   "loading the model", "idle",    "computing",
                                          "exchanging", "receiving",         "sending", "planning"};
    int op = LOAD(record->op), waiting_on = LOAD(record->waiting_on), layer = LOAD(record->layer);
    unsigned long long step = LOAD(record->step);
    const char *name = op >= 0 && op < (int)(sizeof op_name / sizeof op_name[0]) ? op_name[op] : "lost";
    int n = snprintf(buf, buf_bytes, "%s", name);
    if (step && op != MU_OP_IDLE && n > 0 && (size_t)n < buf_bytes)
        n += snprintf(buf + n, buf_bytes - (size_t)n, ", step %llu, layer %d", step, layer);
    if (waiting_on != MU_RECORD_NOBODY && n > 0 && (size_t)n < buf_bytes)
        snprintf(buf + n, buf_bytes - (size_t)n, ", waiting for rank %d", waiting_on);
}

int mu_watch_look(struct mu_watch *w, const struct mu_rank_record *records, int64_t elapsed_ms, bool busy, char *reason,
                  size_t reason_bytes)
{
    int no_breath = -1, no_progress = -1, no_start = -1;
    if (elapsed_ms > MU_WATCH_MOST_MS) elapsed_ms = MU_WATCH_MOST_MS;
    for (int i = 0; i < w->n_rank; i++) {
        const struct mu_rank_record *r = &records[i];
        uint64_t breath = LOAD(r->breath), progress = LOAD(r->progress);
        int op = LOAD(r->op);
        bool started = LOAD(r->pid) != 0, working = op != MU_OP_IDLE && LOAD(r->waiting_on) == MU_RECORD_NOBODY;
        bool breathed = breath != w->rank[i].breath || !started;
        bool moved = progress != w->rank[i].progress || !busy || !working;
        w->rank[i].breath = breath;
        w->rank[i].progress = progress;
        w->rank[i].breath_still_ms = breathed ? 0 : w->rank[i].breath_still_ms + elapsed_ms;
        w->rank[i].progress_still_ms = moved ? 0 : w->rank[i].progress_still_ms + elapsed_ms;
        w->rank[i].starting_ms = op != MU_OP_STARTING ? 0 : w->rank[i].starting_ms + elapsed_ms;
        if (w->rank[i].breath_still_ms >= w->breath_ms &&
            (no_breath < 0 || w->rank[i].breath_still_ms > w->rank[no_breath].breath_still_ms))
            no_breath = i;
        if (w->rank[i].progress_still_ms >= w->progress_ms &&
            (no_progress < 0 || w->rank[i].progress_still_ms > w->rank[no_progress].progress_still_ms))
            no_progress = i;
        if (w->rank[i].starting_ms >= MU_WATCH_START_MS && no_start < 0) no_start = i;
    }
    int culprit = no_breath >= 0 ? no_breath : no_progress >= 0 ? no_progress : no_start;
    if (culprit < 0) return -1;
    char doing[128];
    mu_watch_describe(&records[culprit], doing, sizeof doing);
    if (no_breath >= 0)
        snprintf(reason, reason_bytes, "rank %d (pid %d) has shown no life for %.1f s: stopped or hung (%s)", culprit,
                 (int)LOAD(records[culprit].pid), (double)w->rank[culprit].breath_still_ms / 1e3, doing);
    else if (no_progress >= 0)
        snprintf(reason, reason_bytes, "rank %d (pid %d) has made no progress for %.1f s while others wait (%s)",
                 culprit, (int)LOAD(records[culprit].pid), (double)w->rank[culprit].progress_still_ms / 1e3, doing);
    else
        snprintf(reason, reason_bytes,
                 "rank %d has not started for %.0f s: mpirun, which starts it, is stopped or hung", culprit,
                 (double)w->rank[culprit].starting_ms / 1e3);
    return culprit;
}
