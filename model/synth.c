/* Random models. The tensors are announced from the architecture's own rules, so that what is written here is what
 * mu_model_open expects; data streams through one buffer of a megabyte. The same numbers and seed give the same file,
 * byte for byte. */
#include "model/synth.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "kernels/kernels.h"
#include "model/arch.h"
#include "model/synth_part.h"

enum { BUFFER_BYTES = 1 << 20, BEHIND_LAYERS = 1 << 20 };

struct job {
    const struct mu_synth *spec;
    const struct mu_arch *arch;
    struct mu_config cfg; /* the sizes that tensor rules ask for */
    struct mu_gguf_writer *writer;
    struct mu_synth_source *source;
    unsigned char *buffer;
    uint64_t done_bytes, total_bytes;
    uint64_t n_tensor; /* so far; part of each tensor's seed */
    float scale;       /* of the values of the next one; 1 but for what later layers add */
    void (*progress)(uint64_t, uint64_t, void *);
    void *progress_ctx;
};

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* What happens to each tensor in turn: first all are announced, then all are written. */
typedef enum mu_status visit(struct job *j, const char *name, uint32_t type, int n_col, int n_row, struct mu_err *err);

static enum mu_status announce(struct job *j, const char *name, uint32_t type, int n_col, int n_row, struct mu_err *err)
{
    const struct mu_type_info *info = mu_type_info(type);
    bool is_stack = ends_with(name, "_exps.weight"); /* of one matrix, too: converters write so */
    int n_stack = is_stack ? j->cfg.n_expert : 1;
    const uint64_t ne[3] = {(uint64_t)n_col, (uint64_t)(n_row / n_stack), (uint64_t)n_stack};
    size_t row_bytes;
    if (!mu_type_row_bytes(type, ne[0], &row_bytes))
        return mu_fail(
            err, MU_EINVAL,
            "tensor '%s' of a model of these sizes has rows of %d values; type %s needs a multiple of %d: choose "
            "other sizes or another type",
            name, n_col, info->name, info->block_values);
    mu_gguf_put_tensor(j->writer, name, type, is_stack ? 3 : n_row == 1 ? 1 : 2, ne);
    j->total_bytes += row_bytes * (uint64_t)n_row;
    return MU_OK;
}

static enum mu_status give(struct job *j, size_t bytes, struct mu_err *err)
{
    enum mu_status st = mu_gguf_put_data(j->writer, j->buffer, bytes, err);
    j->done_bytes += bytes;
    if (st == MU_OK && j->progress) j->progress(j->done_bytes, j->total_bytes, j->progress_ctx);
    return st;
}

/* Norm weights and short rotation factors: 1 ± 0.1. Biases: ± 0.1. Long rotation factors: 2.9 … 3.1. */
static enum mu_status write_vector(struct job *j, const char *name, int n, uint64_t seed, struct mu_err *err)
{
    enum { PIECE = BUFFER_BYTES / (int)sizeof(float) };
    float *out = (float *)j->buffer, base = 0.9f;
    if (ends_with(name, ".bias")) base = -0.1f;
    if (ends_with(name, "_long.weight")) base = 2.9f;
    for (int at = 0; at < n; at += PIECE) {
        int len = n - at < PIECE ? n - at : PIECE;
        for (int i = 0; i < len; i++)
            out[i] = j->scale * (base + 0.2f * (float)(mu_synth_next(&seed) >> 40) * 0x1p-24f);
        enum mu_status st = give(j, (size_t)len * sizeof *out, err);
        if (st != MU_OK) return st;
    }
    return MU_OK;
}

static enum mu_status write_tensor(struct job *j, const char *name, uint32_t type, int n_col, int n_row,
                                   struct mu_err *err)
{
    uint64_t mix = j->spec->seed + 0x632be59bd9b4e019ull * ++j->n_tensor;
    uint64_t seed = mu_synth_next(&mix);
    if (n_row == 1) return write_vector(j, name, n_col, seed, err);
    const struct mu_type_info *info = mu_type_info(type);
    mu_synth_source_init(j->source, type, j->scale / sqrtf((float)n_col), seed);
    uint64_t n_block = (uint64_t)(n_col / info->block_values) * (uint64_t)n_row;
    uint64_t chunk = BUFFER_BYTES / (uint64_t)info->block_bytes;
    enum mu_status st = MU_OK;
    while (n_block && st == MU_OK) {
        uint64_t n = n_block < chunk ? n_block : chunk;
        mu_synth_source_blocks(j->source, j->buffer, n);
        st = give(j, n * (size_t)info->block_bytes, err);
        n_block -= n;
    }
    return st;
}

static bool has_factors(const struct job *j)
{
    return (j->arch->features & MU_HAS_LONGROPE) && j->spec->n_ctx_short > 0;
}

/* What a layer adds to the residual is proportional to these; a norm behind a matrix undoes the matrix's scale. */
static bool is_added(enum mu_tensor_id id)
{
    switch (id) {
    case MU_T_O:
    case MU_T_O_B:
    case MU_T_DOWN:
    case MU_T_DOWN_B:
    case MU_T_DOWN_EXPS_B:
    case MU_T_POST_ATTN_NORM:
    case MU_T_POST_FFN_NORM: return true;
    default: return false;
    }
}

/* Each tensor once: of several forms the first. Optional ones (Falcon's second norm) come with grouped heads, as in
 * the models that have them. */
static enum mu_status each_of_layer(struct job *j, int layer, visit *fn, struct mu_err *err)
{
    bool seen[MU_T_LAYER_COUNT] = {false};
    enum mu_status st = MU_OK;
    for (const struct mu_tensor_rule *r = mu_arch_rules(j->arch, &j->cfg); r->suffix && st == MU_OK;) {
        char name[64];
        int n_col, n_row, n = mu_rule_parts(&j->cfg, r, &n_col, &n_row);
        bool bias = r->id >= MU_T_Q_B; /* of the optional tensors norms alone are made */
        bool wanted = !seen[r->id] && (!r->optional || (j->spec->n_kv_head > 1 && !bias));
        snprintf(name, sizeof name, "blk.%d.%s", layer, r->suffix);
        bool small = r->id >= MU_T_MATRIX_COUNT || r->id == MU_T_ROUTER;
        j->scale = j->spec->n_early && layer >= j->spec->n_early && is_added(r->id) ? j->spec->later : 1;
        if (wanted) st = fn(j, name, small ? MU_F32 : j->spec->type, n_col, n_row, err);
        for (int i = 0; i < n; i++) seen[r[i].id] = true;
        r += n;
    }
    return st;
}

static enum mu_status each_tensor(struct job *j, visit *fn, struct mu_err *err)
{
    const struct mu_synth *s = j->spec;
    enum mu_status st;
    MU_TRY(st, fn(j, "token_embd.weight", s->output_type, s->d_model, s->n_vocab, err), fail);
    for (int layer = 0; layer < s->n_layer; layer++) MU_TRY(st, each_of_layer(j, layer, fn, err), fail);
    j->scale = 1;
    if (s->n_early) j->n_tensor = BEHIND_LAYERS; /* the same whatever the number of layers */
    if (has_factors(j)) {
        MU_TRY(st, fn(j, "rope_factors_long.weight", MU_F32, j->cfg.n_rot / 2, 1, err), fail);
        MU_TRY(st, fn(j, "rope_factors_short.weight", MU_F32, j->cfg.n_rot / 2, 1, err), fail);
    }
    MU_TRY(st, fn(j, "output_norm.weight", MU_F32, s->d_model, 1, err), fail);
    if (j->arch->norm == MU_NORM_LAYER) MU_TRY(st, fn(j, "output_norm.bias", MU_F32, s->d_model, 1, err), fail);
    if (j->arch->out_bias) MU_TRY(st, fn(j, "output.bias", MU_F32, s->n_vocab, 1, err), fail);
    if (!s->tied) st = fn(j, "output.weight", s->output_type, s->d_model, s->n_vocab, err);
fail:
    return st;
}

static enum mu_status check_range(const char *name, int value, int min, int max, struct mu_err *err)
{
    if (value >= min && value <= max) return MU_OK;
    return mu_fail(err, MU_EINVAL, "%s: expected a number from %d to %d, found %d", name, min, max, value);
}

static enum mu_status check_type(struct job *j, const char *name, uint32_t type, struct mu_err *err)
{
    if (mu_synth_source_init(j->source, type, 1, 0)) return MU_OK;
    const struct mu_type_info *info = mu_type_info(type);
    return mu_fail(err, MU_EUNSUPPORTED,
                   "%s: random weights are made in F32, F16, BF16, Q8_0, Q4_0, Q4_K and Q6_K, not in %s", name,
                   info ? info->name : "a type of that number");
}

static enum mu_status check_spec(struct job *j, struct mu_err *err)
{
    const struct mu_synth *s = j->spec;
    enum mu_status st;
    const char *arch = s->arch ? s->arch : "llama";
    j->arch = mu_arch_find((struct mu_str){arch, strlen(arch)});
    if (!j->arch)
        return mu_fail(err, MU_EUNSUPPORTED, "architecture '%.40s' is not supported; this build runs: %s", arch,
                       mu_arch_names());
    MU_TRY(st, check_range("layers", s->n_layer, 1, MU_MAX_LAYER, err), fail);
    MU_TRY(st, check_range("width (d_model)", s->d_model, 2, MU_MAX_D_MODEL, err), fail);
    MU_TRY(st, check_range("feed-forward width (d_ff)", s->d_ff, 2, MU_MAX_D_FF, err), fail);
    MU_TRY(st, check_range("query heads", s->n_head, 1, MU_MAX_HEAD, err), fail);
    MU_TRY(st, check_range("key heads", s->n_kv_head, 1, s->n_head, err), fail);
    MU_TRY(st, check_range("head size (d_head)", s->d_head, 2, MU_MAX_D_HEAD, err), fail);
    MU_TRY(st, check_range("vocabulary", s->n_vocab, MU_SYNTH_MIN_VOCAB, MU_MAX_VOCAB, err), fail);
    MU_TRY(st, check_range("context", s->n_ctx, 1, MU_MAX_CTX, err), fail);
    if (s->n_head % s->n_kv_head != 0)
        return mu_fail(err, MU_EINVAL,
                       "expected a number of query heads that is a multiple of the key heads, found %d and %d",
                       s->n_head, s->n_kv_head);
    if (s->n_rot < 0 || s->n_rot > s->d_head || s->n_rot % 2 != 0)
        return mu_fail(err, MU_EINVAL, "rotated dimensions: expected an even number up to %d, found %d", s->d_head,
                       s->n_rot);
    if (!s->n_expert && !j->arch->rules)
        return mu_fail(err, MU_EINVAL, "architecture '%s' has no layers without experts: say how many (--experts N)",
                       j->arch->name);
    MU_TRY(st,
           check_range("experts", s->n_expert, j->arch->rules ? 0 : 1, j->arch->expert_rules ? MU_MAX_EXPERT : 0, err),
           fail);
    MU_TRY(st, check_range("experts used", s->n_expert_used, s->n_expert > 0, s->n_expert, err), fail);
    MU_TRY(st, check_range("layers of the draft", s->n_early, 0, s->n_layer, err), fail);
    MU_TRY(st, check_range("window", s->window, 0, MU_MAX_CTX, err), fail);
    MU_TRY(st, check_range("short context", s->n_ctx_short, 0, MU_MAX_CTX, err), fail);
    if (s->window > 0 && !(j->arch->features & MU_HAS_WINDOW))
        return mu_fail(err, MU_EINVAL, "window: architecture '%s' has none", j->arch->name);
    if (s->n_ctx_short > 0 && !(j->arch->features & MU_HAS_LONGROPE) && !(s->yarn_factor > 0))
        return mu_fail(err, MU_EINVAL, "short context: architecture '%s' has one set of rotation factors",
                       j->arch->name);
    if (s->yarn_factor < 0 || s->yarn_factor > 1e6f)
        return mu_fail(err, MU_EINVAL, "YaRN's factor: expected a number up to 1,000,000, found %g",
                       (double)s->yarn_factor);
    if (s->d_head % 2 != 0) return mu_fail(err, MU_EINVAL, "expected an even head size, found %d", s->d_head);
    if (s->n_head * s->d_head > MU_MAX_D_MODEL)
        return mu_fail(err, MU_EINVAL, "%d heads of %d are more than the limit of %d values together", s->n_head,
                       s->d_head, MU_MAX_D_MODEL);
    if (!(s->rope_freq_base > 0 && s->rope_freq_base <= 1e30f))
        return mu_fail(err, MU_EINVAL, "rotation base: expected a number above 0, found %g", (double)s->rope_freq_base);
    MU_TRY(st, check_type(j, "type", s->type, err), fail);
    MU_TRY(st, check_type(j, "output type", s->output_type, err), fail);
    j->cfg = (struct mu_config){.n_layer = s->n_layer,
                                .n_head = s->n_head,
                                .n_kv_head = s->n_kv_head,
                                .d_head = s->d_head,
                                .d_model = s->d_model,
                                .d_ff = s->d_ff,
                                .n_expert = s->n_expert,
                                .n_expert_used = s->n_expert_used,
                                .n_rot = s->n_rot ? s->n_rot : s->d_head,
                                .n_vocab = s->n_vocab};
fail:
    return st;
}

enum { KEY_BYTES = 96 };

static const char *key_of(const struct job *j, const char *suffix, char key[KEY_BYTES])
{
    snprintf(key, KEY_BYTES, "%s.%s", j->arch->name, suffix);
    return key;
}

static void put_u32(struct job *j, const char *suffix, int v)
{
    char key[KEY_BYTES];
    mu_gguf_put_u32(j->writer, key_of(j, suffix, key), (uint32_t)v);
}

static void put_f32(struct job *j, const char *suffix, float v)
{
    char key[KEY_BYTES];
    mu_gguf_put_f32(j->writer, key_of(j, suffix, key), v);
}

static void put_sizes(struct job *j)
{
    const struct mu_synth *s = j->spec;
    char key[KEY_BYTES];
    mu_gguf_put_str(j->writer, "general.architecture", j->arch->name, strlen(j->arch->name));
    mu_gguf_put_str(j->writer, "general.type", "model", 5);
    mu_gguf_put_str(j->writer, "general.name", "Random", 6);
    mu_gguf_put_u32(j->writer, "general.quantization_version", 2);
    put_u32(j, "block_count", s->n_layer);
    put_u32(j, "context_length", s->n_ctx);
    put_u32(j, "embedding_length", s->d_model);
    put_u32(j, "feed_forward_length", s->d_ff);
    put_u32(j, "attention.head_count", s->n_head);
    put_u32(j, "attention.head_count_kv", s->n_kv_head);
    put_u32(j, "attention.key_length", s->d_head);
    put_u32(j, "attention.value_length", s->d_head);
    put_f32(j, j->arch->norm == MU_NORM_RMS ? "attention.layer_norm_rms_epsilon" : "attention.layer_norm_epsilon",
            1e-5f);
    put_u32(j, "rope.dimension_count", j->cfg.n_rot);
    if (j->arch->features & MU_HAS_WINDOW && (s->window || j->arch->window))
        put_u32(j, "attention.sliding_window", s->window);
    if (s->n_expert) {
        put_u32(j, "expert_count", s->n_expert);
        put_u32(j, "expert_used_count", s->n_expert_used);
        put_u32(j, "expert_feed_forward_length", s->d_ff);
    }
    if (s->yarn_factor > 0) {
        mu_gguf_put_str(j->writer, key_of(j, "rope.scaling.type", key), "yarn", 4);
        put_f32(j, "rope.scaling.factor", s->yarn_factor);
        put_u32(j, "rope.scaling.original_context_length", s->n_ctx_short > 0 ? s->n_ctx_short : s->n_ctx);
    }
    if (j->arch->features & MU_HAS_TEMPERATURE) put_f32(j, "attention.temperature_scale", 0.1f);
    if (j->arch->features & MU_HAS_SCALES) { /* of the size that released models have */
        put_f32(j, "embedding_scale", 12.0f);
        put_f32(j, "residual_scale", 0.22f);
        put_f32(j, "logit_scale", 8.0f);
        put_f32(j, "attention.scale", 1.0f / (float)s->d_head);
    }
    if (has_factors(j)) {
        put_u32(j, "rope.scaling.original_context_length", s->n_ctx_short);
        put_f32(j, "rope.scaling.attn_factor", 1.19f);
    }
    put_f32(j, "rope.freq_base", s->rope_freq_base);
    put_u32(j, "vocab_size", s->n_vocab);
}

enum mu_status mu_synth_write(const struct mu_synth *s, const char *path, void (*progress)(uint64_t, uint64_t, void *),
                              void *ctx, struct mu_err *err)
{
    struct job j = {.spec = s, .scale = 1, .progress = progress, .progress_ctx = ctx};
    enum mu_status st;
    j.source = mu_calloc(1, sizeof *j.source);
    j.buffer = mu_aligned_alloc(64, BUFFER_BYTES);
    if (!j.source || !j.buffer) {
        st = mu_fail(err, MU_ENOMEM, "no memory to write '%.100s'", path);
        goto fail;
    }
    MU_TRY(st, check_spec(&j, err), fail);
    MU_TRY(st, mu_gguf_writer_open(path, &j.writer, err), fail);
    put_sizes(&j);
    MU_TRY(st, mu_synth_put_vocab(j.writer, s->n_vocab, err), fail);
    MU_TRY(st, each_tensor(&j, announce, err), fail);
    j.n_tensor = 0;
    st = each_tensor(&j, write_tensor, err);
fail:
    if (j.writer) {
        enum mu_status closed = mu_gguf_writer_close(j.writer, st == MU_OK, st == MU_OK ? err : NULL);
        if (st == MU_OK) st = closed;
    }
    mu_free(j.source);
    mu_free(j.buffer);
    return st;
}
