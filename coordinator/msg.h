/* Copies of protobuf messages: callbacks get theirs borrowed, the hub keeps its own. */
#ifndef MU_COORDINATOR_MSG_H
#define MU_COORDINATOR_MSG_H

#include <protobuf-c/protobuf-c.h>

/* A deep copy, freed with mu_rpc_message_free; NULL if out of memory. */
ProtobufCMessage *mu_msg_copy(const ProtobufCMessage *msg);

#endif
