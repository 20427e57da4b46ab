/* --quantize: matrices that are quantised when they are loaded.
 *
 * The model is told first: each such matrix becomes a tensor of the new type that names the file's as its source, so
 * plans, memory and the forms of inputs are those of a quantised file. The loader (shard/load.c) makes the rows, each
 * rank its own. A row is quantised whole, so no bit depends on the split.
 *
 * What stays as it is: norms, biases, the router (small, and a wrong choice costs more than its bytes) and the
 * embedding, which is read from the mapped file a row a token and takes no memory of a rank. The output matrix gets at
 * least Q6_K: its errors go straight into the logits. */
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "kernels/quantize_rows.h"
#include "model/arch.h"

/* "q8_0, q4_0, …" */
static const char *type_names(char *buf, size_t buf_bytes)
{
    size_t len = 0;
    buf[0] = 0;
    for (uint32_t type = 0; type < MU_TYPE_LIMIT && len < buf_bytes; type++)
        if (mu_quantize_knows(type))
            len += (size_t)snprintf(buf + len, buf_bytes - len, "%s%s", len ? ", " : "", mu_type_info(type)->name);
    return buf;
}

enum mu_status mu_quantize_type(const char *name, uint32_t *type_out, struct mu_err *err)
{
    char names[192];
    int type = mu_type_by_name(name);
    if (type < 0 || !mu_quantize_knows((uint32_t)type))
        return mu_fail(err, MU_EINVAL, "--quantize %.32s: expected one of %s", name, type_names(names, sizeof names));
    *type_out = (uint32_t)type;
    return MU_OK;
}

static bool is_float(uint32_t type)
{
    return type == MU_F32 || type == MU_F16 || type == MU_BF16;
}

static double bits(uint32_t type)
{
    const struct mu_type_info *info = mu_type_info(type);
    return 8.0 * info->block_bytes / info->block_values;
}

/* The type for rows of n_col values: `type` where they are whole blocks, else the next that fits, else `from`; `from` too
 * where `type` is no smaller. */
static uint32_t type_for(uint32_t type, uint64_t n_col, uint32_t from)
{
    uint32_t tries[] = {type, MU_Q8_0, MU_F16};
    if (bits(type) >= bits(from)) return from;
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++)
        if (n_col % (uint64_t)mu_type_info(tries[i])->block_values == 0 && bits(tries[i]) < bits(from)) return tries[i];
    return from;
}

struct count {
    int n_done, n_other; /* matrices quantised; those that do not get the type that was asked for */
};

/* A tensor in another type at *q, or the file's. */
static const struct mu_gguf_tensor *quantized(const struct mu_gguf_tensor *t, uint32_t type, struct mu_gguf_tensor *q,
                                              struct count *n)
{
    if (!is_float(t->type)) return t;
    uint32_t fits = type_for(type, t->ne[0], t->type);
    n->n_other += fits != type && bits(type) < bits(t->type);
    if (fits == t->type) return t;
    *q = *t;
    q->type = fits;
    mu_type_row_bytes(fits, t->ne[0], &q->row_bytes); /* smaller than the file's: no overflow */
    q->bytes = q->row_bytes * (size_t)q->n_row;
    q->data = NULL;
    q->runs = NULL;
    q->source = t;
    n->n_done++;
    return q;
}

enum mu_status mu_model_quantize(struct mu_model *m, const char *name, struct mu_err *err)
{
    uint32_t type;
    struct count n = {0, 0};
    if (!name || !*name) return MU_OK;
    enum mu_status st = mu_quantize_type(name, &type, err);
    if (st != MU_OK) return st;
    struct mu_gguf_tensor *q = mu_calloc((size_t)m->cfg.n_layer * MU_T_MATRIX_COUNT + 1, sizeof *q);
    if (!q) return mu_gguf_fail(m->gguf, MU_ENOMEM, err, "no memory for a list of its matrices");
    m->quantized = q;
    for (int layer = 0; layer < m->cfg.n_layer; layer++)
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++)
            if (m->layer[layer][id] && id != MU_T_ROUTER)
                m->layer[layer][id] = quantized(m->layer[layer][id], type, q++, &n);
    if (n.n_done == 0)
        return mu_gguf_fail(m->gguf, MU_EUNSUPPORTED, err,
                            "--quantize %s has nothing to do: its matrices are no larger than that; leave it out, or "
                            "take a smaller type, or an F16 or BF16 model where this one is quantised",
                            mu_type_info(type)->name);
    if (n.n_other)
        mu_info("model",
                "%d matrices have rows that are no multiple of %d values: instead of %s they become Q8_0 or F16, "
                "or stay as they are",
                n.n_other, mu_type_info(type)->block_values, mu_type_info(type)->name);
    uint32_t output = bits(type) < bits(MU_Q6_K) ? MU_Q6_K : type;
    m->output = quantized(m->output, output, q, &n);
    mu_model_count(m);
    return MU_OK;
}
