/* Ranges of the parameters of sampling, in one place for the front door, the scheduler, step plans and the command line. */
#include "model/sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum mu_status mu_sampling_check(const struct mu_sampling *p, struct mu_err *err)
{
    const struct {
        const char *name;
        double value, min, max;
        bool zero; /* 0 is off */
    } range[] = {
        {"temperature", p->temperature, 1e-4, 100, true}, /* smaller ones overflow, and are greedy anyway */
        {"top_p", p->top_p, 0, 1, false},
        {"min_p", p->min_p, 0, 1, false},
        {"typical_p", p->typical_p, 0, 1, false},
        {"repeat_penalty", p->repeat_penalty, 0.01, 100, true},
        {"presence_penalty", p->presence_penalty, -2, 2, false},
        {"frequency_penalty", p->frequency_penalty, -2, 2, false},
        {"top_logprobs", p->top_logprobs, 0, MU_MAX_TOP_LOGPROBS, false},
    };
    for (size_t i = 0; i < sizeof range / sizeof *range; i++) {
        double v = range[i].value;
        if ((range[i].zero && v == 0) || (v >= range[i].min && v <= range[i].max)) continue;
        return mu_fail(err, MU_EINVAL, "%s must be %sfrom %g to %g, not %g", range[i].name,
                       range[i].zero ? "0 (off) or " : "", range[i].min, range[i].max, v);
    }
    if (p->top_logprobs > 0 && !p->logprobs)
        return mu_fail(err, MU_EINVAL, "top_logprobs is %u, but logprobs is not set", p->top_logprobs);
    return MU_OK;
}

static int by_id(const void *a, const void *b)
{
    int32_t x = ((const struct mu_bias *)a)->id, y = ((const struct mu_bias *)b)->id;
    return x < y ? -1 : x > y;
}

enum mu_status mu_biases_check(const struct mu_bias *bias, size_t n, int n_vocab, struct mu_err *err)
{
    struct mu_bias sorted[MU_MAX_BIASES];
    if (n > MU_MAX_BIASES) return mu_fail(err, MU_EINVAL, "logit_bias has more than %d tokens", (int)MU_MAX_BIASES);
    for (size_t i = 0; i < n; i++) {
        if (bias[i].id < 0 || bias[i].id >= n_vocab)
            return mu_fail(err, MU_EINVAL, "logit_bias: token %d is not in the vocabulary of %d", bias[i].id, n_vocab);
        if (!(fabsf(bias[i].bias) <= MU_SAMPLING_MAX_BIAS))
            return mu_fail(err, MU_EINVAL, "logit_bias of token %d must be from -%d to %d, not %g", bias[i].id,
                           (int)MU_SAMPLING_MAX_BIAS, (int)MU_SAMPLING_MAX_BIAS, (double)bias[i].bias);
    }
    if (n) memcpy(sorted, bias, n * sizeof *bias);
    qsort(sorted, n, sizeof *sorted, by_id);
    for (size_t i = 1; i < n; i++)
        if (sorted[i].id == sorted[i - 1].id)
            return mu_fail(err, MU_EINVAL, "logit_bias names token %d twice", sorted[i].id);
    return MU_OK;
}
