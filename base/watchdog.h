/* The last resort: a process that was asked to end, or that does not come up, ends, whatever hangs in it.
 *
 * mu_watchdog_start leaves a thread behind, for the life of the process, that waits until one of the signals in `ends`
 * is pending or mu_watchdog_ending was called; grace_ms later the process ends with _exit(1), unless it has ended by
 * itself. The signals are only looked at: they must be blocked in every thread, and whoever waits for them (sigwait,
 * signalfd) still gets them. A waiter that was faster than the watchdog calls mu_watchdog_ending.
 *
 * mu_watchdog_phase gives a part of the start so long, from now; `what` names it in the last words. The next phase takes
 * its place; NULL: it went well.
 *
 * name, what: borrowed for ever. name: what the last words on standard error begin with.
 * Threads: start once, before other threads; phase: one; ending: any, again and again. No effect where nothing was started. */
#ifndef MU_BASE_WATCHDOG_H
#define MU_BASE_WATCHDOG_H

#include <signal.h>

#include "base/status.h"

enum { MU_WATCHDOG_MS = 5000 };

/* What asks a server to end: SIGINT, SIGTERM, and SIGHUP but where it is ignored since before our start (nohup). */
void mu_watchdog_ends(sigset_t *ends_out);
enum mu_status mu_watchdog_start(const char *name, const sigset_t *ends, int grace_ms, struct mu_err *err);
void mu_watchdog_phase(const char *what, int limit_ms);
void mu_watchdog_ending(void);

#endif
