/* Running a kernel on the emulated device, for the runtime API above it (emulation_runtime.cc). */
#ifndef MU_TESTS_STUBS_CUDA_EMULATION_KERNEL_H
#define MU_TESTS_STUBS_CUDA_EMULATION_KERNEL_H

#include "cuda_runtime.h"

#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define MU_ASAN 1
#else
#define MU_ASAN 0
#endif

static const int MU_EMULATED_MAX_THREADS = 1024;         /* of a block */
static const size_t MU_EMULATED_SHARED_MOST = 227 << 10; /* bytes that a block may have */

struct mu_emulated_span {
    unsigned char *from;
    size_t bytes;
};
struct mu_emulated_memory { /* a device's as far as it is used */
    unsigned char *base;
    size_t bytes;
};

/* One at a time, with device memory open. chain: what the kernels before have changed and may still be at; NULL: they have
 * ended. */
void mu_emulated_run(const char *name, dim3 grid, dim3 block, size_t dynamic, const std::function<void()> &body,
                     const std::vector<mu_emulated_span> *chain, mu_emulated_memory memory);

/* To standard error: the kernel, block and thread that run. */
void mu_emulated_print_place(void);

/* Over the whole of a device's memory, red zones too, which ASan would not have. plain_differs: where first, or n. */
void mu_emulated_plain_copy(unsigned char *to, const unsigned char *from, size_t n);
size_t mu_emulated_plain_differs(const unsigned char *a, const unsigned char *b, size_t n);

#endif
