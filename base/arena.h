/* Arenas: memory that is freed at once. The request's lifetime and small parsers use them.
 * Blocks double up to a limit; nothing is freed before the arena is. One thread at a time. */
#ifndef MU_BASE_ARENA_H
#define MU_BASE_ARENA_H

#include <stddef.h>

struct mu_arena;

/* max_bytes bounds everything the arena will ever hold (0 = no bound). NULL if out of memory. */
struct mu_arena *mu_arena_create(size_t max_bytes);
void mu_arena_destroy(struct mu_arena *a); /* NULL is fine */
/* 16-byte aligned, contents undefined / zeroed (n * size checked); NULL if out of memory or over the bound. */
void *mu_arena_alloc(struct mu_arena *a, size_t size_bytes);
void *mu_arena_calloc(struct mu_arena *a, size_t n, size_t size_bytes);
char *mu_arena_strndup(struct mu_arena *a, const char *s, size_t len_bytes);
size_t mu_arena_used(const struct mu_arena *a);

#endif
