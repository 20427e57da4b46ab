/* Looking values up by key and kind, and what messages show of strings from a file. */
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "model/gguf_part.h"

static const struct {
    const char *name;
    size_t bytes;
} kinds[] = {
    [MU_GGUF_U8] = {"an 8-bit unsigned integer", 1},
    [MU_GGUF_I8] = {"an 8-bit integer", 1},
    [MU_GGUF_U16] = {"a 16-bit unsigned integer", 2},
    [MU_GGUF_I16] = {"a 16-bit integer", 2},
    [MU_GGUF_U32] = {"a 32-bit unsigned integer", 4},
    [MU_GGUF_I32] = {"a 32-bit integer", 4},
    [MU_GGUF_F32] = {"a 32-bit floating-point number", 4},
    [MU_GGUF_BOOL] = {"a truth value", 1},
    [MU_GGUF_STRING] = {"a string", 0},
    [MU_GGUF_ARRAY] = {"an array", 0},
    [MU_GGUF_U64] = {"a 64-bit unsigned integer", 8},
    [MU_GGUF_I64] = {"a 64-bit integer", 8},
    [MU_GGUF_F64] = {"a 64-bit floating-point number", 8},
};

size_t mu_gguf_kind_bytes(uint32_t kind)
{
    return kind < sizeof kinds / sizeof *kinds ? kinds[kind].bytes : 0;
}

const char *mu_gguf_kind_name(uint32_t kind)
{
    return kind < sizeof kinds / sizeof *kinds ? kinds[kind].name : "an unknown kind";
}

int mu_str_compare(struct mu_str a, struct mu_str b)
{
    size_t n = a.len < b.len ? a.len : b.len;
    int c = n ? memcmp(a.p, b.p, n) : 0;
    return c ? c : (a.len > b.len) - (a.len < b.len);
}

const char *mu_str_show(struct mu_str s, char *buf, size_t buf_bytes)
{
    size_t n = s.len < buf_bytes ? s.len : buf_bytes - 1;
    for (size_t i = 0; i < n; i++) buf[i] = s.p[i] >= 0x20 && s.p[i] < 0x7f ? s.p[i] : '?';
    buf[n] = 0;
    if (n < s.len && buf_bytes > 4) memcpy(buf + n - 3, "...", 3);
    return buf;
}

static struct mu_str str_of(const char *s)
{
    return (struct mu_str){s, strlen(s)};
}

const struct mu_gguf_value *mu_gguf_find(const struct mu_gguf *g, const char *key)
{
    return mu_gguf_part_find(&g->parts[0], str_of(key));
}

static bool is_integer(uint32_t kind)
{
    return kind <= MU_GGUF_I32 || kind == MU_GGUF_U64 || kind == MU_GGUF_I64;
}

#define LOAD(ctype)                                                     \
    ({                                                                  \
        ctype loaded_;                                                  \
        memcpy(&loaded_, v->data + i * sizeof loaded_, sizeof loaded_); \
        loaded_;                                                        \
    })

int64_t mu_gguf_item_i64(const struct mu_gguf_value *v, uint64_t i)
{
    if (i >= v->n) return 0;
    switch (v->item_kind) {
    case MU_GGUF_U8:
    case MU_GGUF_BOOL: return v->data[i];
    case MU_GGUF_I8: return (int8_t)v->data[i];
    case MU_GGUF_U16: return LOAD(uint16_t);
    case MU_GGUF_I16: return LOAD(int16_t);
    case MU_GGUF_U32: return LOAD(uint32_t);
    case MU_GGUF_I32: return LOAD(int32_t);
    case MU_GGUF_U64:
    case MU_GGUF_I64: return LOAD(int64_t);
    case MU_GGUF_F32:
    case MU_GGUF_F64: {
        double d = v->item_kind == MU_GGUF_F32 ? (double)LOAD(float) : LOAD(double);
        if (!(d >= -0x1p63)) return d < 0 ? INT64_MIN : 0; /* NaN is 0 */
        return d < 0x1p63 ? (int64_t)d : INT64_MAX;
    }
    default: return 0;
    }
}

float mu_gguf_item_f32(const struct mu_gguf_value *v, uint64_t i)
{
    if (i >= v->n) return 0;
    switch (v->item_kind) {
    case MU_GGUF_F32: return LOAD(float);
    case MU_GGUF_F64: {
        double d = LOAD(double);
        if (d > (double)FLT_MAX) return HUGE_VALF;
        return d < -(double)FLT_MAX ? -HUGE_VALF : (float)d;
    }
    case MU_GGUF_U64: return (float)LOAD(uint64_t);
    default: return (float)mu_gguf_item_i64(v, i);
    }
}

enum mu_status mu_gguf_part_u64(const struct mu_gguf_part *p, const struct mu_gguf_value *v, uint64_t min, uint64_t max,
                                uint64_t fallback, uint64_t *out, struct mu_err *err)
{
    char shown[MU_GGUF_NAME_SHOWN];
    if (!v) {
        *out = fallback;
        return MU_OK;
    }
    if (!is_integer(v->kind))
        return MU_PART_FAIL(p, err, MU_EFORMAT, v->offset, "key '%s': expected an integer, found %s",
                            mu_str_show(v->key, shown, sizeof shown), mu_gguf_kind_name(v->kind));
    int64_t s = mu_gguf_item_i64(v, 0);
    uint64_t u = (uint64_t)s;
    if (s < 0 && v->kind != MU_GGUF_U64)
        return MU_PART_FAIL(p, err, MU_EFORMAT, v->offset,
                            "key '%s': expected a number from %" PRIu64 " to %" PRIu64 ", found %" PRId64,
                            mu_str_show(v->key, shown, sizeof shown), min, max, s);
    if (u < min || u > max)
        return MU_PART_FAIL(p, err, MU_EFORMAT, v->offset,
                            "key '%s': expected a number from %" PRIu64 " to %" PRIu64 ", found %" PRIu64,
                            mu_str_show(v->key, shown, sizeof shown), min, max, u);
    *out = u;
    return MU_OK;
}

static enum mu_status wrong_kind(const struct mu_gguf *g, const struct mu_gguf_value *v, enum mu_gguf_kind wanted,
                                 struct mu_err *err)
{
    char shown[MU_GGUF_NAME_SHOWN];
    return MU_PART_FAIL(&g->parts[0], err, MU_EFORMAT, v->offset, "key '%s': expected %s, found %s",
                        mu_str_show(v->key, shown, sizeof shown), mu_gguf_kind_name(wanted),
                        mu_gguf_kind_name(v->kind));
}

enum mu_status mu_gguf_get_u64(const struct mu_gguf *g, const char *key, uint64_t min, uint64_t max, uint64_t fallback,
                               uint64_t *out, struct mu_err *err)
{
    return mu_gguf_part_u64(&g->parts[0], mu_gguf_find(g, key), min, max, fallback, out, err);
}

enum mu_status mu_gguf_get_f32(const struct mu_gguf *g, const char *key, float fallback, float *out, struct mu_err *err)
{
    const struct mu_gguf_value *v = mu_gguf_find(g, key);
    if (v && v->kind != MU_GGUF_F32 && v->kind != MU_GGUF_F64) return wrong_kind(g, v, MU_GGUF_F32, err);
    *out = v ? mu_gguf_item_f32(v, 0) : fallback;
    return MU_OK;
}

enum mu_status mu_gguf_get_bool(const struct mu_gguf *g, const char *key, bool fallback, bool *out, struct mu_err *err)
{
    const struct mu_gguf_value *v = mu_gguf_find(g, key);
    if (v && v->kind != MU_GGUF_BOOL) return wrong_kind(g, v, MU_GGUF_BOOL, err);
    *out = v ? v->data[0] != 0 : fallback;
    return MU_OK;
}

enum mu_status mu_gguf_get_str(const struct mu_gguf *g, const char *key, struct mu_str *out, struct mu_err *err)
{
    const struct mu_gguf_value *v = mu_gguf_find(g, key);
    if (v && v->kind != MU_GGUF_STRING) return wrong_kind(g, v, MU_GGUF_STRING, err);
    *out = (struct mu_str){NULL, 0};
    if (!v) return MU_OK;
    uint64_t len;
    memcpy(&len, v->data, sizeof len);
    *out = (struct mu_str){(const char *)v->data + sizeof len, len};
    return MU_OK;
}

enum mu_status mu_gguf_tensor_fail(const struct mu_gguf *g, const struct mu_gguf_tensor *t, enum mu_status code,
                                   const char *what, struct mu_err *err)
{
    char shown[MU_GGUF_NAME_SHOWN];
    return MU_PART_FAIL(&g->parts[t->part], err, code, t->offset, "tensor '%s': %s",
                        mu_str_show(t->name, shown, sizeof shown), what);
}

enum mu_status mu_gguf_value_fail(const struct mu_gguf *g, const struct mu_gguf_value *v, enum mu_status code,
                                  struct mu_err *err, const char *fmt, ...)
{
    char shown[MU_GGUF_NAME_SHOWN], text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return MU_PART_FAIL(&g->parts[0], err, code, v->offset, "key '%s': %s", mu_str_show(v->key, shown, sizeof shown),
                        text);
}

enum mu_status mu_gguf_fail(const struct mu_gguf *g, enum mu_status code, struct mu_err *err, const char *fmt, ...)
{
    char text[MU_ERR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return mu_fail(err, code, "file '%s': %s", g->parts[0].shown, text);
}
