/* One GGUF file's header, metadata and tensor table.
 *
 *   "GGUF" u32 version u64 n_tensor u64 n_value
 *   n_value  × { string key, u32 kind, value }             string: u64 length, bytes
 *   n_tensor × { string name, u32 n_dim, n_dim × u64 ne, u32 type, u64 offset }
 *   padding to the alignment, then the data; offsets count from there
 *
 * Invariants: `pos` never passes the mapping's end; no length of the file is added or multiplied before it is known
 * to fit; tables grow as entries are really found, so that a count alone takes no memory. Big lists are sorted once
 * for look-ups and to see duplicates: a linear search would be quadratic in a hostile file's tensors. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/types.h"
#include "model/gguf_part.h"

enum {
    MAX_KEY_BYTES = 65535, /* the format's own limit */
    MAX_NAME_BYTES = 255,  /* the format says 64 */
    MAX_ENTRIES = 1 << 20, /* keys, and tensors; real files have a few thousand */
    MAX_STRINGS = 1 << 24, /* in all arrays; the largest vocabularies have half a million with their merges */
    MIN_VALUE_BYTES = 8 + 1 + 4 + 1,
    MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8,
};

#define DEFAULT_ALIGNMENT 32u
#define MIN_ALIGNMENT     8u
#define MAX_ALIGNMENT     (1u << 20)

struct cursor {
    struct mu_gguf_part *part;
    uint64_t pos;
    struct mu_err *err;
};

static uint32_t load_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint64_t load_u64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static uint64_t left(const struct cursor *c)
{
    return c->part->size - c->pos;
}

static enum mu_status need(const struct cursor *c, uint64_t n, const char *what)
{
    if (n <= left(c)) return MU_OK;
    return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, c->pos,
                        "expected %" PRIu64 " bytes of %s, found %" PRIu64 " until the file's end at %" PRIu64
                        ": the file is cut short or corrupt; download or copy it again",
                        n, what, left(c), c->part->size);
}

static enum mu_status read_u32(struct cursor *c, const char *what, uint32_t *out)
{
    enum mu_status st = need(c, 4, what);
    if (st != MU_OK) return st;
    *out = load_u32(c->part->map + c->pos);
    c->pos += 4;
    return MU_OK;
}

static enum mu_status read_u64(struct cursor *c, const char *what, uint64_t *out)
{
    enum mu_status st = need(c, 8, what);
    if (st != MU_OK) return st;
    *out = load_u64(c->part->map + c->pos);
    c->pos += 8;
    return MU_OK;
}

static enum mu_status read_str(struct cursor *c, const char *what, struct mu_str *out)
{
    uint64_t len;
    enum mu_status st = read_u64(c, what, &len);
    if (st == MU_OK) st = need(c, len, what);
    if (st != MU_OK) return st;
    *out = (struct mu_str){(const char *)c->part->map + c->pos, len};
    c->pos += len;
    return MU_OK;
}

/* A key or tensor name: not empty, of bounded length. */
static enum mu_status read_name(struct cursor *c, const char *what, size_t max_bytes, struct mu_str *out)
{
    uint64_t at = c->pos;
    enum mu_status st = read_str(c, what, out);
    if (st != MU_OK) return st;
    if (out->len >= 1 && out->len <= max_bytes) return MU_OK;
    return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, at,
                        "expected a %s of 1 to %zu bytes, found %zu: the file is corrupt", what, max_bytes, out->len);
}

static enum mu_status check_bools(const struct cursor *c, const struct mu_gguf_value *v)
{
    char shown[MU_GGUF_NAME_SHOWN];
    for (uint64_t i = 0; i < v->n; i++)
        if (v->data[i] > 1)
            return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, v->offset + i,
                                "key '%s': expected a truth value of 0 or 1, found %u",
                                mu_str_show(v->key, shown, sizeof shown), v->data[i]);
    return MU_OK;
}

static enum mu_status read_strings(struct cursor *c, struct mu_gguf_value *v)
{
    char shown[MU_GGUF_NAME_SHOWN];
    if (v->n > left(c) / 8)
        return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, v->offset,
                            "key '%s': expected %" PRIu64 " strings, found %" PRIu64
                            " bytes until the file's end: the file is cut short or corrupt",
                            mu_str_show(v->key, shown, sizeof shown), v->n, left(c));
    if (v->n > MAX_STRINGS - c->part->n_string)
        return MU_PART_FAIL(c->part, c->err, MU_ELIMIT, v->offset,
                            "key '%s': expected at most %d strings in a file, found %" PRIu64,
                            mu_str_show(v->key, shown, sizeof shown), MAX_STRINGS, c->part->n_string + v->n);
    c->part->n_string += v->n;
    struct mu_str *strings = mu_calloc(v->n ? v->n : 1, sizeof *strings);
    if (!strings)
        return mu_fail(c->err, MU_ENOMEM, "file '%s': no memory for the %" PRIu64 " strings of key '%s'",
                       c->part->shown, v->n, mu_str_show(v->key, shown, sizeof shown));
    v->strings = strings;
    for (uint64_t i = 0; i < v->n; i++) {
        enum mu_status st = read_str(c, "a string in an array", &strings[i]);
        if (st != MU_OK) return st;
    }
    return MU_OK;
}

static enum mu_status read_array(struct cursor *c, struct mu_gguf_value *v)
{
    char shown[MU_GGUF_NAME_SHOWN];
    uint32_t item_kind;
    uint64_t n, at = c->pos;
    enum mu_status st = read_u32(c, "an array's item kind", &item_kind);
    if (st == MU_OK) st = read_u64(c, "an array's length", &n);
    if (st != MU_OK) return st;
    v->offset = c->pos;
    v->data = c->part->map + c->pos;
    v->n = n;
    v->item_kind = item_kind;
    if (item_kind == MU_GGUF_ARRAY)
        return MU_PART_FAIL(c->part, c->err, MU_EUNSUPPORTED, at,
                            "key '%s': expected an array of numbers or strings, found an array of arrays, which is not "
                            "supported",
                            mu_str_show(v->key, shown, sizeof shown));
    if (item_kind == MU_GGUF_STRING) return read_strings(c, v);
    size_t item_bytes = mu_gguf_kind_bytes(item_kind);
    if (!item_bytes)
        return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, at, "key '%s': expected an item kind of 0 to 12, found %u",
                            mu_str_show(v->key, shown, sizeof shown), item_kind);
    if (n > left(c) / item_bytes)
        return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, v->offset,
                            "key '%s': expected %" PRIu64 " items of %zu bytes, found %" PRIu64
                            " bytes until the file's end: the file is cut short or corrupt",
                            mu_str_show(v->key, shown, sizeof shown), n, item_bytes, left(c));
    c->pos += n * item_bytes;
    return item_kind == MU_GGUF_BOOL ? check_bools(c, v) : MU_OK;
}

static enum mu_status read_value(struct cursor *c, struct mu_gguf_value *v)
{
    char shown[MU_GGUF_NAME_SHOWN];
    uint32_t kind;
    enum mu_status st = read_name(c, "key", MAX_KEY_BYTES, &v->key);
    if (st == MU_OK) st = read_u32(c, "a value's kind", &kind);
    if (st != MU_OK) return st;
    v->offset = c->pos;
    v->data = c->part->map + c->pos;
    v->n = 1;
    if (kind == MU_GGUF_ARRAY) {
        v->kind = MU_GGUF_ARRAY;
        return read_array(c, v);
    }
    if (kind == MU_GGUF_STRING) {
        struct mu_str ignored;
        v->kind = v->item_kind = MU_GGUF_STRING;
        return read_str(c, "a string", &ignored);
    }
    size_t bytes = mu_gguf_kind_bytes(kind);
    if (!bytes)
        return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, c->pos - 4,
                            "key '%s': expected a value kind of 0 to 12, found %u: the file is corrupt",
                            mu_str_show(v->key, shown, sizeof shown), kind);
    v->kind = v->item_kind = kind;
    MU_TRY(st, need(c, bytes, "a value"), fail);
    c->pos += bytes;
    if (kind == MU_GGUF_BOOL) st = check_bools(c, v);
fail:
    return st;
}

/* Room for one more entry of item_bytes, zeroed. */
static enum mu_status grow(const struct cursor *c, void *items_ptr, size_t item_bytes, size_t n, size_t *cap)
{
    void *items;
    memcpy(&items, items_ptr, sizeof items);
    if (n == *cap) {
        size_t bigger = *cap ? *cap * 2 : 64;
        items = mu_reallocarray(items, bigger, item_bytes);
        if (!items)
            return mu_fail(c->err, MU_ENOMEM, "file '%s': no memory for a table of %zu entries", c->part->shown,
                           bigger);
        memcpy(items_ptr, &items, sizeof items);
        *cap = bigger;
    }
    memset((char *)items + n * item_bytes, 0, item_bytes);
    return MU_OK;
}

static int compare_keys(const void *a, const void *b)
{
    return mu_str_compare((*(const struct mu_gguf_value *const *)a)->key,
                          (*(const struct mu_gguf_value *const *)b)->key);
}

enum mu_status mu_gguf_part_index(struct mu_gguf_part *p, struct mu_err *err)
{
    mu_free(p->by_key);
    p->by_key = mu_calloc(p->n_value ? p->n_value : 1, sizeof *p->by_key);
    if (!p->by_key) return mu_fail(err, MU_ENOMEM, "file '%s': no memory for %zu keys", p->shown, p->n_value);
    for (size_t i = 0; i < p->n_value; i++) p->by_key[i] = &p->values[i];
    qsort(p->by_key, p->n_value, sizeof *p->by_key, compare_keys);
    for (size_t i = 1; i < p->n_value; i++) {
        const struct mu_gguf_value *a = p->by_key[i - 1], *b = p->by_key[i];
        char shown[MU_GGUF_NAME_SHOWN];
        if (mu_str_compare(a->key, b->key) == 0)
            return MU_PART_FAIL(p, err, MU_EFORMAT, a->offset > b->offset ? a->offset : b->offset,
                                "expected every key once, found '%s' twice", mu_str_show(a->key, shown, sizeof shown));
    }
    return MU_OK;
}

const struct mu_gguf_value *mu_gguf_part_find(const struct mu_gguf_part *p, struct mu_str key)
{
    struct mu_gguf_value probe = {.key = key};
    const struct mu_gguf_value *probe_ptr = &probe, **hit;
    if (!p->n_value) return NULL;
    hit = bsearch(&probe_ptr, p->by_key, p->n_value, sizeof *p->by_key, compare_keys);
    return hit ? *hit : NULL;
}

/* The size that the header's shape and type give; sets row_bytes, n_row, bytes. */
static enum mu_status size_tensor(const struct cursor *c, struct mu_gguf_tensor *t, uint64_t at)
{
    char shown[MU_GGUF_NAME_SHOWN];
    const struct mu_type_info *info = mu_type_info(t->type);
    if (!info)
        return MU_PART_FAIL(c->part, c->err, MU_EUNSUPPORTED, at,
                            "tensor '%s': expected a known tensor type, found type %u, which this build does not know",
                            mu_str_show(t->name, shown, sizeof shown), t->type);
    if (!mu_type_row_bytes(t->type, t->ne[0], &t->row_bytes))
        return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, at,
                            "tensor '%s': expected rows of a multiple of %d values of %s, found %" PRIu64,
                            mu_str_show(t->name, shown, sizeof shown), info->block_values, info->name, t->ne[0]);
    size_t n_row = 1;
    if (!mu_mul_size(t->ne[1], t->ne[2], &n_row) || !mu_mul_size(n_row, t->ne[3], &n_row) ||
        !mu_mul_size(n_row, t->row_bytes, &t->bytes))
        return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, at,
                            "tensor '%s': its shape %" PRIu64 "×%" PRIu64 "×%" PRIu64 "×%" PRIu64
                            " is larger than any memory: the file is corrupt",
                            mu_str_show(t->name, shown, sizeof shown), t->ne[0], t->ne[1], t->ne[2], t->ne[3]);
    t->n_row = n_row;
    return MU_OK;
}

static enum mu_status read_tensor(struct cursor *c, struct mu_gguf_tensor *t)
{
    char shown[MU_GGUF_NAME_SHOWN];
    uint32_t n_dim;
    uint64_t at;
    enum mu_status st;
    MU_TRY(st, read_name(c, "tensor name", MAX_NAME_BYTES, &t->name), fail);
    at = c->pos;
    MU_TRY(st, read_u32(c, "a tensor's number of dimensions", &n_dim), fail);
    if (n_dim < 1 || n_dim > MU_GGUF_MAX_DIMS)
        return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, at, "tensor '%s': expected 1 to %d dimensions, found %u",
                            mu_str_show(t->name, shown, sizeof shown), MU_GGUF_MAX_DIMS, n_dim);
    t->n_dim = (int)n_dim;
    for (int i = 0; i < MU_GGUF_MAX_DIMS; i++) t->ne[i] = 1;
    for (uint32_t i = 0; i < n_dim; i++) {
        at = c->pos;
        MU_TRY(st, read_u64(c, "a tensor's dimension", &t->ne[i]), fail);
        if (t->ne[i] < 1)
            return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, at,
                                "tensor '%s': expected a size of at least 1 in dimension %u, found 0",
                                mu_str_show(t->name, shown, sizeof shown), i);
    }
    at = c->pos;
    MU_TRY(st, read_u32(c, "a tensor's type", &t->type), fail);
    MU_TRY(st, size_tensor(c, t, at), fail);
    MU_TRY(st, read_u64(c, "a tensor's offset", &t->offset), fail);
fail:
    return st;
}

/* Turns offsets from the data section's start into offsets in the file, and checks that all data lies in the file. */
static enum mu_status place_tensors(struct cursor *c, uint64_t align)
{
    struct mu_gguf_part *p = c->part;
    char shown[MU_GGUF_NAME_SHOWN];
    const struct mu_gguf_tensor *last = NULL;
    uint64_t last_end = 0;
    p->data_start = (c->pos + align - 1) & ~(align - 1);
    for (size_t i = 0; i < p->n_tensor; i++) {
        struct mu_gguf_tensor *t = &p->tensors[i];
        uint64_t end;
        if (t->offset % align)
            return MU_PART_FAIL(p, c->err, MU_EFORMAT, c->pos,
                                "tensor '%s': expected its data at a multiple of %" PRIu64 " bytes, found %" PRIu64,
                                mu_str_show(t->name, shown, sizeof shown), align, t->offset);
        if (__builtin_add_overflow(p->data_start, t->offset, &t->offset) ||
            __builtin_add_overflow(t->offset, t->bytes, &end))
            return MU_PART_FAIL(p, c->err, MU_EFORMAT, c->pos,
                                "tensor '%s': expected its data within the file's %" PRIu64
                                " bytes, found it beyond any file's end: the file is corrupt",
                                mu_str_show(t->name, shown, sizeof shown), p->size);
        if (end > last_end) last = t, last_end = end;
    }
    if (last && last_end > p->size)
        return MU_PART_FAIL(p, c->err, MU_EFORMAT, last->offset,
                            "tensor '%s': expected a file of at least %" PRIu64 " bytes, found %" PRIu64
                            ": the file is cut short or corrupt; download or copy it again",
                            mu_str_show(last->name, shown, sizeof shown), last_end, p->size);
    for (size_t i = 0; i < p->n_tensor; i++) p->tensors[i].data = p->map + p->tensors[i].offset;
    return MU_OK;
}

static enum mu_status read_header(struct cursor *c, uint64_t *n_tensor_out, uint64_t *n_value_out)
{
    struct mu_gguf_part *p = c->part;
    enum mu_status st;
    if (p->size < 4 || memcmp(p->map, "GGUF", 4) != 0) {
        const char *what = mu_gguf_sniff(p->map, p->size < 64 ? p->size : 64);
        if (what) return mu_fail(c->err, MU_EUNSUPPORTED, "file '%s' is not a GGUF file: %s", p->shown, what);
        return MU_PART_FAIL(p, c->err, MU_EFORMAT, 0, "expected the letters GGUF, found others: it is not a GGUF file");
    }
    c->pos = 4;
    MU_TRY(st, read_u32(c, "the format's version", &p->version), fail);
    if (p->version && (p->version & 0xffff) == 0)
        return MU_PART_FAIL(p, c->err, MU_EUNSUPPORTED, 4,
                            "it is a big-endian GGUF file (version %u); expected a little-endian one: convert it with "
                            "gguf-py's gguf_convert_endian.py",
                            __builtin_bswap32(p->version));
    if (p->version == 1)
        return MU_PART_FAIL(
            p, c->err, MU_EUNSUPPORTED, 4,
            "expected GGUF version 2 or 3, found 1 (of August 2023); download a newer file of the model, or "
            "convert it again");
    if (p->version != 2 && p->version != 3)
        return MU_PART_FAIL(p, c->err, MU_EUNSUPPORTED, 4, "expected GGUF version 2 or 3, found %u", p->version);
    MU_TRY(st, read_u64(c, "the number of tensors", n_tensor_out), fail);
    MU_TRY(st, read_u64(c, "the number of keys", n_value_out), fail);
    uint64_t max_tensor = left(c) / MIN_TENSOR_BYTES, max_value = left(c) / MIN_VALUE_BYTES;
    if (max_tensor > MAX_ENTRIES) max_tensor = MAX_ENTRIES;
    if (max_value > MAX_ENTRIES) max_value = MAX_ENTRIES;
    if (*n_tensor_out > max_tensor)
        return MU_PART_FAIL(p, c->err, MU_EFORMAT, 8,
                            "expected at most %" PRIu64 " tensors in a file of %" PRIu64
                            " bytes, found a count of %" PRIu64 ": the file is cut short or corrupt",
                            max_tensor, p->size, *n_tensor_out);
    if (*n_value_out > max_value)
        return MU_PART_FAIL(p, c->err, MU_EFORMAT, 16,
                            "expected at most %" PRIu64 " keys in a file of %" PRIu64
                            " bytes, found a count of %" PRIu64 ": the file is cut short or corrupt",
                            max_value, p->size, *n_value_out);
fail:
    return st;
}

static enum mu_status read_alignment(const struct cursor *c, uint64_t *align_out)
{
    static const char key[] = "general.alignment";
    const struct mu_gguf_value *v = mu_gguf_part_find(c->part, (struct mu_str){key, sizeof key - 1});
    enum mu_status st =
        mu_gguf_part_u64(c->part, v, MIN_ALIGNMENT, MAX_ALIGNMENT, DEFAULT_ALIGNMENT, align_out, c->err);
    if (st != MU_OK) return st;
    if (*align_out & (*align_out - 1))
        return MU_PART_FAIL(c->part, c->err, MU_EFORMAT, v->offset,
                            "key '%s': expected a power of two from %u to %u, found %" PRIu64, key, MIN_ALIGNMENT,
                            MAX_ALIGNMENT, *align_out);
    return MU_OK;
}

enum mu_status mu_gguf_part_parse(struct mu_gguf_part *p, struct mu_err *err)
{
    struct cursor c = {p, 0, err};
    uint64_t n_tensor = 0, n_value = 0, align;
    enum mu_status st;
    MU_TRY(st, read_header(&c, &n_tensor, &n_value), fail);
    for (uint64_t i = 0; i < n_value; i++) {
        MU_TRY(st, grow(&c, &p->values, sizeof *p->values, p->n_value, &p->cap_value), fail);
        MU_TRY(st, read_value(&c, &p->values[p->n_value++]), fail);
    }
    MU_TRY(st, mu_gguf_part_index(p, err), fail);
    MU_TRY(st, read_alignment(&c, &align), fail);
    for (uint64_t i = 0; i < n_tensor; i++) {
        MU_TRY(st, grow(&c, &p->tensors, sizeof *p->tensors, p->n_tensor, &p->cap_tensor), fail);
        MU_TRY(st, read_tensor(&c, &p->tensors[p->n_tensor++]), fail);
    }
    MU_TRY(st, place_tensors(&c, align), fail);
fail:
    return st;
}
