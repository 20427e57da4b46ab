/* What tests of plans share: models that exist only as sizes, nodes that are only described, the splits chosen for them. */
#ifndef MU_TESTS_PLAN_UTIL_H
#define MU_TESTS_PLAN_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "shard/plan_where.h"

enum { MAX_LAYER = 64 };

struct paper { /* a model on paper: tensors without data */
    struct mu_model model;
    struct mu_gguf_tensor mat[MU_T_LAYER_COUNT], embed, norm;
    const struct mu_gguf_tensor *layer[MAX_LAYER][MU_T_LAYER_COUNT];
};

static inline struct mu_gguf_tensor tensor(uint64_t n_row, uint64_t n_col)
{
    struct mu_gguf_tensor t = {.type = MU_Q8_0, .n_dim = 2, .ne = {n_col, n_row, 1, 1}, .n_row = n_row};
    t.row_bytes = n_col / 32 * 34;
    t.bytes = t.row_bytes * n_row;
    return t;
}

static inline void paper_model(struct paper *p, int n_layer, int n_head, int n_kv_head, int d_head, int d_model,
                               int d_ff, int n_vocab)
{
    static const struct mu_arch arch = {.name = "paper"};
    memset(p, 0, sizeof *p);
    p->model.arch = &arch;
    p->model.cfg = (struct mu_config){.n_layer = n_layer,
                                      .n_head = n_head,
                                      .n_kv_head = n_kv_head,
                                      .d_head = d_head,
                                      .d_model = d_model,
                                      .d_ff = d_ff,
                                      .n_vocab = n_vocab,
                                      .n_rot = d_head};
    uint64_t d = (uint64_t)d_model, q = (uint64_t)n_head * (uint64_t)d_head,
             kv = (uint64_t)n_kv_head * (uint64_t)d_head;
    p->embed = tensor((uint64_t)n_vocab, d);
    p->norm = (struct mu_gguf_tensor){
        .type = MU_F32, .n_dim = 1, .ne = {d, 1, 1, 1}, .n_row = 1, .row_bytes = 4 * d, .bytes = 4 * d};
    p->mat[MU_T_ATTN_NORM] = p->mat[MU_T_FFN_NORM] = p->norm;
    p->mat[MU_T_Q] = tensor(q, d);
    p->mat[MU_T_K] = p->mat[MU_T_V] = tensor(kv, d);
    p->mat[MU_T_O] = tensor(d, q);
    p->mat[MU_T_GATE] = p->mat[MU_T_UP] = tensor((uint64_t)d_ff, d);
    p->mat[MU_T_DOWN] = tensor(d, (uint64_t)d_ff);
    for (int l = 0; l < n_layer; l++)
        for (int id = 0; id < MU_T_LAYER_COUNT; id++)
            if (p->mat[id].n_row) p->layer[l][id] = &p->mat[id];
    p->model.layer = p->layer;
    p->model.embed = p->model.output = &p->embed;
    p->model.out_norm = &p->norm;
}

static inline struct mu_plan plan_of(const struct paper *p, const char *text)
{
    struct mu_split split;
    struct mu_plan plan;
    struct mu_err err = MU_ERR_INIT;
    if (mu_split_parse(text, &split, &err) != MU_OK || mu_plan_build(&p->model, &split, &plan, &err) != MU_OK)
        fail_msg("%s", err.text);
    return plan;
}

static const struct mu_serving SERVING = {.n_ctx = 2048, .n_slot = 4, .n_page = 256, .step_tokens = 256};

static inline void auto_is(const struct paper *p, const struct mu_plan_node *node, int n_node, const char *want)
{
    struct mu_split split;
    struct mu_err err = MU_ERR_INIT;
    char text[MU_SPLIT_TEXT], why[MU_PLAN_WHY];
    if (mu_plan_auto(&p->model, NULL, node, n_node, &SERVING, MU_DEVICE_AUTO, &split, why, &err) != MU_OK)
        fail_msg("%s", err.text);
    mu_split_format(&split, text, sizeof text);
    assert_string_equal(text, want);
}

static inline struct mu_plan_node gpu_node(int n_gpu, uint64_t gpu_bytes)
{
    struct mu_plan_node n = {.name = "a",
                             .n_core = 16,
                             .n_numa = 1,
                             .read_gbps = 50,
                             .int8_gops = 4000,
                             .memory_bytes = 64000000000,
                             .gpus = {.n = n_gpu}};
    for (int i = 0; i < n_gpu; i++)
        n.gpus.gpu[i] = (struct mu_gpu){.name = "Paper GPU",
                                        .memory_bytes = gpu_bytes,
                                        .free_bytes = gpu_bytes,
                                        .read_gbps = 3000,
                                        .up_gbps = 50,
                                        .down_gbps = 50,
                                        .int8_gops = 1000000,
                                        .f32_gops = 50000};
    return n;
}

#endif
