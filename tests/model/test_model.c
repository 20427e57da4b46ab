/* Models: fixtures open with the right sizes, what this build does not run is refused by name, every size and shape
 * is checked. */
#include "tests/model/files_util.h"

#include <math.h>

#include "model/arch.h"
#include "model/gguf_write.h"
#include "model/model.h"

static struct mu_model *open_ok(const char *path)
{
    struct mu_model *m = NULL;
    struct mu_err err = MU_ERR_INIT;
    if (mu_model_open(path, &m, &err) != MU_OK) fail_msg("%s", err.text);
    return m;
}

/* ---- fixtures ---- */

static const struct {
    const char *file;
    int n_layer, n_head, n_kv_head, d_head, d_model, d_ff, n_vocab, n_ctx, window;
    float base;
    bool tied, factors;
    uint32_t type; /* of blk.0.attn_q */
} fixtures[] = {
    {"models/llama2.f16.gguf", 2, 8, 8, 32, 256, 256, 512, 512, 0, 10000, false, false, MU_F16},
    {"models/llama3.f16.gguf", 3, 8, 2, 32, 256, 512, 1024, 512, 0, 500000, true, true, MU_F16},
    {"models/llama3.BF16.gguf", 3, 8, 2, 32, 256, 512, 1024, 512, 0, 500000, true, true, MU_BF16},
    {"models/llama3.Q8_0.gguf", 3, 8, 2, 32, 256, 512, 1024, 512, 0, 500000, true, true, MU_Q8_0},
    {"models/llama3.Q4_0.gguf", 3, 8, 2, 32, 256, 512, 1024, 512, 0, 500000, true, true, MU_Q4_0},
    {"models/llama3.Q4_K_M.gguf", 3, 8, 2, 32, 256, 512, 1024, 512, 0, 500000, true, true, MU_Q4_K},
    {"models/llama3.Q6_K.gguf", 3, 8, 2, 32, 256, 512, 1024, 512, 0, 500000, true, true, MU_Q6_K},
    {"models/llama3.IQ4_XS.gguf", 3, 8, 2, 32, 256, 512, 1024, 512, 0, 500000, true, true, MU_IQ4_XS},
    {"models/llama3.MXFP4.gguf", 3, 8, 2, 32, 256, 512, 1024, 512, 0, 500000, true, true, MU_MXFP4},
    {"models/mistral.f16.gguf", 2, 8, 2, 32, 256, 256, 1024, 512, 32, 10000, false, false, MU_F16},
    {"models/stories260K.f32.gguf", 5, 8, 4, 8, 64, 172, 512, 512, 0, 10000, true, false, MU_F32},
};

static void test_fixtures_open(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof fixtures / sizeof *fixtures; i++) {
        struct mu_model *m = open_ok(fixture_path(fixtures[i].file));
        const struct mu_config *c = &m->cfg;
        assert_string_equal(m->arch->name, "llama");
        assert_int_equal(m->arch->rope, MU_ROPE_PAIRS);
        assert_int_equal(c->n_layer, fixtures[i].n_layer);
        assert_int_equal(c->n_head, fixtures[i].n_head);
        assert_int_equal(c->n_kv_head, fixtures[i].n_kv_head);
        assert_int_equal(c->d_head, fixtures[i].d_head);
        assert_int_equal(c->d_model, fixtures[i].d_model);
        assert_int_equal(c->d_ff, fixtures[i].d_ff);
        assert_int_equal(c->n_vocab, fixtures[i].n_vocab);
        assert_int_equal(c->n_ctx_train, fixtures[i].n_ctx);
        assert_int_equal(c->n_rot, fixtures[i].d_head);
        assert_int_equal(c->window, fixtures[i].window);
        assert_true(c->norm_eps == 1e-5f && c->rope_freq_base == fixtures[i].base && c->rope_linear_scale == 1.0f);
        assert_true(c->attn_scale == 1.0f / sqrtf((float)c->d_head));
        assert_true((m->output == m->embed) == fixtures[i].tied);
        assert_true((m->rope_factors != NULL) == fixtures[i].factors);
        assert_int_equal(m->layer[0][MU_T_Q]->type, fixtures[i].type);
        assert_true(mu_str_is(m->layer[c->n_layer - 1][MU_T_DOWN]->name, c->n_layer == 2   ? "blk.1.ffn_down.weight"
                                                                         : c->n_layer == 3 ? "blk.2.ffn_down.weight"
                                                                                           : "blk.4.ffn_down.weight"));
        assert_int_equal(m->layer[0][MU_T_K]->n_row, c->n_kv_head * c->d_head);
        if (m->rope_factors) assert_true(m->rope_factors[0] == 1.0f && m->rope_factors[15] > 1.0f);
        mu_model_close(m);
    }
}

/* Sizes that no key says as such, and the parts of fused tensors. */
static void test_families(void **state)
{
    (void)state;
    struct mu_model *m = open_ok(fixture_path("models/gemma2.f16.gguf"));
    assert_true(m->cfg.window == 32 && m->cfg.embed_scale == 16.0f);
    assert_true(m->cfg.attn_softcap == 50.0f && m->cfg.final_softcap == 30.0f);
    assert_true(mu_config_window(&m->cfg, 0) == 32 && mu_config_window(&m->cfg, 1) == 0);
    assert_non_null(m->layer[2][MU_T_POST_FFN_NORM]);
    mu_model_close(m);
    m = open_ok(fixture_path("models/gemma3.f16.gguf"));
    assert_true(m->cfg.rope_local_base == 10000.0f && m->cfg.rope_linear_scale == 8.0f);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(mu_config_window(&m->cfg, i), i == 5 ? 0 : 32);
        assert_int_equal(mu_config_local(&m->cfg, i), i != 5);
    }
    mu_model_close(m);
    m = open_ok(fixture_path("models/falcon40b.f16.gguf"));
    const struct mu_gguf_tensor *const *t = m->layer[1];
    assert_true(t[MU_T_Q]->n_row == 256 && t[MU_T_K]->n_row == 64 && t[MU_T_V]->n_row == 64);
    assert_ptr_equal(t[MU_T_K]->data, t[MU_T_Q]->data + 256 * t[MU_T_Q]->row_bytes);
    assert_ptr_equal(t[MU_T_V]->data, t[MU_T_K]->data + t[MU_T_K]->bytes);
    assert_true(mu_str_is(t[MU_T_ATTN_NORM]->name, "blk.1.attn_norm_2.weight") && !t[MU_T_GATE]);
    mu_model_close(m);
    m = open_ok(fixture_path("models/qwen3moe.f16.gguf"));
    assert_true(m->cfg.n_expert == 4 && m->cfg.n_expert_used == 2 && m->cfg.d_ff == 64);
    assert_int_equal(m->layer[0][MU_T_DOWN]->n_row, 4 * 256);
    mu_model_close(m);
    m = open_ok(fixture_path("models/phi2.f16.gguf"));
    assert_true(m->cfg.n_rot == 16 && m->out_b && m->out_norm_b && m->layer[0][MU_T_DOWN_B]);
    mu_model_close(m);
    m = open_ok(fixture_path("models/phi3-longrope.f16.gguf"));
    assert_true(m->cfg.n_ctx_short == 96 && m->rope_factors && m->rope_long && m->cfg.rope_attn_factor > 1.1f);
    assert_true(m->layer[0][MU_T_GATE]->n_row == 256 && m->layer[0][MU_T_UP]->n_row == 256);
    mu_model_close(m);
}

/* A copy of a fixture with one text replaced by another of the same length. */
static const char *patched(const char *fixture, const char *from, const char *to)
{
    FILE *f = fopen(fixture_path(fixture), "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f), len = strlen(from);
    char *bytes = malloc(n);
    rewind(f);
    assert_int_equal(fread(bytes, 1, n, f), n);
    fclose(f);
    char *at = memmem(bytes, n, from, len);
    if (!at || strlen(to) != len) fail_msg("no '%s' in %s, or '%s' is longer or shorter", from, fixture, to);
    memcpy(at, to, len);
    const char *path = write_bytes("patched.gguf", bytes, n);
    free(bytes);
    return path;
}

/* What a family cannot do, or lacks, is refused by name. */
static void test_changed_families_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *fixture, *from, *to;
        enum mu_status code;
        const char *says;
    } cases[] = {
        {"models/qwen2.f16.gguf", "blk.1.attn_q.bias", "blk.1.attn_x.bias", MU_EUNSUPPORTED, "blk.1.attn_x.bias"},
        {"models/qwen3.f16.gguf", "blk.0.attn_q_norm.weight", "blk.0.attn_x_norm.weight", MU_EUNSUPPORTED, "x_norm"},
        {"models/falcon7b.f16.gguf", "jploski", "unknown", MU_EUNSUPPORTED, "expected 'jploski', found 'unknown'"},
        {"models/falcon40b.f16.gguf", "blk.1.attn_norm_2.bias", "blk.1.attn_norm_3.bias", MU_EUNSUPPORTED, "norm_3"},
        {"models/phi3-longrope.f16.gguf", "phi3.rope.scaling.attn_factor", "phi3.rope.scaling.attn_fact_x", MU_EFORMAT,
         "expected key 'phi3.rope.scaling.attn_factor'"},
        {"models/phi3.f16.gguf", "phi3.attention.sliding_window", "phi3.attention.max_alibi_bias", MU_EUNSUPPORTED,
         "ALiBi"},
        {"models/mixtral.f16.gguf", "llama.expert_used_count", "llama.expert_group_coun", MU_EFORMAT,
         "expected key 'llama.expert_used_count'"},
        {"models/mixtral.f16.gguf", "blk.1.ffn_up_exps.weight", "blk.1.ffn_up_shxp.weight", MU_EUNSUPPORTED, "shxp"},
        {"models/qwen3moe.f16.gguf", "qwen3moe.expert_count", "qwen3moe.expert_coun_", MU_EFORMAT,
         "expected key 'qwen3moe.expert_count'"},
        {"models/phi2.f16.gguf", "blk.0.ffn_up.bias", "blk.0.ffn_up.bi_s", MU_EUNSUPPORTED, "blk.0.ffn_up.bi_s"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_model *m = NULL;
        struct mu_err err = MU_ERR_INIT;
        assert_int_not_equal(mu_model_open(patched(cases[i].fixture, cases[i].from, cases[i].to), &m, &err), MU_OK);
        assert_err(&err, cases[i].code, cases[i].says, NULL);
    }
}

static void test_unfit_fixtures_are_refused(void **state)
{
    (void)state;
    struct mu_model *m = NULL;
    struct mu_err err = MU_ERR_INIT;
    mu_model_open(fixture_path("tokenizers/llama-spm.gguf"), &m, &err);
    assert_err(&err, MU_EFORMAT, "token_embd.weight", NULL);
    assert_null(m);
}

/* ---- a tiny model with one thing changed ---- */

struct change {
    const char *skip;                       /* this key or tensor is left out */
    void (*extra)(struct mu_gguf_writer *); /* further keys */
    const char *tensor;                     /* this one is … */
    uint64_t n_col, n_row;                  /* … of that shape instead, where n_col is not 0 … */
    uint32_t type;                          /* … and of that type */
    float fill;                             /* … and of that value throughout (F32) */
    const char *extra_tensor;               /* one more, of 8 F32 */
};

enum { D = 8, HEADS = 4, KV = 2, DH = 2, FF = 12, VOCAB = 5, LAYERS = 2 };

struct entry {
    const char *name;
    uint64_t n_col, n_row;
};

static const struct entry layer_tensors[] = {
    {"attn_norm.weight", D, 1},           {"attn_q.weight", D, HEADS *DH},
    {"attn_k.weight", D, KV *DH},         {"attn_v.weight", D, KV *DH},
    {"attn_output.weight", HEADS *DH, D}, {"ffn_norm.weight", D, 1},
    {"ffn_gate.weight", D, FF},           {"ffn_up.weight", D, FF},
    {"ffn_down.weight", FF, D},
};

static bool skipped(const struct change *c, const char *name)
{
    return c->skip && strcmp(c->skip, name) == 0;
}

static void put_u32(struct mu_gguf_writer *w, const struct change *c, const char *key, uint32_t v)
{
    if (!skipped(c, key)) mu_gguf_put_u32(w, key, v);
}

/* Announces (data 0) or writes one tensor as `c` wants it. */
static void put_tensor(struct mu_gguf_writer *w, const struct change *c, const char *name, uint64_t n_col,
                       uint64_t n_row, int data)
{
    static float values[1024];
    bool changed = c->tensor && strcmp(c->tensor, name) == 0;
    uint64_t ne[2] = {changed && c->n_col ? c->n_col : n_col, changed && c->n_col ? c->n_row : n_row};
    uint32_t type = changed ? c->type : MU_F32;
    struct mu_err err = MU_ERR_INIT;
    size_t row_bytes = 0;
    if (skipped(c, name)) return;
    if (!data) {
        mu_gguf_put_tensor(w, name, type, ne[1] == 1 ? 1 : 2, ne);
        return;
    }
    assert_true(mu_type_row_bytes(type, ne[0], &row_bytes) && row_bytes * ne[1] <= sizeof values);
    for (size_t i = 0; i < 1024; i++) values[i] = changed ? c->fill : 1.0f;
    if (mu_gguf_put_data(w, values, row_bytes * ne[1], &err) != MU_OK) fail_msg("%s", err.text);
}

static const char *write_tiny(const struct change *c)
{
    struct mu_gguf_writer *w = NULL;
    struct mu_err err = MU_ERR_INIT;
    const char *path = test_path("tiny.gguf");
    if (mu_gguf_writer_open(path, &w, &err) != MU_OK) fail_msg("%s", err.text);
    if (!skipped(c, "general.architecture")) mu_gguf_put_str(w, "general.architecture", "llama", 5);
    put_u32(w, c, "llama.block_count", LAYERS);
    put_u32(w, c, "llama.embedding_length", D);
    put_u32(w, c, "llama.feed_forward_length", FF);
    put_u32(w, c, "llama.context_length", 64);
    put_u32(w, c, "llama.attention.head_count", HEADS);
    put_u32(w, c, "llama.attention.head_count_kv", KV);
    if (!skipped(c, "llama.attention.layer_norm_rms_epsilon"))
        mu_gguf_put_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-6f);
    if (c->extra) c->extra(w);
    for (int data = 0; data < 2; data++) {
        put_tensor(w, c, "token_embd.weight", D, VOCAB, data);
        for (int layer = 0; layer < LAYERS; layer++)
            for (size_t i = 0; i < sizeof layer_tensors / sizeof *layer_tensors; i++) {
                char name[64];
                snprintf(name, sizeof name, "blk.%d.%s", layer, layer_tensors[i].name);
                put_tensor(w, c, name, layer_tensors[i].n_col, layer_tensors[i].n_row, data);
            }
        put_tensor(w, c, "output_norm.weight", D, 1, data);
        if (c->extra_tensor) put_tensor(w, c, c->extra_tensor, 8, 1, data);
    }
    if (mu_gguf_writer_close(w, 1, &err) != MU_OK) fail_msg("%s", err.text);
    return path;
}

static struct mu_model *tiny_ok(const struct change *c)
{
    return open_ok(write_tiny(c));
}

#define REFUSED(code, says, also, ...) refused(__LINE__, &(const struct change){__VA_ARGS__}, code, says, also)

static void refused(int line, const struct change *c, enum mu_status code, const char *says, const char *also)
{
    struct mu_model *m = NULL;
    struct mu_err err = MU_ERR_INIT;
    const char *path = write_tiny(c);
    if (mu_model_open(path, &m, &err) == MU_OK) fail_msg("line %d: opened", line);
    assert_null(m);
    if (err.code != code || !strstr(err.text, says) || !strstr(err.text, also) || !strstr(err.text, path))
        fail_msg("line %d: expected %s with '%s' and '%s', found %s: %s", line, mu_status_name(code), says, also,
                 mu_status_name(err.code), err.text);
}

static void test_tiny_defaults(void **state)
{
    (void)state;
    char text[256];
    struct mu_model *m = tiny_ok(&(const struct change){0});
    assert_string_equal(m->name, "tiny"); /* from the file's name */
    assert_true(m->cfg.d_head == DH && m->cfg.n_rot == DH && m->cfg.n_vocab == VOCAB && m->cfg.window == 0);
    assert_true(m->cfg.rope_freq_base == 10000.0f && m->cfg.rope_linear_scale == 1.0f);
    assert_ptr_equal(m->output, m->embed);
    assert_int_equal(m->n_param, 8 * 5 + 8 + 2 * (2 * 8 + 8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 12));
    assert_int_equal(m->weight_bytes, 4 * m->n_param);
    mu_model_describe(m, text, sizeof text);
    assert_non_null(strstr(text, "tiny (llama, 1.0K parameters, F32): 2 layers of 8, 4 query and 2 key heads of 2"));
    mu_model_close(m);
    m = tiny_ok(&(const struct change){.extra_tensor = "blk.0.attn_rot_embd"});
    mu_model_close(m);
    mu_model_close(NULL);
    assert_string_equal(mu_arch_names(),
                        "llama, qwen2, qwen3, qwen3moe, gpt-oss, mistral3, smollm3, granite, granitemoe, "
                        "phi2, phi3, gemma, gemma2, gemma3, falcon");
}

static void test_missing_things_are_named(void **state)
{
    (void)state;
    static const char *const required[] = {
        "general.architecture",
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.context_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "token_embd.weight",
        "output_norm.weight",
        "blk.0.attn_norm.weight",
        "blk.0.attn_q.weight",
        "blk.1.attn_k.weight",
        "blk.1.ffn_down.weight",
    };
    for (size_t i = 0; i < sizeof required / sizeof *required; i++)
        REFUSED(MU_EFORMAT, required[i], "found none", .skip = required[i]);
}

static void test_shapes_and_types(void **state)
{
    (void)state;
    REFUSED(MU_EFORMAT, "blk.1.attn_q.weight", "expected 8 rows of 8 values", .tensor = "blk.1.attn_q.weight",
            .n_col = 8, .n_row = 7);
    REFUSED(MU_EFORMAT, "blk.0.attn_k.weight", "expected 4 rows of 8 values", .tensor = "blk.0.attn_k.weight",
            .n_col = 4, .n_row = 8);
    REFUSED(MU_EFORMAT, "blk.0.ffn_down.weight", "expected 8 rows of 12 values", .tensor = "blk.0.ffn_down.weight",
            .n_col = 8, .n_row = 12);
    REFUSED(MU_EFORMAT, "output_norm.weight", "expected 1 rows of 8 values", .tensor = "output_norm.weight", .n_col = 9,
            .n_row = 1);
    REFUSED(MU_EFORMAT, "token_embd.weight", "of 8 values", .tensor = "token_embd.weight", .n_col = 9, .n_row = VOCAB);
    REFUSED(MU_EUNSUPPORTED, "blk.0.attn_norm.weight", "F16", .tensor = "blk.0.attn_norm.weight", .type = MU_F16);
    REFUSED(MU_EUNSUPPORTED, "its type Q8_K is not supported by this build", "Q4_K", .tensor = "blk.0.ffn_up.weight",
            .n_col = 256, .n_row = 2, .type = MU_Q8_K);
    REFUSED(MU_EUNSUPPORTED, "blk.0.ffn_up.weight", "I8", .tensor = "blk.0.ffn_up.weight", .type = MU_I8);
    REFUSED(MU_ENONFINITE, "blk.0.ffn_norm.weight", "nan", .tensor = "blk.0.ffn_norm.weight", .fill = NAN);
    REFUSED(MU_ENONFINITE, "output_norm.weight", "inf", .tensor = "output_norm.weight", .fill = INFINITY);
}

static void test_unknown_tensors_are_refused(void **state)
{
    (void)state;
    static const char *const unknown[] = {
        "blk.0.ffn_up.bias",
        "blk.1.attn_q_norm.weight",
        "blk.2.attn_q.weight",
        "output.bias",
        "rope_factors_long.weight",
        "blk.0.attn_q.weight.lora_a",
        "blk.00.attn_rot_embd",
        "blk.999999999999.attn_q.weight",
        "position_embd.weight",
        "blk.",
        "blk.0",
    };
    for (size_t i = 0; i < sizeof unknown / sizeof *unknown; i++)
        REFUSED(MU_EUNSUPPORTED, unknown[i], "llama", .extra_tensor = unknown[i]);
}

/* One further key; the table says what is expected of it. */
static struct {
    const char *key;
    enum mu_gguf_kind kind;
    union {
        uint32_t u;
        float f;
        uint8_t b;
        const char *s;
    } v;
    enum mu_status code;
    const char *says;
} keys[] = {
    {"llama.attention.key_length", MU_GGUF_U32, {.u = 513}, MU_EFORMAT, "from 1 to 512, found 513"},
    {"llama.attention.key_length", MU_GGUF_U32, {.u = 4}, MU_EFORMAT, "expected 16 rows of 8 values"},
    {"llama.attention.value_length", MU_GGUF_U32, {.u = 4}, MU_EUNSUPPORTED, "keys of 2 and values of 4"},
    {"llama.rope.dimension_count", MU_GGUF_U32, {.u = 4}, MU_EFORMAT, "from 2 to 2, found 4"},
    {"llama.rope.dimension_count", MU_GGUF_U32, {.u = 0}, MU_EFORMAT, "found 0"},
    {"llama.rope.freq_base", MU_GGUF_F32, {.f = 0}, MU_EFORMAT, "found 0"},
    {"llama.rope.freq_base", MU_GGUF_F32, {.f = NAN}, MU_EFORMAT, "found nan"},
    {"llama.rope.scaling.type", MU_GGUF_STRING, {.s = "yarn"}, MU_EFORMAT, "'llama.rope.scaling.factor'"},
    {"llama.rope.scaling.type", MU_GGUF_STRING, {.s = "longrope"}, MU_EUNSUPPORTED, "rope scaling 'longrope'"},
    {"llama.rope.scaling.type", MU_GGUF_U32, {.u = 1}, MU_EFORMAT, "expected a string"},
    {"llama.rope.scaling.type", MU_GGUF_STRING, {.s = "none"}, MU_OK, NULL},
    {"llama.rope.scaling.factor", MU_GGUF_F32, {.f = -1}, MU_EFORMAT, "found -1"},
    {"llama.rope.scaling.attn_factor", MU_GGUF_F32, {.f = -2}, MU_EFORMAT, "found -2"},
    {"llama.rope.scaling.yarn_ext_factor", MU_GGUF_F32, {.f = 0.5f}, MU_EUNSUPPORTED, "YaRN in part"},
    {"llama.rope.scaling.yarn_attn_factor", MU_GGUF_F32, {.f = 1}, MU_EUNSUPPORTED, "not supported"},
    {"llama.attention.scale", MU_GGUF_F32, {.f = 0.125f}, MU_OK, NULL},
    {"llama.attention.scale", MU_GGUF_F32, {.f = INFINITY}, MU_EFORMAT, "found inf"},
    {"llama.attention.temperature_scale", MU_GGUF_F32, {.f = 0.1f}, MU_EUNSUPPORTED, "temperature by position"},
    {"llama.rope.scaling.attn_factor", MU_GGUF_F32, {.f = 1.0f}, MU_OK, NULL},
    {"llama.rope.dimension_sections", MU_GGUF_U32, {.u = 3}, MU_EUNSUPPORTED, "not supported"},
    {"llama.expert_count", MU_GGUF_U32, {.u = 8}, MU_EFORMAT, "expected key 'llama.expert_used_count'"},
    {"llama.expert_count", MU_GGUF_U32, {.u = 0}, MU_OK, NULL},
    {"llama.expert_count", MU_GGUF_STRING, {.s = "8"}, MU_EFORMAT, "expected"},
    {"llama.expert_count", MU_GGUF_U32, {.u = 513}, MU_EFORMAT, "from 0 to 512"},
    {"llama.expert_shared_count", MU_GGUF_U32, {.u = 1}, MU_EUNSUPPORTED, "experts that every token uses"},
    {"llama.expert_gating_func", MU_GGUF_U32, {.u = 2}, MU_EUNSUPPORTED, "softmax"},
    {"llama.attention.causal", MU_GGUF_BOOL, {.b = 0}, MU_EUNSUPPORTED, "attention to later tokens"},
    {"llama.attention.causal", MU_GGUF_BOOL, {.b = 1}, MU_OK, NULL},
    {"llama.use_parallel_residual", MU_GGUF_BOOL, {.b = 1}, MU_EUNSUPPORTED, "in parallel"},
    {"llama.attention.clamp_kqv", MU_GGUF_F32, {.f = 8}, MU_EUNSUPPORTED, "clamped"},
    {"llama.final_logit_softcapping", MU_GGUF_F32, {.f = 30}, MU_EUNSUPPORTED, "soft caps of logits"},
    {"llama.pooling_type", MU_GGUF_U32, {.u = 0}, MU_OK, NULL},
    {"llama.pooling_type", MU_GGUF_U32, {.u = 1}, MU_OK, NULL},
    {"llama.pooling_type", MU_GGUF_U32, {.u = 2}, MU_EUNSUPPORTED, "pooling 2 (first token) is not supported"},
    {"llama.pooling_type", MU_GGUF_U32, {.u = 3}, MU_OK, NULL},
    {"llama.pooling_type", MU_GGUF_U32, {.u = 4}, MU_EUNSUPPORTED, "pooling 4 (ranking of pairs)"},
    {"llama.pooling_type", MU_GGUF_U32, {.u = 5}, MU_EUNSUPPORTED, "pooling 5 is not supported"},
    {"llama.pooling_type", MU_GGUF_STRING, {.s = "mean"}, MU_EFORMAT, "expected"},
    {"llama.logit_scale", MU_GGUF_F32, {.f = 0.5f}, MU_EUNSUPPORTED, "scaled logits"},
    {"llama.vocab_size", MU_GGUF_U32, {.u = 6}, MU_EFORMAT, "expected 6 rows of 8 values"},
    {"llama.vocab_size", MU_GGUF_U32, {.u = 5}, MU_OK, NULL},
    {"llama.attention.sliding_window", MU_GGUF_U32, {.u = 1u << 31}, MU_EFORMAT, "found 2147483648"},
    {"general.type", MU_GGUF_STRING, {.s = "adapter"}, MU_EUNSUPPORTED, "LoRA adapter"},
    {"general.name", MU_GGUF_U32, {.u = 1}, MU_EFORMAT, "expected a string"},
};
static size_t key_now;

static void put_key_now(struct mu_gguf_writer *w)
{
    if (keys[key_now].kind == MU_GGUF_STRING)
        mu_gguf_put_str(w, keys[key_now].key, keys[key_now].v.s, strlen(keys[key_now].v.s));
    else
        mu_gguf_put_scalar(w, keys[key_now].key, keys[key_now].kind, &keys[key_now].v);
}

static void test_keys(void **state)
{
    (void)state;
    for (key_now = 0; key_now < sizeof keys / sizeof *keys; key_now++) {
        struct mu_model *m = NULL;
        struct mu_err err = MU_ERR_INIT;
        enum mu_status st = mu_model_open(write_tiny(&(const struct change){.extra = put_key_now}), &m, &err);
        if (st != keys[key_now].code || (st != MU_OK && !strstr(err.text, keys[key_now].says)))
            fail_msg("%s (row %zu): found %s: %s", keys[key_now].key, key_now, mu_status_name(st), err.text);
        bool mean = !strcmp(keys[key_now].key, "llama.pooling_type") && keys[key_now].v.u == 1;
        if (st == MU_OK) assert_int_equal(m->cfg.pooling, mean ? MU_POOL_MEAN : MU_POOL_LAST);
        mu_model_close(m);
    }
}

/* The required sizes, each at values that no model has. */
static struct {
    const char *key;
    uint32_t value;
    const char *says;
} sizes[] = {
    {"llama.block_count", 0, "from 1 to 1024, found 0"},
    {"llama.block_count", 1025, "found 1025"},
    {"llama.block_count", 1, "has 1 layers"},
    {"llama.block_count", 3, "blk.2."},
    {"llama.embedding_length", 0, "found 0"},
    {"llama.embedding_length", UINT32_MAX, "found 4294967295"},
    {"llama.embedding_length", 16, "rows of 16 values"},
    {"llama.feed_forward_length", 0, "found 0"},
    {"llama.feed_forward_length", 13, "13 rows of 8 values"},
    {"llama.context_length", 0, "found 0"},
    {"llama.attention.head_count", 0, "found 0"},
    {"llama.attention.head_count", 3, "query heads"},
    {"llama.attention.head_count", 1u << 20, "found 1048576"},
    {"llama.attention.head_count_kv", 3, "found 4 and 3"},
    {"llama.attention.head_count_kv", 8, "found 4 and 8"},
    {"llama.attention.head_count_kv", 0, "found 0"},
};
static size_t size_now;

static void put_size_now(struct mu_gguf_writer *w)
{
    mu_gguf_put_u32(w, sizes[size_now].key, sizes[size_now].value);
}

static void test_sizes_are_checked(void **state)
{
    (void)state;
    for (size_now = 0; size_now < sizeof sizes / sizeof *sizes; size_now++) {
        struct mu_model *m = NULL;
        struct mu_err err = MU_ERR_INIT;
        const struct change c = {.skip = sizes[size_now].key, .extra = put_size_now};
        enum mu_status st = mu_model_open(write_tiny(&c), &m, &err);
        if (st == MU_OK || !strstr(err.text, sizes[size_now].says))
            fail_msg("%s = %u: found %s: %s", sizes[size_now].key, sizes[size_now].value, mu_status_name(st), err.text);
    }
}

static void put_linear(struct mu_gguf_writer *w)
{
    mu_gguf_put_str(w, "llama.rope.scaling.type", "linear", 6);
    mu_gguf_put_f32(w, "llama.rope.scaling.factor", 4.0f);
}
static void put_old_linear(struct mu_gguf_writer *w)
{
    mu_gguf_put_f32(w, "llama.rope.scale_linear", 2.0f);
}
static void put_kv_array(struct mu_gguf_writer *w)
{
    static const int32_t same[LAYERS] = {KV, KV};
    mu_gguf_put_i32s(w, "llama.attention.head_count_kv", same, LAYERS);
}
static void put_kv_unequal(struct mu_gguf_writer *w)
{
    static const int32_t unequal[LAYERS] = {KV, 1};
    mu_gguf_put_i32s(w, "llama.attention.head_count_kv", unequal, LAYERS);
}
static void put_kv_short(struct mu_gguf_writer *w)
{
    static const int32_t one[1] = {KV};
    mu_gguf_put_i32s(w, "llama.attention.head_count_kv", one, 1);
}
static void put_tokens(struct mu_gguf_writer *w)
{
    static const struct mu_str tokens[VOCAB + 1] = {{"a", 1}, {"b", 1}, {"c", 1}, {"d", 1}, {"e", 1}, {"f", 1}};
    mu_gguf_put_strs(w, "tokenizer.ggml.tokens", tokens, VOCAB + 1);
}
static void put_name(struct mu_gguf_writer *w)
{
    mu_gguf_put_str(w, "general.name", "L\xc3\xa9o \x1b\xff\xc2\x9b!", 10);
}
static void put_arch(struct mu_gguf_writer *w)
{
    mu_gguf_put_str(w, "general.architecture", "qwen9", 5);
}

static void test_other_forms(void **state)
{
    (void)state;
    struct mu_model *m = tiny_ok(&(const struct change){.extra = put_linear});
    assert_true(m->cfg.rope_linear_scale == 4.0f);
    mu_model_close(m);
    m = tiny_ok(&(const struct change){.extra = put_old_linear});
    assert_true(m->cfg.rope_linear_scale == 2.0f);
    mu_model_close(m);
    m = tiny_ok(&(const struct change){.skip = "llama.attention.head_count_kv", .extra = put_kv_array});
    assert_int_equal(m->cfg.n_kv_head, KV);
    mu_model_close(m);
    m = tiny_ok(&(const struct change){.extra = put_name});
    assert_string_equal(m->name, "L\xc3\xa9o ?"
                                 "?"
                                 "?!");
    mu_model_close(m);
    REFUSED(MU_EUNSUPPORTED, "llama.attention.head_count_kv", "different sizes",
            .skip = "llama.attention.head_count_kv", .extra = put_kv_unequal);
    REFUSED(MU_EFORMAT, "llama.attention.head_count_kv", "each of 2 layers", .skip = "llama.attention.head_count_kv",
            .extra = put_kv_short);
    REFUSED(MU_EFORMAT, "tokenizer.ggml.tokens", "at most 5 tokens", .extra = put_tokens);
    REFUSED(MU_EUNSUPPORTED, "architecture 'qwen9'", "this build runs: llama", .skip = "general.architecture",
            .extra = put_arch);
    /* head_count_kv missing means as many as query heads, so that k has the wrong shape here */
    REFUSED(MU_EFORMAT, "blk.0.attn_k.weight", "expected 8 rows", .skip = "llama.attention.head_count_kv");
}

/* ---- sizes alone: a file of nothing but keys ---- */

static const char *keys_path(void)
{
    static char path[300];
    const char *tmp = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/muster-keys-%d.gguf", tmp ? tmp : "/tmp", (int)getpid());
    return path;
}

static enum mu_status config_of(const char *arch, void (*extra)(struct mu_gguf_writer *), struct mu_config *cfg,
                                struct mu_err *err)
{
    struct mu_gguf_writer *w = NULL;
    struct mu_gguf *g = NULL;
    char key[100];
    static const struct {
        const char *key;
        uint32_t value;
    } some[] = {{"block_count", 6},
                {"embedding_length", 64},
                {"feed_forward_length", 64},
                {"context_length", 4096},
                {"attention.head_count", 4}};
    assert_int_equal(mu_gguf_writer_open(keys_path(), &w, err), MU_OK);
    mu_gguf_put_str(w, "general.architecture", arch, strlen(arch));
    for (size_t i = 0; i < sizeof some / sizeof *some; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, some[i].key);
        mu_gguf_put_u32(w, key, some[i].value);
    }
    snprintf(key, sizeof key, "%s.attention.layer_norm_rms_epsilon", arch);
    mu_gguf_put_f32(w, key, 1e-5f);
    extra(w);
    assert_int_equal(mu_gguf_writer_close(w, true, err), MU_OK);
    assert_int_equal(mu_gguf_open(keys_path(), &g, err), MU_OK);
    unlink(keys_path());
    enum mu_status st = mu_config_read(g, mu_arch_find((struct mu_str){arch, strlen(arch)}), cfg, err);
    mu_gguf_close(g);
    return st;
}

static void put_pattern(struct mu_gguf_writer *w)
{
    static const int32_t window[6] = {1, 0, 1, 1, 0, 0};
    mu_gguf_put_u32(w, "gemma3.attention.sliding_window", 16);
    mu_gguf_put_i32s(w, "gemma3.attention.sliding_window_pattern", window, 6);
}
static void put_short_pattern(struct mu_gguf_writer *w)
{
    static const int32_t window[5] = {1, 0, 1, 1, 0};
    mu_gguf_put_i32s(w, "gemma3.attention.sliding_window_pattern", window, 5);
}
static void put_ministral(struct mu_gguf_writer *w)
{
    mu_gguf_put_str(w, "mistral3.rope.scaling.type", "yarn", 4);
    mu_gguf_put_f32(w, "mistral3.rope.scaling.factor", 16.0f);
    mu_gguf_put_f32(w, "mistral3.rope.scaling.yarn_beta_fast", 30.0f);
    mu_gguf_put_f32(w, "mistral3.rope.scaling.yarn_log_multiplier", 1.0f);
    mu_gguf_put_u32(w, "mistral3.rope.scaling.original_context_length", 1024);
    mu_gguf_put_f32(w, "mistral3.attention.temperature_scale", 0.1f);
}
static void put_nothing(struct mu_gguf_writer *w)
{
    (void)w;
}

static void test_configs(void **state)
{
    (void)state;
    struct mu_err err = MU_ERR_INIT;
    struct mu_config cfg;
    assert_int_equal(config_of("gemma3", put_pattern, &cfg, &err), MU_OK);
    static const int want[6] = {16, 0, 16, 16, 0, 0};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(mu_config_window(&cfg, i), want[i]);
        assert_int_equal(mu_config_local(&cfg, i), want[i] != 0);
    }
    assert_int_equal(config_of("gemma3", put_short_pattern, &cfg, &err), MU_EFORMAT);
    assert_err(&err, MU_EFORMAT, "sliding_window_pattern", "each of 6 layers", NULL);
    /* the weight cancels what YaRN would multiply cosines with */
    assert_int_equal(config_of("mistral3", put_ministral, &cfg, &err), MU_OK);
    assert_true(cfg.yarn_factor == 16.0f && cfg.yarn_beta_fast == 30.0f && cfg.yarn_beta_slow == 1.0f);
    assert_true(cfg.rope_attn_factor == 1.0f && cfg.n_ctx_orig == 1024 && cfg.query_scale == 0.1f);
    assert_int_equal(config_of("granite", put_nothing, &cfg, &err), MU_EFORMAT);
    assert_err(&err, MU_EFORMAT, "granite.logit_scale", NULL);
}

static void test_rope_factors(void **state)
{
    (void)state;
    struct mu_model *m = NULL;
    struct mu_err err = MU_ERR_INIT;
    struct change c = {
        .extra_tensor = "rope_freqs.weight", .tensor = "rope_freqs.weight", .n_col = 1, .n_row = 1, .fill = 8.0f};
    m = tiny_ok(&c);
    assert_true(m->rope_factors[0] == 8.0f && (uintptr_t)m->rope_factors % 16 == 0);
    mu_model_close(m);
    REFUSED(MU_EFORMAT, "rope_freqs.weight", "expected 1 rows of 1 values", .extra_tensor = "rope_freqs.weight");
    c.fill = 0.0f;
    assert_int_equal(mu_model_open(write_tiny(&c), &m, &err), MU_EFORMAT);
    assert_err(&err, MU_EFORMAT, "rope_freqs.weight", "above 0", NULL);
    c.fill = NAN;
    assert_int_equal(mu_model_open(write_tiny(&c), &m, &err), MU_ENONFINITE);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    const struct change c = {
        .extra_tensor = "rope_freqs.weight", .tensor = "rope_freqs.weight", .n_col = 1, .n_row = 1, .fill = 8.0f};
    const char *path = write_tiny(&c);
    long n = 1;
    for (;; n++) {
        struct mu_model *m = NULL;
        struct mu_err err = MU_ERR_INIT;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_model_open(path, &m, &err);
        mu_alloc_fail_at(0);
        mu_model_close(m);
        if (st == MU_OK) break;
        assert_err(&err, MU_ENOMEM, "memory", NULL);
        assert_true(n < 1000);
    }
    assert_true(n > 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_defaults),
        cmocka_unit_test(test_missing_things_are_named),
        cmocka_unit_test(test_shapes_and_types),
        cmocka_unit_test(test_unknown_tensors_are_refused),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_sizes_are_checked),
        cmocka_unit_test(test_other_forms),
        cmocka_unit_test(test_configs),
        cmocka_unit_test(test_rope_factors),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_fixtures_open),
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_changed_families_are_refused),
        cmocka_unit_test(test_unfit_fixtures_are_refused),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
