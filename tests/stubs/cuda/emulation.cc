/* The emulated device: emulation.h's blocks of fibers, and the runtime API of cuda_runtime.h over them. */
#include "cuda_runtime.h"

#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define MU_ASAN 1
#else
#define MU_ASAN 0
#endif

static const int MAX_THREADS = 1024;
static const size_t STACK_BYTES = MU_ASAN ? 256 << 10 : 64 << 10;
enum { CAPABILITY = 90 };
static const size_t SHARED_DEFAULT = 48 << 10, SHARED_MOST = 227 << 10, SHARED_RED = 4 << 10;

/* ---- fibers ---- */

#if defined(__x86_64__)
struct context {
    void *sp;
};
extern "C" void mu_emulated_switch(void **save_sp, void *to_sp);
asm(".text\n.hidden mu_emulated_switch\n.globl mu_emulated_switch\n.type mu_emulated_switch,@function\n"
    "mu_emulated_switch:\n"
    " push %rbp\n push %rbx\n push %r12\n push %r13\n push %r14\n push %r15\n"
    " mov %rsp, (%rdi)\n mov %rsi, %rsp\n"
    " pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbx\n pop %rbp\n ret\n"
    ".size mu_emulated_switch,.-mu_emulated_switch\n");
static void context_switch(context *from, context *to)
{
    mu_emulated_switch(&from->sp, to->sp);
}
static void context_make(context *c, unsigned char *stack, void (*entry)(void))
{
    void **top = (void **)(stack + STACK_BYTES);
    *--top = nullptr; /* where entry would return to; and rsp as at a call */
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    c->sp = top;
}
#else
#include <ucontext.h>
struct context {
    ucontext_t u;
};
static void context_switch(context *from, context *to)
{
    swapcontext(&from->u, &to->u);
}
static void context_make(context *c, unsigned char *stack, void (*entry)(void))
{
    getcontext(&c->u);
    c->u.uc_stack.ss_sp = stack;
    c->u.uc_stack.ss_size = STACK_BYTES;
    c->u.uc_link = nullptr;
    makecontext(&c->u, entry, 0);
}
#endif

struct pending_copy {
    void *dst;
    const void *src;
    int bytes, n, group;
};

enum fiber_state { READY, AT_BARRIER, AT_NAMED, IN_WARP, AT_GRID, ENDED };

struct fiber {
    mu_emulated_thread seen; /* first: mu_emulated_self points here */
    context at;
    unsigned char *stack;
    fiber_state state;
    const char *op; /* of IN_WARP */
    int line;
    unsigned barrier_generation;
    std::vector<pending_copy> copies;
    int copy_group;
};

struct named_barrier {
    int n_arrived, n_waiting, waiting[MAX_THREADS];
};

struct warp {
    unsigned generation;
    int n_arrived;
    const char *op;
    int line;
    mu_emulated_slot slot[2][32]; /* by generation: a lane is at most one collective ahead of another */
};

mu_emulated_thread *mu_emulated_self;
mu_emulated_dim mu_emulated_block_idx, mu_emulated_block_dim, mu_emulated_grid_dim;
unsigned char *mu_emulated_shared;

static pthread_mutex_t device_lock; /* kernels, device memory; recursive */
static fiber fibers[MAX_THREADS];
static warp warps[MAX_THREADS / 32];
static named_barrier named[16];
static context scheduler;
static int n_threads, n_ended;
static int ready[MAX_THREADS], ready_head, n_ready; /* a ring */
static unsigned barrier_generation;
static int barrier_arrived;
static mu_emulated_vote votes[2]; /* by generation, as a warp's slots */
static const std::function<void()> *kernel_body;
static const char *kernel_name;
static unsigned char *shared_memory; /* SHARED_MOST and a red zone */
static __thread unsigned char
    among_shared; /* __shared__ variables are the library's thread-local storage, as this is */

static unsigned random_next(void)
{
    static unsigned x = 2463534242u;
    x ^= x << 13;
    x ^= x >> 17;
    return x ^= x << 5;
}

/* A permutation of 0 … n - 1: i → (step·i + from) mod n. */
struct order {
    unsigned n, step, from;
    explicit order(unsigned n_) : n(n_), step(1), from(0)
    {
        if (n < 2) return;
        from = random_next() % n;
        for (int tries = 0; tries < 16; tries++) {
            unsigned a = random_next() % n, b = n;
            step = a;
            while (a) {
                unsigned r = b % a;
                b = a;
                a = r;
            }
            if (b == 1) return;
        }
        step = 1;
    }
    unsigned at(unsigned i) const { return (unsigned)(((uint64_t)step * i + from) % n); }
};

static void print_place(void)
{
    fprintf(stderr, "\nemulated CUDA: kernel %s", kernel_name ? kernel_name : "(none)");
    if (kernel_name) {
        const mu_emulated_dim *b = &mu_emulated_block_idx, *g = &mu_emulated_grid_dim, *n = &mu_emulated_block_dim;
        fprintf(stderr, ", block (%u, %u, %u) of (%u, %u, %u)", b->x, b->y, b->z, g->x, g->y, g->z);
        if (mu_emulated_self) {
            const mu_emulated_dim *t = &mu_emulated_self->thread_idx;
            fprintf(stderr, ", thread (%u, %u, %u) of (%u, %u, %u)", t->x, t->y, t->z, n->x, n->y, n->z);
        }
    }
    fprintf(stderr, "\n");
}

void mu_emulated_die(const char *fmt, ...)
{
    va_list args;
    print_place();
    fprintf(stderr, "emulated CUDA: ");
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fprintf(stderr, "\n");
    abort();
}

static void make_ready(int i)
{
    fibers[i].state = READY;
    ready[(ready_head + n_ready++) % MAX_THREADS] = i;
}

static void wait_in(fiber_state state)
{
    fiber *f = (fiber *)mu_emulated_self;
    f->state = state;
    context_switch(&f->at, &scheduler);
}

mu_emulated_vote mu_emulated_barrier(int predicate)
{
    unsigned g = barrier_generation;
    mu_emulated_vote *v = &votes[g & 1];
    v->count += predicate != 0;
    v->any |= predicate != 0;
    v->all &= predicate != 0;
    if (++barrier_arrived < n_threads) {
        wait_in(AT_BARRIER);
        return *v;
    }
    barrier_arrived = 0;
    barrier_generation++;
    votes[barrier_generation & 1] = {0, 0, 1};
    order o((unsigned)n_threads);
    for (int i = 0; i < n_threads; i++) {
        int k = (int)o.at((unsigned)i);
        if (fibers[k].state == AT_BARRIER) make_ready(k);
    }
    return *v;
}

void mu_emulated_named_barrier(int id, int n, bool wait)
{
    fiber *f = (fiber *)mu_emulated_self;
    if (id < 1 || id > 15) mu_emulated_die("barrier %d: there are 1 to 15", id);
    if (n % 32 || n > n_threads) mu_emulated_die("barrier %d of %d threads in a block of %d", id, n, n_threads);
    named_barrier *b = &named[id];
    bool last = ++b->n_arrived == n;
    if (wait && !last) {
        b->waiting[b->n_waiting++] = f->seen.linear;
        f->op = "a barrier of some warps";
        f->line = id;
        wait_in(AT_NAMED);
        return;
    }
    if (!last) return;
    b->n_arrived = 0;
    while (b->n_waiting) make_ready(b->waiting[--b->n_waiting]);
}

const mu_emulated_slot *mu_emulated_collective(unsigned mask, const char *op, int line, const void *in, size_t bytes)
{
    fiber *f = (fiber *)mu_emulated_self;
    int w = f->seen.linear / 32, first = 32 * w;
    warp *my = &warps[w];
    mu_emulated_slot *slots = my->slot[my->generation & 1];
    if (mask != 0xffffffffu) mu_emulated_die("%s (line %d) with mask %#x: all lanes, please", op, line, mask);
    if (first + 32 > n_threads) mu_emulated_die("%s (line %d) in a warp of %d threads", op, line, n_threads - first);
    if (my->n_arrived == 0) {
        my->op = op;
        my->line = line;
    } else if (strcmp(my->op, op) != 0 || my->line != line) {
        mu_emulated_die("this lane is in %s (line %d), another of its warp in %s (line %d)", op, line, my->op,
                        my->line);
    }
    if (bytes) memcpy(slots[f->seen.linear & 31].bytes, in, bytes);
    f->op = op;
    f->line = line;
    if (++my->n_arrived < 32) {
        wait_in(IN_WARP);
        return slots;
    }
    my->n_arrived = 0;
    my->generation++;
    unsigned step = random_next() | 1, from = random_next();
    for (unsigned i = 0; i < 32; i++) {
        int k = first + (int)((step * i + from) & 31);
        if (fibers[k].state == IN_WARP) make_ready(k);
    }
    return slots;
}

void mu_emulated_copy(void *dst, const void *src, int bytes, int n)
{
    fiber *f = (fiber *)mu_emulated_self;
    if (((uintptr_t)dst | (uintptr_t)src) % (uintptr_t)bytes)
        mu_emulated_die("cp.async of %d bytes from %p to %p: not aligned", bytes, src, dst);
    if (n < 0 || n > bytes) mu_emulated_die("cp.async of %d bytes, of which %d are to be read", bytes, n);
    memset(dst, 0xff, (size_t)bytes);
    f->copies.push_back({dst, src, bytes, n, f->copy_group});
}

void mu_emulated_copy_commit(void)
{
    ((fiber *)mu_emulated_self)->copy_group++;
}

void mu_emulated_copy_wait(int n_pending)
{
    fiber *f = (fiber *)mu_emulated_self;
    size_t done = 0;
    for (; done < f->copies.size() && f->copies[done].group < f->copy_group - n_pending; done++) {
        const pending_copy *c = &f->copies[done];
        memcpy(c->dst, c->src, (size_t)c->n);
        memset((char *)c->dst + c->n, 0, (size_t)(c->bytes - c->n));
    }
    f->copies.erase(f->copies.begin(), f->copies.begin() + (long)done);
}

/* Never returns, so its own frame must leave nothing behind in ASan's shadow of the stack. */
__attribute__((no_sanitize("address"))) static void fiber_main(void)
{
    (*kernel_body)();
    ((fiber *)mu_emulated_self)->state = ENDED;
    n_ended++;
    for (;;) context_switch(&((fiber *)mu_emulated_self)->at, &scheduler);
}

static void fibers_make(int n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < n; i++) {
        if (fibers[i].stack) continue;
        void *p = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                       -1, 0);
        if (p == MAP_FAILED || mprotect(p, page, PROT_NONE) != 0)
            mu_emulated_die("no memory for the stacks of threads");
        fibers[i].stack = (unsigned char *)p + page;
    }
}

[[noreturn]] static void die_stuck(void)
{
    int shown = 0, last = -1;
    for (int i = 0; i < n_threads; i++) {
        const fiber *f = &fibers[i];
        int key = f->state == IN_WARP || f->state == AT_NAMED ? f->line + 16 : (int)f->state;
        if (key == last || shown++ > 20) continue;
        last = key;
        fprintf(stderr, "emulated CUDA: from thread %d on: %s", i,
                f->state == ENDED        ? "ended"
                : f->state == AT_BARRIER ? "at a barrier of the block"
                                         : f->op);
        if (f->state == IN_WARP) fprintf(stderr, " (line %d)", f->line);
        if (f->state == AT_NAMED) fprintf(stderr, " (number %d)", f->line);
        fprintf(stderr, "\n");
    }
    mu_emulated_self = nullptr;
    mu_emulated_die("%d of %d threads wait for ever", n_threads - n_ended, n_threads);
}

struct span {
    unsigned char *from;
    size_t bytes;
};

/* dl_iterate_phdr's: the piece of thread-local storage that holds among_shared. */
static int find_shared(struct dl_phdr_info *info, size_t, void *arg)
{
    for (int i = 0; i < info->dlpi_phnum; i++) {
        unsigned char *from = (unsigned char *)info->dlpi_tls_data;
        size_t bytes = info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type != PT_TLS || !from || &among_shared < from || &among_shared >= from + bytes)
            continue;
        *(span *)arg = {from, bytes};
        return 1;
    }
    return 0;
}

/* ---- kernels that start before the end of the one before ----
 *
 * Asked for with MUSTER_CUDA_EMULATED_EARLY, as it takes time. What the kernels of a chain have changed (the first was
 * launched after all before it; the others early) is out of sight, 0xff, until a thread of a block has come to
 * mu_grid_wait and no other can go on without; then it is there, for the whole block. A thread that reads too soon
 * reads nonsense, one that writes anything too soon ends the process. The first blocks of a grid will do. */

static const unsigned EARLY_BLOCKS = 64, WRITES_BLOCKS = 2;

struct memory_of { /* a device's memory as far as it is used */
    unsigned char *base;
    size_t bytes;
};
static memory_of early_memory;
static const std::vector<span> *early_chain;
static bool early_now; /* the block has not come to mu_grid_wait */
static std::vector<unsigned char> early_saved, early_all;

void mu_emulated_grid_wait(void)
{
    if (early_now) wait_in(AT_GRID);
}

/* Reads the whole of a device's memory, red zones too. */
__attribute__((no_sanitize("address"))) static void plain_copy(unsigned char *to, const unsigned char *from, size_t n)
{
    for (size_t i = 0; i < n; i++) to[i] = from[i];
}
__attribute__((no_sanitize("address"))) static size_t plain_differs(const unsigned char *a, const unsigned char *b,
                                                                    size_t n)
{
    size_t i = 0;
    while (i < n && a[i] == b[i]) i++;
    return i;
}

static void early_begin(bool all)
{
    early_now = true;
    early_saved.clear();
    for (const span &c : *early_chain) early_saved.insert(early_saved.end(), c.from, c.from + c.bytes);
    for (const span &c : *early_chain) memset(c.from, 0xff, c.bytes);
    early_all.resize(all ? early_memory.bytes : 0);
    plain_copy(early_all.data(), early_memory.base, early_all.size());
}

static void early_end(void)
{
    size_t at = 0, same = plain_differs(early_all.data(), early_memory.base, early_all.size());
    mu_emulated_self = nullptr;
    if (same < early_all.size()) mu_emulated_die("device memory was written before mu_grid_wait");
    for (const span &c : *early_chain)
        for (size_t i = 0; i < c.bytes; i++)
            if (c.from[i] != 0xff)
                mu_emulated_die("what the kernel before had written was written again before mu_grid_wait");
    for (const span &c : *early_chain) { /* they may overlap */
        memcpy(c.from, early_saved.data() + at, c.bytes);
        at += c.bytes;
    }
    early_now = false;
    order o((unsigned)n_threads);
    for (int i = 0; i < n_threads; i++) {
        int k = (int)o.at((unsigned)i);
        if (fibers[k].state == AT_GRID) make_ready(k);
    }
}

static void run_ready(void)
{
    while (n_ready) {
        int i = ready[ready_head];
        ready_head = (ready_head + 1) % MAX_THREADS;
        n_ready--;
        mu_emulated_self = &fibers[i].seen;
        context_switch(&scheduler, &fibers[i].at);
    }
}

static void run_block(span shared, size_t dynamic, bool early, bool writes)
{
    memset(shared.from, 0xff, shared.bytes);
    memset(mu_emulated_shared, 0xff, dynamic + SHARED_RED);
    n_ended = 0;
    barrier_arrived = 0;
    barrier_generation = 0;
    memset(named, 0, sizeof named);
    votes[0] = {0, 0, 1};
    ready_head = n_ready = 0;
    order o((unsigned)n_threads);
    for (int i = 0; i < n_threads; i++) {
        fiber *f = &fibers[i];
        const mu_emulated_dim *n = &mu_emulated_block_dim;
        unsigned k = (unsigned)i;
        f->seen = {{k % n->x, k / n->x % n->y, k / n->x / n->y}, i};
        f->copies.clear();
        f->copy_group = 0;
        context_make(&f->at, f->stack, fiber_main);
        make_ready((int)o.at(k));
    }
    for (int w = 0; w < (n_threads + 31) / 32; w++) warps[w].generation = 0, warps[w].n_arrived = 0;
    if (early) {
        early_begin(writes);
        run_ready();
        early_end();
    }
    run_ready();
    if (n_ended < n_threads) die_stuck();
    mu_emulated_self = nullptr;
    for (size_t i = 0; i < SHARED_RED; i++)
        if (mu_emulated_shared[dynamic + i] != 0xff)
            mu_emulated_die("shared memory was written %zu bytes beyond its %zu", i, dynamic);
}

/* Under device_lock, with device memory open. chain: what the kernels before have changed and may still be at; NULL: they
 * have ended. */
static void run_kernel(const char *name, dim3 grid, dim3 block, size_t dynamic, const std::function<void()> &body,
                       const std::vector<span> *chain, memory_of memory)
{
    span shared = {};
    uint64_t n_block = (uint64_t)grid.x * grid.y * grid.z;
    among_shared = 1;
    dl_iterate_phdr(find_shared, &shared);
    if (!shared_memory) shared_memory = (unsigned char *)aligned_alloc(4096, SHARED_MOST + SHARED_RED + 1024);
    if (!shared_memory || !shared.from) mu_emulated_die("no shared memory");
    mu_emulated_shared = shared_memory;
    mu_emulated_grid_dim = {grid.x, grid.y, grid.z};
    mu_emulated_block_dim = {block.x, block.y, block.z};
    n_threads = (int)(block.x * block.y * block.z);
    fibers_make(n_threads);
    kernel_body = &body;
    kernel_name = name;
    early_chain = chain;
    early_memory = memory;
    order o((unsigned)n_block);
    for (uint64_t i = 0; i < n_block; i++) {
        unsigned b = o.at((unsigned)i);
        mu_emulated_block_idx = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        run_block(shared, dynamic, chain && i < EARLY_BLOCKS, i < WRITES_BLOCKS);
    }
    kernel_name = nullptr;
}

/* ---- devices and their memory ----
 *
 * A device's memory is a piece of address space that can be touched only while a kernel or a copy runs: the host cannot
 * take a device's pointer for one of its own. Red zones of 0xa5 lie between allocations. */

static const size_t RED = 512, GRAIN = 512;
static const unsigned char RED_BYTE = 0xa5;

struct device {
    unsigned char *base; /* NULL: not yet used */
    size_t reserved, opened, used;
    std::map<size_t, size_t> blocks; /* offset of the data → bytes asked for */
    std::vector<CUstream_st *> streams;
    cudaError_t failed;      /* for good */
    std::vector<span> chain; /* what the last kernels have changed, where looked for */
};

struct here { /* a thread's; not thread-local variables, which are shared memory here */
    int device;
    CUstream_st *capturing;
    const char *what;
    cudaError_t last;
};

static const int MAX_DEVICES = 16;
static device devices[MAX_DEVICES];
static int open_depth;
static pthread_key_t here_key;
static std::map<std::pair<const void *, int>, int>
    dynamic_allowed; /* by kernel and device: cudaFuncAttributeMaxDynamicSharedMemorySize */

static long setting(const char *name, long otherwise)
{
    const char *s = getenv(name);
    return s && *s ? atol(s) : otherwise;
}

__attribute__((constructor)) static void start(void)
{
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_settype(&a, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&device_lock, &a);
    pthread_key_create(&here_key, free);
#if MU_ASAN
    __sanitizer_set_death_callback(print_place);
#endif
}

static here *my(void)
{
    here *h = (here *)pthread_getspecific(here_key);
    if (h) return h;
    h = (here *)calloc(1, sizeof *h);
    pthread_setspecific(here_key, h);
    return h;
}

void mu_emulated_name(const char *what)
{
    my()->what = what;
}

static cudaError_t told(cudaError_t e)
{
    if (e != cudaSuccess && e != cudaErrorNotReady) my()->last = e;
    return e;
}

struct locked {
    locked() { pthread_mutex_lock(&device_lock); }
    ~locked() { pthread_mutex_unlock(&device_lock); }
};

static void open_memory(void)
{
    pthread_mutex_lock(&device_lock);
    if (open_depth++) return;
    for (device &d : devices)
        if (d.opened) mprotect(d.base, d.opened, PROT_READ | PROT_WRITE);
}

static void close_memory(void)
{
    if (--open_depth == 0)
        for (device &d : devices)
            if (d.opened) mprotect(d.base, d.opened, PROT_NONE);
    pthread_mutex_unlock(&device_lock);
}

struct opened {
    opened() { open_memory(); }
    ~opened() { close_memory(); }
};

/* What a block may have, as CUDA's programming guide has it for each capability. */
static size_t shared_most(void)
{
    switch (setting("MUSTER_CUDA_EMULATED_CAPABILITY", CAPABILITY)) {
    case 80:
    case 87: return 163 << 10;
    case 86:
    case 89:
    case 120: return 99 << 10;
    default: return SHARED_MOST;
    }
}

static size_t device_bytes(void)
{
    return (size_t)setting("MUSTER_CUDA_EMULATED_MEMORY", 1L << 30);
}

static void red_zone(unsigned char *p, size_t n)
{
    memset(p, RED_BYTE, n);
#if MU_ASAN
    __asan_poison_memory_region(p, n);
#endif
}

static void red_zone_check(const device *d, const unsigned char *p, size_t n, size_t offset, size_t bytes)
{
#if MU_ASAN /* has looked at every access */
    (void)d, (void)p, (void)n, (void)offset, (void)bytes;
#else
    for (size_t i = 0; i < n; i++)
        if (p[i] != RED_BYTE)
            mu_emulated_die("an allocation of %zu bytes of device %d was written at byte %td", bytes,
                            (int)(d - devices), p + i - (d->base + offset));
#endif
}

static size_t data_end(size_t bytes) /* of a block's data, with its red zone to the next grain */
{
    return (bytes + RED + GRAIN - 1) / GRAIN * GRAIN;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    locked lock;
    int index = my()->device;
    device *d = &devices[index];
    if (my()->capturing) return told(cudaErrorStreamCaptureUnsupported);
    if (d->failed) return told(d->failed);
    *p = nullptr;
    if (bytes == 0) return cudaSuccess;
    size_t most = device_bytes();
    if (bytes > most || d->used + bytes > most) return told(cudaErrorMemoryAllocation);
    if (!d->base) {
        size_t reserve = 4 * most + (64 << 20);
        void *m = mmap(nullptr, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) return told(cudaErrorMemoryAllocation);
        d->base = (unsigned char *)m;
        d->reserved = reserve;
    }
    size_t at = RED;
    for (const auto &b : d->blocks) { /* the first gap that is wide enough */
        if (b.first >= at + data_end(bytes)) break;
        at = b.first + data_end(b.second);
    }
    if (at + data_end(bytes) > d->reserved) return told(cudaErrorMemoryAllocation);
    opened open;
    size_t need = (at + data_end(bytes) + (2 << 20) - 1) / (2 << 20) * (2 << 20);
    if (need > d->reserved) need = d->reserved;
    if (need > d->opened) {
        mprotect(d->base, need, PROT_READ | PROT_WRITE);
        d->opened = need;
    }
    d->blocks[at] = bytes;
    d->used += bytes;
    unsigned char *data = d->base + at;
#if MU_ASAN
    __asan_unpoison_memory_region(data - RED, data_end(bytes) + RED);
#endif
    red_zone(data - RED, RED);
    red_zone(data + bytes, data_end(bytes) - bytes);
    memset(data, 0xff, bytes);
    *p = data;
    return cudaSuccess;
}

static int device_of(const void *p)
{
    for (int i = 0; i < MAX_DEVICES; i++)
        if (devices[i].base && (const unsigned char *)p >= devices[i].base &&
            (const unsigned char *)p < devices[i].base + devices[i].reserved)
            return i;
    return -1;
}

/* Ends the process where [p, p + bytes) is not within one allocation. */
static void check_range(const void *p, size_t bytes, const char *what)
{
    locked lock;
    int i = device_of(p);
    if (bytes == 0) return;
    if (i < 0) mu_emulated_die("%s: %p is no memory of a device", what, p);
    size_t at = (size_t)((const unsigned char *)p - devices[i].base);
    auto b = devices[i].blocks.upper_bound(at);
    if (b == devices[i].blocks.begin() || (--b, at + bytes > b->first + b->second))
        mu_emulated_die("%s: %zu bytes at %p of device %d are not within one allocation", what, bytes, p, i);
}

static void block_check(const device *d, size_t at, size_t bytes)
{
    red_zone_check(d, d->base + at - RED, RED, at, bytes);
    red_zone_check(d, d->base + at + bytes, data_end(bytes) - bytes, at, bytes);
}

/* ---- streams ---- */

typedef std::function<int()> work; /* 1 done, 0 not yet, -1 failed */

struct CUstream_st {
    mu_emulated_stream outside; /* first */
    int device;
    std::recursive_mutex busy; /* of the queue: threads that wait for a device look at all its streams */
    std::deque<work> queue;
    std::atomic<CUstream_st *> waits_for; /* whose event stands before the rest of the queue */
    bool capturing, spoiled;
    std::vector<work> captured;
};
struct CUevent_st {
    uint64_t recorded;
    std::atomic<uint64_t> done;
    CUstream_st *stream;
    int device;
    double when_ms;
};
struct CUgraph_st {
    std::vector<work> nodes;
};
struct CUgraphExec_st {
    std::vector<work> nodes;
};

static std::vector<CUstream_st *> ended; /* another thread may still look at them */

static void get_on(CUstream_st *s)
{
    std::lock_guard<std::recursive_mutex> one(s->busy);
    device *d = &devices[s->device];
    while (!s->queue.empty() && !d->failed && !setting("MUSTER_CUDA_EMULATED_STUCK", 0)) {
        int r = s->queue.front()();
        if (r == 0) return;
        if (r < 0) d->failed = cudaErrorLaunchFailure;
        s->queue.pop_front();
    }
    if (d->failed) s->queue.clear();
}

/* One kernel, and, where it is asked for, what it changes. */
static void run_in_chain(device *d, bool early, const char *name, dim3 grid, dim3 block, size_t dynamic,
                         const std::function<void()> &thread)
{
    memory_of memory = {d->base, d->opened};
    if (!setting("MUSTER_CUDA_EMULATED_EARLY", 0)) {
        run_kernel(name, grid, block, dynamic, thread, nullptr, memory);
        return;
    }
    std::vector<unsigned char> before(memory.bytes);
    plain_copy(before.data(), memory.base, memory.bytes);
    run_kernel(name, grid, block, dynamic, thread, early && !d->chain.empty() ? &d->chain : nullptr, memory);
    if (!early) d->chain.clear();
    for (size_t i = 0; i < memory.bytes;) {
        size_t from = i + plain_differs(&before[i], memory.base + i, memory.bytes - i), to = from;
        while (to < memory.bytes && plain_differs(&before[to], memory.base + to, 1) == 0) to++;
        if (to > from) d->chain.push_back({memory.base + from, to - from});
        i = to < memory.bytes ? to + 1 : memory.bytes;
    }
}

static void enqueue(CUstream_st *s, work run)
{
    std::lock_guard<std::recursive_mutex> one(s->busy);
    if (s->capturing) {
        s->captured.push_back(run);
        return;
    }
    s->queue.push_back(run);
    if (!setting("MUSTER_CUDA_EMULATED_LATE", 0)) get_on(s);
}

/* For what is no kernel of ours: it ends before the next begins. */
static void enqueue_from_outside(CUstream_st *s, work run)
{
    enqueue(s, [=]() mutable {
        int r = run();
        devices[s->device].chain.clear();
        return r;
    });
}

/* What a call during a recording that may not be there does: spoils it. */
static bool spoils(CUstream_st *s)
{
    if (!s->capturing) return false;
    s->spoiled = true;
    return true;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    locked lock;
    *s = new CUstream_st();
    (*s)->outside = {enqueue_from_outside, open_memory, close_memory};
    (*s)->device = my()->device;
    devices[my()->device].streams.push_back(*s);
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    locked lock;
    std::vector<CUstream_st *> *all = &devices[s->device].streams;
    for (size_t i = 0; i < all->size(); i++)
        if ((*all)[i] == s) all->erase(all->begin() + (long)i);
    if (my()->capturing == s) my()->capturing = nullptr;
    ended.push_back(s);
    return cudaSuccess;
}

/* The device's streams at this time. */
static std::vector<CUstream_st *> streams_of(const device *d)
{
    locked lock;
    return d->streams;
}

/* With what it waits for. */
static void get_along(CUstream_st *s)
{
    get_on(s);
    CUstream_st *other = s->waits_for;
    if (!other) return;
    get_on(other);
    get_on(s);
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    if (spoils(s)) return told(cudaErrorStreamCaptureUnsupported);
    get_along(s);
    if (devices[s->device].failed) return told(devices[s->device].failed);
    std::lock_guard<std::recursive_mutex> one(s->busy);
    return s->queue.empty() ? cudaSuccess : cudaErrorNotReady;
}

static void nap(void)
{
    struct timespec t = {0, 100000};
    nanosleep(&t, nullptr);
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    cudaError_t e;
    while ((e = cudaStreamQuery(s)) == cudaErrorNotReady) nap();
    return e;
}

cudaError_t cudaDeviceSynchronize(void)
{
    cudaError_t first = cudaSuccess;
    for (CUstream_st *s : streams_of(&devices[my()->device])) {
        cudaError_t e = cudaStreamSynchronize(s);
        if (first == cudaSuccess) first = e;
    }
    return first;
}

cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    if (my()->capturing) return told(cudaErrorStreamCaptureUnsupported);
    int index = device_of(p);
    if (index < 0) mu_emulated_die("cudaFree of %p, which is no memory of a device", p);
    device *d = &devices[index];
    for (CUstream_st *s : streams_of(d))
        while (cudaStreamQuery(s) == cudaErrorNotReady) nap();
    opened open;
    size_t at = (size_t)((unsigned char *)p - d->base);
    auto b = d->blocks.find(at);
    if (b == d->blocks.end()) mu_emulated_die("cudaFree of %p, which is no allocation of device %d", p, index);
    block_check(d, at, b->second);
    red_zone((unsigned char *)p, b->second);
    d->chain.clear();
    d->used -= b->second;
    d->blocks.erase(b);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    *p = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096 + 4096);
    if (!*p) return told(cudaErrorMemoryAllocation);
    memset(*p, 0xff, bytes);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned)
{
    return cudaMallocHost(p, bytes);
}
cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t s)
{
    if (devices[s->device].failed) return told(devices[s->device].failed);
    if (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) check_range(to, bytes, "copy to a device");
    if (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice)
        check_range(from, bytes, "copy from a device");
    enqueue(s, [=] {
        opened open;
        devices[s->device].chain.clear();
        memmove(to, from, bytes);
        return 1;
    });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t s)
{
    if (devices[s->device].failed) return told(devices[s->device].failed);
    check_range(to, bytes, "memset");
    enqueue(s, [=] {
        opened open;
        devices[s->device].chain.clear();
        memset(to, value, bytes);
        return 1;
    });
    return cudaSuccess;
}

cudaError_t mu_emulated_func_set(const void *func, cudaFuncAttribute attr, int value)
{
    locked lock;
    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (value < 0 || (size_t)value > shared_most()) return told(cudaErrorInvalidValue);
    dynamic_allowed[{func, my()->device}] = value;
    return cudaSuccess;
}

cudaError_t mu_emulated_launch(const cudaLaunchConfig_t *c, const void *kernel, std::function<void()> thread)
{
    const char *name = my()->what ? my()->what : "(unnamed)";
    size_t allowed = SHARED_DEFAULT, dynamic = c->dynamicSmemBytes;
    dim3 grid = c->gridDim, block = c->blockDim;
    uint64_t n = (uint64_t)block.x * block.y * block.z, n_block = (uint64_t)grid.x * grid.y * grid.z;
    bool early = false;
    device *d = &devices[c->stream->device];
    for (unsigned i = 0; i < c->numAttrs; i++)
        early |= c->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization &&
                 c->attrs[i].val.programmaticStreamSerializationAllowed;
    my()->what = nullptr;
    if (devices[c->stream->device].failed) return told(devices[c->stream->device].failed);
    {
        locked lock;
        auto a = dynamic_allowed.find({kernel, c->stream->device});
        if (a != dynamic_allowed.end() && (size_t)a->second > allowed) allowed = (size_t)a->second;
    }
    if (n == 0 || n > (uint64_t)MAX_THREADS || block.z > 64 || n_block == 0 || n_block >= 1ull << 32 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        return told(cudaErrorInvalidConfiguration);
    if (dynamic > allowed) return told(cudaErrorInvalidValue);
    enqueue(c->stream, [=] {
        if (setting("MUSTER_CUDA_EMULATED_FAULT", 0)) return -1;
        opened open;
        run_in_chain(d, early, name, grid, block, dynamic, thread);
        return 1;
    });
    return cudaSuccess;
}

/* ---- events and graphs ---- */

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    *e = new CUevent_st();
    (*e)->device = my()->device;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    if (spoils(s)) return told(cudaErrorStreamCaptureUnsupported);
    if (devices[s->device].failed) return told(devices[s->device].failed);
    uint64_t number = ++e->recorded;
    e->stream = s;
    enqueue(s, [=] {
        e->done = number;
        e->when_ms = now_ms();
        return 1;
    });
    return cudaSuccess;
}
/* For what was recorded when this was called, as the real one. */
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    if (spoils(s)) return told(cudaErrorStreamCaptureUnsupported);
    if (devices[s->device].failed) return told(devices[s->device].failed);
    uint64_t number = e->recorded;
    enqueue_from_outside(s, [=] {
        bool done = e->done >= number;
        s->waits_for = done ? nullptr : e->stream;
        return done ? 1 : 0;
    });
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    device *d = &devices[e->device];
    if (my()->capturing) {
        my()->capturing->spoiled = true;
        return told(cudaErrorStreamCaptureUnsupported);
    }
    if (e->done != e->recorded) get_along(e->stream);
    if (d->failed) return told(d->failed);
    return e->done == e->recorded ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    cudaError_t r;
    while ((r = cudaEventQuery(e)) == cudaErrorNotReady) nap();
    return r;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    if (from->done != from->recorded || to->done != to->recorded) return cudaErrorNotReady;
    double took = to->when_ms - from->when_ms;
    *ms = took > 1e-3 ? (float)took : 1e-3f;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    if (s->capturing) return told(cudaErrorStreamCaptureUnsupported);
    if (devices[s->device].failed) return told(devices[s->device].failed);
    s->capturing = true;
    s->spoiled = false;
    s->captured.clear();
    my()->capturing = s;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    *g = nullptr;
    if (!s->capturing) return told(cudaErrorInvalidValue);
    s->capturing = false;
    my()->capturing = nullptr;
    if (s->spoiled) return told(cudaErrorStreamCaptureInvalidated);
    *g = new CUgraph_st{std::move(s->captured)};
    s->captured.clear();
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status)
{
    *status = !s->capturing ? cudaStreamCaptureStatusNone
              : s->spoiled  ? cudaStreamCaptureStatusInvalidated
                            : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long)
{
    *x = new CUgraphExec_st{g->nodes};
    return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t)
{
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    if (devices[s->device].failed) return told(devices[s->device].failed);
    for (const work &w : x->nodes) enqueue(s, w);
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    delete x;
    return cudaSuccess;
}

/* ---- what there is ---- */

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = (int)setting("MUSTER_CUDA_EMULATED_DRIVER", 13000);
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceCount(int *n)
{
    int version;
    long have = setting("MUSTER_CUDA_EMULATED_DEVICES", 1);
    *n = 0;
    cudaDriverGetVersion(&version);
    if (version / 1000 < CUDART_VERSION / 1000) return told(cudaErrorInsufficientDriver);
    if (have <= 0) return told(cudaErrorNoDevice);
    *n = have < MAX_DEVICES ? (int)have : MAX_DEVICES;
    return cudaSuccess;
}
static bool is_device(int index)
{
    int n;
    return cudaGetDeviceCount(&n) == cudaSuccess && index >= 0 && index < n;
}
cudaError_t cudaGetDevice(int *index)
{
    *index = my()->device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int index)
{
    if (!is_device(index)) return told(cudaErrorInvalidDevice);
    my()->device = index;
    return cudaSuccess;
}
cudaError_t cudaSetDeviceFlags(unsigned)
{
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int index)
{
    int capability = (int)setting("MUSTER_CUDA_EMULATED_CAPABILITY", CAPABILITY);
    if (!is_device(index)) return told(cudaErrorInvalidDevice);
    *p = {};
    snprintf(p->name, sizeof p->name, "Emulated GPU");
    p->totalGlobalMem = device_bytes();
    p->sharedMemPerBlock = SHARED_DEFAULT;
    p->sharedMemPerBlockOptin = shared_most();
    p->major = capability / 10;
    p->minor = capability % 10;
    p->multiProcessorCount = 4;
    p->pciBusID = index + 1;
    p->l2CacheSize = 1 << 20;
    p->maxThreadsPerBlock = MAX_THREADS;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attr, int index)
{
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, index);
    if (e != cudaSuccess) return e;
    switch (attr) {
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *s, int len, int index)
{
    if (!is_device(index)) return told(cudaErrorInvalidDevice);
    snprintf(s, (size_t)len, "0000:%02X:00.0", index + 1);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    locked lock;
    *total = device_bytes();
    *free_bytes = *total - devices[my()->device].used;
    return cudaSuccess;
}

static const struct {
    cudaError_t e;
    const char *name, *text;
} error_texts[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};
const char *cudaGetErrorName(cudaError_t e)
{
    for (const auto &t : error_texts)
        if (t.e == e) return t.name;
    return "cudaErrorUnknown";
}
const char *cudaGetErrorString(cudaError_t e)
{
    for (const auto &t : error_texts)
        if (t.e == e) return t.text;
    return "unknown error";
}
cudaError_t cudaPeekAtLastError(void)
{
    return my()->last;
}
cudaError_t cudaGetLastError(void)
{
    cudaError_t e = my()->last;
    my()->last = cudaSuccess;
    return e;
}
