/* Files and descriptors: whole writes with deadlines, files that appear complete or not at all, run
 * folders. */
#ifndef MU_BASE_IO_H
#define MU_BASE_IO_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* All len bytes over a (blocking or non-blocking) socket or pipe before the deadline. MU_EPEER where nobody reads any
 * more, MU_ETIMEOUT; both name `peer`. SIGPIPE is never raised on sockets. */
enum mu_status mu_fd_write(int fd, const void *buf, size_t len, int64_t deadline_ns, const char *peer,
                           struct mu_err *err);

/* The whole file, NUL-terminated beyond len_out, freed with mu_free. Longer than max_bytes: MU_ELIMIT. */
enum mu_status mu_file_read(const char *path, size_t max_bytes, char **data_out, size_t *len_out, struct mu_err *err);

/* A file that appears under its name complete or not at all: written beside it as path.partial-PID, fsynced, renamed.
 * Close with commit = 0 removes it. */
struct mu_file_writer;
enum mu_status mu_file_writer_open(const char *path, struct mu_file_writer **w_out, struct mu_err *err);
enum mu_status mu_file_writer_write(struct mu_file_writer *w, const void *data, size_t len, struct mu_err *err);
uint64_t mu_file_writer_offset(const struct mu_file_writer *w);
enum mu_status mu_file_writer_close(struct mu_file_writer *w, int commit, struct mu_err *err); /* frees w always */
/* Removes the partial file of the open writer, of several the first one's: for handlers of signals that end the process. */
void mu_file_writer_abandon(void);

/* A fresh private folder (0700) under $XDG_RUNTIME_DIR or $TMPDIR or /tmp: "muster-PID-XXXXXX". Path freed with
 * mu_free; at most 76 bytes, so that a socket in it has room for its name, and no comma, at which gRPC would split it.
 * The file "lock" in it is locked until this process removes the folder or ends. */
enum mu_status mu_run_dir_create(char **path_out, struct mu_err *err);
/* The same in `parent`, of any length. */
enum mu_status mu_run_dir_create_in(const char *parent, char **path_out, struct mu_err *err);
/* The folder and everything in it (no links followed); errors, and names that mu_run_dir_create never makes, ignored. */
void mu_run_dir_remove(const char *path);
/* Removes the run folders of this user's processes that ended without doing it, in the three places above and in
 * /dev/shm. Folders whose lock is held, or that have files but no lock, stay. */
void mu_run_dir_sweep(void);

#endif
