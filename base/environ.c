/* See environ.h. */
#include "base/environ.h"

#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"

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
