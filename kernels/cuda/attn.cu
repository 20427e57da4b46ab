/* Attention: which of its forms a call wants. */
#include "kernels/cuda/attn.h"

void mu_cuda_attn(struct mu_device *d, const struct mu_device_attn *a)
{
    if (a->kv.page_tokens != MU_KV_PAGE) {
        mu_note(d, cudaErrorInvalidValue, "attention: pages are of 32 positions");
        return;
    }
    if (a->n_block > 0) {
        if (!a->rough || !mu_cuda_attn_rough(d, a)) mu_cuda_attn_blocks(d, a);
    } else if (a->n_query > 0) {
        mu_cuda_attn_queries(d, a);
    }
}
