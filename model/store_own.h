/* Muster's own store: the only one that is ever written to. Ollama's layout (model/store_manifest.c), so that its tools
 * can read it, and Muster's own kinds of layers where a model is several files or lies in another program's store.
 *
 *   ROOT/lock                 shared by whoever adds, exclusive for removing blobs
 *   ROOT/blobs/…-partial      a download under way, or to be gone on with
 *
 * A manifest is written last and by renaming: a model is there as a whole or not at all. A blob goes with the last
 * manifest that names it, removed or replaced; it stays where another muster is adding models while one is replaced. */
#ifndef MU_MODEL_STORE_OWN_H
#define MU_MODEL_STORE_OWN_H

#include "model/modelfile.h"

/* Makes `name` of base and a Modelfile (NULL: nothing to add). Weights are never copied: of Muster's own models the blobs
 * are shared, others stay where they are and are named by path. folder: of the Modelfile, for relative paths of
 * adapters. MU_EINVAL: no fit name. */
enum mu_status mu_own_create(const char *name, const struct mu_store_model *base, const struct mu_modelfile *file,
                             const char *folder, struct mu_err *err);
/* Another name for a model of any store. */
enum mu_status mu_own_copy(const char *from, const char *to, struct mu_err *err);
/* freed_out: bytes. MU_EINVAL for models of other programs, named; MU_EBUSY while a pull runs. */
enum mu_status mu_own_remove(const char *name, uint64_t *freed_out, struct mu_err *err);

/* ---- for pull.c ---- */

struct mu_store_name;
struct mu_manifest;
/* Makes the folders and takes the lock: close *lock_fd_out to release it. *root_out: mu_free. */
enum mu_status mu_own_open(bool exclusive, char **root_out, int *lock_fd_out, struct mu_err *err);
/* Writes a manifest whose blobs are all there, and the links of its files before it; then removes what only the manifest
 * in its place had. The last thing under a lock: lock_fd's, shared before, may be exclusive or gone after. */
enum mu_status mu_own_commit(const char *root, int lock_fd, const struct mu_store_name *name, const char *text,
                             size_t len, struct mu_err *err);

#endif
