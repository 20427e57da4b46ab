/* JSON read into jansson's trees, and whether it failed for want of memory; files of Hugging Face folders, with limits. */
#ifndef MU_MODEL_HF_JSON_H
#define MU_MODEL_HF_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "base/status.h"

/* As json_loadb, which calls it an invalid token where there was no memory for one: *no_memory_out says so. */
json_t *mu_json_load(const char *text, size_t len, size_t flags, json_error_t *e, bool *no_memory_out);
/* For tests: the n-th allocation from now on, counted from 1, that this thread's jansson makes fails; 0: none. Returns how
 * many were to come before the one that was set to fail; 0: it did. */
long mu_json_fail_at(long n);

/* One JSON value of len bytes; `shown` names where it is from. Names twice in an object are refused where `unique`,
 * else the last counts. The tree is freed with json_decref. MU_EFORMAT with line and column. */
enum mu_status mu_json_parse(const char *text, size_t len, const char *shown, bool unique, json_t **root_out,
                             struct mu_err *err);
/* A file of at most 16 MiB whose value is an object. MU_ENOENT where there is none. */
enum mu_status mu_json_read(const char *path, json_t **root_out, struct mu_err *err);

#endif
