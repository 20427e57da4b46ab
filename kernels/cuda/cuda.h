/* What the files of the CUDA plugin share. Private to kernels/cuda.
 *
 *   plugin.cu   the table that is exported          runtime.cu  devices, memory, the queue, graphs
 *   measure.cu  how fast a device is                ptx.h       machine instructions
 *   layout.h    packed weights                      pack.cu     … made from a file's rows
 *   matmul.cu   which kernel multiplies             matvec.cu   a few vectors: bound by memory
 *   rough.cu    products that may be rough
 *   tiles.cu    many vectors, on the tensor cores   float.cu    F32, F16, BF16 and types without a rule of their own
 *   epilogue.h  what follows a product              norm.cu     residual, norms      form.cu  inputs of matrices
 *   kv.h        pages of the cache                  rotate.cu   rotation, storing
 *   attn.cu     which form of attention             attn_query.cu  decoding          attn_block.cu  prompts
 *                                                   attn_rough.cu  … on the tensor cores
 *   experts.cu, pick.cu, move.cu                    link.cu     NCCL
 *
 * The files are compiled twice: by nvcc, and by the C++ compiler against tests/stubs/cuda, whose cuda_runtime.h runs
 * kernels on the processor, so that their tests run anywhere. What that needs: kernels are launched with mu_launch;
 * shared memory whose size is chosen at the launch is declared with MU_SHARED; machine instructions are in ptx.h.
 * Everything is compiled with -fmad=false and without fast-math, so that plain C operators and fmaf round as the
 * contract says. */
#ifndef MU_KERNELS_CUDA_CUDA_H
#define MU_KERNELS_CUDA_CUDA_H

#include <cuda_runtime.h>

extern "C" {
#include "kernels/device.h"
}

struct mu_device_memory; /* runtime.cu's */

enum { MU_MEETINGS = 1 << 17 };

struct mu_device {
    int index, n_sm, capability;
    bool early; /* mu_launch_early may be early: the device can, and the code that it runs waits */
    char name[64];
    size_t shared_max; /* bytes of shared memory that a block may have */
    cudaStream_t stream;
    cudaEvent_t mark[MU_DEVICE_MARKS];
    cudaStream_t beside;                                                     /* of fetches */
    cudaEvent_t fetch_from[MU_DEVICE_FETCHES], fetch_end[MU_DEVICE_FETCHES]; /* in the stream; in that beside it */
    unsigned *meetings; /* [MU_MEETINGS]: where blocks of a product count each other; 0 between launches */
    cudaError_t failed; /* the first thing that went wrong, and in what */
    const char *failed_in;
    char lost[256]; /* a link that failed, in words; "": none */
    bool recording;
    bool packed;                     /* weights were packed, or fetched, since the last mu_launch_early */
    struct mu_device_memory *memory; /* what is allocated */
    struct mu_device_link *links;    /* that are open */
};

/* Keeps the first error for the next wait. */
static inline void mu_note(struct mu_device *d, cudaError_t e, const char *what)
{
    if (e == cudaSuccess || d->failed != cudaSuccess) return;
    d->failed = e;
    d->failed_in = what;
}

/* Queues a kernel. shared: bytes of MU_SHARED memory; above 48 KiB the kernel was told with mu_allow_shared. */
template <typename... Params, typename... Args>
static inline void mu_launch_as(struct mu_device *d, const char *what, bool early, void (*kernel)(Params...), dim3 grid,
                                dim3 block, size_t shared, Args... args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute overlap = {};
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
#ifdef MU_EMULATED_CUDA
    mu_emulated_name(what); /* for what it has to say about the kernel */
#endif
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &overlap;
    config.numAttrs = early ? 1 : 0;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = d->stream;
    mu_note(d, cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), what);
}
template <typename... Params, typename... Args>
static inline void mu_launch(struct mu_device *d, const char *what, void (*kernel)(Params...), dim3 grid, dim3 block,
                             size_t shared, Args... args)
{
    mu_launch_as(d, what, false, kernel, grid, block, shared, args...);
}
/* The same, but it may start while the kernel before it still runs: every thread that touches memory other than packed
 * weights calls mu_grid_wait before it does. Where weights were packed or fetched since the last such launch it waits for them as any
 * kernel does. */
template <typename... Params, typename... Args>
static inline void mu_launch_early(struct mu_device *d, const char *what, void (*kernel)(Params...), dim3 grid,
                                   dim3 block, size_t shared, Args... args)
{
    mu_launch_as(d, what, d->early && !d->packed, kernel, grid, block, shared, args...);
    d->packed = false;
}

/* runtime.cu: whether the kernel is to be told on this device that it may have so much, which it is then until
 * mu_shared_end. What it was told never shrinks: another rank of this process may be about to launch it. */
bool mu_shared_begin(const struct mu_device *d, const void *kernel, size_t bytes);
void mu_shared_end(void);

/* Before a launch with more than 48 KiB of MU_SHARED memory; cheap enough for every one of them. The kernel gets all that a
 * multiprocessor can make shared: only kernels that agree on this run beside each other. */
template <typename... Params>
static inline void mu_allow_shared(struct mu_device *d, const char *what, void (*kernel)(Params...), size_t bytes)
{
    if (mu_shared_begin(d, reinterpret_cast<const void *>(kernel), bytes)) {
        mu_note(d, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), what);
        mu_note(d, cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), what);
    }
    mu_shared_end();
}

#ifndef MU_SHARED /* the emulation has its own */
#define MU_SHARED(type, name)                                         \
    extern __shared__ __align__(128) unsigned char mu_shared_bytes[]; \
    type *name = reinterpret_cast<type *>(mu_shared_bytes)
#endif

/* ---- the operations, by file; as in struct mu_device_ops ---- */

/* runtime.cu, measure.cu */
int mu_cuda_count(struct mu_err *err);
enum mu_status mu_cuda_info(int index, struct mu_device_info *info_out, struct mu_err *err);
enum mu_status mu_cuda_open(int index, struct mu_device **dev_out, struct mu_err *err);
void mu_cuda_close(struct mu_device *d);
enum mu_status mu_cuda_measure(struct mu_device *d, struct mu_device_speed *speed_out, struct mu_err *err);
enum mu_status mu_cuda_alloc(struct mu_device *d, size_t bytes, void **p_out, struct mu_err *err);
void mu_cuda_free(struct mu_device *d, void *p);
enum mu_status mu_cuda_alloc_host(struct mu_device *d, size_t bytes, void **p_out, struct mu_err *err);
void mu_cuda_free_host(struct mu_device *d, void *p);
void mu_cuda_upload(struct mu_device *d, void *to, const void *from_host, size_t bytes);
void mu_cuda_download(struct mu_device *d, void *to_host, const void *from, size_t bytes);
void mu_cuda_copy(struct mu_device *d, void *to, const void *from, size_t bytes);
void mu_cuda_zero(struct mu_device *d, void *to, size_t bytes);
void mu_cuda_fetch(struct mu_device *d, int n, void *to, const void *from_host, size_t bytes);
void mu_cuda_fetched(struct mu_device *d, int n);
void mu_cuda_mark(struct mu_device *d, int mark);
enum mu_status mu_cuda_wait(struct mu_device *d, int mark, int timeout_ms, const char *what, struct mu_err *err);
int mu_cuda_test(struct mu_device *d, int mark);
void mu_cuda_record_begin(struct mu_device *d);
struct mu_device_graph *mu_cuda_record_end(struct mu_device *d);
void mu_cuda_replay(struct mu_device *d, const struct mu_device_graph *g);
void mu_cuda_graph_free(struct mu_device *d, struct mu_device_graph *g);

/* link.cu */
bool mu_cuda_link_have(void); /* NCCL is there */
enum mu_status mu_cuda_link_id(unsigned char id_out[MU_DEVICE_LINK_ID], struct mu_err *err);
enum mu_status mu_cuda_link_open(struct mu_device *d, const unsigned char id[MU_DEVICE_LINK_ID], int n_rank, int rank,
                                 int timeout_ms, struct mu_device_link **link_out, struct mu_err *err);
void mu_cuda_link_gather(struct mu_device_link *l, void *buf, const size_t *off, const size_t *len);
void mu_cuda_link_send(struct mu_device_link *l, int to, const void *buf, size_t bytes);
void mu_cuda_link_recv(struct mu_device_link *l, int from, void *buf, size_t bytes);
void mu_cuda_link_close(struct mu_device_link *l);
/* Looks whether an open link of the device has failed; d->lost then says so. */
void mu_cuda_links_look(struct mu_device *d);
/* For the error of a deadline: " (its link joins rank 1 of 3 with ranks 0, 2)"; "" without links. */
void mu_cuda_links_describe(const struct mu_device *d, char *text, size_t size);
/* pack.cu */
size_t mu_cuda_mat_bytes(uint32_t type, int n_row, int n_col);
void mu_cuda_mat_pack(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw, int32_t *bad);
/* float.cu: the same for types that layout.h has no place for */
size_t mu_cuda_float_mat_bytes(uint32_t type, int n_row, int n_col);
void mu_cuda_float_mat_pack(struct mu_device *d, const struct mu_mat *m, int row0, int row1, const void *raw,
                            int32_t *bad);
/* matmul.cu */
void mu_cuda_matmul(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                    const struct mu_device_experts *experts);
/* matvec.cu, tiles.cu: MU_ACT_Q8 types; float.cu: the others. All jobs are of one type; an `up` of another type is done
 * (mu_epilogue_second), no matrix is empty, and neither is x. try: false, with nothing done, where these vectors are too
 * many (more than MU_MATVEC_MOST for a matrix, or for shared memory). */
enum { MU_MATVEC_MOST = 8 };
bool mu_cuda_matvec_try(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                        const struct mu_device_experts *experts);
void mu_cuda_tiles(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                   const struct mu_device_experts *experts);
void mu_cuda_float(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                   const struct mu_device_experts *experts);
/* rough.cu: false, with nothing done, for types that are not multiplied roughly. */
bool mu_cuda_rough_try(struct mu_device *d, const struct mu_device_job *job, int n_job, const struct mu_act *x,
                       const struct mu_device_experts *experts);
/* norm.cu, form.cu, move.cu */
void mu_cuda_norm(struct mu_device *d, const struct mu_device_norm *a);
void mu_cuda_form(struct mu_device *d, const float *src, size_t stride, int n_tok, int n, const struct mu_act_to *to);
void mu_cuda_widen(struct mu_device *d, const struct mu_act *x, float *out);
void mu_cuda_block_sums(struct mu_device *d, const int8_t *q, size_t n, int16_t *sum);
void mu_cuda_spread(struct mu_device *d, const struct mu_device_part *part, int n_part, int n_tok);
void mu_cuda_set(struct mu_device *d, uint32_t *table, const struct mu_device_set *set, int n);
/* rotate.cu, attn.cu */
void mu_cuda_rope_table(struct mu_device *d, const float *freq, const float *freq_far, const uint8_t *far,
                        const int32_t *pos, int n_tok, int n_pair, float mscale, float *out);
void mu_cuda_rotate(struct mu_device *d, const struct mu_device_rotate *a);
void mu_cuda_attn(struct mu_device *d, const struct mu_device_attn *a);
/* experts.cu, pick.cu */
void mu_cuda_route(struct mu_device *d, const struct mu_device_route *a);
void mu_cuda_combine(struct mu_device *d, const struct mu_device_combine *a);
void mu_cuda_pick(struct mu_device *d, const float *logits, size_t stride, int n_row, int n, int first_id,
                  const struct mu_device_draw *draw, struct mu_device_pick *out);

#endif
