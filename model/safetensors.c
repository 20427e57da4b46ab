/* Reading the table of a .safetensors file.
 *
 * jansson reads the header: nesting is bounded there (2,048 levels), names twice are its error, and what it takes is a
 * small multiple of the header's length, which is bounded by the file's. Its tree is gone when this returns. */
#include "model/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/types.h"
#include "model/hf_json.h"

#define MAX_HEADER_BYTES 100000000u /* the reference reader's limit */
enum { PREFIX_BYTES = 8, MAX_TENSORS = 1 << 20, MAX_NAME_BYTES = 1024 };

/* What a table is read with. */
struct reader {
    const struct mu_gguf_part *part;
    uint64_t data_start;
    struct mu_st_table table;
    size_t name_len; /* of table.names so far */
    struct mu_err *err;
};

static const struct dtype {
    const char *name;
    uint32_t bits;
    uint32_t type;
} dtypes[] = {
    {"F32", 32, MU_F32},           {"F16", 16, MU_F16},           {"BF16", 16, MU_BF16},
    {"F64", 64, MU_ST_NO_TYPE},    {"I64", 64, MU_ST_NO_TYPE},    {"U64", 64, MU_ST_NO_TYPE},
    {"C64", 64, MU_ST_NO_TYPE},    {"I32", 32, MU_ST_NO_TYPE},    {"U32", 32, MU_ST_NO_TYPE},
    {"I16", 16, MU_ST_NO_TYPE},    {"U16", 16, MU_ST_NO_TYPE},    {"I8", 8, MU_ST_NO_TYPE},
    {"U8", 8, MU_ST_NO_TYPE},      {"BOOL", 8, MU_ST_NO_TYPE},    {"F8_E4M3", 8, MU_ST_NO_TYPE},
    {"F8_E5M2", 8, MU_ST_NO_TYPE}, {"F8_E8M0", 8, MU_ST_NO_TYPE}, {"F4", 4, MU_ST_NO_TYPE},
};

static enum mu_status tensor_fail(const struct reader *r, const char *name, const char *what)
{
    char shown[MU_GGUF_NAME_SHOWN];
    return mu_fail(r->err, MU_EFORMAT, "file '%s': tensor '%s': %s: the file is corrupt; download or copy it again",
                   r->part->shown, mu_str_show((struct mu_str){name, strlen(name)}, shown, sizeof shown), what);
}

static bool get_u64(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0) return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

/* Shape and type, and the bytes that they need. */
static enum mu_status read_shape(const struct reader *r, const char *name, const json_t *entry, struct mu_st_tensor *t,
                                 uint64_t *bytes_out)
{
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    const json_t *shape = json_object_get(entry, "shape");
    const struct dtype *d = NULL;
    if (!dtype) return tensor_fail(r, name, "expected a string \"dtype\"");
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, dtype) == 0) d = &dtypes[i];
    mu_str_show((struct mu_str){dtype, strlen(dtype)}, t->dtype, sizeof t->dtype);
    t->type = d ? d->type : MU_ST_NO_TYPE;
    if (!json_is_array(shape)) return tensor_fail(r, name, "expected an array \"shape\"");
    if (json_array_size(shape) > MU_ST_MAX_DIMS) return tensor_fail(r, name, "expected at most 8 dimensions");
    t->n_dim = (int)json_array_size(shape);
    uint64_t bits = d ? d->bits : 0;
    for (int i = 0; i < t->n_dim; i++) {
        if (!get_u64(json_array_get(shape, (size_t)i), &t->dim[i]))
            return tensor_fail(r, name, "expected whole numbers in \"shape\"");
        if (__builtin_mul_overflow(bits, t->dim[i], &bits))
            return tensor_fail(r, name, "its shape is larger than any memory");
    }
    *bytes_out = d ? bits / 8 + (bits % 8 != 0) : UINT64_MAX; /* of a type not known: whatever it has */
    return MU_OK;
}

static enum mu_status read_entry(struct reader *r, const char *name, const json_t *entry)
{
    struct mu_st_tensor *t = &r->table.tensor[r->table.n_tensor];
    const json_t *offsets = json_object_get(entry, "data_offsets");
    uint64_t room = r->part->size - r->data_start, begin, end, bytes = 0;
    size_t len = strlen(name);
    if (len < 1 || len > MAX_NAME_BYTES) return tensor_fail(r, name, "expected a name of 1 to 1024 bytes");
    if (!json_is_object(entry)) return tensor_fail(r, name, "expected an object");
    enum mu_status st = read_shape(r, name, entry, t, &bytes);
    if (st != MU_OK) return st;
    if (json_array_size(offsets) != 2 || !get_u64(json_array_get(offsets, 0), &begin) ||
        !get_u64(json_array_get(offsets, 1), &end))
        return tensor_fail(r, name, "expected two whole numbers \"data_offsets\"");
    if (begin > end || end > room) {
        char shown[MU_GGUF_NAME_SHOWN];
        return mu_fail(r->err, MU_EFORMAT,
                       "file '%s': tensor '%s': expected its data within the %" PRIu64
                       " bytes after the header, found it at %" PRIu64 " to %" PRIu64
                       ": the file is cut short or corrupt; download or copy it again",
                       r->part->shown, mu_str_show((struct mu_str){name, len}, shown, sizeof shown), room, begin, end);
    }
    if (bytes != UINT64_MAX && end - begin != bytes)
        return tensor_fail(r, name, "its shape and \"dtype\" need other than the bytes between \"data_offsets\"");
    t->offset = r->data_start + begin;
    t->bytes = end - begin;
    t->name = (struct mu_str){r->table.names + r->name_len, len};
    memcpy(r->table.names + r->name_len, name, len + 1);
    r->name_len += len + 1;
    r->table.n_tensor++;
    return MU_OK;
}

static int compare_offsets(const void *a, const void *b)
{
    const struct mu_st_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* those without bytes come first */
}

/* One after another from the header to the file's end. */
static enum mu_status check_cover(struct reader *r)
{
    uint64_t at = r->data_start;
    qsort(r->table.tensor, r->table.n_tensor, sizeof *r->table.tensor, compare_offsets);
    for (size_t i = 0; i < r->table.n_tensor; i++) {
        const struct mu_st_tensor *t = &r->table.tensor[i];
        if (t->offset != at)
            return tensor_fail(
                r, t->name.p, t->offset < at ? "its data overlaps another tensor's" : "there is a gap before its data");
        at += t->bytes;
    }
    if (at == r->part->size) return MU_OK;
    return mu_fail(r->err, MU_EFORMAT,
                   "file '%s': expected the last tensor to end at the file's end at %" PRIu64 ", found %" PRIu64
                   ": the file is corrupt; download or copy it again",
                   r->part->shown, r->part->size, at);
}

static enum mu_status read_entries(struct reader *r, json_t *root)
{
    const char *name;
    json_t *entry;
    enum mu_status st;
    if (!json_is_object(root))
        return mu_fail(r->err, MU_EFORMAT, "file '%s': expected a JSON object as header", r->part->shown);
    if (json_object_size(root) > MAX_TENSORS)
        return mu_fail(r->err, MU_ELIMIT, "file '%s': expected at most %d tensors, found %zu", r->part->shown,
                       MAX_TENSORS, json_object_size(root));
    r->table.tensor = mu_calloc(json_object_size(root) + 1, sizeof *r->table.tensor);
    r->table.names = mu_malloc((size_t)(r->data_start + 1)); /* names stand in the header, each in quotes */
    if (!r->table.tensor || !r->table.names)
        return mu_fail(r->err, MU_ENOMEM, "file '%s': no memory for a table of %zu tensors", r->part->shown,
                       json_object_size(root));
    json_object_foreach(root, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0) continue;
        MU_TRY(st, read_entry(r, name, entry), fail);
    }
    st = check_cover(r);
fail:
    return st;
}

enum mu_status mu_st_table_read(const struct mu_gguf_part *p, struct mu_st_table *table_out, struct mu_err *err)
{
    struct reader r = {.part = p, .err = err};
    uint64_t len = 0;
    json_t *root;
    enum mu_status st;
    if (p->size >= PREFIX_BYTES) memcpy(&len, p->map, PREFIX_BYTES);
    if (p->size < PREFIX_BYTES || len < 2 || len > MAX_HEADER_BYTES || len > p->size - PREFIX_BYTES) {
        const char *advice = mu_gguf_sniff(p->map, p->size < 4096 ? (size_t)p->size : 4096);
        if (len >= 2 && len <= MAX_HEADER_BYTES) advice = NULL; /* one of ours, cut short */
        return mu_fail(err, MU_EFORMAT,
                       "file '%s': expected a safetensors file with a header of 2 to %u bytes, found a length of "
                       "%" PRIu64 " in a file of %" PRIu64 " bytes: %s",
                       p->shown, MAX_HEADER_BYTES, len, p->size,
                       advice ? advice : "it is cut short or corrupt; download or copy it again");
    }
    r.data_start = PREFIX_BYTES + len;
    MU_TRY(st, mu_json_parse((const char *)p->map + PREFIX_BYTES, (size_t)len, p->shown, true, &root, err), fail);
    st = read_entries(&r, root);
    json_decref(root);
    if (st != MU_OK) {
        mu_st_table_free(&r.table);
        return st;
    }
    *table_out = r.table;
fail:
    return st;
}

void mu_st_table_free(struct mu_st_table *t)
{
    mu_free(t->tensor);
    mu_free(t->names);
    *t = (struct mu_st_table){0};
}
