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
    if (rule->n_row == MU_DIM_ONE || rule->id == MU_T_ROUTER || mu_config_copies(&m->cfg, rule->id) > 1) return false;
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

#endif
