/* Adapters: what a user says of them, both forms of file, and everything that is refused, by name. */
#include "tests/model/files_util.h"

#include <math.h>
#include <sys/stat.h>

#include "model/adapter.h"
#include "model/gguf_write.h"
#include "model/synth.h"

enum { D = 64, FF = 96, RANK = 4 };

static struct mu_model *model_make(const char *arch, int n_expert)
{
    const struct mu_synth spec = {.arch = arch,
                                  .n_layer = 2,
                                  .n_head = 4,
                                  .n_kv_head = 2,
                                  .d_head = 16,
                                  .d_model = D,
                                  .d_ff = FF,
                                  .n_vocab = 300,
                                  .n_ctx = 64,
                                  .n_expert = n_expert,
                                  .n_expert_used = n_expert ? 2 : 0,
                                  .rope_freq_base = 10000,
                                  .type = MU_F32,
                                  .output_type = MU_F32};
    struct mu_err err = MU_ERR_INIT;
    struct mu_model *m = NULL;
    const char *path = test_path("model.gguf");
    if (mu_synth_write(&spec, path, NULL, NULL, &err) != MU_OK || mu_model_open(path, &m, &err) != MU_OK)
        fail_msg("%s", err.text);
    return m;
}

/* ---- [NAME=]PATH[:SCALE] ---- */

static void test_specs(void **state)
{
    (void)state;
    static const struct {
        const char *text, *name, *path;
        float scale;
    } good[] = {
        {"a.gguf", "a", "a.gguf", 1},
        {"/x/y/tone.gguf", "tone", "/x/y/tone.gguf", 1},
        {"folders/sql/", "sql", "folders/sql/", 1},
        {"sql=/x/a b.gguf", "sql", "/x/a b.gguf", 1},
        {"a-1.b_2=p:0.5", "a-1.b_2", "p", 0.5f},
        {"p.gguf:-2", "p", "p.gguf", -2},
        {"p:+1000", "p", "p", 1000},
        {"n=C:/x=y/z", "n", "C:/x=y/z", 1}, /* a colon before a slash is the path's */
        {"/x=y/z.gguf", "z", "/x=y/z.gguf", 1},
        {"p.gguf:", NULL, NULL, 0},
    };
    struct mu_err err;
    struct mu_adapter_spec s;
    for (size_t i = 0; good[i].name; i++) {
        if (mu_adapter_spec_parse(good[i].text, &s, &err) != MU_OK) fail_msg("%s: %s", good[i].text, err.text);
        assert_string_equal(s.name, good[i].name);
        assert_string_equal(s.path, good[i].path);
        assert_true(s.scale == good[i].scale);
    }
    static const char *const bad[][2] = {
        {"", "expected [NAME=]PATH"},     {"a=", "expected [NAME=]PATH"}, {"a:b=x", "expected a name"},
        {"=x", "expected a name"},        {"p:1e3", "expected a scale"},  {"p:nan", "expected a scale"},
        {"p:1001", "expected a scale"},   {"p:", "give it one"},          {"p:1.2.3", "expected a scale"},
        {"my tone.gguf", "give it one"},  {"/", "give it one"},           {":1", "expected [NAME=]PATH"},
        {"n=:1", "expected [NAME=]PATH"}, {"\xff.gguf", "give it one"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err = (struct mu_err)MU_ERR_INIT;
        assert_int_equal(mu_adapter_spec_parse(bad[i][0], &s, &err), MU_EINVAL);
        if (!strstr(err.text, bad[i][1])) fail_msg("'%s': %s", bad[i][0], err.text);
    }
    char longest[3000];
    memset(longest, 'x', sizeof longest);
    longest[sizeof longest - 1] = 0;
    assert_int_equal(mu_adapter_spec_parse(longest, &s, &err), MU_EINVAL);
    memcpy(longest, "n=", 2);
    assert_int_equal(mu_adapter_spec_parse(longest, &s, &err), MU_EINVAL);
}

/* ---- GGUF files ---- */

struct half {
    const char *name;
    uint64_t n_col, n_row;
    uint32_t type;
};
struct spoiled {
    const char *arch, *type, *kind;
    float alpha;
    const char *key; /* put as well */
    struct half half[3];
    enum mu_status code;
    const char *says[2];
};

static enum mu_status open_one(const struct mu_model *m, const char *path, struct mu_adapters **a, struct mu_err *err)
{
    struct mu_adapter_spec spec = {.name = "it", .scale = 1};
    snprintf(spec.path, sizeof spec.path, "%s", path);
    *err = (struct mu_err)MU_ERR_INIT;
    *a = NULL;
    return mu_adapters_open(m, &spec, 1, a, err);
}

static const char *gguf_make(const struct spoiled *s)
{
    struct mu_gguf_writer *w = NULL;
    struct mu_err err = MU_ERR_INIT;
    const char *path = test_path("adapter.gguf");
    assert_int_equal(mu_gguf_writer_open(path, &w, &err), MU_OK);
    if (s->arch) mu_gguf_put_str(w, "general.architecture", s->arch, strlen(s->arch));
    if (s->type) mu_gguf_put_str(w, "general.type", s->type, strlen(s->type));
    if (s->kind) mu_gguf_put_str(w, "adapter.type", s->kind, strlen(s->kind));
    mu_gguf_put_f32(w, "adapter.lora.alpha", s->alpha);
    if (s->key) mu_gguf_put_u32(w, s->key, 1);
    for (int i = 0; i < 3 && s->half[i].name; i++)
        mu_gguf_put_tensor(w, s->half[i].name, s->half[i].type, 2, (uint64_t[]){s->half[i].n_col, s->half[i].n_row});
    for (int i = 0; i < 3 && s->half[i].name; i++) {
        size_t row = 0;
        assert_true(mu_type_row_bytes(s->half[i].type, s->half[i].n_col, &row));
        uint8_t *zero = calloc(s->half[i].n_row, row);
        assert_int_equal(mu_gguf_put_data(w, zero, row * s->half[i].n_row, &err), MU_OK);
        free(zero);
    }
    if (mu_gguf_writer_close(w, 1, &err) != MU_OK) fail_msg("%s", err.text);
    return path;
}

#define GOOD    "llama", "adapter", "lora", 8
#define A(name) name ".weight.lora_a"
#define B(name) name ".weight.lora_b"
#define PAIR(name, n_col, n_row)                                        \
    {                                                                   \
        {A(name), n_col, RANK, MU_F32}, {B(name), RANK, n_row, MU_F32}, \
    }

static void test_gguf_refused(void **state)
{
    (void)state;
    static const struct spoiled cases[] = {
        {GOOD, NULL, PAIR("blk.1.attn_q", D, 64), MU_OK, {NULL}},
        {GOOD, NULL, PAIR("output", D, 300), MU_OK, {NULL}},
        {GOOD, NULL, {{A("blk.0.attn_v"), D, RANK, MU_Q8_0}, {B("blk.0.attn_v"), RANK, 32, MU_F16}}, MU_OK, {NULL}},
        {NULL, "adapter", "lora", 8, NULL, PAIR("blk.1.attn_q", D, 64), MU_EUNSUPPORTED, {"architecture ''"}},
        {"qwen2",
         "adapter",
         "lora",
         8,
         NULL,
         PAIR("blk.1.attn_q", D, 64),
         MU_EUNSUPPORTED,
         {"architecture 'qwen2'", "'llama'"}},
        {"llama", "model", "lora", 8, NULL, PAIR("blk.1.attn_q", D, 64), MU_EFORMAT, {"'general.type'", "'model'"}},
        {"llama",
         "adapter",
         "control",
         8,
         NULL,
         PAIR("blk.1.attn_q", D, 64),
         MU_EUNSUPPORTED,
         {"'adapter.type' is 'control'"}},
        {GOOD, "adapter.alora.invocation_tokens", PAIR("blk.1.attn_q", D, 64), MU_EUNSUPPORTED, {"activated LoRA"}},
        {"llama", "adapter", "lora", INFINITY, NULL, PAIR("blk.1.attn_q", D, 64), MU_EFORMAT, {"strength", "inf"}},
        {"llama", "adapter", "lora", NAN, NULL, PAIR("blk.1.attn_q", D, 64), MU_EFORMAT, {"strength", "nan"}},
        {"llama", "adapter", "lora", 1e9f, NULL, PAIR("blk.1.attn_q", D, 64), MU_EFORMAT, {"strength"}},
        {GOOD, NULL, {{NULL}}, MU_EFORMAT, {"tensor"}},
        {GOOD, NULL, {{A("blk.0.attn_q"), D, RANK, MU_F32}}, MU_EFORMAT, {"ends in .lora_b"}},
        {GOOD, NULL, {{B("blk.0.attn_q"), RANK, D, MU_F32}}, MU_EFORMAT, {"ends in .lora_a, found"}},
        {GOOD, NULL, PAIR("blk.0.attn_q", D + 32, 64), MU_EFORMAT, {"rows of 64 values", "96"}},
        {GOOD, NULL, PAIR("blk.0.attn_q", D, 32), MU_EFORMAT, {"expected 64 rows of 4 values", "32 of 4"}},
        {GOOD,
         NULL,
         {{A("blk.0.attn_q"), D, 5, MU_F32}, {B("blk.0.attn_q"), RANK, 64, MU_F32}},
         MU_EFORMAT,
         {"64 rows of 5 values"}},
        {GOOD,
         NULL,
         {{A("blk.0.attn_q"), D, 1025, MU_F32}, {B("blk.0.attn_q"), 1025, 64, MU_F32}},
         MU_EUNSUPPORTED,
         {"rank from 1 to 1024", "1025"}},
        {GOOD, NULL, PAIR("blk.2.attn_q", D, 64), MU_EFORMAT, {"the model has 2 layers"}},
        {GOOD, NULL, PAIR("blk.00.attn_q", D, 64), MU_EUNSUPPORTED, {"a matrix of a layer"}},
        {GOOD, NULL, PAIR("token_embd", D, 300), MU_EUNSUPPORTED, {"embedding"}},
        {GOOD, NULL, PAIR("blk.0.attn_norm", D, 1), MU_EUNSUPPORTED, {"norms"}},
        {GOOD, NULL, PAIR("blk.0.attn_qkv", D, 128), MU_EUNSUPPORTED, {"no matrix of that name", "'llama'"}},
        {GOOD, NULL, PAIR("blk.0.ffn_gate_inp", D, 4), MU_EUNSUPPORTED, {"no matrix of that name"}},
        {GOOD,
         NULL,
         {{"blk.0.attn_norm.weight", D, 1, MU_F32}},
         MU_EUNSUPPORTED,
         {"ends in .lora_a", "blk.0.attn_norm.weight"}},
        {GOOD, NULL, {{".lora_a", D, 1, MU_F32}}, MU_EUNSUPPORTED, {"ends in .lora_a"}},
        {GOOD,
         NULL,
         {{A("blk.0.attn_q"), D, RANK, MU_F32}, {B("blk.0.attn_q"), RANK, 64, MU_I32}},
         MU_EUNSUPPORTED,
         {"type I32"}},
    };
    struct mu_model *m = model_make("llama", 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_adapters *a;
        struct mu_err err;
        enum mu_status st = open_one(m, gguf_make(&cases[i]), &a, &err);
        if (st != cases[i].code) fail_msg("case %zu: %s", i, err.text);
        for (int k = 0; k < 2 && cases[i].says[k]; k++)
            if (!strstr(err.text, cases[i].says[k])) fail_msg("case %zu: %s", i, err.text);
        if (st == MU_OK) assert_int_equal(a->max_rank, RANK);
        mu_adapters_close(a);
    }
    mu_model_close(m);
}

static void test_experts_refused(void **state)
{
    (void)state;
    static const struct spoiled cases[] = {
        {GOOD, NULL, PAIR("blk.0.ffn_gate_inp", D, 4), MU_EUNSUPPORTED, {"router"}},
        {GOOD, NULL, PAIR("blk.0.ffn_down_exps", FF, 256), MU_EUNSUPPORTED, {"experts"}},
        {GOOD, NULL, PAIR("blk.0.attn_k", D, 32), MU_OK, {NULL}}};
    struct mu_model *m = model_make("llama", 4);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_adapters *a;
        struct mu_err err;
        assert_int_equal(open_one(m, gguf_make(&cases[i]), &a, &err), cases[i].code);
        if (cases[i].says[0]) assert_non_null(strstr(err.text, cases[i].says[0]));
        mu_adapters_close(a);
    }
    mu_model_close(m);
}

/* A fused matrix: each part gets its rows. */
static void test_fused(void **state)
{
    (void)state;
    static const struct spoiled s = {"phi3", "adapter", "lora", 8, NULL, PAIR("blk.1.attn_qkv", D, 128), MU_OK, {NULL}};
    struct mu_model *m = model_make("phi3", 0);
    struct mu_adapters *a;
    struct mu_err err;
    if (open_one(m, gguf_make(&s), &a, &err) != MU_OK) fail_msg("%s", err.text);
    const struct mu_lora *q = &a->at[0]->layer[1][MU_T_Q], *k = q + 1, *v = q + 2;
    assert_true(q->n_row == 64 && k->n_row == 32 && v->n_row == 32 && q->rank == RANK && v->scale == 2);
    assert_true(k->b == q->b + 64 * q->b_row_bytes && v->b == q->b + 96 * q->b_row_bytes && q->a == v->a);
    assert_int_equal(a->at[0]->layer[1][MU_T_O].rank, 0);
    mu_adapters_close(a);
    mu_model_close(m);
}

static void test_sets(void **state)
{
    (void)state;
    static const struct spoiled s = {GOOD, NULL, PAIR("blk.1.attn_q", D, 64), MU_OK, {NULL}};
    struct mu_model *m = model_make("llama", 0);
    struct mu_adapter_spec spec[2] = {{.name = "one", .scale = 1}, {.name = "two", .scale = 0.5f}};
    struct mu_adapters *a = NULL;
    struct mu_err err = MU_ERR_INIT;
    char names[64];
    for (int i = 0; i < 2; i++) snprintf(spec[i].path, sizeof spec[i].path, "%s", gguf_make(&s));
    assert_int_equal(mu_adapters_open(m, spec, 2, &a, &err), MU_OK);
    assert_int_equal(mu_adapters_find(a, "two"), 2);
    assert_int_equal(mu_adapters_find(a, "three"), -1);
    assert_int_equal(mu_adapters_find(a, "none"), 0);
    assert_int_equal(mu_adapters_find(a, ""), 0);
    a->by_default = 2;
    assert_int_equal(mu_adapters_find(a, ""), 2);
    assert_int_equal(mu_adapters_find(a, "none"), 0);
    assert_int_equal(mu_adapters_find(NULL, "one"), -1);
    assert_int_equal(mu_adapters_find(NULL, ""), 0);
    assert_string_equal(mu_adapters_names(a, names, sizeof names), "one, two");
    assert_int_equal(strlen(mu_adapters_names(a, names, 6)), 5);
    mu_adapters_close(a);
    memcpy(spec[1].name, "one", 4);
    assert_int_equal(mu_adapters_open(m, spec, 2, &a, &err), MU_EINVAL);
    assert_err(&err, MU_EINVAL, "two adapters are called 'one'", NULL);
    spec[0].scale = NAN;
    assert_int_equal(mu_adapters_open(m, spec, 1, &a, &err), MU_EINVAL);
    assert_int_equal(mu_adapters_open(m, spec, MU_MAX_ADAPTER + 1, &a, &err), MU_ELIMIT);
    assert_int_equal(mu_adapters_open(m, spec, 0, &a, &err), MU_OK);
    assert_string_equal(mu_adapters_names(a, names, sizeof names), "none");
    mu_adapters_close(a);
    snprintf(spec[0].path, sizeof spec[0].path, "%s", test_path("nothing.gguf"));
    spec[0].scale = 1;
    assert_int_equal(mu_adapters_open(m, spec, 1, &a, &err), MU_ENOENT);
    snprintf(spec[0].path, sizeof spec[0].path, "%s", test_path("model.gguf"));
    assert_int_equal(mu_adapters_open(m, spec, 1, &a, &err), MU_EFORMAT); /* a model is none */
    mu_model_close(m);
}

/* ---- PEFT folders ---- */

static const char *folder_make(const char *config, const char *table, size_t data_len)
{
    const char *folder = test_path("peft");
    uint64_t len = strlen(table);
    uint8_t *file = calloc(1, 8 + len + data_len);
    char name[64];
    mkdir(folder, 0700);
    memcpy(file, &len, 8);
    memcpy(file + 8, table, len);
    if (config) write_bytes("peft/adapter_config.json", config, strlen(config));
    if (!config) unlink(test_path("peft/adapter_config.json"));
    snprintf(name, sizeof name, "peft/adapter_model.safetensors");
    if (*table)
        write_bytes(name, file, 8 + len + data_len);
    else
        unlink(test_path(name));
    free(file);
    return folder;
}

/* Two F32 tensors: A [4][64], B [n_row][4]. */
#define TABLE(a, b, n_row, bytes)                                                    \
    "{\"" a "\":{\"dtype\":\"F32\",\"shape\":[4,64],\"data_offsets\":[0,1024]},\"" b \
    "\":{\"dtype\":\"F32\",\"shape\":[" #n_row ",4],\"data_offsets\":[1024," #bytes "]}}"
#define Q_MODULE     "base_model.model.model.layers.1.self_attn.q_proj"
#define GOOD_TABLE   TABLE(Q_MODULE ".lora_A.weight", Q_MODULE ".lora_B.weight", 64, 2048)
#define CONFIG(more) "{\"peft_type\":\"LORA\",\"r\":4,\"lora_alpha\":6" more "}"

static void test_folders_refused(void **state)
{
    (void)state;
    static const struct {
        const char *config, *table;
        enum mu_status code;
        const char *says[2];
    } cases[] = {
        {CONFIG(""), GOOD_TABLE, MU_OK, {NULL}},
        {CONFIG(""),
         TABLE("base_model.model.layers.1.self_attn.q_proj.lora_A.weight",
               "base_model.model.layers.1.self_attn.q_proj.lora_B.weight", 64, 2048),
         MU_OK,
         {NULL}},
        {CONFIG(",\"bias\":\"none\",\"use_dora\":false,\"modules_to_save\":[]"), GOOD_TABLE, MU_OK, {NULL}},
        {NULL, GOOD_TABLE, MU_EFORMAT, {"adapter_config.json"}},
        {CONFIG(""), "", MU_EUNSUPPORTED, {"adapter_model.safetensors", "none"}},
        {"{", GOOD_TABLE, MU_EFORMAT, {"adapter_config.json", "line 1"}},
        {"[]", GOOD_TABLE, MU_EFORMAT, {"object"}},
        {"{}", GOOD_TABLE, MU_EUNSUPPORTED, {"'peft_type' is ''"}},
        {"{\"peft_type\":\"IA3\"}", GOOD_TABLE, MU_EUNSUPPORTED, {"'peft_type' is 'IA3'"}},
        {CONFIG(",\"use_dora\":true"), GOOD_TABLE, MU_EUNSUPPORTED, {"'use_dora'", "DoRA"}},
        {CONFIG(",\"bias\":\"all\""), GOOD_TABLE, MU_EUNSUPPORTED, {"'bias'"}},
        {CONFIG(",\"modules_to_save\":[\"lm_head\"]"), GOOD_TABLE, MU_EUNSUPPORTED, {"'modules_to_save'", "whole"}},
        {CONFIG(",\"fan_in_fan_out\":true"), GOOD_TABLE, MU_EUNSUPPORTED, {"transposed"}},
        {CONFIG(",\"layer_replication\":[[0,2]]"), GOOD_TABLE, MU_EUNSUPPORTED, {"'layer_replication'"}},
        {CONFIG(",\"init_lora_weights\":true"), GOOD_TABLE, MU_OK, {NULL}},
        {CONFIG(",\"init_lora_weights\":\"gaussian\""), GOOD_TABLE, MU_OK, {NULL}},
        {CONFIG(",\"init_lora_weights\":\"eva\""), GOOD_TABLE, MU_OK, {NULL}},
        {CONFIG(",\"init_lora_weights\":\"orthogonal\""), GOOD_TABLE, MU_OK, {NULL}},
        {CONFIG(",\"init_lora_weights\":\"pissa_niter_4\""), GOOD_TABLE, MU_EUNSUPPORTED, {"'pissa_niter_4'"}},
        {CONFIG(",\"init_lora_weights\":\"olora\""), GOOD_TABLE, MU_EUNSUPPORTED, {"'olora'", "convert it"}},
        {CONFIG(",\"init_lora_weights\":\"corda\""), GOOD_TABLE, MU_EUNSUPPORTED, {"'corda'"}},
        {CONFIG(",\"init_lora_weights\":\"loftq\""), GOOD_TABLE, MU_EUNSUPPORTED, {"'loftq'"}},
        {CONFIG(",\"rank_pattern\":{\"q_proj\":8}"), GOOD_TABLE, MU_EFORMAT, {"rank of 8", "found 4"}},
        {CONFIG(",\"rank_pattern\":{\"oj\":8}"), GOOD_TABLE, MU_OK, {NULL}}, /* no module's name ends so at a dot */
        {CONFIG(",\"rank_pattern\":{\"layers.*q_proj\":4}"), GOOD_TABLE, MU_EUNSUPPORTED, {"wildcards"}},
        {CONFIG(",\"rank_pattern\":[4]"), GOOD_TABLE, MU_EFORMAT, {"'rank_pattern' is no object"}},
        {CONFIG(",\"alpha_pattern\":{\"q_proj\":\"4\"}"),
         GOOD_TABLE,
         MU_EFORMAT,
         {"'lora_alpha' of a module is no number"}},
        {CONFIG(",\"alpha_pattern\":{\"q_proj\":1e30}"), GOOD_TABLE, MU_EFORMAT, {"strength"}},
        {"{\"peft_type\":\"LORA\"}", GOOD_TABLE, MU_EFORMAT, {"rank of 8", "found 4"}},
        {CONFIG(""), "{}", MU_EFORMAT, {NULL}},
        {CONFIG(""), TABLE(Q_MODULE ".lora_A.weight", "x", 64, 2048), MU_EFORMAT, {"other half"}},
        {CONFIG(""),
         TABLE("x", Q_MODULE ".lora_B.weight", 64, 2048),
         MU_EUNSUPPORTED,
         {"tensor 'x'", "more than LoRA"}},
        {CONFIG(""),
         TABLE(Q_MODULE ".lora_A.weight", Q_MODULE ".lora_B.weight", 63, 2032),
         MU_EFORMAT,
         {"64 rows of 4", "63 of 4"}},
        {CONFIG(""),
         TABLE("base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight",
               "base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight", 64, 2048),
         MU_EFORMAT,
         {"2 layers"}},
        {CONFIG(""),
         TABLE("base_model.model.model.layers.01.self_attn.q_proj.lora_A.weight",
               "base_model.model.model.layers.01.self_attn.q_proj.lora_B.weight", 64, 2048),
         MU_EUNSUPPORTED,
         {"no matrix of that name"}},
        {CONFIG(""),
         TABLE("base_model.model.model.layers.0.self_attn.z_proj.lora_A.weight",
               "base_model.model.model.layers.0.self_attn.z_proj.lora_B.weight", 64, 2048),
         MU_EUNSUPPORTED,
         {"no matrix of that name"}},
        {CONFIG(""),
         TABLE("base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight",
               "base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_B.weight", 64, 2048),
         MU_EUNSUPPORTED,
         {"experts"}},
        {CONFIG(""),
         TABLE("base_model.model.model.embed_tokens.lora_A.weight", "base_model.model.model.embed_tokens.lora_B.weight",
               64, 2048),
         MU_EUNSUPPORTED,
         {"embed_tokens"}},
        {CONFIG(""),
         TABLE("base_model.model.model.embed_tokens.lora_embedding_A", "x", 64, 2048),
         MU_EUNSUPPORTED,
         {"lora_embedding_A"}},
        {CONFIG(""),
         TABLE("base_model.model.model.norm.lora_A.weight", "base_model.model.model.norm.lora_B.weight", 64, 2048),
         MU_EUNSUPPORTED,
         {"no matrix of that name"}},
        {CONFIG(""),
         TABLE("base_model.model.model.layers.0.input_layernorm.lora_A.weight",
               "base_model.model.model.layers.0.input_layernorm.lora_B.weight", 64, 2048),
         MU_EUNSUPPORTED,
         {"norms"}},
        {CONFIG(""),
         "{\"" Q_MODULE ".lora_A.weight\":{\"dtype\":\"F32\",\"shape\":[256],\"data_offsets\":[0,1024]},\"" Q_MODULE
         ".lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[64,4],\"data_offsets\":[1024,2048]}}",
         MU_EFORMAT,
         {"two dimensions"}},
        {CONFIG(""),
         "{\"" Q_MODULE ".lora_A.weight\":{\"dtype\":\"I32\",\"shape\":[4,64],\"data_offsets\":[0,1024]},\"" Q_MODULE
         ".lora_B.weight\":{\"dtype\":\"F32\",\"shape\":[64,4],\"data_offsets\":[1024,2048]}}",
         MU_EUNSUPPORTED,
         {"type"}},
    };
    struct mu_model *m = model_make("llama", 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_adapters *a;
        struct mu_err err;
        size_t data = strstr(cases[i].table, "2032") ? 2032 : strlen(cases[i].table) < 3 ? 0 : 2048;
        enum mu_status st = open_one(m, folder_make(cases[i].config, cases[i].table, data), &a, &err);
        if (st != cases[i].code) fail_msg("case %zu: %s", i, err.text);
        for (int k = 0; k < 2 && cases[i].says[k]; k++)
            if (!strstr(err.text, cases[i].says[k])) fail_msg("case %zu: %s", i, err.text);
        if (st == MU_OK) {
            const struct mu_lora *q = &a->at[0]->layer[1][MU_T_Q];
            assert_true(q->rank == 4 && q->scale == 1.5f && q->d_halves == 16);
            /* pairs of the model are the first and the second half of the folder's heads */
            assert_true(mu_lora_b_row(q, 0) == q->b && mu_lora_b_row(q, 1) == q->b + 8 * q->b_row_bytes);
            assert_true(mu_lora_b_row(q, 31) == q->b + 31 * q->b_row_bytes);
        }
        mu_adapters_close(a);
    }
    struct mu_adapters *a;
    struct mu_err err;
    folder_make(CONFIG(""), "", 0);
    write_bytes("peft/adapter_model.bin", "x", 1);
    assert_int_equal(open_one(m, test_path("peft"), &a, &err), MU_EUNSUPPORTED);
    assert_err(&err, MU_EUNSUPPORTED, "adapter_model.bin", "safetensors", NULL);
    mu_model_close(m);
}

/* Of families whose experts lie in one tensor, all else can be adapted too. */
static void test_folders_beside_experts(void **state)
{
    (void)state;
#define MODULE(name)                                                \
    TABLE("base_model.model.model.layers.1." name ".lora_A.weight", \
          "base_model.model.model.layers.1." name ".lora_B.weight", 64, 2048)
    static const struct {
        const char *arch, *experts;
        int d_halves;
    } cases[] = {{"gpt-oss", MODULE("mlp.router"), 0}, {"granitemoe", MODULE("block_sparse_moe.input_linear"), 16}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct mu_model *m = model_make(cases[i].arch, 4);
        struct mu_adapters *a;
        struct mu_err err;
        if (open_one(m, folder_make(CONFIG(""), GOOD_TABLE, 2048), &a, &err) != MU_OK) fail_msg("%s", err.text);
        const struct mu_lora *q = &a->at[0]->layer[1][MU_T_Q];
        assert_true(q->rank == 4 && q->n_row == 64 && q->d_halves == cases[i].d_halves);
        mu_adapters_close(a);
        assert_int_equal(open_one(m, folder_make(CONFIG(""), cases[i].experts, 2048), &a, &err), MU_EUNSUPPORTED);
        assert_err(&err, MU_EUNSUPPORTED, "experts or their router", NULL);
        mu_model_close(m);
    }
}

static void test_no_memory(void **state)
{
    (void)state;
    static const struct spoiled s = {GOOD, NULL, PAIR("blk.1.attn_q", D, 64), MU_OK, {NULL}};
    struct mu_model *m = model_make("llama", 0);
    for (int form = 0; form < 2; form++) {
        const char *path = form ? folder_make(CONFIG(""), GOOD_TABLE, 2048) : gguf_make(&s);
        for (long n = 1;; n++) {
            struct mu_adapters *a;
            struct mu_err err;
            mu_alloc_fail_at(n);
            enum mu_status st = open_one(m, path, &a, &err);
            mu_alloc_fail_at(0);
            mu_adapters_close(a);
            if (st == MU_OK) break;
            bool lexer = form && st == MU_EFORMAT && strstr(err.text, "expected JSON"); /* jansson tells no better */
            if (st != MU_ENOMEM && !lexer) fail_msg("allocation %ld: %s", n, err.text);
            assert_true(n < 500);
        }
    }
    mu_model_close(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_specs),
        cmocka_unit_test(test_gguf_refused),
        cmocka_unit_test(test_experts_refused),
        cmocka_unit_test(test_fused),
        cmocka_unit_test(test_folders_refused),
        cmocka_unit_test(test_folders_beside_experts),
        cmocka_unit_test(test_sets),
        cmocka_unit_test(test_no_memory),
    };
    return cmocka_run_group_tests(tests, make_test_dir, remove_test_dir);
}
