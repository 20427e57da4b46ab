/* A plugin of another interface. */
#include "kernels/device.h"

const struct mu_device_ops *muster_device_ops(void);

const struct mu_device_ops *muster_device_ops(void)
{
    static const struct mu_device_ops ops = {.abi = MU_DEVICE_ABI + 1, .name = "other"};
    return &ops;
}
