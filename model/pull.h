/* Downloading models into Muster's own store.
 *
 *   llama3.2:1b, user/model:tag      Ollama's registry: a manifest, then its blobs
 *   hf.co/user/repo[:Q4_K_M]         the Hugging Face hub: a list of files, then those that make up one model
 *
 * Promises: every file is checked by size and hash before it gets its name; the manifest comes last, so that a model is
 * there as a whole or not at all; what has arrived of an interrupted download (`blobs/…-partial`) is gone on with, by
 * this process or a later one; two pulls of one file wait for each other; a token goes to the hub alone, never to where
 * it redirects; TLS is verified, and plain http happens only where the base address says so.
 *
 * Environment: MUSTER_OLLAMA_REGISTRY and HF_ENDPOINT name other servers (mirrors, tests); HF_TOKEN, HF_TOKEN_PATH,
 * $HF_HOME/token, $XDG_CACHE_HOME/huggingface/token; proxies as libcurl reads them (https_proxy …).
 * Threads: one pull a thread. The caller has called nothing of libcurl. */
#ifndef MU_MODEL_PULL_H
#define MU_MODEL_PULL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

struct mu_pull_options {
    int timeout_s;           /* a connection that is silent for so long is given up; 0: 30 */
    int tries;               /* in a row without anything new; 0: 6 */
    int64_t first_wait_ms;   /* before the second try, doubled for each next one up to 16 s; 0: 500 */
    bool (*stop)(void *ctx); /* asked often: true ends the pull with MU_ECANCELLED, to be gone on with; NULL: never */
    void (*say)(const char *line, void *ctx); /* what happens now, one line without newline; NULL: nobody listens */
    void (*progress)(uint64_t done, uint64_t total, void *ctx); /* bytes of the whole model; NULL */
    void *ctx;
};

/* name_out: the model's name in the store, for mu_store_find; mu_free.
 * Errors: MU_ENOENT (no such model), MU_EINVAL (no name that can be pulled; several files, named: say which),
 * MU_EUNSUPPORTED (nothing in it that runs), MU_EPROTO (the server's answers make no sense, or a hash is wrong),
 * MU_EPEER, MU_ETIMEOUT (the network, after all tries), MU_EBUSY (it asks to come later), MU_EIO (disk),
 * MU_ECANCELLED. */
enum mu_status mu_pull(const char *name, const struct mu_pull_options *opt, char **name_out, struct mu_err *err);

#endif
