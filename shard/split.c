/* The text of a split, read by hand: strtod would take locales, exponents, hexadecimal and "nan". */
#include "shard/split.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

enum { MAX_INT_DIGITS = 7, MAX_DECIMALS = 6, MAX_WEIGHT = 1000000, SHOWN = 80 };

/* "split '3:/1': position 3: expected …". Only the start of a long text is shown. */
static enum mu_status split_fail(struct mu_err *err, const char *text, size_t at, const char *expected)
{
    size_t len = strlen(text);
    return mu_fail(err, MU_EINVAL, "split '%.*s%s': position %zu: expected %s, for example 3:1/1", SHOWN, text,
                   len > SHOWN ? "…" : "", at + 1, expected);
}

/* digits[.digits] at *p. In units of 1e-6, so that a weight is exact until the one division at the end. */
static bool weight_parse(const char **p, double *weight_out)
{
    const char *s = *p;
    long long micro = 0;
    int n_int = 0, n_dec = 0;
    for (; *s >= '0' && *s <= '9'; s++, n_int++) {
        if (n_int == MAX_INT_DIGITS) return false;
        micro = micro * 10 + (*s - '0');
    }
    if (n_int == 0) return false;
    if (*s == '.') {
        for (s++; *s >= '0' && *s <= '9'; s++, n_dec++) {
            if (n_dec == MAX_DECIMALS) return false;
            micro = micro * 10 + (*s - '0');
        }
        if (n_dec == 0) return false;
    }
    for (; n_dec < MAX_DECIMALS; n_dec++) micro *= 10;
    if (micro <= 0 || micro > MAX_WEIGHT * 1000000LL) return false;
    *weight_out = (double)micro / 1e6;
    *p = s;
    return true;
}

/* Digits at *p, where there are any; false: more than `most`. *n_digit_out may be 0. */
static bool number_parse(const char **p, int most, int *n_out, int *n_digit_out)
{
    *n_out = *n_digit_out = 0;
    for (; **p >= '0' && **p <= '9'; (*p)++, (*n_digit_out)++) {
        *n_out = *n_out * 10 + (**p - '0');
        if (*n_out > most) return false;
    }
    return true;
}

/* "@cpu", "@gpu" or "@gpuN", and "~n" behind a GPU, at *p, or nothing. *next: the GPU that "@gpu" means. */
static bool place_parse(const char **p, int *next, int *device_out, int *streamed_out)
{
    const char *s = *p;
    int n, n_digit;
    *device_out = MU_ON_CPU;
    *streamed_out = 0;
    if (*s != '@') return true;
    if (!strncmp(s, "@cpu", 4)) {
        *p = s + 4;
        return true;
    }
    if (strncmp(s, "@gpu", 4) != 0) return false;
    s += 4;
    if (!number_parse(&s, MU_MAX_GPUS - 1, &n, &n_digit)) return false;
    if (n_digit == 0) n = *next;
    if (n >= MU_MAX_GPUS) return false;
    *next = n + 1;
    *device_out = n;
    if (*s == '~') {
        s++;
        if (!number_parse(&s, MU_MAX_STREAMED, streamed_out, &n_digit) || *streamed_out == 0) return false;
    }
    *p = s;
    return true;
}

enum mu_status mu_split_parse(const char *text, struct mu_split *split_out, struct mu_err *err)
{
    struct mu_split split = {.n_stage = 1};
    const char *p = text;
    int next_gpu = 0;
    for (;;) {
        double weight;
        int device, streamed;
        const char *at = p;
        if (!weight_parse(&p, &weight))
            return split_fail(err, text, (size_t)(at - text),
                              "a weight above 0, up to 1000000, with at most 6 decimals");
        at = p;
        if (!place_parse(&p, &next_gpu, &device, &streamed))
            return split_fail(err, text, (size_t)(at - text),
                              "'@cpu', '@gpu' or '@gpuN' with N from 0 to 15, and behind a GPU '~n' with n from 1 on");
        if (split.n_rank == MU_MAX_RANKS)
            return mu_fail(err, MU_EINVAL, "split '%.*s…': more than %d ranks", SHOWN, text, MU_MAX_RANKS);
        split.stage_of[split.n_rank] = split.n_stage - 1;
        split.device[split.n_rank] = device;
        split.streamed[split.n_rank] = streamed;
        split.weight[split.n_rank++] = weight;
        if (*p == '\0') break;
        if (*p != ':' && *p != '/')
            return split_fail(err, text, (size_t)(p - text),
                              p == at ? "'@', ':', '/' or the end" : "':', '/' or the end");
        if (*p == '/') split.n_stage++;
        p++;
    }
    for (int i = split.n_rank; i < MU_MAX_RANKS; i++) split.device[i] = MU_ON_CPU;
    *split_out = split;
    return MU_OK;
}

bool mu_split_has_gpu(const struct mu_split *split)
{
    return mu_split_cpu_ranks(split) < split->n_rank;
}

int mu_split_cpu_ranks(const struct mu_split *split)
{
    int n = 0;
    for (int i = 0; i < split->n_rank; i++) n += split->device[i] == MU_ON_CPU;
    return n;
}

/* At most 6 decimals, without trailing zeros. */
static int weight_format(double weight, char *buf, size_t buf_bytes)
{
    long long micro = llround(weight * 1e6);
    if (micro < 1) micro = 1;
    int len = snprintf(buf, buf_bytes, "%lld.%06lld", micro / 1000000, micro % 1000000);
    while (len > 0 && buf[len - 1] == '0') len--;
    if (len > 0 && buf[len - 1] == '.') len--;
    buf[len] = '\0';
    return len;
}

void mu_split_format(const struct mu_split *split, char *buf, size_t buf_bytes)
{
    size_t len = 0;
    if (buf_bytes) buf[0] = '\0';
    for (int i = 0; i < split->n_rank; i++) {
        char one[32], place[32] = "";
        weight_format(split->weight[i], one, sizeof one);
        if (split->device[i] != MU_ON_CPU)
            snprintf(place, sizeof place, split->streamed[i] > 0 ? "@gpu%d~%d" : "@gpu%d", split->device[i],
                     split->streamed[i]);
        const char *joint = i == 0 ? "" : split->stage_of[i] == split->stage_of[i - 1] ? ":" : "/";
        int n = snprintf(buf + len, buf_bytes - len, "%s%s%s", joint, one, place);
        if (n < 0 || (size_t)n >= buf_bytes - len) return;
        len += (size_t)n;
    }
}
