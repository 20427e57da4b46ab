/* A stand-in for NCCL between threads of one process, for the logic of kernels/cuda/link.cu.
 *
 * As there, all is non-blocking: a communicator is in progress until all its ranks have come, and a group of operations
 * until it was asked about a few times; only then do they go into the stream. They run in the stream's order, are
 * matched in that order (the k-th collective of every rank is one; sends and receives by pairs of ranks) and are done when
 * all they need has come. What would hang or be wrong unseen (collectives that differ, a send and a receive of different
 * sizes, a call while one is in progress, a rank twice) ends the process with a sentence.
 *
 * While it runs: MUSTER_NCCL_EMULATED_FAIL=r: rank r's communicators report a remote error. */
#include "nccl.h"

#include <pthread.h>
#include <stdarg.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

enum kind { BROADCAST, ALL_GATHER, SEND, RECV };
static const char *const kind_names[] = {"broadcast", "all-gather", "send", "receive"};

struct operation { /* one rank's part in one */
    kind what;
    const void *from;
    void *to;
    size_t n;
    int other; /* root, or peer */
    ncclComm *comm;
    CUstream_st *stream;
    bool done;
};
typedef std::shared_ptr<operation> part;

struct collective {
    std::vector<part> of_rank;
    int n_come;
};

struct clique { /* the ranks of one id; kept for good, as is what belongs to it */
    int n_rank, n_come;
    std::vector<ncclComm *> ranks;
    std::map<uint64_t, collective> collectives;
    std::map<std::pair<int, int>, std::deque<part>> sends, recvs; /* by (from, to) */
};

struct ncclComm {
    clique *all;
    int rank, asked; /* asked: how often since the last group */
    uint64_t n_collective;
    bool gone;                              /* aborted or destroyed */
    std::vector<operation> opened, pending; /* groups not yet closed; not yet in the stream */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards all cliques */
static std::map<std::string, clique> cliques;
static thread_local int depth;
static thread_local ncclComm *grouped; /* the communicator of the open group: one at a time is enough here */

[[noreturn]] __attribute__((format(printf, 1, 2))) static void die(const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    fprintf(stderr, "emulated NCCL: ");
    vfprintf(stderr, fmt, args);
    fprintf(stderr, "\n");
    abort();
}

struct locked {
    locked() { pthread_mutex_lock(&lock); }
    ~locked() { pthread_mutex_unlock(&lock); }
};

/* ---- what happens in the stream; under the lock ---- */

static void copy(CUstream_st *stream, void *to, const void *from, size_t n)
{
    const mu_emulated_stream *s = mu_emulated_stream_of(stream);
    s->open_memory();
    memmove(to, from, n);
    s->close_memory();
}

static void collective_run(collective *c)
{
    size_t n_rank = c->of_rank.size();
    for (const part &p : c->of_rank)
        if (p->what != c->of_rank[0]->what || p->n != c->of_rank[0]->n || p->other != c->of_rank[0]->other)
            die("rank 0 is in %s of %zu bytes (root %d), rank %d in %s of %zu (root %d)",
                kind_names[c->of_rank[0]->what], c->of_rank[0]->n, c->of_rank[0]->other, p->comm->rank,
                kind_names[p->what], p->n, p->other);
    for (size_t to = 0; to < n_rank; to++) {
        operation *p = c->of_rank[to].get();
        if (p->what == BROADCAST)
            copy(p->stream, p->to, c->of_rank[(size_t)p->other]->from, p->n);
        else
            for (size_t from = 0; from < n_rank; from++)
                copy(p->stream, (char *)p->to + from * p->n, c->of_rank[from]->from, p->n);
    }
    for (const part &p : c->of_rank) p->done = true;
}

static void come(const part &p)
{
    clique *all = p->comm->all;
    int rank = p->comm->rank;
    if (p->what == BROADCAST || p->what == ALL_GATHER) {
        uint64_t number = p->comm->n_collective++;
        collective *c = &all->collectives[number];
        c->of_rank.resize((size_t)all->n_rank);
        c->of_rank[(size_t)rank] = p;
        if (++c->n_come < all->n_rank) return;
        collective_run(c);
        all->collectives.erase(number);
        return;
    }
    std::pair<int, int> way = p->what == SEND ? std::make_pair(rank, p->other) : std::make_pair(p->other, rank);
    std::deque<part> *sends = &all->sends[way], *recvs = &all->recvs[way];
    (p->what == SEND ? sends : recvs)->push_back(p);
    while (!sends->empty() && !recvs->empty()) {
        operation *s = sends->front().get(), *r = recvs->front().get();
        if (s->n != r->n) die("rank %d sends %zu bytes, rank %d receives %zu", way.first, s->n, way.second, r->n);
        copy(p->stream, r->to, s->from, s->n);
        s->done = r->done = true;
        sends->pop_front();
        recvs->pop_front();
    }
}

/* The pending group as a piece of work of its stream. Each run of it (a graph's too) has parts of its own. */
static void into_stream(ncclComm *comm)
{
    std::vector<operation> ops = std::move(comm->pending);
    std::vector<part> parts;
    comm->pending.clear();
    mu_emulated_stream_of(ops[0].stream)->enqueue(ops[0].stream, [ops, parts, comm]() mutable {
        locked l;
        if (comm->gone) return 1;
        if (parts.empty()) {
            for (const operation &o : ops) parts.push_back(std::make_shared<operation>(o));
            for (const part &p : parts) come(p);
        }
        for (const part &p : parts)
            if (!p->done) return 0;
        return 1;
    });
}

/* ---- the API ---- */

static void check_here(ncclComm *comm, const char *call)
{
    if (!comm || comm->gone) die("%s with a communicator that is gone", call);
}

ncclResult_t ncclGetVersion(int *version)
{
    *version = 22809;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    static int number;
    locked l;
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "emulated %d", ++number);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_rank, ncclUniqueId id, int rank, ncclConfig_t *config)
{
    locked l;
    if (config->blocking != 0 || config->magic != 0xcafebeef) die("only communicators that do not block, please");
    clique *all = &cliques[std::string(id.internal, sizeof id.internal)];
    if (all->n_rank == 0) {
        all->n_rank = n_rank;
        all->ranks.resize((size_t)n_rank);
    }
    if (rank < 0 || rank >= n_rank || n_rank != all->n_rank || all->ranks[(size_t)rank]) return ncclInvalidArgument;
    *comm = new ncclComm();
    (*comm)->all = all;
    (*comm)->rank = rank;
    all->ranks[(size_t)rank] = *comm;
    all->n_come++;
    return ncclInProgress;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *e)
{
    const char *fail = getenv("MUSTER_NCCL_EMULATED_FAIL");
    check_here(comm, "ncclCommGetAsyncError");
    *e = ncclInProgress;
    if (fail && atoi(fail) == comm->rank) {
        *e = ncclRemoteError;
        return ncclSuccess;
    }
    {
        locked l;
        if (comm->all->n_come < comm->all->n_rank) return ncclSuccess;
    }
    if (!comm->pending.empty()) {
        if (++comm->asked < 3) return ncclSuccess;
        into_stream(comm);
    }
    *e = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    check_here(comm, "ncclCommFinalize");
    return ncclInProgress;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    return ncclCommAbort(comm);
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    locked l;
    check_here(comm, "ncclCommAbort");
    comm->gone = true;
    return ncclSuccess;
}

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    ncclComm *comm = grouped;
    if (--depth > 0 || !comm) return ncclSuccess;
    grouped = nullptr;
    comm->pending = std::move(comm->opened);
    comm->opened.clear();
    comm->asked = 0;
    return ncclInProgress;
}

static ncclResult_t add(kind what, const void *from, void *to, size_t n, int other, ncclComm *comm, cudaStream_t s)
{
    check_here(comm, kind_names[what]);
    {
        locked l;
        if (!comm->pending.empty() || comm->all->n_come < comm->all->n_rank)
            die("%s while the communicator is in progress", kind_names[what]);
    }
    if (other < 0 || other >= comm->all->n_rank) return ncclInvalidArgument;
    if (grouped && grouped != comm) die("a group over two communicators");
    ncclGroupStart();
    grouped = comm;
    comm->opened.push_back({what, from, to, n, other, comm, s, false});
    return ncclGroupEnd();
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t n, ncclDataType_t, int root, ncclComm_t comm,
                           cudaStream_t s)
{
    return add(BROADCAST, from, to, n, root, comm, s);
}
ncclResult_t ncclAllGather(const void *from, void *to, size_t n, ncclDataType_t, ncclComm_t comm, cudaStream_t s)
{
    return add(ALL_GATHER, from, to, n, 0, comm, s);
}
ncclResult_t ncclSend(const void *from, size_t n, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t s)
{
    return add(SEND, from, nullptr, n, peer, comm, s);
}
ncclResult_t ncclRecv(void *to, size_t n, ncclDataType_t, int peer, ncclComm_t comm, cudaStream_t s)
{
    return add(RECV, nullptr, to, n, peer, comm, s);
}

const char *ncclGetErrorString(ncclResult_t e)
{
    return e == ncclRemoteError       ? "remote process exited or there was a network error"
           : e == ncclInvalidArgument ? "invalid argument"
                                      : "unknown result code";
}
const char *ncclGetLastError(ncclComm_t)
{
    return "";
}
