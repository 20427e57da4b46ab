/* Ranks that are processes of one Open MPI job.
 *
 * Bytes only (Open MPI checks no types across machines), Isend, Irecv and Test only: a blocking collective would hang
 * on a lost peer, and Open MPI 4 has no way to recover from one. So an error or a timeout means that this process
 * ends: then close does not finalise, because MPI_Finalize would wait for the lost peer; mpirun ends the rest of the
 * job.
 *
 * Only opening is collective (MPI_Init, Comm_dup, one Allgather of the machines' names). What hangs there hangs before
 * any request is here: mpirun ends the job of a rank that dies, and the worker a gang that is not ready in time.
 *
 * Open MPI moves data only inside its calls: progress() is one Iprobe for a tag that nobody uses.
 *
 * Between machines a message of up to 8 MB goes at once. By default Open MPI asks the receiver first above 64 KB, and
 * then has it ask for each 128 KB: a round trip of the link's latency for each. What arrives before its receive is
 * posted is kept by Open MPI; there is never more than the parts of the next exchange, or the steps in flight.
 *
 * Thread: the one that opened it (MPI_THREAD_FUNNELED). */
#include <limits.h>
#include <mpi.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "transport/comm.h"

enum { DATA_TAG = 0, UNUSED_TAG = 1, DEFAULT_TIMEOUT_MS = 30000, CLOSE_TIMEOUT_MS = 2000 };

struct mu_comm_op {
    MPI_Request request;
    bool is_send;
    int peer;
    int len;
    struct mu_comm_op *next;
};

struct mpi {
    struct mu_comm head;
    MPI_Comm comm;
    bool initialised, failed;
    int n_in_flight;
    int *node_of;
    struct mu_comm_op *free_ops;
};

static struct mpi *mpi_of(struct mu_comm *c)
{
    return (struct mpi *)c;
}

static enum mu_status mpi_failed(struct mpi *m, int rc, const char *what, int peer, struct mu_err *err)
{
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int len = 0, class = MPI_ERR_OTHER;
    MPI_Error_class(rc, &class);
    if (MPI_Error_string(rc, text, &len) != MPI_SUCCESS) snprintf(text, sizeof text, "MPI error %d", rc);
    m->failed = true;
    enum mu_status code = class == MPI_ERR_TRUNCATE ? MU_EPROTO : MU_EPEER;
    if (peer < 0) return mu_fail(err, code, "%s: %s", what, text);
    mu_fail(err, code, "rank %d %s rank %d: %s", m->head.rank, what, peer, text);
    if (err) err->rank = peer;
    return code;
}

static struct mu_comm_op *op_take(struct mpi *m, size_t len, int peer, bool is_send, struct mu_err *err)
{
    if (len > INT_MAX) {
        mu_fail(err, MU_ELIMIT, "a message of %zu bytes for rank %d, expected at most %d", len, peer, INT_MAX);
        return NULL;
    }
    struct mu_comm_op *op = m->free_ops;
    if (op)
        m->free_ops = op->next;
    else
        op = mu_malloc(sizeof *op);
    if (!op) {
        mu_fail(err, MU_ENOMEM, "no memory for a message %s rank %d", is_send ? "to" : "from", peer);
        return NULL;
    }
    *op = (struct mu_comm_op){.request = MPI_REQUEST_NULL, .is_send = is_send, .peer = peer, .len = (int)len};
    m->n_in_flight++;
    return op;
}

static void op_give(struct mpi *m, struct mu_comm_op *op)
{
    m->n_in_flight--;
    op->next = m->free_ops;
    m->free_ops = op;
}

static enum mu_status mpi_isend(struct mu_comm *c, int to, const void *buf, size_t len, struct mu_comm_op **op_out,
                                struct mu_err *err)
{
    struct mpi *m = mpi_of(c);
    struct mu_comm_op *op = op_take(m, len, to, true, err);
    if (!op) return err ? err->code : MU_ENOMEM;
    int rc = MPI_Isend(buf, op->len, MPI_BYTE, to, DATA_TAG, m->comm, &op->request);
    if (rc != MPI_SUCCESS) {
        op_give(m, op);
        return mpi_failed(m, rc, "sends to", to, err);
    }
    *op_out = op;
    return MU_OK;
}

static enum mu_status mpi_irecv(struct mu_comm *c, int from, void *buf, size_t len, struct mu_comm_op **op_out,
                                struct mu_err *err)
{
    struct mpi *m = mpi_of(c);
    struct mu_comm_op *op = op_take(m, len, from, false, err);
    if (!op) return err ? err->code : MU_ENOMEM;
    int rc = MPI_Irecv(buf, op->len, MPI_BYTE, from, DATA_TAG, m->comm, &op->request);
    if (rc != MPI_SUCCESS) {
        op_give(m, op);
        return mpi_failed(m, rc, "receives from", from, err);
    }
    *op_out = op;
    return MU_OK;
}

static int mpi_test(struct mu_comm *c, struct mu_comm_op *op, struct mu_err *err)
{
    struct mpi *m = mpi_of(c);
    MPI_Status status;
    int done = 0, count = op->len;
    int rc = MPI_Test(&op->request, &done, &status);
    if (rc == MPI_SUCCESS && !done) return 0;
    if (rc == MPI_SUCCESS && !op->is_send) rc = MPI_Get_count(&status, MPI_BYTE, &count);
    int result = 1;
    if (rc != MPI_SUCCESS) {
        mpi_failed(m, rc, op->is_send ? "sends to" : "receives from", op->peer, err);
        result = -1;
    } else if (count != op->len) {
        m->failed = true;
        mu_fail(err, MU_EPROTO, "rank %d receives from rank %d: a message of %d bytes, expected %d", c->rank, op->peer,
                count, op->len);
        if (err) err->rank = op->peer;
        result = -1;
    }
    op_give(m, op);
    return result;
}

/* A receive can be taken back; a send cannot, but the process is about to end and MPI only reads its buffer. */
static void mpi_drop(struct mu_comm *c, struct mu_comm_op *op)
{
    struct mpi *m = mpi_of(c);
    m->failed = true;
    if (op->request != MPI_REQUEST_NULL) {
        if (!op->is_send) MPI_Cancel(&op->request);
        MPI_Request_free(&op->request);
    }
    op_give(m, op);
}

static void mpi_progress(struct mu_comm *c)
{
    int flag;
    MPI_Iprobe(MPI_ANY_SOURCE, UNUSED_TAG, mpi_of(c)->comm, &flag, MPI_STATUS_IGNORE);
}

static void mpi_close(struct mu_comm *c)
{
    struct mpi *m = mpi_of(c);
    if (m->initialised) {
        bool clean = !m->failed && m->n_in_flight == 0;
        if (clean && m->comm != MPI_COMM_NULL) {
            c->timeout_ms = CLOSE_TIMEOUT_MS;
            clean = mu_comm_barrier(c, NULL) == MU_OK; /* nobody finalises while a peer is lost */
        }
        if (clean) {
            if (m->comm != MPI_COMM_NULL) MPI_Comm_free(&m->comm);
            MPI_Finalize();
        }
    }
    while (m->free_ops) {
        struct mu_comm_op *next = m->free_ops->next;
        mu_free(m->free_ops);
        m->free_ops = next;
    }
    mu_free(m->node_of);
    mu_free(m);
}

static const struct mu_comm_ops mpi_ops = {
    .name = "mpi",
    .isend = mpi_isend,
    .irecv = mpi_irecv,
    .test = mpi_test,
    .drop = mpi_drop,
    .progress = mpi_progress,
    .close = mpi_close,
};

/* Parameters of Open MPI's TCP; what mpirun was told of them holds. */
static void tcp_settle(void)
{
    static const char *const with[][2] = {
        {"OMPI_MCA_btl_tcp_eager_limit", "8388608"},
        {"OMPI_MCA_btl_tcp_rndv_eager_limit", "8388608"},
        {"OMPI_MCA_btl_tcp_max_send_size", "8388608"},
        {"OMPI_MCA_btl_tcp_free_list_num", "1"}, /* buffers of that size: as many as are used, not 32 at once */
        {"OMPI_MCA_btl_tcp_free_list_inc", "1"},
    };
    for (size_t i = 0; i < sizeof with / sizeof *with; i++) setenv(with[i][0], with[i][1], 0);
}

/* A machine is its first rank. Collective, as opening is. */
static enum mu_status find_nodes(struct mpi *m, struct mu_err *err)
{
    enum { NAME = MPI_MAX_PROCESSOR_NAME };
    int n = m->head.n_rank, len;
    char own[NAME] = "", *all = mu_calloc((size_t)n, NAME);
    m->node_of = mu_calloc((size_t)n, sizeof *m->node_of);
    if (!all || !m->node_of) {
        mu_free(all);
        return mu_fail(err, MU_ENOMEM, "no memory for the machines of %d ranks", n);
    }
    int rc = MPI_Get_processor_name(own, &len);
    if (rc == MPI_SUCCESS) rc = MPI_Allgather(own, NAME, MPI_BYTE, all, NAME, MPI_BYTE, m->comm);
    for (int i = 0; i < n && rc == MPI_SUCCESS; i++)
        while (memcmp(all + (size_t)m->node_of[i] * NAME, all + (size_t)i * NAME, NAME) != 0) m->node_of[i]++;
    mu_free(all);
    for (int i = 0; i < n && !m->head.node_of; i++)
        if (m->node_of[i] > 0) m->head.node_of = m->node_of;
    return rc == MPI_SUCCESS ? MU_OK : mpi_failed(m, rc, "the names of the machines", -1, err);
}

enum mu_status mu_comm_mpi_open(struct mu_comm **comm_out, struct mu_err *err)
{
    struct mpi *m = mu_calloc(1, sizeof *m);
    if (!m) return mu_fail(err, MU_ENOMEM, "no memory for the MPI transport");
    m->comm = MPI_COMM_NULL;
    m->head.ops = &mpi_ops;
    int provided = MPI_THREAD_SINGLE;
    tcp_settle();
    int rc = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &provided);
    if (rc != MPI_SUCCESS) {
        mpi_failed(m, rc, "MPI_Init_thread", -1, err);
        goto fail;
    }
    m->initialised = true;
    if (provided < MPI_THREAD_FUNNELED) {
        mu_fail(err, MU_EUNSUPPORTED, "this MPI library has no MPI_THREAD_FUNNELED: install Debian's libopenmpi3");
        goto fail;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    rc = MPI_Comm_dup(MPI_COMM_WORLD, &m->comm); /* inherits the error handler */
    if (rc != MPI_SUCCESS) {
        m->comm = MPI_COMM_NULL;
        mpi_failed(m, rc, "MPI_Comm_dup", -1, err);
        goto fail;
    }
    MPI_Comm_rank(m->comm, &m->head.rank);
    MPI_Comm_size(m->comm, &m->head.n_rank);
    m->head.timeout_ms = DEFAULT_TIMEOUT_MS;
    if (find_nodes(m, err) != MU_OK) goto fail;
    *comm_out = &m->head;
    return MU_OK;
fail:
    m->failed = true;
    mpi_close(&m->head);
    return err ? err->code : MU_EPEER;
}
