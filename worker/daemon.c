/* muster worker: the daemon of one machine.
 *
 *   main thread        options, signals: waits for one that ends it, then ends everything in order
 *   gRPC's thread      callbacks; they only hand on
 *   supervising thread owns the gangs (supervisor.c)
 *   inventory thread   measures (inventory.c)
 *
 * Shutdown order: gangs (their streams hear `died`), inventory, server, folders. Under 2 s; a watchdog ends the process
 * where something hangs.
 * Killed with SIGKILL: mpirun and the ranks follow by their parent-death signals; the folders are swept at the next
 * start. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/watchdog.h"
#include "worker/inventory.h"
#include "worker/places.h"
#include "worker/supervisor.h"
#include "worker/worker.h"

enum { STOP_GRACE_MS = 300, START_LIMIT_MS = 10000 };

struct daemon {
    struct mu_supervisor *supervisor;
    struct mu_inventory *inventory;
};

static void on_inventory(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct daemon *d = ctx;
    mu_inventory_ask(d->inventory, call, (const Muster__Internal__V1__InventoryRequest *)msg);
}

static void on_start_gang(struct mu_rpc_call *call, const ProtobufCMessage *msg, void *ctx)
{
    struct daemon *d = ctx;
    mu_supervisor_start_gang(d->supervisor, call, (const Muster__Internal__V1__StartGangRequest *)msg);
}

static enum mu_status server_start(struct daemon *d, const char *listen, struct mu_rpc_server **server_out,
                                   struct mu_err *err)
{
    const struct mu_rpc_method methods[] = {
        {.path = "/muster.internal.v1.Worker/Inventory",
         .request = &muster__internal__v1__inventory_request__descriptor,
         .max_request_bytes = 4096,
         .on_message = on_inventory,
         .ctx = d},
        {.path = "/muster.internal.v1.Worker/StartGang",
         .request = &muster__internal__v1__start_gang_request__descriptor,
         .max_request_bytes = 512 << 10,
         .on_message = on_start_gang,
         .ctx = d},
    };
    const char *const addresses[] = {listen, NULL};
    const struct mu_rpc_server_options opt = {
        .addresses = addresses,
        .methods = methods,
        .n_method = sizeof methods / sizeof methods[0],
    };
    return mu_rpc_server_start(&opt, server_out, err);
}

/* Ends with the process that wants us, if there is one; true: it is still there. */
static bool parent_tie(int parent_pid)
{
    if (parent_pid <= 0) return true;
    return prctl(PR_SET_PDEATHSIG, SIGTERM) == 0 && getppid() == (pid_t)parent_pid;
}

int mu_worker_main(const struct mu_worker_options *opt)
{
    struct mu_err err = MU_ERR_INIT;
    struct daemon d = {0};
    struct mu_places places = {0};
    struct mu_worker_gang_place place = {.mpirun = opt->mpirun};
    struct mu_rpc_server *server = NULL;
    enum mu_status st;
    bool rpc = false;
    sigset_t ends;
    mu_log_init("worker");
    mu_watchdog_ends(&ends);
    pthread_sigmask(SIG_BLOCK, &ends, NULL); /* before any thread: all of them leave these to sigwait below */
    signal(SIGPIPE, SIG_IGN);
    if (!parent_tie(opt->parent_pid)) return 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* ranks whose mpirun was killed are ours to reap */
    if (gethostname(place.host, sizeof place.host) != 0) place.host[0] = '\0';
    MU_TRY(st, mu_watchdog_start("muster worker", &ends, MU_WATCHDOG_MS, &err), out);
    mu_rpc_init();
    rpc = true;
    mu_watchdog_phase("the start of the worker", START_LIMIT_MS);
    MU_TRY(st, mu_fault_init(-1, &err), out);
    MU_TRY(st, mu_places_open(&places, &err), out);
    place.run_dir = places.run_dir;
    place.shm_dir = places.shm_dir;
    MU_TRY(st, mu_supervisor_start(&place, &d.supervisor, &err), out);
    MU_TRY(st, mu_inventory_start(&d.inventory, &err), out);
    MU_TRY(st, server_start(&d, opt->listen, &server, &err), out);
    mu_watchdog_phase(NULL, 0);
    mu_info("worker", "listening on %s, pid %d", opt->listen, (int)getpid());
    int sig = 0;
    while (sigwait(&ends, &sig) != 0) {}
    mu_info("worker", "%s: ending", strsignal(sig));
out:
    mu_watchdog_ending();
    if (st != MU_OK) mu_log_err(MU_LOG_ERROR, "worker", &err, "cannot run");
    mu_supervisor_stop(d.supervisor);
    mu_inventory_stop(d.inventory);
    if (server) mu_rpc_server_stop(server, STOP_GRACE_MS);
    mu_supervisor_destroy(d.supervisor);
    mu_inventory_destroy(d.inventory);
    mu_places_close(&places);
    if (rpc) mu_rpc_shutdown();
    return st == MU_OK ? 0 : 1;
}
