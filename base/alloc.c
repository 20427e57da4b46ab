/* Memory. Owns two counters: how many allocations were made, and how many remain until the one that fails.
 * Both are atomics, so that a sweep over the n-th allocation also works with threads. */
#include "base/alloc.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HUGE_PAGE_BYTES = 2 << 20 };

static atomic_long made_count;
static atomic_long fail_in; /* 0: never */

/* Counts one allocation; true if it is the one that shall fail. */
static bool must_fail(void)
{
    atomic_fetch_add_explicit(&made_count, 1, memory_order_relaxed);
    long left = atomic_load_explicit(&fail_in, memory_order_relaxed);
    while (left > 0)
        if (atomic_compare_exchange_weak(&fail_in, &left, left - 1)) return left == 1;
    return false;
}

long mu_alloc_fail_at(long n)
{
    atomic_store(&fail_in, n > 0 ? n : 0);
    return atomic_exchange(&made_count, 0);
}

bool mu_mul_size(size_t a, size_t b, size_t *out)
{
    size_t product;
    if (__builtin_mul_overflow(a, b, &product)) return false;
    *out = product;
    return true;
}

bool mu_add_size(size_t a, size_t b, size_t *out)
{
    size_t sum;
    if (__builtin_add_overflow(a, b, &sum)) return false;
    *out = sum;
    return true;
}

/* Zero bytes are one byte everywhere here: NULL means out of memory and nothing else. */
void *mu_malloc(size_t size_bytes)
{
    return must_fail() ? NULL : malloc(size_bytes ? size_bytes : 1);
}

void *mu_calloc(size_t n, size_t size_bytes)
{
    size_t total;
    if (must_fail() || !mu_mul_size(n, size_bytes, &total)) return NULL;
    return calloc(1, total ? total : 1);
}

void *mu_reallocarray(void *p, size_t n, size_t size_bytes)
{
    size_t total;
    if (must_fail() || !mu_mul_size(n, size_bytes, &total)) return NULL;
    return realloc(p, total ? total : 1);
}

char *mu_strdup(const char *s)
{
    return mu_strndup(s, SIZE_MAX);
}

char *mu_strndup(const char *s, size_t max_bytes)
{
    size_t len = strnlen(s, max_bytes);
    char *copy = mu_malloc(len + 1);
    if (!copy) return NULL;
    memcpy(copy, s, len);
    copy[len] = '\0';
    return copy;
}

char *mu_asprintf(const char *fmt, ...)
{
    va_list ap, again;
    va_start(ap, fmt);
    va_copy(again, ap);
    int len = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *s = len < 0 ? NULL : mu_malloc((size_t)len + 1);
    if (s) vsnprintf(s, (size_t)len + 1, fmt, again);
    va_end(again);
    return s;
}

void mu_free(void *p)
{
    free(p);
}

void *mu_aligned_alloc(size_t align, size_t size_bytes)
{
    void *p = NULL;
    if (must_fail() || posix_memalign(&p, align, size_bytes ? size_bytes : 1) != 0) return NULL;
    return p;
}

/* The length of the mapping for size_bytes; false on overflow. */
static bool pages_len(size_t size_bytes, size_t *len_out)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), padded;
    if (!mu_add_size(size_bytes ? size_bytes : 1, page - 1, &padded)) return false;
    *len_out = padded - padded % page;
    return true;
}

/* Nothing mapped yet, aligned to huge pages: mmap aligns to 4 KiB only. NULL: out of memory. */
static char *addresses_take(size_t len)
{
    size_t mapped;
    if (!mu_add_size(len, HUGE_PAGE_BYTES, &mapped)) return NULL;
    char *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) return NULL;
    /* keep the aligned middle, give back what is before and after it */
    size_t before = (HUGE_PAGE_BYTES - (uintptr_t)base % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    char *p = base + before;
    if (before) munmap(base, before);
    if (mapped - before > len) munmap(p + len, mapped - before - len);
    return p;
}

void *mu_pages_alloc(size_t size_bytes)
{
    size_t len;
    if (must_fail() || !pages_len(size_bytes, &len)) return NULL;
    char *p = addresses_take(len);
    if (p) madvise(p, len, MADV_HUGEPAGE); /* advice only: where it is refused, small pages do as well */
    return p;
}

void *mu_pages_map(int fd, size_t size_bytes, bool writable, void *at)
{
    size_t len;
    if (must_fail() || !pages_len(size_bytes, &len)) {
        errno = ENOMEM;
        return NULL;
    }
    char *p = at ? at : addresses_take(len);
    if (!p) return NULL;
    if (mmap(p, len, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int e = errno;
        if (!at) munmap(p, len);
        errno = e;
        return NULL;
    }
    madvise(p, len, MADV_HUGEPAGE);
    return p;
}

bool mu_pages_reserve(void *p, size_t size_bytes)
{
    size_t len;
    return pages_len(size_bytes, &len) &&
           mmap(p, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED;
}

void mu_pages_free(void *p, size_t size_bytes)
{
    size_t len;
    if (p && pages_len(size_bytes, &len)) munmap(p, len);
}
