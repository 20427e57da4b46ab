/* Ctrl-C, and for some verbs what else asks a program to end: where a verb catches it, the first one asks the running
 * generation to stop, a second one within a second ends the program, unless that would take a conversation with it.
 * Elsewhere it ends the program, as SIGTERM and SIGHUP do; a file that is half written goes first, and the terminal of
 * a line that is half typed has its mode again. */
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "cli/cli.h"
#include "cli/line_edit.h"

static void on_end(int sig)
{
    mu_file_writer_abandon();
    mu_line_edit_abandon();
    signal(sig, SIG_DFL); /* whoever waits for us sees the signal */
    raise(sig);
}

void mu_signals_tidy(void)
{
    static const int ends[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (signal(ends[i], on_end) == SIG_IGN) signal(ends[i], SIG_IGN); /* nohup, or in the background of a script */
}

volatile sig_atomic_t mu_interrupted;
static volatile sig_atomic_t last_s, stays;

static void on_signal(int sig)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (!stays && mu_interrupted && (sig_atomic_t)now.tv_sec - last_s <= 1) _exit(128 + sig);
    last_s = (sig_atomic_t)now.tv_sec;
    mu_interrupted = 1;
}

static void catch_one(int sig)
{
    struct sigaction sa = {.sa_handler = on_signal}; /* no SA_RESTART: a read from the terminal is interrupted too */
    sigemptyset(&sa.sa_mask);
    sigaction(sig, &sa, NULL);
}

void mu_signals_catch(void)
{
    catch_one(SIGINT);
}

void mu_signals_catch_ends(void)
{
    struct sigaction hup;
    catch_one(SIGINT);
    catch_one(SIGTERM);
    if (!sigaction(SIGHUP, NULL, &hup) && hup.sa_handler != SIG_IGN) catch_one(SIGHUP); /* nohup */
}

void mu_signals_stay(void)
{
    stays = 1;
}

void mu_signals_reset(void)
{
    mu_interrupted = 0;
}
