/* The serialized google.protobuf.FileDescriptorSet of the public services (muster.v1, health, reflection) with their
 * imports, embedded at build time; what reflection hands to clients. Static, read-only. */
#ifndef MU_PROTO_DESCRIPTORS_H
#define MU_PROTO_DESCRIPTORS_H

#include <stddef.h>

extern const unsigned char mu_descriptor_set[];
extern const size_t mu_descriptor_set_bytes;

#endif
