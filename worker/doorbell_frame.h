/* The head of a doorbell frame, shared by doorbell.c and doorbell_setup.c. */
#ifndef MU_WORKER_DOORBELL_FRAME_H
#define MU_WORKER_DOORBELL_FRAME_H

#include <stdint.h>
#include <string.h>

#include "worker/doorbell.h"

enum {
    BELL_LENGTH = 4,                   /* the length itself */
    BELL_HEADER = BELL_LENGTH + 1 + 8, /* length, kind, epoch */
    BELL_HELLO = BELL_HEADER + MU_BELL_SECRET + 4,
};

static inline void bell_put_le(uint8_t *p, uint64_t v, int n_byte)
{
    for (int i = 0; i < n_byte; i++) p[i] = (uint8_t)(v >> (8 * i));
}

static inline void bell_header_write(uint8_t *header, enum mu_bell_kind kind, uint64_t epoch, size_t payload_len)
{
    bell_put_le(header, (uint64_t)payload_len + BELL_HEADER - BELL_LENGTH, 4);
    header[4] = (uint8_t)kind;
    bell_put_le(header + 5, epoch, 8);
}

#endif
