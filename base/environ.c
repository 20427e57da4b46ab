/* See environ.h. */
#include "base/environ.h"

#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"

static bool begins(const char *entry, const char *with)
{
    return strncmp(entry, with, strlen(with)) == 0;
}

static bool inherited(const char *entry, const char *kept)
{
    static const char *const foreign[] = {"OMPI_",  "PMIX_", "PRTE_",   "PMI_",
                                          "SLURM_", "ORTE_", "TMPDIR=", "MUSTER_MPIRUN_PID="};
    if (kept && begins(entry, kept)) return true;
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (begins(entry, foreign[i])) return false;
    return true;
}

const char **mu_environ_of_mpirun(const char *const *extra, const char *kept)
{
    size_t n = 0, k = 0;
    while (environ && environ[n]) n++;
    while (extra[k]) k++;
    const char **env = mu_calloc(n + k + 1, sizeof *env);
    if (!env) return NULL;
    size_t m = 0;
    for (size_t i = 0; i < k; i++) env[m++] = extra[i]; /* first: getenv takes the first of a name */
    for (size_t i = 0; i < n; i++)
        if (inherited(environ[i], kept)) env[m++] = environ[i];
    return env;
}

void mu_host_name_for_mpirun(void)
{
    enum { LONGEST = 56, SHORT = 40 };
    struct utsname u;
    if (uname(&u) != 0 || strlen(u.nodename) <= LONGEST) return;
    if (unshare(CLONE_NEWUTS) != 0 || sethostname(u.nodename, SHORT) != 0)
        mu_warn("launch",
                "mpirun, which aborts where a machine's name is longer than 56 bytes, gets all %zu of this one's: %s",
                strlen(u.nodename), strerror(errno));
}
