/* Families that have no golden files, against a forward pass in double precision that shares nothing with shard/: written
 * from the models' definitions (OpenAI's gpt-oss reference, YaRN's paper, Hugging Face's modelling files of Ministral 3,
 * SmolLM3 and Granite), one sequence from scratch, tensors by name, libm's functions.
 *
 * Weights are F32 and random. Keys and values are rounded to f16, as the cache holds them; everything else is exact to
 * double, so what remains is the pass's own rounding. */
#include "forward_util.h"

#include "kernels/kernels.h"

enum { N_TOK = 150, D_MAX = 512, N_EXPERT_MAX = 8 };

struct net {
    const char *what;
    struct mu_synth spec;
    bool sinks, clamped, halves;
    int window, whole_period; /* layers n - 1, 2n - 1 … without the window */
    int still_period;         /* … without rotation */
    bool truncate;            /* YaRN's bounds */
    double attn_scale, query_scale, embed_scale, residual_scale, logit_divide;
};

static const struct mu_model *model;

/* Row r of a tensor in double. */
static void row_of(const char *name, size_t r, int n, double *out)
{
    const struct mu_gguf_tensor *t = mu_gguf_tensor(model->gguf, name);
    if (!t) fail_msg("no tensor %s", name);
    assert_int_equal(t->type, MU_F32);
    assert_int_equal(t->ne[0], n);
    for (int i = 0; i < n; i++) {
        float f;
        memcpy(&f, t->data + r * t->row_bytes + 4 * (size_t)i, 4);
        out[i] = (double)f;
    }
}

static const char *in_layer(int layer, const char *suffix)
{
    static char name[2][100];
    static int turn;
    turn = !turn;
    snprintf(name[turn], sizeof name[turn], "blk.%d.%s", layer, suffix);
    return name[turn];
}

/* out[i] = rows row0 + i of the matrix times x, plus its bias (row b_row of it) where there is one. */
static void multiply(int layer, const char *name, size_t row0, int n_row, int n_col, const double *x, size_t b_row,
                     double *out)
{
    char full[64];
    double w[D_MAX], b[D_MAX] = {0};
    snprintf(full, sizeof full, "%s.bias", name);
    if (mu_gguf_tensor(model->gguf, in_layer(layer, full))) row_of(in_layer(layer, full), b_row, n_row, b);
    snprintf(full, sizeof full, "%s.weight", name);
    for (int r = 0; r < n_row; r++) {
        row_of(in_layer(layer, full), row0 + (size_t)r, n_col, w);
        out[r] = b[r];
        for (int c = 0; c < n_col; c++) out[r] += w[c] * x[c];
    }
}

static void norm(const char *name, const double *x, int n, double *out)
{
    double w[D_MAX], ss = 0;
    row_of(name, 0, n, w);
    for (int i = 0; i < n; i++) ss += x[i] * x[i];
    for (int i = 0; i < n; i++) out[i] = x[i] / sqrt(ss / n + 1e-5) * w[i];
}

static double frequency(const struct net *net, int i)
{
    int n_rot = net->spec.n_rot ? net->spec.n_rot : net->spec.d_head;
    double base = (double)net->spec.rope_freq_base, f = pow(base, -2.0 * i / n_rot);
    double factor = (double)net->spec.yarn_factor;
    if (factor == 0) return f;
    double low = n_rot / 2.0 * log(net->spec.n_ctx_short / (32.0 * 2 * M_PI)) / log(base);
    double high = n_rot / 2.0 * log(net->spec.n_ctx_short / (1.0 * 2 * M_PI)) / log(base);
    if (net->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, n_rot - 1);
    if (low == high) high += 0.001;
    double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
    return f / factor * ramp + f * (1 - ramp);
}

static void turn(const struct net *net, double *v, int pos)
{
    int n_rot = net->spec.n_rot ? net->spec.n_rot : net->spec.d_head;
    double factor = (double)net->spec.yarn_factor, grow = factor > 1 ? 0.1 * log(factor) + 1 : 1;
    for (int i = 0; i < n_rot / 2; i++) {
        double angle = pos * frequency(net, i), c = cos(angle) * grow, s = sin(angle) * grow;
        double *a = &v[net->halves ? i : 2 * i], *b = &v[net->halves ? i + n_rot / 2 : 2 * i + 1];
        double was = *a;
        *a = was * c - *b * s;
        *b = was * s + *b * c;
    }
}

static double f16(double x)
{
    return (double)mu_f16_to_f32(mu_f32_to_f16((float)x));
}

static double key[N_TOK][D_MAX], value[N_TOK][D_MAX];

static void attention(const struct net *net, int layer, int pos, const double *x, double *out)
{
    const struct mu_synth *z = &net->spec;
    int d = z->d_head, group = z->n_head / z->n_kv_head;
    bool turns = !net->still_period || (layer + 1) % net->still_period != 0;
    bool whole = !net->window || (net->whole_period && (layer + 1) % net->whole_period == 0);
    double q[D_MAX], heads[D_MAX] = {0}, sink[D_MAX], p[N_TOK];
    multiply(layer, "attn_q", 0, z->n_head * d, z->d_model, x, 0, q);
    multiply(layer, "attn_k", 0, z->n_kv_head * d, z->d_model, x, 0, key[pos]);
    multiply(layer, "attn_v", 0, z->n_kv_head * d, z->d_model, x, 0, value[pos]);
    for (int h = 0; turns && h < z->n_head; h++) turn(net, q + h * d, pos);
    for (int h = 0; turns && h < z->n_kv_head; h++) turn(net, key[pos] + h * d, pos);
    for (int i = 0; i < z->n_kv_head * d; i++) {
        key[pos][i] = f16(key[pos][i]);
        value[pos][i] = f16(value[pos][i]);
    }
    if (net->sinks) row_of(in_layer(layer, "attn_sinks.weight"), 0, z->n_head, sink);
    double grow = 1;
    if (net->query_scale > 0) grow = 1 + net->query_scale * log(1 + floor((double)pos / z->n_ctx_short));
    for (int h = 0; h < z->n_head; h++) {
        double top = net->sinks ? sink[h] : -INFINITY, sum = 0;
        int first = whole || pos < net->window ? 0 : pos - net->window + 1, kv = h / group * d;
        for (int j = first; j <= pos; j++) {
            p[j] = 0;
            for (int i = 0; i < d; i++) p[j] += q[h * d + i] * grow * key[j][kv + i] * net->attn_scale;
            top = fmax(top, p[j]);
        }
        if (net->sinks) sum = exp(sink[h] - top);
        for (int j = first; j <= pos; j++) sum += exp(p[j] - top);
        for (int j = first; j <= pos; j++)
            for (int i = 0; i < d; i++) heads[h * d + i] += exp(p[j] - top) / sum * value[j][kv + i];
    }
    multiply(layer, "attn_output", 0, z->d_model, z->n_head * d, heads, 0, out);
}

static double hidden(const struct net *net, double gate, double up)
{
    if (!net->clamped) return gate / (1 + exp(-gate)) * up;
    gate = fmin(gate, 7);
    up = fmax(fmin(up, 7), -7);
    return gate / (1 + exp(-1.702 * gate)) * (up + 1);
}

static void feed_forward(const struct net *net, int layer, const double *x, double *out)
{
    const struct mu_synth *z = &net->spec;
    double gate[D_MAX], up[D_MAX], part[D_MAX], score[N_EXPERT_MAX], sum = 0;
    int n = z->n_expert, rank[N_EXPERT_MAX], d_ff = z->d_ff, d_model = z->d_model;
    for (int i = 0; i < d_model; i++) out[i] = 0;
    if (n == 0) {
        multiply(layer, "ffn_gate", 0, d_ff, d_model, x, 0, gate);
        multiply(layer, "ffn_up", 0, d_ff, d_model, x, 0, up);
        for (int i = 0; i < d_ff; i++) gate[i] = hidden(net, gate[i], up[i]);
        multiply(layer, "ffn_down", 0, d_model, d_ff, gate, 0, out);
        return;
    }
    multiply(layer, "ffn_gate_inp", 0, n, d_model, x, 0, score);
    for (int e = 0; e < n; e++) {
        rank[e] = 0;
        for (int o = 0; o < n; o++) rank[e] += score[o] > score[e];
        if (rank[e] < z->n_expert_used) sum += exp(score[e]);
    }
    for (size_t e = 0; e < (size_t)n; e++) {
        if (rank[e] >= z->n_expert_used) continue;
        multiply(layer, "ffn_gate_exps", e * (size_t)d_ff, d_ff, d_model, x, e, gate);
        multiply(layer, "ffn_up_exps", e * (size_t)d_ff, d_ff, d_model, x, e, up);
        for (int i = 0; i < d_ff; i++) gate[i] = hidden(net, gate[i], up[i]);
        multiply(layer, "ffn_down_exps", e * (size_t)d_model, d_model, d_ff, gate, e, part);
        for (int i = 0; i < d_model; i++) out[i] += exp(score[e]) / sum * part[i];
    }
}

static void check(const struct net *net)
{
    static double x[N_TOK][D_MAX];
    const struct mu_synth *z = &net->spec;
    struct mu_model *m = synth_open(z);
    int32_t ids[N_TOK];
    model = m;
    uint32_t seed = 5;
    for (int t = 0; t < N_TOK; t++) {
        seed = seed * 1664525u + 1013904223u;
        ids[t] = (int32_t)((seed >> 8) % (uint32_t)z->n_vocab);
        row_of("token_embd.weight", (size_t)ids[t], z->d_model, x[t]);
        for (int i = 0; i < z->d_model; i++) x[t][i] *= net->embed_scale;
    }
    for (int layer = 0; layer < z->n_layer; layer++)
        for (int t = 0; t < N_TOK; t++) {
            double in[D_MAX], add[D_MAX];
            norm(in_layer(layer, "attn_norm.weight"), x[t], z->d_model, in);
            attention(net, layer, t, in, add);
            for (int i = 0; i < z->d_model; i++) x[t][i] += net->residual_scale * add[i];
            norm(in_layer(layer, net->sinks ? "post_attention_norm.weight" : "ffn_norm.weight"), x[t], z->d_model, in);
            feed_forward(net, layer, in, add);
            for (int i = 0; i < z->d_model; i++) x[t][i] += net->residual_scale * add[i];
        }
    float *got = logits_all(m, (struct how){.n_thread = 2}, ids, N_TOK);
    double worst = 0, least = INFINITY, most = -INFINITY;
    for (int t = 0; t < N_TOK; t++) {
        double in[D_MAX], w[D_MAX];
        norm("output_norm.weight", x[t], z->d_model, in);
        for (int v = 0; v < z->n_vocab; v++) {
            double want = 0, diff;
            row_of("output.weight", (size_t)v, z->d_model, w);
            for (int i = 0; i < z->d_model; i++) want += w[i] * in[i];
            want /= net->logit_divide;
            diff = fabs(want - (double)got[(size_t)t * (size_t)z->n_vocab + (size_t)v]);
            if (!(diff <= worst)) worst = diff; /* a NaN stays */
            least = fmin(least, want);
            most = fmax(most, want);
        }
    }
    print_message("%s: worst difference %.2g of a spread of %.3g\n", net->what, worst, most - least);
    if (!(worst <= 1e-4 * (most - least))) fail_msg("%s is not what its definition says", net->what);
    free(got);
    mu_model_close(m);
}

#define SPEC                                                                                                          \
    .n_layer = 4, .n_head = 4, .n_kv_head = 2, .d_head = 16, .d_model = 48, .d_ff = 64, .n_vocab = 270, .n_ctx = 256, \
    .rope_freq_base = 150, .type = MU_F32, .output_type = MU_F32, .seed = 3
#define PLAIN .attn_scale = 0.25, .embed_scale = 1, .residual_scale = 1, .logit_divide = 1

static void test_gpt_oss(void **state)
{
    (void)state;
    check(&(struct net){
        "gpt-oss",
        {.arch = "gpt-oss", SPEC, .n_expert = 6, .n_expert_used = 3, .window = 20, .yarn_factor = 8, .n_ctx_short = 40},
        PLAIN,
        .sinks = true,
        .clamped = true,
        .halves = true,
        .window = 20,
        .whole_period = 2});
}

static void test_yarn(void **state)
{
    (void)state;
    check(&(struct net){
        "llama with YaRN", {.arch = "llama", SPEC, .yarn_factor = 4, .n_ctx_short = 50}, PLAIN, .truncate = true});
    check(&(struct net){"qwen2 with YaRN",
                        {.arch = "qwen2", SPEC, .yarn_factor = 4, .n_ctx_short = 70},
                        PLAIN,
                        .halves = true,
                        .truncate = true});
    check(&(struct net){"mistral3",
                        {.arch = "mistral3", SPEC, .yarn_factor = 16, .n_ctx_short = 30},
                        PLAIN,
                        .truncate = true,
                        .query_scale = (double)0.1f});
}

static void test_still_layers(void **state)
{
    (void)state;
    check(&(struct net){"smollm3", {.arch = "smollm3", SPEC}, PLAIN, .still_period = 4});
}

static void test_scales(void **state)
{
    (void)state;
    struct net net = {"granite",         {.arch = "granite", SPEC},       .attn_scale = 1.0 / 16,
                      .embed_scale = 12, .residual_scale = (double)0.22f, .logit_divide = 8};
    check(&net);
    net.what = "granitemoe";
    net.spec.arch = "granitemoe";
    net.spec.n_expert = 5;
    net.spec.n_expert_used = 2;
    check(&net);
    net.what = "granitemoe with one expert";
    net.spec.n_expert = net.spec.n_expert_used = 1;
    check(&net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gpt_oss),
        cmocka_unit_test(test_yarn),
        cmocka_unit_test(test_still_layers),
        cmocka_unit_test(test_scales),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
