/* Arenas: a list of blocks, newest first; allocation bumps an offset in the newest one.
 *
 * Invariants: `used` is the sum of the rounded sizes handed out and never exceeds max_bytes. A block is left for a new
 * one only when the request did not fit, so what is wasted at the ends of blocks is less than what is used. Under
 * AddressSanitizer the bytes that were not handed out are poisoned, with a gap after each piece. */
#include "base/arena.h"

#include <stdint.h>
#include <string.h>

#include "base/alloc.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1 /* clang's way to say what GCC says with this */
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#define POISON(p, n)   ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
enum { GAP_BYTES = 16 };
#else
#define POISON(p, n)   ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
enum { GAP_BYTES = 0 };
#endif

enum { ALIGN = 16, BLOCK_FIRST = 4096, BLOCK_LIMIT = 1 << 20 };

struct block {
    struct block *older;
    size_t size, filled; /* bytes of data */
    _Alignas(ALIGN) unsigned char data[];
};

struct mu_arena {
    struct block *newest; /* may be NULL */
    size_t max_bytes, used, next_size;
};

struct mu_arena *mu_arena_create(size_t max_bytes)
{
    struct mu_arena *a = mu_calloc(1, sizeof *a);
    if (!a) return NULL;
    a->max_bytes = max_bytes ? max_bytes : SIZE_MAX;
    a->next_size = BLOCK_FIRST;
    return a;
}

static void blocks_free(struct block *b)
{
    while (b) {
        struct block *older = b->older;
        mu_free(b);
        b = older;
    }
}

void mu_arena_destroy(struct mu_arena *a)
{
    if (!a) return;
    blocks_free(a->newest);
    mu_free(a);
}

static struct block *block_add(struct mu_arena *a, size_t least)
{
    size_t size = a->next_size > least ? a->next_size : least, total;
    if (!mu_add_size(size, sizeof(struct block), &total)) return NULL;
    struct block *b = mu_aligned_alloc(ALIGN, total);
    if (!b) return NULL;
    *b = (struct block){.older = a->newest, .size = size};
    POISON(b->data, b->size);
    a->newest = b;
    if (a->next_size < BLOCK_LIMIT) a->next_size *= 2;
    return b;
}

void *mu_arena_alloc(struct mu_arena *a, size_t size_bytes)
{
    size_t rounded, with_gap;
    if (!mu_add_size(size_bytes ? size_bytes : 1, ALIGN - 1, &rounded)) return NULL;
    rounded -= rounded % ALIGN;
    /* A bound that is no multiple of 16 is met by what was asked for, not by its rounding. */
    if (size_bytes > a->max_bytes - a->used || !mu_add_size(rounded, GAP_BYTES, &with_gap)) return NULL;
    struct block *b = a->newest;
    if (!b || with_gap > b->size - b->filled) b = block_add(a, with_gap);
    if (!b) return NULL;
    void *p = b->data + b->filled;
    b->filled += with_gap;
    a->used = rounded > a->max_bytes - a->used ? a->max_bytes : a->used + rounded;
    UNPOISON(p, size_bytes);
    return p;
}

void *mu_arena_calloc(struct mu_arena *a, size_t n, size_t size_bytes)
{
    size_t total;
    if (!mu_mul_size(n, size_bytes, &total)) return NULL;
    void *p = mu_arena_alloc(a, total);
    return p ? memset(p, 0, total) : NULL;
}

char *mu_arena_strndup(struct mu_arena *a, const char *s, size_t len_bytes)
{
    size_t total;
    if (!mu_add_size(len_bytes, 1, &total)) return NULL;
    char *copy = mu_arena_alloc(a, total);
    if (!copy) return NULL;
    if (len_bytes) memcpy(copy, s, len_bytes);
    copy[len_bytes] = '\0';
    return copy;
}

size_t mu_arena_used(const struct mu_arena *a)
{
    return a->used;
}
