/* The GPUs of a machine: what they are, and how fast.
 *
 * A machine without the plugin (kernels/device.h) has none, and nothing is said of it but to those who ask (why). One
 * with the plugin and no usable driver has none either; `broken` then says that somebody meant it to have some.
 *
 * Looking opens the driver, which costs a process half a second and some of each GPU's memory until it ends. Daemons
 * therefore let a child look: mu_gpus_ask. */
#ifndef MU_SHARD_PLAN_GPUS_H
#define MU_SHARD_PLAN_GPUS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"
#include "shard/split.h"

struct mu_gpu {
    char name[64], pci[24]; /* pci "": not told */
    int numa;               /* the system's number of the NUMA node that it hangs on; -1: not known */
    int capability;         /* 90: 9.0 */
    bool has_link;          /* can exchange with other GPUs by itself */
    uint64_t memory_bytes, free_bytes;
    double read_gbps, up_gbps, down_gbps; /* measured; 0: not yet. Its memory; from the host's; to the host's */
    double int8_gops, bf16_gops, f32_gops;
};

enum { MU_GPUS_WHY = 256 };
struct mu_gpus {
    int n;
    struct mu_gpu gpu[MU_MAX_GPUS];
    bool broken;           /* there is a plugin, but it cannot be used */
    char why[MU_GPUS_WHY]; /* where n is 0: the reason, without "no GPU: " */
};

/* Looks in this process. measure: also how fast they are, up to a second each. A GPU that cannot be measured is told
 * (log) and left without figures. Any thread. */
void mu_gpus_read(bool measure, struct mu_gpus *gpus_out);

/* Lets a child of this program look (`muster _gpus`), which ends before this returns; a driver that hangs or crashes
 * harms nobody else. deadline_ms: for all of it. What goes wrong is in `why`. */
void mu_gpus_ask(bool measure, int deadline_ms, struct mu_gpus *gpus_out);
/* The child: the whole program. argv {"_gpus"[, "--measure"]}. */
int mu_gpus_main(int argc, char **argv);

struct mu_model;
/* Whether GPU ranks can do all that the model's products need: MU_EUNSUPPORTED names the tensor and its type. MU_OK
 * where no plugin is loaded: then there are no GPUs to use either. */
enum mu_status mu_gpus_can(const struct mu_model *model, struct mu_err *err);

/* "GPU 0 (NVIDIA H100 80GB HBM3)" */
enum { MU_GPU_TEXT = 112 };
void mu_gpu_describe(const struct mu_gpus *gpus, int device, char text[MU_GPU_TEXT]);

#endif
