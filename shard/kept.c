/* Packed weights in memory that outlives the rank: a memfd that the worker holds open (worker/kept.h), so that the next
 * launch maps what this one packed.
 *
 *   offset 0                  the weights, as load.c lays them out
 *   then, from a page on      struct kept_header: whose weights they are
 *
 *   empty ──packed, header written──► sealed ──► mapped read-only, by this rank and by those of later launches
 *     ▲ the rank dies meanwhile │
 *     └─────────────────────────┘ cut to nothing and packed again
 *
 * Complete is what is sealed (F_SEAL_WRITE and its like): the kernel sets that mark at once or not at all, only where no
 * writable mapping is left, and from then on nobody can change a byte or the length, whoever holds the descriptor. A
 * checksum of a gigabyte would cost more than the mapping that it guards.
 *
 * Where the rank has a NUMA node, so has the memory itself, for whoever maps it; the next launch moves there what is not.
 *
 * The header is compared whole with what this rank would write: model (files, sizes, times, inodes), place in the split,
 * types and rows of every matrix, the arithmetic's version, the kernels' layout, the program. Whatever does not agree is
 * not used; the rank then packs into memory of its own and says so. It never runs on what it cannot account for. */
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/log.h"
#include "shard/parts.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1 */
#endif

enum { PAGE = 4096, HUGE = 2 << 20, SEALS = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL };

struct kept_header {
    char magic[16];
    uint32_t header_bytes, arithmetic;
    uint64_t weight_bytes;
    uint64_t model;   /* mu_gguf_identity */
    uint64_t layout;  /* of the matrices, in order: name, type, type of the source, first row, rows, columns */
    uint64_t program; /* size, time and inode of this binary */
    int32_t rank, n_rank, stage, local;
    char kernels[16];
    char split[512];
    uint64_t check; /* of all before it */
};
_Static_assert(sizeof(struct kept_header) <= PAGE, "the header has a page");

static size_t header_at(size_t weight_bytes)
{
    return (weight_bytes + PAGE - 1) / PAGE * PAGE;
}

static struct kept_header header_of(const struct mu_shard *s, uint64_t layout)
{
    struct kept_header h;
    struct stat sb;
    memset(&h, 0, sizeof h);
    memcpy(h.magic, "muster weights 1", sizeof h.magic);
    h.header_bytes = sizeof h;
    h.arithmetic = MU_ARITHMETIC_VERSION;
    h.weight_bytes = s->weights.bytes;
    h.model = mu_gguf_identity(s->model->gguf);
    h.layout = layout;
    if (stat("/proc/self/exe", &sb) == 0) {
        const uint64_t program[] = {(uint64_t)sb.st_size, (uint64_t)sb.st_mtim.tv_sec, (uint64_t)sb.st_mtim.tv_nsec,
                                    (uint64_t)sb.st_ino};
        h.program = mu_hash64(0, program, sizeof program);
    }
    h.rank = s->stage.first_rank + s->me.local;
    h.n_rank = s->plan.n_rank;
    h.stage = s->me.stage;
    h.local = s->me.local;
    snprintf(h.kernels, sizeof h.kernels, "%s", s->k->name);
    mu_split_format(&s->plan.split, h.split, sizeof h.split);
    h.check = mu_hash64(0, &h, offsetof(struct kept_header, check));
    return h;
}

/* Why what is sealed there cannot be used; NULL: it can. */
static const char *refusal(int fd, const struct kept_header *want)
{
    struct kept_header got;
    struct stat sb;
    size_t at = header_at(want->weight_bytes);
    if (fstat(fd, &sb) != 0 || sb.st_size != (off_t)(at + PAGE)) return "its size is another";
    if (pread(fd, &got, sizeof got, (off_t)at) != (ssize_t)sizeof got) return "its header cannot be read";
    if (got.check != mu_hash64(0, &got, offsetof(struct kept_header, check))) return "its header is damaged";
    return memcmp(&got, want, sizeof got) == 0 ? NULL : "it holds other weights";
}

/* A second description of the same memory: mappings through one that may write count as writers. */
static int reopened(int fd)
{
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* The whole memory without the right to write, at `at` (NULL: anywhere). */
static void *map_sealed(int fd, void *at, size_t bytes)
{
    int ro = reopened(fd);
    if (ro < 0) return NULL;
    void *p = mu_pages_map(ro, bytes, false, at);
    close(ro);
    return p;
}

static bool not_kept(const struct mu_shard *s, const char *why)
{
    mu_warn("rank", "%zu MB of %sweights cannot be kept for the next launch, which will pack them again: %s",
            s->weights.bytes >> 20, s->whose, why);
    return false;
}

/* Huge pages, this member's. Shared memory gets none by itself unless the system's shmem_enabled says so; collapsing a
 * region that has its first page asks for one now, and costs less than the faults that it saves. */
struct huge {
    char *p;
    size_t n;
    atomic_size_t n_given;
};
static void huge_main(void *arg, int member, int n_member)
{
    struct huge *h = arg;
    size_t begin = h->n * (size_t)member / (size_t)n_member, end = h->n * (size_t)(member + 1) / (size_t)n_member;
    for (size_t i = begin; i < end; i++) {
        h->p[i * HUGE] = 0;
        if (madvise(h->p + i * HUGE, HUGE, MADV_COLLAPSE) == 0)
            atomic_fetch_add(&h->n_given, 1);
        else if (errno == EINVAL)
            return; /* a system that does not know this */
    }
}

/* Reads a byte of each page, so that all are mapped: memory moves only where it is. */
static void touch_main(void *arg, int member, int n_member)
{
    const struct mu_shard *s = arg;
    const volatile char *p = s->weights.p;
    size_t n = s->weights.bytes, begin = n / PAGE * (size_t)member / (size_t)n_member * PAGE,
           end = n / PAGE * (size_t)(member + 1) / (size_t)n_member * PAGE;
    for (size_t i = begin; i < end; i += PAGE) (void)p[i];
}

/* What an earlier launch packed lies where that one's rank was: after a change of the cpuset, or with fewer nodes, on
 * another node than ours. */
static void move_here(struct mu_shard *s)
{
    if (!s->numa) return;
    mu_pool_run(s->pool, touch_main, s);
    double before = mu_numa_share(s->numa, s->weights.p, s->weights.bytes);
    mu_numa_bind(s->numa, s->weights.p, s->weights.bytes);
    double after = mu_numa_share(s->numa, s->weights.p, s->weights.bytes);
    if (after > before)
        mu_info("rank", "%.0f%% of the weights have moved to NUMA node %d", 100 * (after - before),
                mu_numa_node(s->numa));
}

bool mu_kept_open(struct mu_shard *s, int fd, uint64_t layout)
{
    struct kept_header want = header_of(s, layout);
    size_t bytes = s->weights.bytes;
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0) return not_kept(s, "what the worker gave is no memory that can be sealed");
    if (seals & F_SEAL_WRITE) {
        const char *why = refusal(fd, &want);
        if (why || (seals & SEALS) != SEALS) return not_kept(s, why ? why : "it may still change its length");
        s->weights.p = map_sealed(fd, NULL, bytes);
        s->kept_full = s->weights.p != NULL;
        if (s->kept_full) move_here(s);
        return s->weights.p || not_kept(s, strerror(errno));
    }
    if (ftruncate(fd, 0) != 0 || ftruncate(fd, (off_t)(header_at(bytes) + PAGE)) != 0)
        return not_kept(s, strerror(errno));
    s->weights.p = mu_pages_map(fd, bytes, true, NULL);
    if (!s->weights.p) return not_kept(s, strerror(errno));
    mu_numa_bind(s->numa, s->weights.p, bytes);
    struct huge huge = {.p = s->weights.p, .n = bytes / HUGE};
    mu_pool_run(s->pool, huge_main, &huge);
    s->kept_huge = atomic_load(&huge.n_given);
    return true;
}

enum mu_status mu_kept_seal(struct mu_shard *s, int fd, uint64_t layout, struct mu_err *err)
{
    struct kept_header h = header_of(s, layout);
    size_t bytes = s->weights.bytes;
    bool sealed = pwrite(fd, &h, sizeof h, (off_t)header_at(bytes)) == (ssize_t)sizeof h;
    /* Our own mapping must go first; its addresses stay reserved. */
    sealed = sealed && mu_pages_reserve(s->weights.p, bytes) && fcntl(fd, F_ADD_SEALS, SEALS) == 0;
    if (!sealed) not_kept(s, strerror(errno));
    if (!map_sealed(fd, s->weights.p, bytes))
        return mu_fail(err, MU_ENOMEM, "cannot map the packed weights (%zu MB) again: %s", bytes >> 20,
                       strerror(errno));
    return MU_OK;
}

void mu_kept_tell(const struct mu_shard *s, double seconds)
{
    size_t mb = s->weights.bytes >> 20, n_huge = s->weights.bytes / HUGE;
    if (s->kept_full)
        mu_info("rank", "%zu MB of %sweights are there from an earlier launch", mb, s->whose);
    else
        mu_info("rank", "%zu MB of %sweights packed in %.2f s, kept by the worker; %zu of %zu pages of 2 MiB%s", mb,
                s->whose, seconds, s->kept_huge, n_huge,
                s->kept_huge < n_huge ? ": this system gave small ones for the rest" : "");
}
