/* One rank of an MPI job (mpirun starts three): the same checks as on threads. */
#include "comm_checks.h"

#include "base/clock.h"

static int bad_length(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf[8] = {0};
    if (c->rank == 0) CHECK(mu_comm_send(c, 1, buf, 6, &err) == MU_OK, "%s", err.text);
    if (c->rank == 1) CHECK(mu_comm_recv(c, 0, buf, 4, &err) == MU_EPROTO, "%s", err.text);
    return 0;
}

static int silent_peer(struct mu_comm *c)
{
    struct mu_err err = MU_ERR_INIT;
    char buf[8] = {0};
    c->timeout_ms = 80;
    if (c->rank == 2) CHECK(mu_comm_recv(c, 1, buf, 4, &err) == MU_ETIMEOUT && err.rank == 1, "%s", err.text);
    if (c->rank == 1) mu_sleep_ms(200);
    return 0;
}

int main(void)
{
    struct mu_comm *comm = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_comm_mpi_open(&comm, &err) != MU_OK) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    const char *clean = getenv("MUSTER_TEST_CLEAN_END");
    int failed = check_all(comm);
    if (!failed && !clean) failed = bad_length(comm) || silent_peer(comm);
    if (!failed && !clean) {
        printf("rank %d ok\n", comm->rank);
        fflush(stdout);
        mu_sleep_ms(500); /* mpirun ends the job with the first rank that has not finalised */
    }
    mu_comm_close(comm);
    return failed;
}
