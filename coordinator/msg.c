#include "coordinator/msg.h"

#include "base/alloc.h"
#include "transport/rpc.h"

ProtobufCMessage *mu_msg_copy(const ProtobufCMessage *msg)
{
    size_t len = protobuf_c_message_get_packed_size(msg);
    uint8_t *packed = mu_malloc(len ? len : 1);
    if (!packed) return NULL;
    protobuf_c_message_pack(msg, packed);
    ProtobufCMessage *copy = mu_rpc_unpack(msg->descriptor, packed, len, 0);
    mu_free(packed);
    return copy;
}
