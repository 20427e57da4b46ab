/* What mpirun prints. The ranks' log lines pass through it and go on to our stderr as they are. mpirun's own
 * messages stand between lines of dashes: they are not for people who never asked for an mpirun, so they are kept
 * for the reason and shown at debug level only. One sentence matters: which process died first, and of which signal;
 * nobody else can know, since mpirun kills the others within milliseconds. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "worker/gang.h"

enum { DASHES = 20, READS_MOST = 64 };

static bool is_rule(const char *line)
{
    size_t n = strspn(line, "-");
    return n >= DASHES && line[n] == '\0';
}

static void banner_add(struct mu_worker_gang *g, const char *line)
{
    int rank, sig;
    const char *who = strstr(line, "process rank ");
    if (who && sscanf(who, "process rank %d with PID %*d on node %*s exited on signal %d", &rank, &sig) == 2 &&
        rank >= 0 && rank < g->n_rank && g->told_rank < 0) {
        g->told_rank = rank;
        g->told_signal = sig;
    }
    int n =
        snprintf(g->banner + g->banner_len, sizeof g->banner - g->banner_len, "%s%s", g->banner_len ? " " : "", line);
    g->banner_len += n > 0 ? (size_t)n : 0;
    if (g->banner_len >= sizeof g->banner) g->banner_len = sizeof g->banner - 1;
    mu_debug("mpirun", "%s", line);
}

static void line_end(struct mu_worker_gang *g)
{
    g->line[g->line_len] = '\0';
    if (is_rule(g->line)) {
        g->in_banner = !g->in_banner;
    } else if (g->in_banner || strstr(g->line, "mpirun noticed")) {
        if (g->line_len) banner_add(g, g->line);
    } else if (g->line_len) {
        g->line[g->line_len] = '\n';
        ssize_t n = write(STDERR_FILENO, g->line, g->line_len + 1); /* like the log, a line is one write */
        (void)n;
    }
    g->line_len = 0;
}

void mu_worker_gang_output_read(struct mu_worker_gang *g)
{
    char buf[4096];
    for (int i = 0; i < READS_MOST && g->output_fd >= 0; i++) { /* a rank that floods us must not hold up the others */
        ssize_t n = read(g->output_fd, buf, sizeof buf);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            close(g->output_fd);
            g->output_fd = -1;
            if (g->line_len) line_end(g);
            return;
        }
        for (ssize_t k = 0; k < n; k++) {
            if (buf[k] == '\n' || g->line_len == sizeof g->line - 2) line_end(g);
            if (buf[k] != '\n' && buf[k] != '\r') g->line[g->line_len++] = buf[k];
        }
    }
}
