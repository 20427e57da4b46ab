#include "coordinator/gpus.h"

#include <stdio.h>
#include <string.h>

void mu_gpus_of_node(const Muster__V1__Node *node, struct mu_gpus *gpus_out)
{
    memset(gpus_out, 0, sizeof *gpus_out);
    gpus_out->broken = node->gpus_broken;
    snprintf(gpus_out->why, sizeof gpus_out->why, "%s", node->no_gpu);
    for (size_t i = 0; i < node->n_gpu && i < MU_MAX_GPUS; i++) {
        const Muster__V1__Gpu *m = node->gpu[i];
        struct mu_gpu *g = &gpus_out->gpu[gpus_out->n++];
        *g = (struct mu_gpu){.numa = m->numa,
                             .capability = (int)m->capability,
                             .has_link = m->has_link,
                             .memory_bytes = m->memory_bytes,
                             .free_bytes = m->free_bytes,
                             .read_gbps = m->read_gbps,
                             .up_gbps = m->up_gbps,
                             .down_gbps = m->down_gbps,
                             .int8_gops = m->int8_gops,
                             .bf16_gops = m->bf16_gops,
                             .f32_gops = m->f32_gops};
        snprintf(g->name, sizeof g->name, "%s", m->name);
        snprintf(g->pci, sizeof g->pci, "%s", m->pci);
    }
}
