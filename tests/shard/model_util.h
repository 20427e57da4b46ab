/* What tests of models share: calls that must succeed, models of random weights, the likeliest id. */
#ifndef MU_TESTS_MODEL_UTIL_H
#define MU_TESTS_MODEL_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/model.h"
#include "model/synth.h"

/* expr names its error `err`. */
#define MUST(expr)                                                 \
    do {                                                           \
        struct mu_err err_ = MU_ERR_INIT;                          \
        struct mu_err *err = &err_;                                \
        if ((expr) != MU_OK) fail_msg("%s: %s", #expr, err_.text); \
    } while (0)

/* A model whose file is nowhere any more. */
static inline struct mu_model *synth_open(const struct mu_synth *spec)
{
    struct mu_model *m = NULL;
    char path[300];
    const char *tmp = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/muster-test-%d.gguf", tmp ? tmp : "/tmp", (int)getpid());
    MUST(mu_synth_write(spec, path, NULL, NULL, err));
    MUST(mu_model_open(path, &m, err));
    unlink(path);
    return m;
}

/* Of the first n; the lower one where two are as likely. */
static inline int32_t likeliest(const float *row, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (row[i] > row[best]) best = i;
    return best;
}

#endif
