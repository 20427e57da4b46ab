/* Little-endian readers and writers, byte by byte: no alignment, no host order. Compilers make one load or store of it.
 * A reader borrows its bytes, a writer owns its buffer. */
#include "base/bytes.h"

#include "base/alloc.h"

const void *mu_read_bytes(struct mu_reader *r, size_t n)
{
    if (!r->ok || mu_reader_left(r) < n) {
        r->ok = false;
        return NULL;
    }
    const void *p = r->p;
    if (n) r->p += n; /* an empty reader may hold NULL */
    return p;
}

static uint64_t read_le(struct mu_reader *r, size_t n)
{
    const uint8_t *p = mu_read_bytes(r, n);
    if (!p) return 0;
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++) v |= (uint64_t)p[i] << (8 * i);
    return v;
}

uint8_t mu_read_u8(struct mu_reader *r)
{
    return (uint8_t)read_le(r, 1);
}
uint16_t mu_read_u16(struct mu_reader *r)
{
    return (uint16_t)read_le(r, 2);
}
uint32_t mu_read_u32(struct mu_reader *r)
{
    return (uint32_t)read_le(r, 4);
}
uint64_t mu_read_u64(struct mu_reader *r)
{
    return read_le(r, 8);
}

float mu_read_f32(struct mu_reader *r)
{
    uint32_t bits = mu_read_u32(r);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

void mu_writer_init(struct mu_writer *w, size_t max_bytes)
{
    *w = (struct mu_writer){.max_bytes = max_bytes, .ok = true};
}

void mu_writer_free(struct mu_writer *w)
{
    mu_free(w->data);
    *w = (struct mu_writer){.max_bytes = w->max_bytes, .ok = true};
}

/* Room for n more bytes, or NULL (and not ok any more). */
static uint8_t *grow(struct mu_writer *w, size_t n)
{
    if (!w->ok) return NULL;
    if (n > w->max_bytes - w->len) goto fail;
    if (n > w->cap - w->len) {
        size_t cap = w->cap < 128 ? 256 : w->cap > w->max_bytes / 2 ? w->max_bytes : 2 * w->cap;
        if (cap < w->len + n) cap = w->len + n;
        if (cap > w->max_bytes) cap = w->max_bytes;
        uint8_t *data = mu_reallocarray(w->data, cap, 1);
        if (!data) goto fail;
        w->data = data;
        w->cap = cap;
    }
    w->len += n;
    return w->data + (w->len - n);
fail:
    w->ok = false;
    return NULL;
}

void mu_write_bytes(struct mu_writer *w, const void *data, size_t n)
{
    if (n == 0) return;
    uint8_t *p = grow(w, n);
    if (p) memcpy(p, data, n);
}

static void write_le(struct mu_writer *w, uint64_t v, size_t n)
{
    uint8_t *p = grow(w, n);
    if (!p) return;
    for (size_t i = 0; i < n; i++) p[i] = (uint8_t)(v >> (8 * i));
}

void mu_write_u8(struct mu_writer *w, uint8_t v)
{
    write_le(w, v, 1);
}
void mu_write_u16(struct mu_writer *w, uint16_t v)
{
    write_le(w, v, 2);
}
void mu_write_u32(struct mu_writer *w, uint32_t v)
{
    write_le(w, v, 4);
}
void mu_write_u64(struct mu_writer *w, uint64_t v)
{
    write_le(w, v, 8);
}

void mu_write_f32(struct mu_writer *w, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    mu_write_u32(w, bits);
}

/* Eight bytes a round: FNV's multiplication, and a rotation that brings high bits down. */
uint64_t mu_hash64(uint64_t seed, const void *data, size_t n)
{
    const uint8_t *p = data;
    uint64_t h = (seed ^ 0xcbf29ce484222325u) + n;
    for (; n > 0; p += n < 8 ? n : 8, n -= n < 8 ? n : 8) {
        uint64_t word = 0;
        memcpy(&word, p, n < 8 ? n : 8);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h = h << 29 | h >> 35;
    }
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u;
    return h ^ h >> 32;
}
