/* Inside the model reader: the table of architectures, the limits of sizes, and how sizes are read from metadata.
 *
 * To add a family: a row in MU_ARCH_LIST, the tensors of its layer as rules, and, where it does something new, a
 * field in struct mu_arch that the forward pass obeys. */
#ifndef MU_MODEL_ARCH_H
#define MU_MODEL_ARCH_H

#include "model/model.h"

/* Sizes beyond these are refused; every int product that the pass forms of them stays below 2^31. */
enum {
    MU_MAX_LAYER = 1024,
    MU_MAX_D_MODEL = 1 << 17, /* also of n_head · d_head */
    MU_MAX_HEAD = 1 << 12,
    MU_MAX_D_FF = 1 << 20,
    MU_MAX_VOCAB = 1 << 22,
    MU_MAX_CTX = 1 << 30,
    MU_MAX_EXPERT = 512,
};

/* What a tensor's dimension is, in terms of the model's sizes. */
enum mu_dim {
    MU_DIM_ONE,
    MU_DIM_MODEL,
    MU_DIM_Q,  /* n_head · d_head */
    MU_DIM_KV, /* n_kv_head · d_head */
    MU_DIM_FF,
    MU_DIM_HEAD,
    MU_DIM_N_HEAD,
    MU_DIM_EXPERT,   /* n_expert */
    MU_DIM_ALL_FF,   /* of all experts: [n_expert][d_ff] */
    MU_DIM_ALL_MODEL /* [n_expert][d_model] */
};

/* "blk.N." suffix: a matrix of n_row × n_col, or (n_row MU_DIM_ONE) a vector of n_col F32 values, or (n_row MU_DIM_EXPERT
 * and an id beyond the matrices) a vector of each expert.
 *
 * Rules of one suffix that follow each other are the parts of a fused tensor: rows (values of a vector) one after
 * another. Several rules of one id are forms that files come in; a file has one of them. */
struct mu_tensor_rule {
    enum mu_tensor_id id;
    const char *suffix;
    enum mu_dim n_col, n_row;
    bool optional;
};

int mu_dim_size(const struct mu_config *cfg, enum mu_dim dim);
/* The tensors of a layer. */
const struct mu_tensor_rule *mu_arch_rules(const struct mu_arch *arch, const struct mu_config *cfg);
/* The parts of the tensor that begins at rule r, and its whole shape. */
int mu_rule_parts(const struct mu_config *cfg, const struct mu_tensor_rule *r, int *n_col_out, int *n_row_out);
/* Counts parameters and bytes of all tensors. */
void mu_model_count(struct mu_model *m);
/* The families one after another, NULL past the last. */
const struct mu_arch *mu_arch_at(size_t i);
/* N and the rest of "blk.N.rest"; false where the name is not of that form. */
bool mu_layer_name_split(struct mu_str name, int *layer_out, struct mu_str *rest_out);
/* NULL where this build does not run it. */
const struct mu_arch *mu_arch_find(struct mu_str name);
/* Sizes from metadata, all checked; n_vocab is 0 where the file does not say. */
enum mu_status mu_config_read(const struct mu_gguf *g, const struct mu_arch *arch, struct mu_config *cfg_out,
                              struct mu_err *err);

#endif
