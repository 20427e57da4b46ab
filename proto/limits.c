/* Checks on messages: see limits.h. The walk is over bytes, not over unpacked structs, because a string's true length
 * is known only there. */
#include "proto/limits.h"

#include <stdint.h>
#include <string.h>

#include "base/alloc.h"
#include "base/utf8.h"

bool mu_utf8_valid(const void *text, size_t len)
{
    const uint8_t *p = text, *end = p + len;
    while (p < end) {
        /* Eight at a time while they are ASCII and none is NUL. */
        while (end - p >= 8) {
            uint64_t w;
            memcpy(&w, p, 8);
            if ((w & 0x8080808080808080u) || ((w - 0x0101010101010101u) & 0x8080808080808080u)) break;
            p += 8;
        }
        if (p == end) break;
        uint32_t cp;
        int n = mu_utf8_next((const char *)p, (size_t)(end - p), &cp);
        if (n == 0 || cp == 0) return false;
        p += n;
    }
    return true;
}

struct walk {
    const uint8_t *p, *end;
};

static bool read_varint(struct walk *w, uint64_t *v_out)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 70 && w->p < w->end; shift += 7) {
        uint8_t c = *w->p++;
        if (shift < 64) v |= (uint64_t)(c & 0x7F) << shift;
        if (!(c & 0x80)) {
            *v_out = v;
            return true;
        }
    }
    return false;
}

static enum mu_status walk_message(const ProtobufCMessageDescriptor *type, struct walk w, int depth, struct mu_err *err)
{
    if (depth > MU_PROTO_MAX_DEPTH)
        return mu_fail(err, MU_EFORMAT, "%s: messages are nested more than %d deep", type->name, MU_PROTO_MAX_DEPTH);
    while (w.p < w.end) {
        uint64_t tag, len = 0;
        if (!read_varint(&w, &tag) || tag > UINT32_MAX || tag >> 3 == 0)
            return mu_fail(err, MU_EFORMAT, "%s: malformed field tag", type->name);
        const ProtobufCFieldDescriptor *f = protobuf_c_message_descriptor_get_field(type, (unsigned)(tag >> 3));
        bool whole;
        switch (tag & 7) {
        case PROTOBUF_C_WIRE_TYPE_VARINT: whole = read_varint(&w, &len), len = 0; break;
        case PROTOBUF_C_WIRE_TYPE_64BIT: whole = true, len = 8; break;
        case PROTOBUF_C_WIRE_TYPE_32BIT: whole = true, len = 4; break;
        case PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED: whole = read_varint(&w, &len); break;
        default: whole = false;
        }
        if (!whole || len > (uint64_t)(w.end - w.p))
            return mu_fail(err, MU_EFORMAT, "%s: field %u is malformed or cut off", type->name, (unsigned)(tag >> 3));
        if (f && (tag & 7) == PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED) {
            if (f->type == PROTOBUF_C_TYPE_STRING && !mu_utf8_valid(w.p, len))
                return mu_fail(err, MU_EINVAL, "%s: %s is not valid UTF-8 without NUL", type->name, f->name);
            if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
                enum mu_status st = walk_message(f->descriptor, (struct walk){w.p, w.p + len}, depth + 1, err);
                if (st != MU_OK) return st;
            }
        }
        w.p += len;
    }
    return MU_OK;
}

enum mu_status mu_proto_check(const ProtobufCMessageDescriptor *type, const void *data, size_t len, struct mu_err *err)
{
    const uint8_t *p = data;
    return walk_message(type, (struct walk){p, p + len}, 1, err);
}

struct budget {
    size_t left;
    bool spent;     /* an allocation was refused for the budget's sake */
    bool no_memory; /* … or because there was none */
};

static void *budget_alloc(void *ctx, size_t size)
{
    struct budget *b = ctx;
    if (size > b->left) {
        b->spent = true;
        return NULL;
    }
    b->left -= size;
    void *p = mu_malloc(size);
    b->no_memory |= !p;
    return p;
}

static void budget_free(void *ctx, void *p)
{
    (void)ctx;
    mu_free(p);
}

enum mu_status mu_proto_unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t len,
                               size_t budget_bytes, ProtobufCMessage **msg_out, struct mu_err *err)
{
    enum mu_status st = mu_proto_check(type, data, len, err);
    if (st != MU_OK) return st;
    struct budget b = {.left = budget_bytes};
    if (budget_bytes == 0 && (!mu_mul_size(len, 16, &b.left) || !mu_add_size(b.left, 64 * 1024, &b.left)))
        return mu_fail(err, MU_ELIMIT, "%s: %zu bytes are too many", type->name, len);
    ProtobufCAllocator allocator = {budget_alloc, budget_free, &b};
    ProtobufCMessage *msg = protobuf_c_message_unpack(type, &allocator, len, data);
    if (msg) {
        *msg_out = msg;
        return MU_OK;
    }
    if (b.spent)
        return mu_fail(err, MU_ELIMIT, "%s: %zu bytes would unpack to more memory than is allowed", type->name, len);
    if (b.no_memory) return mu_fail(err, MU_ENOMEM, "%s: no memory for a message of %zu bytes", type->name, len);
    return mu_fail(err, MU_EFORMAT, "%s: malformed message of %zu bytes", type->name, len);
}

void mu_proto_free(ProtobufCMessage *msg)
{
    ProtobufCAllocator allocator = {budget_alloc, budget_free, NULL};
    if (msg) protobuf_c_message_free_unpacked(msg, &allocator);
}
