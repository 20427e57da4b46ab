/* A launched kernel on the emulated device: blocks of fibers (emulation.h). */
#include "emulation_kernel.h"

#include <link.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

static const size_t STACK_BYTES = MU_ASAN ? 256 << 10 : 64 << 10;
static const size_t SHARED_RED = 4 << 10;

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
    int n_arrived, n_waiting, waiting[MU_EMULATED_MAX_THREADS];
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

static fiber fibers[MU_EMULATED_MAX_THREADS];
static warp warps[MU_EMULATED_MAX_THREADS / 32];
static named_barrier named[16];
static context scheduler;
static int n_threads, n_ended;
static int ready[MU_EMULATED_MAX_THREADS], ready_head, n_ready; /* a ring */
static unsigned barrier_generation;
static int barrier_arrived;
static mu_emulated_vote votes[2]; /* by generation, as a warp's slots */
static const std::function<void()> *kernel_body;
static const char *kernel_name;
static unsigned char *shared_memory; /* MU_EMULATED_SHARED_MOST and a red zone */
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

void mu_emulated_print_place(void)
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
    mu_emulated_print_place();
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
    ready[(ready_head + n_ready++) % MU_EMULATED_MAX_THREADS] = i;
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

/* dl_iterate_phdr's: the piece of thread-local storage that holds among_shared. */
static int find_shared(struct dl_phdr_info *info, size_t, void *arg)
{
    for (int i = 0; i < info->dlpi_phnum; i++) {
        unsigned char *from = (unsigned char *)info->dlpi_tls_data;
        size_t bytes = info->dlpi_phdr[i].p_memsz;
        if (info->dlpi_phdr[i].p_type != PT_TLS || !from || &among_shared < from || &among_shared >= from + bytes)
            continue;
        *(mu_emulated_span *)arg = {from, bytes};
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

static mu_emulated_memory early_memory;
static const std::vector<mu_emulated_span> *early_chain;
static bool early_now; /* the block has not come to mu_grid_wait */
static std::vector<unsigned char> early_saved, early_all;

void mu_emulated_grid_wait(void)
{
    if (early_now) wait_in(AT_GRID);
}

__attribute__((no_sanitize("address"))) void mu_emulated_plain_copy(unsigned char *to, const unsigned char *from,
                                                                    size_t n)
{
    for (size_t i = 0; i < n; i++) to[i] = from[i];
}
__attribute__((no_sanitize("address"))) size_t mu_emulated_plain_differs(const unsigned char *a, const unsigned char *b,
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
    for (const mu_emulated_span &c : *early_chain) early_saved.insert(early_saved.end(), c.from, c.from + c.bytes);
    for (const mu_emulated_span &c : *early_chain) memset(c.from, 0xff, c.bytes);
    early_all.resize(all ? early_memory.bytes : 0);
    mu_emulated_plain_copy(early_all.data(), early_memory.base, early_all.size());
}

static void early_end(void)
{
    size_t at = 0, same = mu_emulated_plain_differs(early_all.data(), early_memory.base, early_all.size());
    mu_emulated_self = nullptr;
    if (same < early_all.size()) mu_emulated_die("device memory was written before mu_grid_wait");
    for (const mu_emulated_span &c : *early_chain)
        for (size_t i = 0; i < c.bytes; i++)
            if (c.from[i] != 0xff)
                mu_emulated_die("what the kernel before had written was written again before mu_grid_wait");
    for (const mu_emulated_span &c : *early_chain) { /* they may overlap */
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
        ready_head = (ready_head + 1) % MU_EMULATED_MAX_THREADS;
        n_ready--;
        mu_emulated_self = &fibers[i].seen;
        context_switch(&scheduler, &fibers[i].at);
    }
}

static void run_block(mu_emulated_span shared, size_t dynamic, bool early, bool writes)
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

void mu_emulated_run(const char *name, dim3 grid, dim3 block, size_t dynamic, const std::function<void()> &body,
                     const std::vector<mu_emulated_span> *chain, mu_emulated_memory memory)
{
    mu_emulated_span shared = {};
    uint64_t n_block = (uint64_t)grid.x * grid.y * grid.z;
    among_shared = 1;
    dl_iterate_phdr(find_shared, &shared);
    if (!shared_memory)
        shared_memory = (unsigned char *)aligned_alloc(4096, MU_EMULATED_SHARED_MOST + SHARED_RED + 1024);
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
