/* What a worker and the ranks that it starts have in common: the gang's private folder.
 *
 *   FOLDER/gang      0600, the packed StartGangRequest with every default filled in (threads, context, pages, …)
 *   FOLDER/shm/      on a memory file system where there is one:
 *     records        n_rank × struct mu_rank_record, mapped by all
 *     vader_segment… Open MPI's
 *   FOLDER/error.N   what ended rank N: "CODE TEXT", written by the rank; there as a whole or not at all
 *   FOLDER/ompi…     Open MPI's session
 *
 * Threads: any; files are written once, the records are atomics. */
#ifndef MU_WORKER_GANG_FILE_H
#define MU_WORKER_GANG_FILE_H

#include <stdbool.h>

#include "base/record.h"
#include "base/status.h"
#include "muster/v1/internal.pb-c.h"
#include "shard/plan.h"

enum { MU_GANG_SECRET = 32, MU_GANG_NAME_MAX = 64 };

enum mu_status mu_worker_gang_file_write(const char *folder, const Muster__Internal__V1__StartGangRequest *req,
                                         struct mu_err *err);
/* *req_out is freed with muster__internal__v1__start_gang_request__free_unpacked(req, NULL). */
enum mu_status mu_worker_gang_file_read(const char *folder, Muster__Internal__V1__StartGangRequest **req_out,
                                        struct mu_err *err);

/* Creates (worker) or opens (rank) the records; unmap with mu_worker_gang_records_close. */
enum mu_status mu_worker_gang_records_open(const char *folder, int n_rank, bool create,
                                           struct mu_rank_record **records_out, struct mu_err *err);
void mu_worker_gang_records_close(struct mu_rank_record *records, int n_rank);

/* Best effort: the process is about to end. */
void mu_worker_gang_error_write(const char *folder, int rank, const struct mu_err *err);
/* true: rank left an error; err_out->rank is rank. */
bool mu_worker_gang_error_read(const char *folder, int rank, struct mu_err *err_out);
/* Of a gang that could not start: to start it again the same way cannot help, the input is at fault or there is no memory. */
bool mu_worker_gang_error_permanent(enum mu_status code);
/* The error is of another rank's making: it went away or kept this one waiting. */
bool mu_worker_gang_error_secondary(enum mu_status code);

/* The adapters of a request, opened beside its model. */
enum mu_status mu_worker_gang_adapters(const Muster__Internal__V1__StartGangRequest *req, const struct mu_model *model,
                                       struct mu_adapters **adapters_out, struct mu_err *err);
/* The limits that a request with its defaults filled in stands for. */
struct mu_serving mu_worker_gang_serving(const Muster__Internal__V1__StartGangRequest *req,
                                         const struct mu_model *model);

#endif
