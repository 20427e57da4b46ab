/* Devices, their memory and their queue: a stream, whose marks are events and whose recordings are graphs.
 *
 * Nothing here blocks in the driver for longer than a call takes: a wait asks again and again until its deadline, at
 * first without a pause (a step of decoding is a few milliseconds, and asleep is soon late), later with short sleeps.
 * A stream that was told to do what cannot end cannot be taken back either; close then leaves its memory to the end of
 * the process, as cudaFree would wait for it. */
#include "cuda.h"

#include <ctype.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

extern "C" {
#include "base/clock.h"
}

enum { CAPABILITY_LEAST = 80, CLOSE_MS = 2000 };

struct mu_device_memory {
    struct mu_device_memory *next;
    void *p;
    bool host;
};

struct mu_device_graph {
    cudaGraphExec_t exec;
};

static const double MIB = 1024.0 * 1024.0;

/* ---- what kernels were told of shared memory ---- */

enum { SHARED_PLACES = 4096 }; /* by hash; a kernel that finds no place is told at each launch */

struct told {
    const void *kernel;
    int index; /* of the device */
    size_t bytes;
};

static pthread_mutex_t shared_lock = PTHREAD_MUTEX_INITIALIZER;
static struct told shared_told[SHARED_PLACES];

bool mu_shared_begin(const struct mu_device *d, const void *kernel, size_t bytes)
{
    size_t at = ((size_t)(uintptr_t)kernel / 16 * 31 + (size_t)d->index) % SHARED_PLACES;
    pthread_mutex_lock(&shared_lock);
    for (int i = 0; i < SHARED_PLACES; i++, at = (at + 1) % SHARED_PLACES) {
        struct told *t = &shared_told[at];
        if (t->kernel && (t->kernel != kernel || t->index != d->index)) continue;
        if (t->kernel && t->bytes >= bytes) return false;
        *t = {kernel, d->index, bytes};
        break;
    }
    return true;
}

void mu_shared_end(void)
{
    pthread_mutex_unlock(&shared_lock);
}

static enum mu_status cuda_fail(struct mu_err *err, const struct mu_device *d, const char *what, cudaError_t e)
{
    return mu_fail(err, MU_EINTERNAL, "GPU %d (%s): %s: %s (%s)", d->index, d->name, what, cudaGetErrorString(e),
                   cudaGetErrorName(e));
}

/* ---- devices ---- */

int mu_cuda_count(struct mu_err *err)
{
    int driver = 0, n = 0;
    cudaError_t e;
    if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
        mu_fail(err, MU_EUNSUPPORTED, "no NVIDIA driver is installed here");
        return -1;
    }
    e = cudaGetDeviceCount(&n);
    if (e == cudaSuccess) return n;
    (void)cudaGetLastError(); /* or a later call would be told */
    if (e == cudaErrorNoDevice) return 0;
    if (e == cudaErrorInsufficientDriver)
        mu_fail(err, MU_EUNSUPPORTED,
                "the NVIDIA driver is one for CUDA %d.%d and this build needs CUDA %d.%d: a newer driver is needed",
                driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    else
        mu_fail(err, MU_EUNSUPPORTED, "the GPUs cannot be counted: %s (%s)", cudaGetErrorString(e),
                cudaGetErrorName(e));
    return -1;
}

/* What the device is, where it is one that the kernels run on. */
static enum mu_status properties(int index, cudaDeviceProp *p, struct mu_err *err)
{
    int n = mu_cuda_count(err);
    cudaError_t e;
    if (n < 0) return err ? err->code : MU_EUNSUPPORTED;
    if (index < 0 || index >= n) return mu_fail(err, MU_ENOENT, "there is no GPU %d here: there are %d", index, n);
    e = cudaGetDeviceProperties(p, index);
    if (e != cudaSuccess)
        return mu_fail(err, MU_EINTERNAL, "GPU %d: %s (%s)", index, cudaGetErrorString(e), cudaGetErrorName(e));
    if (p->major * 10 + p->minor < CAPABILITY_LEAST)
        return mu_fail(err, MU_EUNSUPPORTED,
                       "GPU %d (%s) has compute capability %d.%d, and 8.0 (Ampere, A100) is the least that will do",
                       index, p->name, p->major, p->minor);
    return MU_OK;
}

/* How much is free is asked of the driver's own library, where it is: CUDA would take a few hundred MiB of the device
 * to answer, and keep them as long as the process lives, which may be one that never computes. */
#ifndef NVML_LIBRARY
#define NVML_LIBRARY "libnvidia-ml.so.1"
#endif
struct nvml_memory {
    unsigned long long total, free, used;
};
static struct {
    bool have;
    int (*init)(void);
    int (*by_pci)(const char *pci, void **device_out);
    int (*memory)(void *device, struct nvml_memory *memory_out);
} nvml;
static pthread_once_t nvml_once = PTHREAD_ONCE_INIT;

static void nvml_load(void)
{
    void *lib = dlopen(NVML_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!lib) return;
    *(void **)&nvml.init = dlsym(lib, "nvmlInit_v2");
    *(void **)&nvml.by_pci = dlsym(lib, "nvmlDeviceGetHandleByPciBusId_v2");
    *(void **)&nvml.memory = dlsym(lib, "nvmlDeviceGetMemoryInfo");
    nvml.have = nvml.init && nvml.by_pci && nvml.memory && nvml.init() == 0;
}

/* Not where CUDA's device is a part of what NVML sees under that address. */
static bool free_by_nvml(const char *pci, size_t total, uint64_t *free_out)
{
    void *device = NULL;
    struct nvml_memory m = {0, 0, 0};
    pthread_once(&nvml_once, nvml_load);
    if (!nvml.have || nvml.by_pci(pci, &device) != 0 || nvml.memory(device, &m) != 0) return false;
    if (m.total > total + total / 8) return false;
    *free_out = m.free < total ? m.free : total;
    return true;
}

static cudaError_t free_by_cuda(int index, uint64_t *free_out)
{
    size_t free_bytes = 0, total = 0;
    int before = 0;
    cudaError_t e;
    (void)cudaGetDevice(&before);
    e = cudaSetDevice(index);
    if (e == cudaSuccess) e = cudaMemGetInfo(&free_bytes, &total);
    (void)cudaSetDevice(before);
    *free_out = free_bytes;
    return e;
}

enum mu_status mu_cuda_info(int index, struct mu_device_info *info_out, struct mu_err *err)
{
    struct mu_device_info info = {};
    cudaDeviceProp p;
    cudaError_t e = cudaSuccess;
    enum mu_status st = properties(index, &p, err);
    if (st != MU_OK) return st;
    snprintf(info.name, sizeof info.name, "%.63s", p.name);
    if (cudaDeviceGetPCIBusId(info.pci, sizeof info.pci, index) != cudaSuccess) info.pci[0] = '\0';
    for (char *c = info.pci; *c; c++) *c = (char)tolower((unsigned char)*c);
    if (!info.pci[0] || !free_by_nvml(info.pci, p.totalGlobalMem, &info.free_bytes))
        e = free_by_cuda(index, &info.free_bytes);
    if (e != cudaSuccess)
        return mu_fail(err, MU_EINTERNAL, "GPU %d (%s): %s (%s)", index, p.name, cudaGetErrorString(e),
                       cudaGetErrorName(e));
    info.memory_bytes = p.totalGlobalMem;
    info.capability = p.major * 10 + p.minor;
    info.has_link = mu_cuda_link_have();
    *info_out = info;
    return MU_OK;
}

static __global__ void any_kernel(void) {}

/* On a newer device than it was compiled for the plugin's code may be that of an older one, which does not wait. */
static bool waits_at_grids(void)
{
    cudaFuncAttributes a = {};
    return cudaFuncGetAttributes(&a, any_kernel) == cudaSuccess && a.ptxVersion >= 90;
}

enum mu_status mu_cuda_open(int index, struct mu_device **dev_out, struct mu_err *err)
{
    cudaDeviceProp p;
    cudaError_t e;
    struct mu_device *d;
    enum mu_status st = properties(index, &p, err);
    if (st != MU_OK) return st;
    d = (struct mu_device *)calloc(1, sizeof *d);
    if (!d) return mu_fail(err, MU_ENOMEM, "GPU %d: out of memory", index);
    snprintf(d->name, sizeof d->name, "%.63s", p.name);
    d->index = index;
    d->n_sm = p.multiProcessorCount;
    d->capability = p.major * 10 + p.minor;
    d->shared_max = p.sharedMemPerBlockOptin;
    e = cudaSetDevice(index);
    d->early = e == cudaSuccess && d->capability >= 90 && waits_at_grids();
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&d->beside, cudaStreamNonBlocking);
    for (int i = 0; i < MU_DEVICE_FETCHES && e == cudaSuccess; i++) {
        e = cudaEventCreateWithFlags(&d->fetch_from[i], cudaEventDisableTiming);
        if (e == cudaSuccess) e = cudaEventCreateWithFlags(&d->fetch_end[i], cudaEventDisableTiming);
    }
    for (int i = 0; i < MU_DEVICE_MARKS && e == cudaSuccess; i++)
        e = cudaEventCreateWithFlags(&d->mark[i], cudaEventDisableTiming);
    if (e == cudaSuccess) e = cudaMalloc(reinterpret_cast<void **>(&d->meetings), MU_MEETINGS * sizeof *d->meetings);
    if (e == cudaSuccess) e = cudaMemsetAsync(d->meetings, 0, MU_MEETINGS * sizeof *d->meetings, d->stream);
    if (e != cudaSuccess) {
        st = cuda_fail(err, d, "it cannot be opened", e);
        mu_cuda_close(d);
        return st;
    }
    *dev_out = d;
    return MU_OK;
}

static void use(struct mu_device *d)
{
    mu_note(d, cudaSetDevice(d->index), "choosing the device");
}

/* Whether the stream has come to its end, or failed, within a time. */
static bool ends_within(cudaStream_t stream, int ms)
{
    struct timespec pause = {0, 200000};
    int64_t start = mu_now_ns();
    while (cudaStreamQuery(stream) == cudaErrorNotReady) {
        if (mu_now_ns() - start >= ms * MU_MS) return false;
        nanosleep(&pause, NULL);
    }
    return true;
}

void mu_cuda_close(struct mu_device *d)
{
    bool idle = true;
    if (!d) return;
    use(d);
    if (d->recording) mu_cuda_graph_free(d, mu_cuda_record_end(d));
    while (d->links) mu_cuda_link_close(d->links);
    if (d->stream) idle = ends_within(d->stream, CLOSE_MS);
    if (d->beside) idle = ends_within(d->beside, CLOSE_MS) && idle;
    while (d->memory) {
        struct mu_device_memory *m = d->memory;
        d->memory = m->next;
        if (idle) m->host ? (void)cudaFreeHost(m->p) : (void)cudaFree(m->p);
        free(m);
    }
    if (idle) {
        for (int i = 0; i < MU_DEVICE_MARKS; i++)
            if (d->mark[i]) (void)cudaEventDestroy(d->mark[i]);
        for (int i = 0; i < MU_DEVICE_FETCHES; i++) {
            if (d->fetch_from[i]) (void)cudaEventDestroy(d->fetch_from[i]);
            if (d->fetch_end[i]) (void)cudaEventDestroy(d->fetch_end[i]);
        }
        if (d->meetings) (void)cudaFree(d->meetings);
        if (d->beside) (void)cudaStreamDestroy(d->beside);
        if (d->stream) (void)cudaStreamDestroy(d->stream);
    }
    (void)cudaGetLastError();
    free(d);
}

/* ---- memory ---- */

static enum mu_status keep(struct mu_device *d, void *p, bool host, void **p_out, struct mu_err *err)
{
    struct mu_device_memory *m = (struct mu_device_memory *)malloc(sizeof *m);
    if (!m) {
        host ? (void)cudaFreeHost(p) : (void)cudaFree(p);
        return mu_fail(err, MU_ENOMEM, "GPU %d (%s): out of memory", d->index, d->name);
    }
    m->p = p;
    m->host = host;
    m->next = d->memory;
    d->memory = m;
    *p_out = p;
    return MU_OK;
}

static void release(struct mu_device *d, void *p)
{
    for (struct mu_device_memory **at = &d->memory; *at; at = &(*at)->next) {
        struct mu_device_memory *m = *at;
        if (m->p != p) continue;
        *at = m->next;
        use(d);
        mu_note(d, m->host ? cudaFreeHost(p) : cudaFree(p), "freeing memory");
        free(m);
        return;
    }
}

enum mu_status mu_cuda_alloc(struct mu_device *d, size_t bytes, void **p_out, struct mu_err *err)
{
    void *p = NULL;
    size_t free_bytes = 0, total = 0;
    cudaError_t e;
    use(d);
    e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaSuccess) return keep(d, p, false, p_out, err);
    (void)cudaGetLastError();
    if (e != cudaErrorMemoryAllocation) return cuda_fail(err, d, "taking memory", e);
    (void)cudaMemGetInfo(&free_bytes, &total);
    return mu_fail(err, MU_ENOMEM, "GPU %d (%s): no %.1f MiB of memory: %.1f of its %.1f MiB are free", d->index,
                   d->name, (double)bytes / MIB, (double)free_bytes / MIB, (double)total / MIB);
}

void mu_cuda_free(struct mu_device *d, void *p)
{
    if (p) release(d, p);
}

enum mu_status mu_cuda_alloc_host(struct mu_device *d, size_t bytes, void **p_out, struct mu_err *err)
{
    void *p = NULL;
    cudaError_t e;
    use(d);
    e = cudaMallocHost(&p, bytes ? bytes : 1);
    if (e == cudaSuccess) return keep(d, p, true, p_out, err);
    (void)cudaGetLastError();
    if (e != cudaErrorMemoryAllocation) return cuda_fail(err, d, "taking the host's memory", e);
    return mu_fail(err, MU_ENOMEM, "GPU %d (%s): no %.1f MiB of the host's memory for transfers", d->index, d->name,
                   (double)bytes / MIB);
}

void mu_cuda_free_host(struct mu_device *d, void *p)
{
    if (p) release(d, p);
}

/* ---- the queue ---- */

static void move(struct mu_device *d, void *to, const void *from, size_t bytes, cudaMemcpyKind kind, const char *what)
{
    if (bytes) mu_note(d, cudaMemcpyAsync(to, from, bytes, kind, d->stream), what);
}

void mu_cuda_upload(struct mu_device *d, void *to, const void *from_host, size_t bytes)
{
    move(d, to, from_host, bytes, cudaMemcpyHostToDevice, "a copy to the device");
}

void mu_cuda_download(struct mu_device *d, void *to_host, const void *from, size_t bytes)
{
    move(d, to_host, from, bytes, cudaMemcpyDeviceToHost, "a copy from the device");
}

void mu_cuda_copy(struct mu_device *d, void *to, const void *from, size_t bytes)
{
    move(d, to, from, bytes, cudaMemcpyDeviceToDevice, "a copy on the device");
}

void mu_cuda_zero(struct mu_device *d, void *to, size_t bytes)
{
    if (bytes) mu_note(d, cudaMemsetAsync(to, 0, bytes, d->stream), "setting memory to 0");
}

void mu_cuda_fetch(struct mu_device *d, int n, void *to, const void *from_host, size_t bytes)
{
    static const char what[] = "a copy beside the queue";
    mu_note(d, cudaEventRecord(d->fetch_from[n], d->stream), what);
    mu_note(d, cudaStreamWaitEvent(d->beside, d->fetch_from[n], 0), what);
    if (bytes) mu_note(d, cudaMemcpyAsync(to, from_host, bytes, cudaMemcpyHostToDevice, d->beside), what);
    mu_note(d, cudaEventRecord(d->fetch_end[n], d->beside), what);
}

void mu_cuda_fetched(struct mu_device *d, int n)
{
    mu_note(d, cudaStreamWaitEvent(d->stream, d->fetch_end[n], 0), "waiting for a copy beside the queue");
    d->packed = true; /* they are weights */
}

void mu_cuda_mark(struct mu_device *d, int mark)
{
    mu_note(d, cudaEventRecord(d->mark[mark], d->stream), "a mark in the queue");
}

int mu_cuda_test(struct mu_device *d, int mark)
{
    cudaError_t e;
    if (d->failed != cudaSuccess || d->lost[0]) return -1;
    e = mark == MU_DEVICE_MARKS ? cudaStreamQuery(d->stream) : cudaEventQuery(d->mark[mark]);
    if (e == cudaSuccess && mark == MU_DEVICE_MARKS) e = cudaStreamQuery(d->beside);
    if (e == cudaErrorNotReady) {
        mu_cuda_links_look(d);
        return d->lost[0] ? -1 : 0;
    }
    mu_note(d, e, "what was queued");
    return e == cudaSuccess ? 1 : -1;
}

enum mu_status mu_cuda_wait(struct mu_device *d, int mark, int timeout_ms, const char *what, struct mu_err *err)
{
    int64_t start = mu_now_ns();
    bool prompt = false;
    int r;
    while ((r = mu_cuda_test(d, mark)) == 0) {
        int64_t waited = mu_now_ns() - start;
        struct timespec pause = {0, waited < 20 * MU_MS ? 20000 : 200000};
        if (waited >= timeout_ms * MU_MS) {
            char links[256];
            mu_cuda_links_describe(d, links, sizeof links);
            return mu_fail(err, MU_ETIMEOUT, "GPU %d (%s) is not done with %s after %.1f s%s", d->index, d->name, what,
                           (double)waited / (double)MU_SEC, links);
        }
        if (waited < MU_MS / 5) continue;
        if (!prompt) (void)prctl(PR_SET_TIMERSLACK, 1); /* this thread's; else 20 us are 70 to 90 */
        prompt = true;
        nanosleep(&pause, NULL);
    }
    if (r < 0 && d->lost[0]) return mu_fail(err, MU_EPEER, "GPU %d (%s): %s", d->index, d->name, d->lost);
    if (r < 0) return cuda_fail(err, d, d->failed_in, d->failed);
    return MU_OK;
}

/* ---- recordings ---- */

void mu_cuda_record_begin(struct mu_device *d)
{
    use(d);
    if (d->failed != cudaSuccess) return;
    d->recording = cudaStreamBeginCapture(d->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
    if (!d->recording) (void)cudaGetLastError(); /* all is as before; what stays broken is said by the next call */
}

struct mu_device_graph *mu_cuda_record_end(struct mu_device *d)
{
    struct mu_device_graph *g;
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    cudaError_t e;
    if (!d->recording) return NULL;
    d->recording = false;
    e = cudaStreamEndCapture(d->stream, &graph);
    if (e == cudaSuccess && d->failed == cudaSuccess) e = cudaGraphInstantiate(&exec, graph, 0);
    if (graph) (void)cudaGraphDestroy(graph);
    g = (struct mu_device_graph *)malloc(sizeof *g);
    if (!exec || !g || cudaGraphUpload(exec, d->stream) != cudaSuccess) {
        if (exec) (void)cudaGraphExecDestroy(exec);
        free(g);
        (void)cudaGetLastError();
        d->failed = cudaSuccess; /* what failed was the recording's; record_begin saw the device in order */
        return NULL;
    }
    g->exec = exec;
    return g;
}

void mu_cuda_replay(struct mu_device *d, const struct mu_device_graph *g)
{
    mu_note(d, cudaGraphLaunch(g->exec, d->stream), "a recording");
}

void mu_cuda_graph_free(struct mu_device *d, struct mu_device_graph *g)
{
    if (!g) return;
    mu_note(d, cudaGraphExecDestroy(g->exec), "freeing a recording");
    free(g);
}
