/* The worker that `muster serve` starts for itself on this machine: a child process that ends with us. Main thread
 * only (its end is tied to the thread that
 * starts it). */
#ifndef MU_COORDINATOR_LOCAL_WORKER_H
#define MU_COORDINATOR_LOCAL_WORKER_H

#include <sys/types.h>

#include "base/status.h"

/* Starts this program as `muster worker --listen address --parent our-pid`. */
enum mu_status mu_local_worker_start(const char *address, pid_t *pid_out, struct mu_err *err);
/* SIGTERM, then SIGKILL after grace_ms; reaps it. pid ≤ 0: nothing to do. */
void mu_local_worker_stop(pid_t pid, int grace_ms);
void mu_local_worker_kill(pid_t pid); /* SIGKILL; mu_local_worker_ended reaps it later */
/* Reaps pid if it has ended: true, with how in text. */
int mu_local_worker_ended(pid_t pid, char *text, size_t text_bytes);

#endif
