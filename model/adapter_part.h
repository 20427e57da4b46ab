/* Inside the adapter reader: what its two forms of file share. */
#ifndef MU_MODEL_ADAPTER_PART_H
#define MU_MODEL_ADAPTER_PART_H

#include "model/adapter.h"

/* A tensor of an adapter's file: n_row rows of n_col values. The reader has checked that the bytes are there. */
struct mu_adapter_tensor {
    struct mu_str name; /* as the file has it, for messages */
    uint32_t type;
    uint64_t n_col, n_row;
    size_t row_bytes;
    const uint8_t *data;
};

/* "adapter 'x.gguf': tensor 'y': …"; tensor may be NULL. */
enum mu_status mu_adapter_fail(const struct mu_adapter *ad, const struct mu_adapter_tensor *t, enum mu_status code,
                               struct mu_err *err, const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* Puts a pair where it belongs. layer -1: the output matrix; else suffix is a matrix as GGUF calls it ("attn_q.weight").
 * scale: alpha / rank. halves: q and k come with their rotary dimensions in halves. */
enum mu_status mu_adapter_place(struct mu_adapter *ad, const struct mu_model *model, int layer, struct mu_str suffix,
                                const struct mu_adapter_tensor *a, const struct mu_adapter_tensor *b, float scale,
                                bool halves, struct mu_err *err);

enum mu_status mu_adapter_open_gguf(struct mu_adapter *ad, const struct mu_model *model, struct mu_err *err);
enum mu_status mu_adapter_open_peft(struct mu_adapter *ad, const struct mu_model *model, struct mu_err *err);

#endif
