/* JSON out of a Hugging Face folder: read, with limits, into jansson's trees. */
#ifndef MU_MODEL_HF_JSON_H
#define MU_MODEL_HF_JSON_H

#include <jansson.h>
#include <stdbool.h>

#include "base/status.h"

/* One JSON value of len bytes; `shown` names where it is from. Names twice in an object are refused where `unique`,
 * else the last counts. The tree is freed with json_decref. MU_EFORMAT with line and column. */
enum mu_status mu_json_parse(const char *text, size_t len, const char *shown, bool unique, json_t **root_out,
                             struct mu_err *err);
/* A file of at most 16 MiB whose value is an object. MU_ENOENT where there is none. */
enum mu_status mu_json_read(const char *path, json_t **root_out, struct mu_err *err);

#endif
