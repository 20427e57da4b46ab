/* The machine below tests/stubs/cuda/cuda_runtime.h (emulation_kernel.cc): blocks of fibers. Not included by kernels themselves.
 *
 * A kernel runs block by block, the blocks in a shuffled order, each thread of a block a fiber that runs until it must
 * wait for others: at a barrier, or in a collective of its warp. Whom the wait releases runs on in a shuffled order
 * too, so that a missing barrier shows. What can wait for ever (a thread that never comes to a barrier, lanes in
 * different collectives) ends the process with the kernel, block and thread. One kernel runs at a time. */
#ifndef MU_TESTS_STUBS_CUDA_EMULATION_H
#define MU_TESTS_STUBS_CUDA_EMULATION_H

#include <stddef.h>
#include <stdint.h>

#include <functional>

struct mu_emulated_dim {
    unsigned x, y, z;
};

struct mu_emulated_thread { /* what a running thread sees */
    mu_emulated_dim thread_idx;
    int linear; /* number in the block */
};

struct mu_emulated_slot { /* what a lane shows the others in a collective */
    alignas(16) unsigned char bytes[64];
};

extern mu_emulated_thread *mu_emulated_self;
extern mu_emulated_dim mu_emulated_block_idx, mu_emulated_block_dim, mu_emulated_grid_dim;
extern unsigned char *mu_emulated_shared; /* dynamic shared memory of the running block */
void mu_emulated_name(const char *what);  /* of the calling thread's next launch */

/* Barrier of the block. The number of threads with predicate, whether any has it, whether all. */
struct mu_emulated_vote {
    int count, any, all;
};
mu_emulated_vote mu_emulated_barrier(int predicate);

/* Barrier id, 1 to 15, of n threads (whole warps): arrives there and, with wait, waits for the others. */
void mu_emulated_named_barrier(int id, int n, bool wait);

/* A collective of the calling thread's warp: shows in[0..bytes) (≤ 64) to all 32 lanes. What they show stays until the
 * thread's next collective. All lanes must be in the same op at the same line. */
const mu_emulated_slot *mu_emulated_collective(unsigned mask, const char *op, int line, const void *in, size_t bytes);

/* cp.async of the calling thread: bytes from src (the first n of them; the rest zeros). The destination is overwritten
 * with 0xff at once and filled at the wait. */
void mu_emulated_copy(void *dst, const void *src, int bytes, int n);
void mu_emulated_copy_commit(void);
void mu_emulated_copy_wait(int n_pending); /* all but the newest n_pending groups */

/* griddepcontrol.wait: returns when the kernel before has ended, as far as this thread can see. */
void mu_emulated_grid_wait(void);

/* Ends the process: kernel, block, thread and the text. */
[[noreturn]] void mu_emulated_die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- streams, for what else runs in their order (tests/stubs/nccl, a library of its own) ---- */

struct CUstream_st;
struct mu_emulated_stream {
    /* run: 1 done, 0 not yet (asked again at every look at the stream), -1 failed. A recording keeps a copy of it. */
    void (*enqueue)(CUstream_st *stream, std::function<int()> run);
    /* Between these two the calling thread may read and write device memory. */
    void (*open_memory)(void);
    void (*close_memory)(void);
};
static inline const mu_emulated_stream *mu_emulated_stream_of(const CUstream_st *stream)
{
    return reinterpret_cast<const mu_emulated_stream *>(stream); /* its first part */
}

#endif
