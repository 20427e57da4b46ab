/* What every transport must do, as seen by one rank; test_comm.c runs it on threads, test_comm_mpi.c on processes. */
#ifndef MU_TESTS_COMM_CHECKS_H
#define MU_TESTS_COMM_CHECKS_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "transport/comm.h"

#define CHECK(cond, ...)                                                                 \
    do {                                                                                 \
        if (!(cond)) {                                                                   \
            fprintf(stderr, "rank %d: %s:%d: %s: ", c->rank, __FILE__, __LINE__, #cond); \
            fprintf(stderr, __VA_ARGS__);                                                \
            fprintf(stderr, "\n");                                                       \
            return 1;                                                                    \
        }                                                                                \
    } while (0)

/* What rank r contributes at byte i of round k. */
static unsigned char comm_byte(int r, int k, size_t i)
{
    return (unsigned char)(r * 31 + k * 7 + (int)(i % 251));
}

/* Uneven lengths, zero among them, with guard bytes between the parts. */
static int check_gather(struct mu_comm *c, int first, int n, int k, size_t unit)
{
    enum { GUARD = 3 };
    struct mu_err err = MU_ERR_INIT;
    size_t off[8], len[8], total = 0;
    for (int i = 0; i < n; i++) {
        off[i] = total + GUARD;
        len[i] = (size_t)((i + k) % 3) * unit + (size_t)((i + k) % 3 ? i : 0);
        total = off[i] + len[i];
    }
    total += GUARD;
    unsigned char *buf = malloc(total);
    memset(buf, 0xee, total);
    int me = c->rank - first;
    for (size_t i = 0; i < len[me]; i++) buf[off[me] + i] = comm_byte(c->rank, k, i);
    CHECK(mu_comm_gather(c, first, n, buf, off, len, &err) == MU_OK, "%s", err.text);
    size_t at = 0;
    for (int r = 0; r < n; r++) {
        for (; at < off[r]; at++) CHECK(buf[at] == 0xee, "guard before part %d", r);
        for (size_t i = 0; i < len[r]; i++, at++)
            CHECK(buf[at] == comm_byte(first + r, k, i), "part %d, byte %zu", r, i);
    }
    for (; at < total; at++) CHECK(buf[at] == 0xee, "guard at the end");
    free(buf);
    return 0;
}

/* Two under way, as the halves of a chunk have them. */
static int check_two_gathers(struct mu_comm *c, int k)
{
    enum { N = 2, PART = 5000 };
    struct mu_err err = MU_ERR_INIT;
    struct mu_comm_batch batch[N];
    size_t off[8], len[8];
    unsigned char *buf = calloc(N, 8 * PART);
    for (int i = 0; i < c->n_rank; i++) {
        off[i] = (size_t)i * PART;
        len[i] = i % 3 == 2 ? 0 : PART - (size_t)(k * i);
    }
    for (int h = 0; h < N; h++) {
        unsigned char *own = buf + h * 8 * PART + off[c->rank];
        for (size_t i = 0; i < len[c->rank]; i++) own[i] = comm_byte(c->rank, k + h, i);
        CHECK(mu_comm_gather_begin(c, 0, c->n_rank, buf + h * 8 * PART, off, len, &batch[h], &err) == MU_OK, "%s",
              err.text);
        mu_comm_progress(c);
    }
    for (int h = 0; h < N; h++) {
        CHECK(mu_comm_gather_end(c, &batch[h], &err) == MU_OK, "%s", err.text);
        for (int r = 0; r < c->n_rank; r++)
            for (size_t i = 0; i < len[r]; i++)
                CHECK(buf[(size_t)h * 8 * PART + off[r] + i] == comm_byte(r, k + h, i), "gather %d, part %d, byte %zu",
                      h, r, i);
    }
    free(buf);
    return 0;
}

/* Many messages in flight in a ring of ranks: order is kept, nobody blocks. */
static int check_ring(struct mu_comm *c, size_t len)
{
    enum { N = 5 };
    struct mu_err err = MU_ERR_INIT;
    struct mu_comm_op *send[N], *recv[N];
    int to = (c->rank + 1) % c->n_rank, from = (c->rank + c->n_rank - 1) % c->n_rank;
    unsigned char *out = malloc(N * len), *in = calloc(N, len);
    for (size_t k = 0; k < N; k++) {
        memset(out + k * len, c->rank * 16 + (int)k, len);
        CHECK(mu_comm_isend(c, to, out + k * len, len, &send[k], &err) == MU_OK, "%s", err.text);
    }
    for (size_t k = 0; k < N; k++)
        CHECK(mu_comm_irecv(c, from, in + k * len, len, &recv[k], &err) == MU_OK, "%s", err.text);
    for (int k = N - 1; k >= 0; k--) { /* any order of waiting */
        CHECK(mu_comm_wait(c, recv[k], from, &err) == MU_OK, "%s", err.text);
        for (size_t i = 0; i < len; i++) CHECK(in[(size_t)k * len + i] == from * 16 + k, "message %d", k);
    }
    for (int k = 0; k < N; k++) CHECK(mu_comm_wait(c, send[k], to, &err) == MU_OK, "%s", err.text);
    mu_comm_progress(c);
    free(out);
    free(in);
    return 0;
}

/* Slow, of a machine that may be busy: nothing is said of how fast it is. */
static int check_measure(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    double us = 0, gbps = 0;
    if (c->rank > 1) return 0;
    CHECK(mu_comm_measure(c, 1 - c->rank, &us, &gbps, &err) == MU_OK, "%s", err.text);
    CHECK(us > 0 && gbps > 0, "%g us, %g GB/s", us, gbps);
    return 0;
}

static int check_all(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    CHECK(mu_comm_barrier(c, &err) == MU_OK, "%s", err.text);
    for (int k = 0; k < 20; k++)
        if (check_gather(c, 0, c->n_rank, k, (size_t)1 << (k % 18)) || check_two_gathers(c, k)) return 1;
    if (c->rank > 0 && check_gather(c, 1, c->n_rank - 1, 5, 1000)) return 1;
    if (check_ring(c, 3) || check_ring(c, 700000) || check_measure(c)) return 1;
    int value = c->rank == 1 ? 4711 : 0;
    CHECK(mu_comm_broadcast(c, 1, &value, sizeof value, &err) == MU_OK, "%s", err.text);
    CHECK(value == 4711, "broadcast brought %d", value);
    struct mu_comm_op *op;
    CHECK(mu_comm_isend(c, c->n_rank, &value, 1, &op, &err) == MU_EINVAL, "a rank that is not there");
    CHECK(mu_comm_isend(c, c->rank, &value, 1, &op, &err) == MU_EINVAL, "to itself");
    CHECK(mu_comm_barrier(c, &err) == MU_OK, "%s", err.text);
    return 0;
}

#endif
