/* Hugging Face folders: what they become, and what is refused. Whole models of every family against their GGUF files
 * are in tests/golden/ (Folders). */
#include "files_util.h"

#include <math.h>
#include <sys/stat.h>

#include "kernels/quantize_rows.h"
#include "model/arch.h"
#include "model/hf_json.h"
#include "model/synth.h"

/* A Llama of one layer: 16 values wide, two heads of 8 over one key head, 32 in the feed-forward, 24 tokens. */
enum { D = 16, D_HEAD = 8, FF = 32, VOCAB = 24 };

struct spec {
    const char *name;
    int n_row, n_col; /* n_row 0: a vector */
};

static const struct spec llama[] = {
    {"model.embed_tokens.weight", VOCAB, D},
    {"model.norm.weight", 0, D},
    {"lm_head.weight", VOCAB, D},
    {"model.layers.0.input_layernorm.weight", 0, D},
    {"model.layers.0.post_attention_layernorm.weight", 0, D},
    {"model.layers.0.self_attn.q_proj.weight", D, D},
    {"model.layers.0.self_attn.k_proj.weight", D_HEAD, D},
    {"model.layers.0.self_attn.v_proj.weight", D_HEAD, D},
    {"model.layers.0.self_attn.o_proj.weight", D, D},
    {"model.layers.0.mlp.gate_proj.weight", FF, D},
    {"model.layers.0.mlp.up_proj.weight", FF, D},
    {"model.layers.0.mlp.down_proj.weight", D, FF},
    {"model.layers.0.self_attn.rotary_emb.inv_freq", 0, 4},
};
enum { N_LLAMA = sizeof llama / sizeof *llama };

#define CONFIG_OF(rest)                                                                                \
    "{\"hidden_size\":16,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":1," \
    "\"intermediate_size\":32,\"max_position_embeddings\":64,\"rms_norm_eps\":1e-5," rest "}"
#define CONFIG CONFIG_OF("\"model_type\":\"llama\"")

/* Tensor i's value number v: tells which tensor and which value it is. */
static float value_of(int i, int v)
{
    return (float)(i + 1) + (float)v / 1024.0f;
}

static const char *folder_path(const char *name)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/%s", test_dir, name);
    return path;
}

/* One file with the tensors [from, to) whose name `skip` (may be NULL) is not. `extra` goes into the header (a tensor
 * without values, or nothing). */
static void write_tensors(const char *file, const struct spec *spec, int from, int to, const char *skip,
                          const char *extra)
{
    static char header[8192];
    uint64_t len = 1;
    size_t at = 0;
    header[0] = '{';
    for (int i = from; i < to; i++) {
        size_t n = (size_t)(spec[i].n_row ? spec[i].n_row : 1) * (size_t)spec[i].n_col * 4;
        char shape[32];
        if (skip && strcmp(skip, spec[i].name) == 0) continue;
        snprintf(shape, sizeof shape, spec[i].n_row ? "[%d,%d]" : "[%.0d%d]", spec[i].n_row, spec[i].n_col);
        len += (uint64_t)snprintf(header + len, sizeof header - len,
                                  "%s\"%s\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                                  len > 1 ? "," : "", spec[i].name, shape, at, at + n);
        at += n;
    }
    len += (uint64_t)snprintf(header + len, sizeof header - len, "%s%s}", *extra && len > 1 ? "," : "", extra);
    FILE *f = fopen(folder_path(file), "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(&len, 8, 1, f), 1);
    assert_int_equal(fwrite(header, len, 1, f), 1);
    for (int i = from; i < to; i++)
        for (int v = 0; v < (spec[i].n_row ? spec[i].n_row : 1) * spec[i].n_col; v++) {
            float x = value_of(i, v);
            if (skip && strcmp(skip, spec[i].name) == 0) break;
            assert_int_equal(fwrite(&x, 4, 1, f), 1);
        }
    assert_int_equal(fclose(f), 0);
}

static void write_text(const char *file, const char *text)
{
    write_bytes(file, text, strlen(text));
}

/* Everything that a test may have written. */
static void clear(void)
{
    static const char *const files[] = {"config.json",
                                        "model.safetensors",
                                        "model.safetensors.index.json",
                                        "model-00001-of-00002.safetensors",
                                        "model-00002-of-00002.safetensors",
                                        "a.safetensors",
                                        "pytorch_model.bin",
                                        "x.gguf"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) unlink(folder_path(files[i]));
}

static void write_llama(const char *config, const char *skip, const char *extra)
{
    clear();
    write_text("config.json", config);
    write_tensors("model.safetensors", llama, 0, N_LLAMA, skip, extra);
}

static struct mu_model *open_or_fail(const char *path)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *m;
    if (mu_model_open(path, &m, &err) != MU_OK) fail_msg("%s", err.text);
    return m;
}

static float value_at(const struct mu_gguf_tensor *t, uint64_t row, int col)
{
    float f;
    memcpy(&f, mu_gguf_row(t, row) + 4 * (size_t)col, 4);
    return f;
}

static void test_llama(void **state)
{
    (void)state;
    write_llama(CONFIG, NULL, "");
    struct mu_model *m = open_or_fail(test_dir);
    assert_string_equal(m->arch->name, "llama");
    assert_int_equal(m->cfg.n_layer, 1);
    assert_int_equal(m->cfg.d_head, D_HEAD);
    assert_int_equal(m->cfg.n_vocab, VOCAB);
    assert_int_equal(m->cfg.window, 0);
    assert_false(m->tied);
    /* row 2i + j of a head is the folder's j · 4 + i */
    const struct mu_gguf_tensor *q = m->layer[0][MU_T_Q], *v = m->layer[0][MU_T_V];
    for (int r = 0; r < D; r++) {
        int at = r / D_HEAD * D_HEAD + r % 2 * 4 + r % D_HEAD / 2;
        for (int c = 0; c < D; c++) assert_true(value_at(q, (uint64_t)r, c) == value_of(5, at * D + c));
    }
    assert_true(mu_gguf_rows_scattered(q, 0, 2));
    assert_false(mu_gguf_rows_scattered(v, 0, D_HEAD));
    assert_true(value_at(v, 3, 2) == value_of(7, 3 * D + 2));
    float rows[3 * D];
    assert_ptr_equal(mu_gguf_rows(q, 7, 3, (uint8_t *)rows), rows);
    for (int r = 0; r < 3; r++) assert_true(rows[r * D + 1] == value_at(q, (uint64_t)(7 + r), 1));
    assert_ptr_equal(mu_gguf_rows(v, 2, 3, (uint8_t *)rows), v->data + 2 * v->row_bytes);
    float norm;
    memcpy(&norm, m->layer[0][MU_T_ATTN_NORM]->data + 4, 4);
    assert_true(norm == value_of(3, 1));
    mu_model_close(m);
}

/* Biases of heads are in pairs as their rows are. */
static void test_bias(void **state)
{
    struct spec spec[N_LLAMA + 1];
    (void)state;
    memcpy(spec, llama, sizeof llama);
    spec[N_LLAMA] = (struct spec){"model.layers.0.self_attn.q_proj.bias", 0, D};
    clear();
    write_text("config.json", CONFIG);
    write_tensors("model.safetensors", spec, 0, N_LLAMA + 1, NULL, "");
    struct mu_model *m = open_or_fail(test_dir);
    for (int r = 0; r < D; r++) {
        int at = r / D_HEAD * D_HEAD + r % 2 * 4 + r % D_HEAD / 2;
        assert_true(value_at(m->layer[0][MU_T_Q_B], 0, r) == value_of(N_LLAMA, at));
    }
    mu_model_close(m);
}

/* Saved without the class that has the output matrix, as models made for embeddings are: no "model." and no lm_head. */
static void test_bare(void **state)
{
    struct spec spec[N_LLAMA];
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *m;
    (void)state;
    memcpy(spec, llama, sizeof llama);
    for (int i = 0; i < N_LLAMA; i++)
        if (i != 2) spec[i].name += strlen("model.");
    clear();
    write_text("config.json", CONFIG);
    write_tensors("model.safetensors", spec, 0, N_LLAMA, "lm_head.weight", "");
    m = open_or_fail(test_dir);
    assert_true(m->tied);
    assert_true(value_at(m->embed, 3, 2) == value_of(0, 3 * D + 2));
    assert_true(value_at(m->layer[0][MU_T_V], 3, 2) == value_of(7, 3 * D + 2));
    mu_model_close(m);
    write_tensors("model.safetensors", spec, 0, N_LLAMA, NULL, ""); /* a head all the same */
    m = open_or_fail(test_dir);
    assert_false(m->tied);
    assert_true(value_at(m->output, 3, 2) == value_of(2, 3 * D + 2));
    mu_model_close(m);
    write_llama(CONFIG, "lm_head.weight", ""); /* of a model with the class it is missing */
    assert_int_equal(mu_model_open(test_dir, &m, &err), MU_EFORMAT);
    assert_err(&err, MU_EFORMAT, "lm_head.weight", NULL);
}

/* Files in it stand for the folder; two files, by an index or by their names. */
static void test_files(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *m;
    (void)state;
    write_llama(CONFIG, NULL, "");
    mu_model_close(open_or_fail(folder_path("config.json")));
    mu_model_close(open_or_fail(folder_path("model.safetensors")));
    mu_model_close(open_or_fail(folder_path("/")));
    clear();
    write_text("config.json", CONFIG);
    write_tensors("model-00001-of-00002.safetensors", llama, 0, 6, NULL, "");
    assert_int_equal(mu_model_open(test_dir, &m, &err), MU_ENOENT);
    assert_err(&err, MU_ENOENT, "file 2 of 2", NULL);
    write_tensors("model-00002-of-00002.safetensors", llama, 6, N_LLAMA, NULL, "");
    write_tensors("a.safetensors", llama, 0, 1, NULL, ""); /* belongs to something else */
    mu_model_close(open_or_fail(test_dir));

    static const struct {
        const char *map, *says;
        enum mu_status code;
    } cases[] = {
        {"\"model.norm.weight\":\"model-00002-of-00002.safetensors\"", "is not there", MU_EFORMAT},
        {"\"nothing\":\"model-00002-of-00002.safetensors\"", "is not there", MU_EFORMAT},
        {"\"model.norm.weight\":\"b.safetensors\"", "names a file that is not in the folder", MU_ENOENT},
        {"\"model.norm.weight\":\"../model.safetensors\"", "in this folder", MU_EFORMAT},
        {"\"model.norm.weight\":7", "in this folder", MU_EFORMAT},
        {"", "weight_map", MU_EFORMAT},
        {"\"model.norm.weight\":\"model-00001-of-00002.safetensors\",\"model.embed_tokens.weight\":\"a.safetensors\"",
         "another file", MU_EFORMAT},
        {"\"model.norm.weight\":\"model-00001-of-00002.safetensors\"", "k_proj.weight", MU_EFORMAT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        snprintf(text, sizeof text, "{\"weight_map\":{%s}}", cases[i].map);
        write_text("model.safetensors.index.json", text);
        if (mu_model_open(test_dir, &m, &err) == MU_OK) fail_msg("opened with %s", cases[i].map);
        assert_err(&err, cases[i].code, cases[i].says, NULL);
    }
    write_llama(CONFIG, NULL, ""); /* saved where a model of several files was: their index is still there */
    write_text("model.safetensors.index.json",
               "{\"weight_map\":{\"model.norm.weight\":\"model-00001-of-00002.safetensors\"}}");
    mu_model_close(open_or_fail(test_dir));
}

/* A folder of the own store is called as what was pulled, not as its tag. */
static void test_names(void **state)
{
    static const struct {
        const char *folder, *name;
    } cases[] = {{"views/hf.co/user/plain/latest", "user/plain"},
                 {"models--user--plain/snapshots/c1", "user/plain"},
                 {"view/hf.co/user/plain/latest", "latest"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[128];
        for (const char *slash = cases[i].folder; slash; slash = strchr(slash + 1, '/')) {
            snprintf(path, sizeof path, "%.*s", (int)(slash - cases[i].folder), cases[i].folder);
            mkdir(folder_path(path), 0700);
        }
        mkdir(folder_path(cases[i].folder), 0700);
        snprintf(path, sizeof path, "%s/config.json", cases[i].folder);
        write_text(path, CONFIG);
        snprintf(path, sizeof path, "%s/model.safetensors", cases[i].folder);
        write_tensors(path, llama, 0, N_LLAMA, NULL, "");
        struct mu_model *m = open_or_fail(folder_path(cases[i].folder));
        assert_string_equal(m->name, cases[i].name);
        mu_model_close(m);
    }
}

static void expect_open(const char *config, const char *skip, const char *extra, enum mu_status code, const char *says)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *m;
    write_llama(config, skip, extra);
    enum mu_status st = mu_model_open(test_dir, &m, &err);
    if (st == MU_OK) {
        mu_model_close(m);
        if (code != MU_OK) fail_msg("opened, not '%s': %s", says, config);
        return;
    }
    if (code == MU_OK) fail_msg("%s: %s", err.text, config);
    assert_err(&err, code, says, NULL);
}

static void test_refused(void **state)
{
    static const struct {
        const char *config, *says;
        enum mu_status code;
    } cases[] = {
        {"{", "expected JSON", MU_EFORMAT},
        {"[]", "JSON object", MU_EFORMAT},
        {"{}", "model_type", MU_EFORMAT},
        {CONFIG_OF("\"model_type\":\"mamba\""), "'mamba' is not supported", MU_EUNSUPPORTED},
        {CONFIG_OF("\"model_type\":\"llama\",\"quantization_config\":{\"quant_method\":\"gptq\"}"), "gptq",
         MU_EUNSUPPORTED},
        {CONFIG_OF("\"model_type\":\"llama\",\"hidden_act\":\"relu\""), "relu", MU_EUNSUPPORTED},
        {CONFIG_OF("\"model_type\":\"llama\",\"head_dim\":6"), "expected as many rows", MU_EFORMAT},
        {CONFIG_OF("\"model_type\":\"llama\",\"head_dim\":\"8\""), "expected a number", MU_EFORMAT},
        {CONFIG_OF("\"model_type\":\"llama\",\"head_dim\":8.5"), "whole number", MU_EFORMAT},
        {CONFIG_OF("\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2}"), "'dynamic'",
         MU_EUNSUPPORTED},
        {CONFIG_OF("\"model_type\":\"llama\",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}"),
         "low_freq_factor", MU_EFORMAT},
        {CONFIG_OF("\"model_type\":\"phi3\",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1]}"),
         "gate_proj.weight", MU_EUNSUPPORTED},
        {CONFIG_OF("\"model_type\":\"llama\",\"rope_theta\":0"), "rope_theta", MU_EFORMAT},
        {CONFIG_OF("\"model_type\":\"llama\",\"is_causal\":false"), "is_causal", MU_EUNSUPPORTED},
        {CONFIG_OF("\"model_type\":\"llama\",\"is_causal\":true"), "", MU_OK},
        {CONFIG_OF("\"model_type\":\"llama\",\"layer_types\":[\"linear_attention\"]"), "layer_types", MU_EUNSUPPORTED},
        {CONFIG_OF("\"model_type\":\"qwen2\",\"use_sliding_window\":true,\"max_window_layers\":0,\"sliding_window\":9"),
         "sliding_window", MU_EUNSUPPORTED},
        {CONFIG_OF("\"model_type\":\"qwen2\""), "attn_q.bias", MU_EFORMAT},
        {CONFIG_OF("\"model_type\":\"qwen3_moe\",\"num_experts\":4"), "down_proj.weight", MU_EUNSUPPORTED},
        {"{\"model_type\":\"llama\",\"hidden_size\":16,\"num_hidden_layers\":1000,\"num_attention_heads\":2}",
         "1000 layers", MU_EFORMAT},
        {"{\"model_type\":\"llama\",\"hidden_size\":16,\"num_hidden_layers\":1,\"num_attention_heads\":0}", "heads",
         MU_EFORMAT},
        {"{\"model_type\":\"llama\",\"hidden_size\":16,\"num_hidden_layers\":1,\"num_attention_heads\":2,"
         "\"num_key_value_heads\":1,\"intermediate_size\":32}",
         "max_position_embeddings", MU_EFORMAT},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_open(cases[i].config, NULL, "", cases[i].code, cases[i].says);
    for (int i = 0; i < N_LLAMA; i++) { /* each tensor is missed; but for the last, a leftover */
        bool needed = strcmp(llama[i].name, "model.layers.0.self_attn.rotary_emb.inv_freq") != 0;
        expect_open(CONFIG, llama[i].name, "", needed ? MU_EFORMAT : MU_OK, llama[i].name);
    }
    static const char *const empty = "{\"dtype\":\"F32\",\"shape\":[0],\"data_offsets\":[%d,%d]}";
    static const char *const names[] = {"model.layers.1.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.qweight",
                                        "model.layers.00.mlp.up_proj.weight", "score.weight", "model.layers."};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char extra[256];
        size_t n = (size_t)snprintf(extra, sizeof extra, "\"%s\":", names[i]);
        snprintf(extra + n, sizeof extra - n, empty, 0, 0);
        expect_open(CONFIG, NULL, extra, MU_EUNSUPPORTED, names[i]);
    }
}

static void test_configs(void **state)
{
    (void)state;
    /* tied by config.json: a matrix beside it means nothing */
    expect_open(CONFIG_OF("\"model_type\":\"llama\",\"tie_word_embeddings\":true"), NULL, "", MU_OK, "");
    expect_open(CONFIG_OF("\"model_type\":\"llama\",\"tie_word_embeddings\":true"), "lm_head.weight", "", MU_OK, "");

    write_llama(
        CONFIG_OF("\"model_type\":\"mistral\",\"sliding_window\":7,\"rope_parameters\":{\"rope_type\":\"linear\","
                  "\"factor\":4,\"rope_theta\":5000}"),
        NULL, "");
    struct mu_model *m = open_or_fail(test_dir);
    assert_int_equal(m->cfg.window, 7);
    assert_true(m->cfg.rope_freq_base == 5000.0f);
    assert_true(m->cfg.rope_linear_scale == 4.0f);
    mu_model_close(m);
    write_llama(CONFIG_OF("\"model_type\":\"llama\",\"sliding_window\":7,\"rope_theta\":1e6"), NULL, "");
    m = open_or_fail(test_dir);
    assert_int_equal(m->cfg.window, 0); /* the library does not look at it for this type */
    assert_true(m->cfg.rope_freq_base == 1e6f);
    mu_model_close(m);
    write_llama(CONFIG_OF("\"model_type\":\"llama\",\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,"
                          "\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_embeddings\":64}"),
                NULL, "");
    m = open_or_fail(test_dir);
    assert_non_null(m->rope_factors);
    assert_true(m->rope_factors[0] == 1.0f); /* a wave of 6 positions */
    assert_true(m->rope_factors[3] == 8.0f); /* one of 6283 */
    mu_model_close(m);
    write_llama(CONFIG_OF("\"model_type\":\"llama\",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,"
                          "\"original_max_position_embeddings\":16,\"attention_factor\":1.5,\"beta_fast\":16}"),
                NULL, "");
    m = open_or_fail(test_dir);
    assert_true(m->cfg.yarn_factor == 4.0f);
    assert_true(m->cfg.yarn_beta_fast == 16.0f);
    assert_int_equal(m->cfg.n_ctx_orig, 16);
    assert_true(fabsf(m->cfg.rope_attn_factor - 1.5f) < 1e-6f);
    mu_model_close(m);
}

static void test_other_weights(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *m;
    (void)state;
    clear();
    write_text("config.json", CONFIG);
    write_text("pytorch_model.bin", "PK\003\004");
    assert_int_equal(mu_model_open(test_dir, &m, &err), MU_EUNSUPPORTED);
    assert_err(&err, MU_EUNSUPPORTED, "pickle", "safetensors", NULL);
    assert_int_equal(mu_model_open(folder_path("pytorch_model.bin"), &m, &err), MU_EUNSUPPORTED);
    assert_err(&err, MU_EUNSUPPORTED, "pickle", "safetensors", NULL);
    write_text("x.gguf", "GGUF");
    assert_int_equal(mu_model_open(test_dir, &m, &err), MU_EINVAL);
    assert_err(&err, MU_EINVAL, "/x.gguf", NULL);
    assert_int_equal(mu_model_open(folder_path("none.safetensors"), &m, &err), MU_ENOENT);
    assert_int_equal(mu_model_open(folder_path("none.pt"), &m, &err), MU_ENOENT);
    clear();
    assert_int_equal(mu_model_open(test_dir, &m, &err), MU_EINVAL);
    write_tensors("a.safetensors", llama, 0, N_LLAMA, NULL, "");
    assert_int_equal(mu_model_open(test_dir, &m, &err), MU_ENOENT);
    assert_err(&err, MU_ENOENT, "config.json", NULL);
    write_text("config.json", CONFIG);
    mu_model_close(open_or_fail(test_dir)); /* the only one there is */
    write_tensors("b.safetensors", llama, 0, N_LLAMA, NULL, "");
    assert_int_equal(mu_model_open(test_dir, &m, &err), MU_EINVAL);
    assert_err(&err, MU_EINVAL, "2 .safetensors files", NULL);
    unlink(folder_path("b.safetensors"));
}

/* Rows of 16 and 32 values: Q4_K does not fit them, Q8_0 fits the second, F16 the first. */
static void test_quantize(void **state)
{
    struct mu_err err = MU_ERR_INIT;
    (void)state;
    write_llama(CONFIG, NULL, "");
    struct mu_model *m = open_or_fail(test_dir);
    uint64_t before = m->weight_bytes;
    assert_int_equal(mu_model_quantize(m, NULL, &err), MU_OK);
    assert_int_equal(mu_model_quantize(m, "", &err), MU_OK);
    assert_int_equal(m->weight_bytes, before);
    if (mu_model_quantize(m, "q4_k", &err) != MU_OK) fail_msg("%s", err.text);
    assert_int_equal(m->layer[0][MU_T_DOWN]->type, MU_Q8_0);
    assert_int_equal(m->layer[0][MU_T_DOWN]->row_bytes, 34);
    assert_int_equal(m->layer[0][MU_T_Q]->type, MU_F16);
    assert_int_equal(m->output->type, MU_F16);
    assert_int_equal(m->embed->type, MU_F32);
    assert_int_equal(m->layer[0][MU_T_Q]->source->type, MU_F32);
    assert_true(m->weight_bytes < before);
    mu_model_close(m);
    m = open_or_fail(test_dir);
    assert_int_equal(mu_model_quantize(m, "q8_k", &err), MU_EINVAL);
    assert_err(&err, MU_EINVAL, "q8_k", "Q4_K", NULL);
    mu_model_close(m);
}

/* F16 is no smaller than F16 or BF16: nothing to do, and nothing of which less is made than was asked for. */
static void test_quantize_to_f16(void **state)
{
    static const uint32_t types[] = {MU_F16, MU_BF16};
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_synth synth = {.n_layer = 1,
                                 .n_head = 2,
                                 .n_kv_head = 1,
                                 .d_head = 32,
                                 .d_model = 64,
                                 .d_ff = 64,
                                 .n_vocab = 300,
                                 .n_ctx = 64,
                                 .rope_freq_base = 1e4f,
                                 .type = types[i],
                                 .output_type = types[i]};
        clear();
        if (mu_synth_write(&synth, folder_path("x.gguf"), NULL, NULL, &err) != MU_OK) fail_msg("%s", err.text);
        struct mu_model *m = open_or_fail(folder_path("x.gguf"));
        assert_int_equal(mu_model_quantize(m, "f16", &err), MU_EUNSUPPORTED);
        assert_err(&err, MU_EUNSUPPORTED, "F16", "nothing to do", NULL);
        for (int id = 0; id < MU_T_MATRIX_COUNT; id++)
            if (m->layer[0][id]) assert_int_equal(m->layer[0][id]->type, types[i]);
        mu_model_close(m);
    }
    clear();
}

static void test_memory(void **state)
{
    (void)state;
    clear();
    write_text("config.json", CONFIG);
    write_tensors("model-00001-of-00002.safetensors", llama, 0, 6, NULL, "");
    write_tensors("model-00002-of-00002.safetensors", llama, 6, N_LLAMA, NULL, "");
    for (long n = 1;; n++) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_model *m = NULL;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_model_open(test_dir, &m, &err);
        if (st == MU_OK) st = mu_model_quantize(m, "q8_0", &err);
        mu_alloc_fail_at(0);
        if (m) mu_model_close(m);
        if (st == MU_OK) {
            print_message("  %ld allocations\n", n - 1);
            assert_true(n > 30);
            return;
        }
        if (st != MU_ENOMEM) fail_msg("allocation %ld: %s", n, err.text);
    }
}

/* With its tokenizer, from a real folder. */
static void test_memory_of_fixture(void **state)
{
    static char path[1024];
    (void)state;
    snprintf(path, sizeof path, "%s", fixture_path("models/mistral-hf"));
    for (long n = 1;; n += 1 + n / 16) {
        struct mu_err err = MU_ERR_INIT;
        struct mu_model *m = NULL;
        mu_alloc_fail_at(n);
        enum mu_status st = mu_model_open(path, &m, &err);
        long made = mu_alloc_fail_at(0);
        if (m) mu_model_close(m);
        if (st == MU_OK) {
            print_message("  %ld allocations\n", made);
            assert_true(made < n); /* none failed unnoticed */
            return;
        }
        if (st != MU_ENOMEM) fail_msg("allocation %ld: %s", n, err.text);
    }
}

/* Whatever allocation of jansson's fails, it is memory that is short, and not the text that is wrong. */
static void test_json_memory(void **state)
{
    (void)state;
    static const char text[] =
        "{\"a\": [1, -2.5e3, true, null, \"\\u00e9 and a longer text than jansson's first buffer\"],"
        " \"an even longer name than that buffer has room for\": {\"b\": 12345678901}}";
    long n = 0;
    for (bool failed = true; failed; n++) {
        struct mu_err err = MU_ERR_INIT;
        json_t *root = NULL;
        mu_json_fail_at(n + 1);
        enum mu_status st = mu_json_parse(text, sizeof text - 1, "text", true, &root, &err);
        failed = mu_json_fail_at(0) == 0;
        if (st != MU_ENOMEM && (st != MU_OK || failed)) fail_msg("allocation %ld: %s", n + 1, err.text);
        json_decref(root);
        assert_true(n < 1000);
    }
    assert_true(n > 20);
    struct mu_err err = MU_ERR_INIT;
    json_t *root = NULL;
    assert_int_equal(mu_json_parse("{\"a\": x}", 8, "text", true, &root, &err), MU_EFORMAT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),       cmocka_unit_test(test_bias),
        cmocka_unit_test(test_bare),        cmocka_unit_test(test_files),
        cmocka_unit_test(test_names),       cmocka_unit_test(test_refused),
        cmocka_unit_test(test_configs),     cmocka_unit_test(test_other_weights),
        cmocka_unit_test(test_quantize),    cmocka_unit_test(test_quantize_to_f16),
        cmocka_unit_test(test_memory),      cmocka_unit_test(test_memory_of_fixture),
        cmocka_unit_test(test_json_memory),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
