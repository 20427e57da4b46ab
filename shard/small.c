/* What a rank's layers have besides matrices: norms and biases (whole on every rank; they are small, but for those of
 * experts, of which it holds what belongs to its rows), the forms that matrices want their inputs in, windows, and
 * rotation frequencies. */
#include <string.h>

#include "base/alloc.h"
#include "shard/parts.h"

static unsigned form_of(const struct mu_gguf_tensor *t)
{
    return t ? mu_form_of(t->type) : 0;
}

/* C4: what a quantised matrix adds is rounded. */
static bool rounds(const struct mu_gguf_tensor *t)
{
    return mu_type_info(t->type)->block_values > 1;
}

static void layer_forms(struct layer *layer, const struct mu_gguf_tensor *const *t, bool parallel)
{
    layer->attn_in = form_of(t[MU_T_Q]) | form_of(t[MU_T_K]) | form_of(t[MU_T_V]);
    layer->o_in = form_of(t[MU_T_O]);
    layer->ffn_in = form_of(t[MU_T_ROUTER]) | form_of(t[MU_T_GATE]) | form_of(t[MU_T_UP]);
    layer->down_in = form_of(t[MU_T_DOWN]);
    layer->o_round = rounds(t[MU_T_O]);
    layer->down_round = rounds(t[MU_T_DOWN]) || (parallel && layer->o_round);
}

static const float *copy(const struct mu_gguf_tensor *t, float **at)
{
    float *to = *at;
    if (!t) return NULL;
    memcpy(to, t->data, t->bytes);
    *at += t->ne[0] * t->n_row;
    return to;
}

/* A bias of experts: of each the values of my rows. */
static const float *copy_experts(const struct mu_gguf_tensor *t, struct mu_range values, float **at)
{
    float *to = *at;
    size_t n = (size_t)mu_range_len(values);
    for (uint64_t e = 0; e < t->n_row; e++, *at += n)
        memcpy(*at, (const float *)(const void *)mu_gguf_row(t, e) + values.begin, n * sizeof *to);
    return to;
}

static size_t length(const struct mu_gguf_tensor *t)
{
    return t ? (size_t)(t->ne[0] * t->n_row) : 0;
}

static size_t vector_values(const struct mu_shard *s)
{
    const struct mu_model *m = s->model;
    size_t n = length(m->out_norm) + length(m->out_norm_b) + length(m->out_b);
    for (int i = s->stage.layers.begin; i < s->stage.layers.end; i++)
        for (int id = MU_T_MATRIX_COUNT; id < MU_T_LAYER_COUNT; id++) {
            const struct mu_gguf_tensor *t = m->layer[i][id];
            struct mu_range values;
            bool part = t && mu_plan_bias_values(&s->me, (enum mu_tensor_id)id, &values);
            n += part ? (size_t)t->n_row * (size_t)mu_range_len(values) : length(t);
        }
    return n;
}

static void layer_load(const struct mu_shard *s, int index, struct layer *layer, float **at)
{
    const struct mu_gguf_tensor *const *t = s->model->layer[index];
    for (int id = MU_T_MATRIX_COUNT; id < MU_T_LAYER_COUNT; id++) {
        struct mu_range values;
        bool part = t[id] && mu_plan_bias_values(&s->me, (enum mu_tensor_id)id, &values);
        layer->vec[id] = part ? copy_experts(t[id], values, at) : copy(t[id], at);
    }
    if (!layer->vec[MU_T_ATTN_NORM]) { /* a parallel block with one norm */
        layer->vec[MU_T_ATTN_NORM] = layer->vec[MU_T_FFN_NORM];
        layer->vec[MU_T_ATTN_NORM_B] = layer->vec[MU_T_FFN_NORM_B];
    }
    layer->window = mu_config_window(&s->cfg, index);
    layer->rope = mu_config_local(&s->cfg, index);
    int still = s->model->arch->no_rope_period;
    if (still && (index + 1) % still == 0) layer->rope = -1;
    layer_forms(layer, t, s->model->arch->parallel);
}

/* Frequencies by these factors (NULL: none), as the model scales them. */
static void rope_fill(const struct mu_shard *s, const float *factors, float *freq)
{
    const struct mu_config *c = &s->cfg;
    if (c->yarn_factor > 0) {
        const struct mu_yarn yarn = {.factor = (double)c->yarn_factor,
                                     .n_ctx = (double)c->n_ctx_orig,
                                     .beta_fast = (double)c->yarn_beta_fast,
                                     .beta_slow = (double)c->yarn_beta_slow,
                                     .truncate = !s->model->arch->yarn_exact};
        mu_yarn_freqs((double)c->rope_freq_base, c->n_rot, factors, &yarn, freq);
    } else {
        mu_rope_freqs((double)c->rope_freq_base, c->n_rot, factors, freq);
    }
    for (int i = 0; c->rope_linear_scale != 1.0f && i < c->n_rot / 2; i++) freq[i] = freq[i] / c->rope_linear_scale;
}

/* Which factors a sequence turns by is a mark of the sequence (struct mu_step_seq): they are for all its positions, so
 * one that outgrows the short ones is computed again (worker/scheduler.c, worker/solo.c). */
static void rope_load(struct mu_shard *s)
{
    const struct mu_model *m = s->model;
    int n_pair = s->cfg.n_rot / 2;
    rope_fill(s, m->rope_factors, s->rope_freq);
    if (s->n_rope > 1) mu_rope_freqs(s->cfg.rope_local_base, s->cfg.n_rot, NULL, s->rope_freq + n_pair);
    rope_fill(s, m->rope_long ? m->rope_long : m->rope_factors, s->rope_freq + s->n_rope * n_pair);
}

enum mu_status mu_shard_load_small(struct mu_shard *s, struct mu_err *err)
{
    int n_layer = mu_range_len(s->stage.layers);
    s->n_rope = mu_scratch_n_rope(&s->cfg);
    s->n_vector_value = vector_values(s);
    s->vectors = mu_calloc(s->n_vector_value, sizeof *s->vectors);
    s->n_freq = (size_t)(s->n_rope + 1) * (size_t)s->cfg.n_rot / 2 + 1;
    s->rope_freq = mu_calloc(s->n_freq, sizeof *s->rope_freq);
    if (!s->vectors || !s->rope_freq) return mu_fail(err, MU_ENOMEM, "no memory for the norms of %d layers", n_layer);
    float *at = s->vectors;
    for (int i = 0; i < n_layer; i++) layer_load(s, s->stage.layers.begin + i, &s->layer[i], &at);
    s->out_norm = copy(s->model->out_norm, &at);
    s->out_norm_b = copy(s->model->out_norm_b, &at);
    s->out_b = copy(s->model->out_b, &at);
    s->out_in = mu_form_of(s->model->output->type);
    rope_load(s);
    return MU_OK;
}
