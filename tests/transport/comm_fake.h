/* The local transport with faults, deterministic from the seed: every message is delayed by up to max_delay_polls tests;
 * the fault_at-th operation of fault_rank (1-based; 0 = never) does what fault says. */
#ifndef MU_TESTS_COMM_FAKE_H
#define MU_TESTS_COMM_FAKE_H

#include "transport/comm.h"

enum mu_comm_fault {
    MU_FAULT_NONE,
    MU_FAULT_SILENT, /* the peer never answers again */
    MU_FAULT_GONE,   /* operations with it fail */
};
struct mu_comm_fake {
    uint64_t seed;
    int max_delay_polls;
    int fault_rank;
    long fault_at;
    enum mu_comm_fault fault;
};
enum mu_status mu_comm_fake_open(int n_rank, const struct mu_comm_fake *fake, struct mu_comm **comms_out,
                                 struct mu_err *err);

#endif
