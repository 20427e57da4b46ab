/* Ctrl-C: the first one asks the running generation to stop, a second one within a second ends the program, unless
 * that would take a conversation with it. */
#include <time.h>
#include <unistd.h>

#include "cli/cli.h"

volatile sig_atomic_t mu_interrupted;
static volatile sig_atomic_t last_s, stays;

static void on_sigint(int sig)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!stays && mu_interrupted && (sig_atomic_t)now.tv_sec - last_s <= 1) _exit(128 + sig);
    last_s = (sig_atomic_t)now.tv_sec;
    mu_interrupted = 1;
}

void mu_signals_catch(void)
{
    struct sigaction sa = {.sa_handler = on_sigint}; /* no SA_RESTART: a read from the terminal is interrupted too */
    sigemptyset(&sa.sa_mask);
    sigaction(SIGINT, &sa, NULL);
}

void mu_signals_stay(void)
{
    stays = 1;
}

void mu_signals_reset(void)
{
    mu_interrupted = 0;
}
