/* What protobuf-c leaves unchecked, for every message that comes from or goes to a peer.
 *
 * protobuf-c 1.4 takes any bytes as a string, cuts strings at an embedded NUL, follows nesting without limit and
 * turns 4 MiB of empty submessages into 96 MiB of heap. So: the wire form is walked first (strings, nesting,
 * lengths), then unpacked with a budget.
 *
 * Threads: pure functions. Format: protobuf.dev/programming-guides/encoding. */
#ifndef MU_PROTO_LIMITS_H
#define MU_PROTO_LIMITS_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/status.h"

enum { MU_PROTO_MAX_DEPTH = 32 }; /* messages within messages */

/* Well-formed UTF-8 (Unicode 15, table 3-7: no overlong forms, no surrogates) without NUL. */
bool mu_utf8_valid(const void *text, size_t len);

/* Walks a serialized message: every field whole, no groups, at most MU_PROTO_MAX_DEPTH deep (MU_EFORMAT), every
 * string field valid UTF-8 without NUL (MU_EINVAL). The error names the field. Unknown fields pass. */
enum mu_status mu_proto_check(const ProtobufCMessageDescriptor *type, const void *data, size_t len, struct mu_err *err);

/* Check and unpack. budget_bytes bounds the sum of all allocations made on the way, freed ones too: merging a field
 * that is repeated again and again copies what was there, and a budget of the live bytes alone would let that run for
 * hours. 0: 16 × len + 64 KiB. Over it: MU_ELIMIT; MU_ENOMEM. Free with mu_proto_free. */
enum mu_status mu_proto_unpack(const ProtobufCMessageDescriptor *type, const void *data, size_t len,
                               size_t budget_bytes, ProtobufCMessage **msg_out, struct mu_err *err);
void mu_proto_free(ProtobufCMessage *msg); /* NULL is fine */

#endif
