/* See kept.h. */
#include "worker/kept.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"

enum { FD_LEAST = MU_KEPT_FD + MU_MAX_RANKS + 1 }; /* away from the numbers that mpirun gets them under */

void mu_kept_drop(struct mu_kept *k)
{
    for (int i = 0; i < k->n_fd; i++)
        if (k->fd[i] >= 0) close(k->fd[i]);
    memset(k, 0, sizeof *k);
}

uint64_t mu_kept_bytes(const struct mu_kept *k)
{
    uint64_t bytes = 0;
    struct stat sb;
    for (int i = 0; i < k->n_fd; i++)
        if (k->fd[i] >= 0 && fstat(k->fd[i], &sb) == 0) bytes += (uint64_t)sb.st_blocks * 512;
    return bytes;
}

/* -1: errno says why. */
static int memory_make(void)
{
    int low = memfd_create("muster-weights", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (low < 0) return -1;
    int fd = fcntl(low, F_DUPFD_CLOEXEC, FD_LEAST), e = errno;
    close(low);
    errno = e;
    return fd;
}

static bool sealed(int fd)
{
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && seals & F_SEAL_WRITE;
}

void mu_kept_prepare(struct mu_kept *k, const struct mu_model *model, const struct mu_model *draft, const char *split,
                     const char *quantize, int n_rank)
{
    int n_fd = n_rank + (draft != NULL);
    const char *wanted = getenv("MUSTER_KEEP_WEIGHTS");
    uint64_t identity = mu_gguf_identity(model->gguf);
    identity = mu_hash64(identity, split, strlen(split));
    identity = mu_hash64(identity, quantize, strlen(quantize));
    if (draft) {
        uint64_t small = mu_gguf_identity(draft->gguf);
        identity = mu_hash64(identity, &small, sizeof small);
    }
    if (k->n_fd != n_fd || k->identity != identity) mu_kept_drop(k);
    k->idle_ns = 0;
    if (wanted && strcmp(wanted, "0") == 0) {
        mu_kept_drop(k);
        return;
    }
    for (int i = k->n_fd; i < n_fd; i++) k->fd[i] = -1;
    k->n_fd = n_fd;
    k->identity = identity;
    for (int i = 0; i < n_fd; i++) {
        if (k->fd[i] >= 0 && sealed(k->fd[i])) continue;
        if (k->fd[i] >= 0) close(k->fd[i]); /* whoever packs into it may not be gone yet */
        k->fd[i] = memory_make();
        if (k->fd[i] >= 0) continue;
        mu_warn("worker", "a gang that dies will pack its weights again: no memory to keep them in: %s",
                strerror(errno));
        mu_kept_drop(k);
        return;
    }
}
