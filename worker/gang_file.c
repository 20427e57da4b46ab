/* The gang folder's files. Nothing here outlives a call but the mapping of the records. */
#include "worker/gang_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "transport/rpc.h"

enum { GANG_FILE_MAX = 512 << 10 /* 256 adapters with long paths */ };

static enum mu_status path_make(char *buf, size_t buf_bytes, const char *folder, const char *name, struct mu_err *err)
{
    int n = snprintf(buf, buf_bytes, "%s/%s", folder, name);
    if (n < 0 || (size_t)n >= buf_bytes) return mu_fail(err, MU_ELIMIT, "the path %s/%s is too long", folder, name);
    return MU_OK;
}

enum mu_status mu_worker_gang_file_write(const char *folder, const Muster__Internal__V1__StartGangRequest *req,
                                         struct mu_err *err)
{
    char path[PATH_MAX];
    enum mu_status st = path_make(path, sizeof path, folder, "gang", err);
    if (st != MU_OK) return st;
    size_t len = muster__internal__v1__start_gang_request__get_packed_size(req);
    if (len > GANG_FILE_MAX)
        return mu_fail(err, MU_ELIMIT, "the gang's description has %zu bytes, at most %d are allowed", len,
                       (int)GANG_FILE_MAX);
    uint8_t *data = mu_malloc(len ? len : 1);
    if (!data) return mu_fail(err, MU_ENOMEM, "out of memory for %s", path);
    muster__internal__v1__start_gang_request__pack(req, data);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    ssize_t n = fd < 0 ? -1 : write(fd, data, len);
    if (n != (ssize_t)len) st = mu_fail(err, MU_EIO, "cannot write %s: %s", path, strerror(n < 0 ? errno : ENOSPC));
    if (fd >= 0) close(fd);
    explicit_bzero(data, len);
    mu_free(data);
    return st;
}

enum mu_status mu_worker_gang_file_read(const char *folder, Muster__Internal__V1__StartGangRequest **req_out,
                                        struct mu_err *err)
{
    char path[PATH_MAX], *data = NULL;
    size_t len = 0;
    enum mu_status st = path_make(path, sizeof path, folder, "gang", err);
    if (st == MU_OK) st = mu_file_read(path, GANG_FILE_MAX, &data, &len, err);
    if (st != MU_OK) return st;
    Muster__Internal__V1__StartGangRequest *req =
        muster__internal__v1__start_gang_request__unpack(NULL, len, (const uint8_t *)data);
    explicit_bzero(data, len);
    mu_free(data);
    if (req && req->secret.len == MU_GANG_SECRET) {
        *req_out = req;
        return MU_OK;
    }
    if (req) muster__internal__v1__start_gang_request__free_unpacked(req, NULL);
    return mu_fail(err, MU_EFORMAT, "%s is not a gang's description", path);
}

enum mu_status mu_worker_gang_records_open(const char *folder, int n_rank, bool create,
                                           struct mu_rank_record **records_out, struct mu_err *err)
{
    char path[PATH_MAX];
    enum mu_status st = path_make(path, sizeof path, folder, "shm/records", err);
    if (st != MU_OK) return st;
    size_t bytes = (size_t)n_rank * sizeof(struct mu_rank_record);
    struct stat sb;
    int fd = open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0600);
    void *map = MAP_FAILED;
    if (fd < 0) {
        st = mu_fail(err, MU_EIO, "cannot open %s: %s", path, strerror(errno));
    } else if (create && (errno = posix_fallocate(fd, 0, (off_t)bytes)) != 0) {
        st = mu_fail(err, MU_EIO, "cannot make %s %zu bytes long: %s", path, bytes, strerror(errno));
    } else if (fstat(fd, &sb) != 0 || sb.st_size != (off_t)bytes) {
        st = mu_fail(err, MU_EFORMAT, "%s does not hold the records of %d ranks", path, n_rank);
    } else if ((map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED) {
        st = mu_fail(err, MU_EIO, "cannot map %s: %s", path, strerror(errno));
    }
    if (fd >= 0) close(fd);
    if (st != MU_OK) return st;
    *records_out = map;
    for (int i = 0; create && i < n_rank; i++) mu_record_op(&(*records_out)[i], MU_OP_STARTING, MU_RECORD_NOBODY);
    return MU_OK;
}

void mu_worker_gang_records_close(struct mu_rank_record *records, int n_rank)
{
    if (records) munmap(records, (size_t)n_rank * sizeof *records);
}

/* Under another name first: the worker looks as soon as some rank has ended, perhaps at this very moment, and what it finds
 * half-written would be no error to it, but a rank that was killed. */
void mu_worker_gang_error_write(const char *folder, int rank, const struct mu_err *err)
{
    char name[32], path[PATH_MAX], made[PATH_MAX], text[MU_ERR_TEXT + 16];
    snprintf(name, sizeof name, "error.%d", rank);
    if (path_make(path, sizeof path, folder, name, NULL) != MU_OK) return;
    snprintf(name, sizeof name, "new-error.%d", rank);
    if (path_make(made, sizeof made, folder, name, NULL) != MU_OK) return;
    int len = snprintf(text, sizeof text, "%d %s", (int)err->code, err->text);
    int fd = open(made, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600); /* once a rank */
    if (fd < 0) return;
    bool whole = write(fd, text, (size_t)len) == len;
    close(fd);
    if (!whole || rename(made, path) != 0) unlink(made);
}

bool mu_worker_gang_error_read(const char *folder, int rank, struct mu_err *err_out)
{
    char name[32], path[PATH_MAX], *data = NULL, *text;
    size_t len;
    snprintf(name, sizeof name, "error.%d", rank);
    if (path_make(path, sizeof path, folder, name, NULL) != MU_OK) return false;
    if (mu_file_read(path, MU_ERR_TEXT + 16, &data, &len, NULL) != MU_OK) return false;
    long code = strtol(data, &text, 10);
    bool good = text != data && *text == ' ' && code > 0 && code < 1000;
    if (good) {
        mu_fail(err_out, (enum mu_status)code, "%s", text + 1);
        err_out->rank = rank;
    }
    mu_free(data);
    return good;
}

bool mu_worker_gang_error_permanent(enum mu_status code)
{
    switch (code) {
    case MU_EINVAL:
    case MU_EFORMAT:
    case MU_EUNSUPPORTED:
    case MU_ELIMIT:
    case MU_ENOENT:
    case MU_ENOMEM: return true;
    default: return false;
    }
}

bool mu_worker_gang_error_secondary(enum mu_status code)
{
    return code == MU_EPEER || code == MU_ETIMEOUT || code == MU_ECANCELLED;
}

struct mu_serving mu_worker_gang_serving(const Muster__Internal__V1__StartGangRequest *req,
                                         const struct mu_model *model)
{
    return (struct mu_serving){
        .n_ctx = (int)req->context,
        .n_slot = (int)req->parallel,
        .n_page = req->kv_pages,
        .step_tokens = (int)req->step_tokens,
        .n_adapter = (int)req->n_adapter,
        .n_thread = (int)req->threads,
        .window = mu_plan_window(model),
        .kv = (enum mu_kv_type)mu_kv_type_by_name(req->kv),
        .rough = req->rough_prompts,
    };
}

enum mu_status mu_worker_gang_adapters(const Muster__Internal__V1__StartGangRequest *req, const struct mu_model *model,
                                       struct mu_adapters **adapters_out, struct mu_err *err)
{
    size_t n = req->n_adapter;
    if (n > MU_MAX_ADAPTER)
        return mu_fail(err, MU_ELIMIT, "%zu adapters, at most %d can be loaded beside one model", n, MU_MAX_ADAPTER);
    struct mu_adapter_spec *spec = mu_calloc(n ? n : 1, sizeof *spec);
    if (!spec) return mu_fail(err, MU_ENOMEM, "out of memory for %zu adapters", n);
    enum mu_status st = MU_OK;
    for (size_t i = 0; i < n && st == MU_OK; i++) {
        const Muster__Internal__V1__Adapter *a = req->adapter[i];
        if (strlen(a->name) >= sizeof spec->name || strlen(a->path) >= sizeof spec->path)
            st = mu_fail(err, MU_EINVAL, "adapter %zu: its name or path is too long", i);
        else
            spec[i] = (struct mu_adapter_spec){.scale = a->scale};
        snprintf(spec[i].name, sizeof spec[i].name, "%s", a->name);
        snprintf(spec[i].path, sizeof spec[i].path, "%s", a->path);
    }
    if (st == MU_OK) st = mu_adapters_open(model, spec, (int)n, adapters_out, err);
    mu_free(spec);
    return st;
}
