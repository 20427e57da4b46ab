/* All memory of Muster comes from here, so that tests can make the n-th allocation fail.
 *
 * Threads: any. Failure returns NULL and leaves everything as it was; the caller says what it was for with
 * mu_fail(err, MU_ENOMEM, …). Sizes are products more often than not: the array forms check them. */
#ifndef MU_BASE_ALLOC_H
#define MU_BASE_ALLOC_H

#include <stdbool.h>
#include <stddef.h>

void *mu_malloc(size_t size_bytes);
void *mu_calloc(size_t n, size_t size_bytes);                /* zeroed; NULL where n * size overflows */
void *mu_reallocarray(void *p, size_t n, size_t size_bytes); /* as realloc; p stays valid on failure */
char *mu_strdup(const char *s);
char *mu_strndup(const char *s, size_t max_bytes);
char *mu_asprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void mu_free(void *p); /* NULL is fine */

/* Aligned to `align` (a power of two ≥ sizeof(void *)); freed with mu_free. Contents undefined. */
void *mu_aligned_alloc(size_t align, size_t size_bytes);

/* Whole pages straight from the system, zeroed, aligned to 2 MiB and advised to be huge pages where the system allows
 * it; for weights and KV pages. Not touched yet: the first thread to write decides the NUMA node. */
void *mu_pages_alloc(size_t size_bytes);
void mu_pages_free(void *p, size_t size_bytes);

/* The first size_bytes of a file, for all who map it, like that; at `at` (whose mapping is replaced) or, where it is NULL,
 * anywhere. Freed with mu_pages_free. NULL: errno says why. */
void *mu_pages_map(int fd, size_t size_bytes, bool writable, void *at);
/* Lets go of what is mapped at p, of this size, but keeps the addresses. */
bool mu_pages_reserve(void *p, size_t size_bytes);

/* *out = a*b (+c); false on overflow, *out untouched. */
bool mu_mul_size(size_t a, size_t b, size_t *out);
bool mu_add_size(size_t a, size_t b, size_t *out);

/* Tests only: the n-th allocation from now (1 = the next) fails, once; 0 = never. Returns how many allocations were
 * made since the previous call. */
long mu_alloc_fail_at(long n);

#endif
