/* Adapters made up for tests: every weight is a function of (seed, layer, matrix, which of the two, index), so that the
 * same adapter can be written in any form, or merged into a model. */
#ifndef MU_TESTS_LORA_UTIL_H
#define MU_TESTS_LORA_UTIL_H

#include "forward_util.h"

#include "kernels/kernels.h"
#include "model/adapter.h"
#include "model/arch.h"
#include "model/gguf_write.h"
#include "model/synth.h"

struct lora_recipe {
    int rank;
    uint32_t type; /* of A and B in a GGUF file: F32 or F16 */
    float alpha;
    unsigned skip; /* set of 1 << id: matrices that it leaves alone, in odd layers */
    bool out;      /* adapts the output matrix too */
    uint64_t seed;
};

enum { LORA_A, LORA_B, LORA_OUT = 64 /* the output matrix, as an id */ };

/* Exact in F16 and BF16. */
static inline float lora_weight(const struct lora_recipe *r, int layer, int id, int which, size_t i)
{
    float u = mu_random_unit(r->seed * 2 + (uint64_t)which, (uint64_t)layer * 256 + (uint64_t)id, i);
    return (float)((int)(u * 255.0f) - 127) / 1024.0f;
}

/* Whether the recipe adapts a tensor of a layer; *parts_out of them share it. */
static inline bool lora_wants(const struct lora_recipe *r, const struct mu_model *m, int layer,
                              const struct mu_tensor_rule *rule)
{
    if (rule->n_row == MU_DIM_ONE || rule->id == MU_T_ROUTER || mu_config_of_experts(&m->cfg, rule->id)) return false;
    if (m->layer[layer][rule->id] == NULL || (layer % 2 && (r->skip & (1u << rule->id)))) return false;
    return true;
}

static inline void lora_put(struct mu_gguf_writer *w, const struct lora_recipe *r, const char *name, int n_col,
                            int n_row, int layer, int id, bool data)
{
    char full[128];
    for (int which = LORA_A; which <= LORA_B; which++) {
        uint64_t ne[2] = {(uint64_t)(which == LORA_A ? n_col : r->rank), (uint64_t)(which == LORA_A ? r->rank : n_row)};
        snprintf(full, sizeof full, "%s.lora_%c", name, which == LORA_A ? 'a' : 'b');
        if (!data) {
            mu_gguf_put_tensor(w, full, r->type, 2, ne);
            continue;
        }
        for (size_t i = 0; i < (size_t)(ne[0] * ne[1]); i++) {
            float f = lora_weight(r, layer, id, which, i);
            uint16_t h = mu_f32_to_f16(f);
            MUST(mu_gguf_put_data(w, r->type == MU_F16 ? (const void *)&h : &f, r->type == MU_F16 ? 2 : 4, err));
        }
    }
}

static inline void lora_write(const struct mu_model *m, const struct lora_recipe *r, const char *path)
{
    struct mu_gguf_writer *w = NULL;
    MUST(mu_gguf_writer_open(path, &w, err));
    mu_gguf_put_str(w, "general.architecture", m->arch->name, strlen(m->arch->name));
    mu_gguf_put_str(w, "general.type", "adapter", 7);
    mu_gguf_put_str(w, "adapter.type", "lora", 4);
    mu_gguf_put_f32(w, "adapter.lora.alpha", r->alpha);
    for (int data = 0; data < 2; data++) {
        for (int l = 0; l < m->cfg.n_layer; l++) {
            const struct mu_tensor_rule *rule = mu_arch_rules(m->arch, &m->cfg);
            for (const char *last = ""; rule->suffix; last = rule->suffix, rule++) {
                char name[96];
                int n_col, n_row;
                if (strcmp(last, rule->suffix) == 0 || !lora_wants(r, m, l, rule)) continue;
                bool other_form = false; /* of a matrix that files have alone or fused: as it is in this one */
                snprintf(name, sizeof name, "blk.%d.%s", l, rule->suffix);
                other_form = !mu_gguf_tensor(m->gguf, name);
                if (other_form) continue;
                mu_rule_parts(&m->cfg, rule, &n_col, &n_row);
                lora_put(w, r, name, n_col, n_row, l, rule->id, data);
            }
        }
        if (r->out) lora_put(w, r, "output.weight", m->cfg.d_model, m->cfg.n_vocab, 0, LORA_OUT, data);
    }
    MUST(mu_gguf_writer_close(w, 1, err));
}

/* The recipes as adapters "a0", "a1" … beside m. */
static inline struct mu_adapters *lora_open(const struct mu_model *m, const struct lora_recipe *r, int n)
{
    struct mu_adapters *a = NULL;
    struct mu_adapter_spec spec[8];
    const char *tmp = getenv("TMPDIR");
    for (int i = 0; i < n; i++) {
        spec[i] = (struct mu_adapter_spec){.scale = 1.0f};
        snprintf(spec[i].name, sizeof spec[i].name, "a%d", i);
        snprintf(spec[i].path, sizeof spec[i].path, "%s/muster-lora-%d-%d.gguf", tmp ? tmp : "/tmp", (int)getpid(), i);
        lora_write(m, &r[i], spec[i].path);
    }
    MUST(mu_adapters_open(m, spec, n, &a, err));
    for (int i = 0; i < n; i++) unlink(spec[i].path);
    return a;
}

static inline struct mu_model *lora_synth(const struct mu_synth *spec, char *path, size_t path_bytes)
{
    struct mu_model *m = NULL;
    const char *tmp = getenv("TMPDIR");
    snprintf(path, path_bytes, "%s/muster-lora-model-%d.gguf", tmp ? tmp : "/tmp", (int)getpid());
    MUST(mu_synth_write(spec, path, NULL, NULL, err));
    MUST(mu_model_open(path, &m, err));
    return m;
}

/* ---- the same as PEFT folders ---- */

/* A module as the transformers library calls it. */
static inline const char *lora_module(const struct mu_model *m, const char *suffix)
{
    static const char *const names[][4] = {
        /* GGUF; Llama and its kin; Phi 3; Phi 2 */
        {"attn_q.weight", "self_attn.q_proj", NULL, "self_attn.q_proj"},
        {"attn_k.weight", "self_attn.k_proj", NULL, "self_attn.k_proj"},
        {"attn_v.weight", "self_attn.v_proj", NULL, "self_attn.v_proj"},
        {"attn_qkv.weight", NULL, "self_attn.qkv_proj", NULL},
        {"attn_output.weight", "self_attn.o_proj", "self_attn.o_proj", "self_attn.dense"},
        {"ffn_gate.weight", "mlp.gate_proj", NULL, NULL},
        {"ffn_up.weight", "mlp.up_proj", "mlp.gate_up_proj", "mlp.fc1"},
        {"ffn_down.weight", "mlp.down_proj", "mlp.down_proj", "mlp.fc2"}};
    int column = strcmp(m->arch->name, "phi3") == 0 ? 2 : strcmp(m->arch->name, "phi2") == 0 ? 3 : 1;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i][0], suffix) == 0) return names[i][column];
    return NULL;
}

/* Where row i of the model's file is in a folder's: the reference converter puts halves of a head into pairs. */
static inline size_t lora_folder_row(const struct mu_model *m, int id, size_t i)
{
    size_t d = (size_t)m->cfg.d_head, head = i / d * d, k = i % d;
    if (strcmp(m->arch->name, "llama") != 0 || (id != MU_T_Q && id != MU_T_K)) return i;
    return k % 2 == 0 ? head + k / 2 : head + d / 2 + k / 2;
}

struct lora_folder {
    char json[1 << 16];
    size_t json_len, data_len;
    uint8_t *data;
    uint32_t type;
};

static inline void lora_folder_put(struct lora_folder *f, const struct mu_model *m, const struct lora_recipe *r,
                                   const char *module, int n_col, int n_row, int layer, int id)
{
    for (int which = LORA_A; which <= LORA_B; which++) {
        size_t cols = (size_t)(which == LORA_A ? n_col : r->rank), rows = (size_t)(which == LORA_A ? r->rank : n_row);
        size_t size = f->type == MU_F32 ? 4 : 2, begin = f->data_len, count = cols * rows;
        f->json_len +=
            (size_t)snprintf(f->json + f->json_len, sizeof f->json - f->json_len,
                             "%s\"base_model.model.%s.lora_%c.weight\":{\"dtype\":\"%s\",\"shape\":[%zu,%zu],"
                             "\"data_offsets\":[%zu,%zu]}",
                             begin ? "," : "{", module, which == LORA_A ? 'A' : 'B', mu_type_info(f->type)->name, rows,
                             cols, begin, begin + count * size);
        assert_true(f->json_len < sizeof f->json - 1);
        f->data = realloc(f->data, begin + count * size);
        f->data_len = begin + count * size;
        for (size_t i = 0; i < rows; i++) {
            size_t to = which == LORA_B ? lora_folder_row(m, id, i) : i;
            for (size_t c = 0; c < cols; c++) {
                float v = lora_weight(r, layer, id, which, i * cols + c);
                uint16_t h = f->type == MU_F16 ? mu_f32_to_f16(v) : mu_f32_to_bf16(v);
                memcpy(f->data + begin + (to * cols + c) * size, size == 4 ? (const void *)&v : &h, size);
            }
        }
    }
}

/* FOLDER, with both files; config: adapter_config.json. */
static inline void lora_write_folder(const struct mu_model *m, const struct lora_recipe *r, uint32_t type,
                                     const char *config, const char *folder)
{
    struct lora_folder *f = calloc(1, sizeof *f);
    char path[400], module[128];
    f->type = type;
    for (int l = 0; l < m->cfg.n_layer; l++) {
        const struct mu_tensor_rule *rule = mu_arch_rules(m->arch, &m->cfg);
        for (const char *last = ""; rule->suffix; last = rule->suffix, rule++) {
            int n_col, n_row;
            const char *name = lora_module(m, rule->suffix);
            if (strcmp(last, rule->suffix) == 0 || !name || !lora_wants(r, m, l, rule)) continue;
            snprintf(module, sizeof module, "blk.%d.%s", l, rule->suffix);
            if (!mu_gguf_tensor(m->gguf, module)) continue;
            snprintf(module, sizeof module, "model.layers.%d.%s", l, name);
            mu_rule_parts(&m->cfg, rule, &n_col, &n_row);
            lora_folder_put(f, m, r, module, n_col, n_row, l, rule->id);
        }
    }
    if (r->out) lora_folder_put(f, m, r, "lm_head", m->cfg.d_model, m->cfg.n_vocab, 0, LORA_OUT);
    f->json[f->json_len++] = '}';
    uint64_t len = f->json_len;
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", folder);
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fwrite(&len, 8, 1, file) == 1 && fwrite(f->json, 1, f->json_len, file) == f->json_len &&
                fwrite(f->data, 1, f->data_len, file) == f->data_len);
    fclose(file);
    snprintf(path, sizeof path, "%s/adapter_config.json", folder);
    file = fopen(path, "w");
    assert_true(file && fputs(config, file) >= 0);
    fclose(file);
    free(f->data);
    free(f);
}

#endif
