/* The last resort. Owns one thread and two descriptors, until the process ends.
 *
 * The thread takes no lock and no memory of the heap after its start: what hangs may hold either. Rejected: alarm() and a handler,
 * which needs the main thread's signals unblocked and could not be set by a process that hangs before it reads them. */
#include "base/watchdog.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"

/* Little, because it must start where memory is short; thread-local data of all libraries is in it. */
enum { STACK_BYTES = 256 << 10 };

static struct {
    int signal_fd, ending_fd, grace_ms;
    const char *name;
    _Atomic(const char *) phase;
    _Atomic int64_t phase_end_ns; /* INT64_MAX: none */
    atomic_bool started;          /* no phase comes any more: nothing to look at now and then */
} dog = {.ending_fd = -1, .phase_end_ns = INT64_MAX};

static _Noreturn void end(const char *what, const char *why)
{
    char words[240];
    int len = snprintf(words, sizeof words, "%s: %s %s: ended by force\n", dog.name, what, why);
    size_t n = len < (int)sizeof words ? (size_t)len : sizeof words - 1;
    if (write(STDERR_FILENO, words, n) < 0) _exit(1);
    _exit(1);
}

/* A phase that begins while the thread sleeps is seen at the next look. */
enum { LOOK_MS = 500 };

static void *watchdog_main(void *arg)
{
    (void)arg;
    struct pollfd p[] = {{.fd = dog.signal_fd, .events = POLLIN}, {.fd = dog.ending_fd, .events = POLLIN}};
    while (poll(p, 2, atomic_load(&dog.started) ? -1 : LOOK_MS) <= 0) {
        if (mu_now_ns() < atomic_load(&dog.phase_end_ns)) continue;
        end(atomic_load(&dog.phase), "hangs; is memory limited (ulimit -v)?");
    }
    for (int64_t deadline = mu_now_ns() + dog.grace_ms * MU_MS; mu_now_ns() < deadline;)
        poll(NULL, 0, mu_ms_until(deadline));
    end("the end", "hangs");
}

void mu_watchdog_ends(sigset_t *ends_out)
{
    struct sigaction hangup;
    sigemptyset(ends_out);
    sigaddset(ends_out, SIGINT);
    sigaddset(ends_out, SIGTERM);
    /* Blocked, it would come although it is ignored. */
    if (sigaction(SIGHUP, NULL, &hangup) != 0 || hangup.sa_handler != SIG_IGN) sigaddset(ends_out, SIGHUP);
}

enum mu_status mu_watchdog_start(const char *name, const sigset_t *ends, int grace_ms, struct mu_err *err)
{
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t all, old;
    dog.grace_ms = grace_ms;
    dog.name = name;
    dog.signal_fd = signalfd(-1, ends, SFD_CLOEXEC | SFD_NONBLOCK);
    dog.ending_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (dog.signal_fd < 0 || dog.ending_fd < 0)
        return mu_fail(err, MU_EIO, "no descriptors for the watchdog: %s", strerror(errno));
    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&thread, &attr, watchdog_main, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (rc == 0) return MU_OK;
    return mu_fail(err, MU_EAGAIN,
                   "cannot start the watchdog's thread: %s; memory or processes are limited (ulimit -v, -u)",
                   strerror(rc));
}

void mu_watchdog_phase(const char *what, int limit_ms)
{
    atomic_store(&dog.phase_end_ns, INT64_MAX);
    atomic_store(&dog.phase, what);
    if (what)
        atomic_store(&dog.phase_end_ns, mu_now_ns() + limit_ms * MU_MS);
    else
        atomic_store(&dog.started, true);
}

void mu_watchdog_ending(void)
{
    uint64_t one = 1;
    if (dog.ending_fd >= 0 && write(dog.ending_fd, &one, sizeof one) < 0) return; /* full: it knows */
}
