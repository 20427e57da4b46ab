/* Priorities as they travel, and as the shares know them: one table for the coordinator and the leader. */
#ifndef MU_PROTO_PRIORITY_H
#define MU_PROTO_PRIORITY_H

#include "base/fair.h"
#include "muster/v1/muster.pb-c.h"

/* What is not known counts as normal; the front door has refused it. */
static inline enum mu_priority mu_proto_priority(Muster__V1__Priority p)
{
    switch (p) {
    case MUSTER__V1__PRIORITY__PRIORITY_INTERACTIVE: return MU_PRIORITY_INTERACTIVE;
    case MUSTER__V1__PRIORITY__PRIORITY_BATCH: return MU_PRIORITY_BATCH;
    default: return MU_PRIORITY_NORMAL;
    }
}

#endif
