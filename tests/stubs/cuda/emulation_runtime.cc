/* The runtime API of cuda_runtime.h on the emulated device: devices, streams, events, graphs. */
#include "emulation_kernel.h"

#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

enum { CAPABILITY = 90 };
static const size_t SHARED_DEFAULT = 48 << 10;
static pthread_mutex_t device_lock; /* kernels, device memory; recursive */

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
    cudaError_t failed;                  /* for good */
    std::vector<mu_emulated_span> chain; /* what the last kernels have changed, where looked for */
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
    __sanitizer_set_death_callback(mu_emulated_print_place);
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
    default: return MU_EMULATED_SHARED_MOST;
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
    mu_emulated_memory memory = {d->base, d->opened};
    if (!setting("MUSTER_CUDA_EMULATED_EARLY", 0)) {
        mu_emulated_run(name, grid, block, dynamic, thread, nullptr, memory);
        return;
    }
    std::vector<unsigned char> before(memory.bytes);
    mu_emulated_plain_copy(before.data(), memory.base, memory.bytes);
    mu_emulated_run(name, grid, block, dynamic, thread, early && !d->chain.empty() ? &d->chain : nullptr, memory);
    if (!early) d->chain.clear();
    for (size_t i = 0; i < memory.bytes;) {
        size_t from = i + mu_emulated_plain_differs(&before[i], memory.base + i, memory.bytes - i), to = from;
        while (to < memory.bytes && mu_emulated_plain_differs(&before[to], memory.base + to, 1) == 0) to++;
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
    if (n == 0 || n > (uint64_t)MU_EMULATED_MAX_THREADS || block.z > 64 || n_block == 0 || n_block >= 1ull << 32 ||
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
    p->maxThreadsPerBlock = MU_EMULATED_MAX_THREADS;
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
