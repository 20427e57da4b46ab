/* One gang as its worker sees it: launched, watched, ended. All functions belong to the worker's supervising thread,
 * which must live as long as the gang does (the parent-death signal fires when the thread that spawned mpirun ends). */
#ifndef MU_WORKER_GANG_H
#define MU_WORKER_GANG_H

#include <poll.h>

#include "base/topo.h"
#include "muster/v1/internal.pb-c.h"
#include "transport/rpc.h"
#include "worker/gang_file.h"
#include "worker/kept.h"
#include "worker/procs.h"
#include "worker/rank.h"
#include "worker/watch.h"

struct mu_worker_gang_place { /* where gangs live on this machine; borrowed */
    const char *run_dir;
    const char *shm_dir; /* on a memory file system; NULL: in run_dir */
    const char *mpirun;  /* NULL: from PATH */
    char host[65];
};

enum mu_worker_gang_state { MU_GANG_LOADING, MU_GANG_READY, MU_GANG_ENDING };

struct mu_worker_gang_rank_row { /* what `ready` tells of a rank */
    int stage, layer_begin, layer_end, heads, ff_rows, leader, threads;
    int gpu; /* MU_ON_CPU: none */
    char gpu_name[64];
    uint64_t weight_bytes, kv_bytes;
    int numa; /* -1: no single node */
    char cpus[128];
};

enum { MU_GANG_BANNER = 1024, MU_GANG_LINE = 1024, MU_GANG_POLL_FDS = MU_MAX_RANKS + 2 };

struct mu_worker_gang {
    const struct mu_worker_gang_place *place;
    Muster__Internal__V1__StartGangRequest *req; /* owned; defaults filled in */
    struct mu_rpc_call *call;                    /* a reference; the event stream */
    struct mu_kept *kept;                        /* the ranks' weights, the draft model's; outlives the gang */
    bool forget;                                 /* over, and not to be launched again */
    int n_rank;
    struct mu_worker_gang_rank_row row[MU_MAX_RANKS];
    int64_t layer_ms; /* mu_rank_layer_ms of the gang */

    char *folder, *shm_folder; /* NULL: not made */
    struct mu_rank_record *records;
    struct mu_proc mpirun, rank[MU_MAX_RANKS];
    int mpirun_status; /* of waitpid; -1: not known */
    int output_fd;     /* what mpirun and the ranks print; -1: at its end */

    enum mu_worker_gang_state state;
    struct mu_watch watch;
    int64_t looked_ns, load_deadline_ns, loading_told_ns, ending_ns, ready_ns, times_told_ns;
    uint64_t times_told_step;
    uint64_t first_gone; /* bit i: rank i had ended when an end was first noticed; 0: none has */
    _Static_assert(MU_MAX_RANKS <= 64, "first_gone is a set of ranks");

    char line[MU_GANG_LINE]; /* output not yet ended by a newline */
    size_t line_len;
    bool in_banner;
    char banner[MU_GANG_BANNER]; /* mpirun's own words */
    size_t banner_len;
    int told_rank, told_signal; /* by mpirun: who died of what; -1 */
};

/* gang_start.c — takes req and a reference to call in every case; kept is borrowed for the gang's life. On failure the gang is over: tell it with
 * mu_worker_gang_died. */
enum mu_status mu_worker_gang_start(const struct mu_worker_gang_place *place, struct mu_rpc_call *call,
                                    Muster__Internal__V1__StartGangRequest *req, struct mu_kept *kept,
                                    struct mu_worker_gang **gang_out, struct mu_err *err);
/* gang_output.c — what mpirun prints: the ranks' lines go on to our stderr, its own words are kept. */
void mu_worker_gang_output_read(struct mu_worker_gang *g);
/* gang.c */
int mu_worker_gang_poll_set(const struct mu_worker_gang *g, struct pollfd *p); /* at most MU_GANG_POLL_FDS */
/* Looks after the gang; true: it is over, everything is cleaned up, `died` was sent. Destroy it then. */
bool mu_worker_gang_tick(struct mu_worker_gang *g);
/* Ends it now: kills, waits up to 2 s, removes what it left, sends `died`, finishes the stream. */
void mu_worker_gang_end(struct mu_worker_gang *g, int culprit, bool permanent, const char *reason);
void mu_worker_gang_destroy(struct mu_worker_gang *g); /* NULL is fine; of a gang that is over */
void mu_worker_gang_tell_launched(struct mu_worker_gang *g);
/* The last event, then the end of the stream. */
void mu_worker_gang_died(struct mu_rpc_call *call, uint64_t epoch, int culprit, bool permanent, const char *reason);

#endif
