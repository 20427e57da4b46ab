/* Little-endian reading and writing of flat messages (step plans, doorbell frames). Both sides are bounds-checked and
 * sticky: after the first short read or full buffer every later call does nothing, and `ok` says so once at the end. */
#ifndef MU_BASE_BYTES_H
#define MU_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct mu_reader {
    const uint8_t *p, *end;
    bool ok;
};

struct mu_writer { /* grows by itself through mu_reallocarray up to max_bytes; free with mu_writer_free */
    uint8_t *data;
    size_t len, cap, max_bytes;
    bool ok;
};

static inline struct mu_reader mu_reader_of(const void *data, size_t len_bytes)
{
    const uint8_t *p = (const uint8_t *)data; /* NULL may stand for no bytes, but not even 0 may be added to it */
    return (struct mu_reader){p, len_bytes ? p + len_bytes : p, true};
}
static inline size_t mu_reader_left(const struct mu_reader *r)
{
    return (size_t)(r->end - r->p);
}
const void *mu_read_bytes(struct mu_reader *r, size_t n); /* borrowed; NULL when short */
uint8_t mu_read_u8(struct mu_reader *r);
uint16_t mu_read_u16(struct mu_reader *r);
uint32_t mu_read_u32(struct mu_reader *r);
uint64_t mu_read_u64(struct mu_reader *r);
static inline int32_t mu_read_i32(struct mu_reader *r)
{
    return (int32_t)mu_read_u32(r);
}
float mu_read_f32(struct mu_reader *r);

void mu_writer_init(struct mu_writer *w, size_t max_bytes);
void mu_writer_free(struct mu_writer *w);
static inline void mu_writer_reset(struct mu_writer *w)
{
    w->len = 0;
    w->ok = true;
}
void mu_write_bytes(struct mu_writer *w, const void *data, size_t n);
void mu_write_u8(struct mu_writer *w, uint8_t v);
void mu_write_u16(struct mu_writer *w, uint16_t v);
void mu_write_u32(struct mu_writer *w, uint32_t v);
void mu_write_u64(struct mu_writer *w, uint64_t v);
static inline void mu_write_i32(struct mu_writer *w, int32_t v)
{
    mu_write_u32(w, (uint32_t)v);
}
void mu_write_f32(struct mu_writer *w, float v);

/* A 64-bit fingerprint of n bytes, going on from `seed` (0, or the fingerprint of what came before). Tells apart what
 * differs by accident, not by intent. */
uint64_t mu_hash64(uint64_t seed, const void *data, size_t n);

#endif
