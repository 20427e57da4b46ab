/* Adapters as GGUF files. Every tensor is half of a pair, called as the model's tensor with .lora_a or .lora_b after it;
 * anything else is refused. The rows of q and k lie as in the model's own file. */
#include <stdio.h>
#include <string.h>

#include "model/adapter_part.h"
#include "model/arch.h"

static void close_gguf(void *file)
{
    mu_gguf_close(file);
}

static struct mu_adapter_tensor tensor_of(const struct mu_gguf_tensor *t)
{
    return (struct mu_adapter_tensor){.name = t->name,
                                      .type = t->type,
                                      .n_col = t->ne[0],
                                      .n_row = t->n_row,
                                      .row_bytes = t->row_bytes,
                                      .data = t->data};
}

/* Keys that say what it is and how strong. *alpha_out 0: the product is taken as it is. */
static enum mu_status read_keys(const struct mu_adapter *ad, const struct mu_gguf *g, const struct mu_model *model,
                                float *alpha_out, struct mu_err *err)
{
    struct mu_str type, kind, arch;
    char shown[48];
    enum mu_status st;
    MU_TRY(st, mu_gguf_get_str(g, "general.type", &type, err), out);
    MU_TRY(st, mu_gguf_get_str(g, "adapter.type", &kind, err), out);
    MU_TRY(st, mu_gguf_get_str(g, "general.architecture", &arch, err), out);
    MU_TRY(st, mu_gguf_get_f32(g, "adapter.lora.alpha", 0.0f, alpha_out, err), out);
    if (!mu_str_is(type, "adapter"))
        return mu_adapter_fail(ad, NULL, MU_EFORMAT, err, "expected key 'general.type' to be 'adapter', found '%s'",
                               mu_str_show(type, shown, sizeof shown));
    if (!mu_str_is(kind, "lora"))
        return mu_adapter_fail(ad, NULL, MU_EUNSUPPORTED, err, "key 'adapter.type' is '%s'; only 'lora' is supported",
                               mu_str_show(kind, shown, sizeof shown));
    if (!mu_str_is(arch, model->arch->name))
        return mu_adapter_fail(ad, NULL, MU_EUNSUPPORTED, err,
                               "it was made for architecture '%s', the model is of architecture '%s'",
                               mu_str_show(arch, shown, sizeof shown), model->arch->name);
    if (mu_gguf_find(g, "adapter.alora.invocation_tokens"))
        return mu_adapter_fail(
            ad, NULL, MU_EUNSUPPORTED, err,
            "it is an activated LoRA (key 'adapter.alora.invocation_tokens'), which is not supported");
out:
    return st;
}

/* The pair whose first half is t; name without the ending. */
static enum mu_status place_pair(struct mu_adapter *ad, const struct mu_gguf *g, const struct mu_model *model,
                                 const struct mu_gguf_tensor *t, struct mu_str name, float alpha, struct mu_err *err)
{
    char other[256];
    int layer = -1;
    struct mu_str rest = {NULL, 0};
    struct mu_adapter_tensor a = tensor_of(t);
    snprintf(other, sizeof other, "%.*s.lora_b", (int)name.len, name.p);
    const struct mu_gguf_tensor *u = mu_gguf_tensor(g, other);
    if (!u)
        return mu_adapter_fail(ad, &a, MU_EFORMAT, err, "expected its other half, which ends in .lora_b, found none");
    if (t->n_dim > 2 || u->n_dim > 2)
        return mu_adapter_fail(ad, &a, MU_EUNSUPPORTED, err,
                               "it is a stack of matrices; adapting experts is not supported");
    struct mu_adapter_tensor b = tensor_of(u);
    if (mu_str_is(name, "token_embd.weight"))
        return mu_adapter_fail(ad, &a, MU_EUNSUPPORTED, err, "adapting the embedding is not supported");
    if (!mu_str_is(name, "output.weight") && !mu_layer_name_split(name, &layer, &rest))
        return mu_adapter_fail(ad, &a, MU_EUNSUPPORTED, err, "expected a matrix of a layer or 'output.weight'");
    return mu_adapter_place(ad, model, layer, rest, &a, &b, alpha == 0.0f ? 1.0f : alpha / (float)t->n_row, false, err);
}

enum mu_status mu_adapter_open_gguf(struct mu_adapter *ad, const struct mu_model *model, struct mu_err *err)
{
    enum { ENDING = 7 }; /* of .lora_a */
    struct mu_gguf *g = NULL;
    float alpha;
    enum mu_status st = mu_gguf_open(ad->spec.path, &g, err);
    if (st != MU_OK) return st;
    ad->file = g;
    ad->file_close = close_gguf;
    st = read_keys(ad, g, model, &alpha, err);
    for (size_t i = 0; i < mu_gguf_n_tensor(g) && st == MU_OK; i++) {
        const struct mu_gguf_tensor *t = mu_gguf_tensor_at(g, i);
        struct mu_adapter_tensor shown = tensor_of(t);
        struct mu_str name = {t->name.p, t->name.len > ENDING ? t->name.len - ENDING : 0};
        const char *ending = t->name.p + name.len;
        bool long_enough = name.len > 0 && name.len < 200 && !memchr(t->name.p, 0, t->name.len);
        if (long_enough && memcmp(ending, ".lora_a", ENDING) == 0) {
            st = place_pair(ad, g, model, t, name, alpha, err);
        } else if (long_enough && memcmp(ending, ".lora_b", ENDING) == 0) {
            char other[256];
            snprintf(other, sizeof other, "%.*s.lora_a", (int)name.len, name.p);
            if (!mu_gguf_tensor(g, other))
                st = mu_adapter_fail(ad, &shown, MU_EFORMAT, err,
                                     "expected its other half, which ends in .lora_a, found none");
        } else {
            st =
                mu_adapter_fail(ad, &shown, MU_EUNSUPPORTED, err,
                                "expected a name that ends in .lora_a or .lora_b: it holds more than LoRA on matrices");
        }
    }
    return st;
}
