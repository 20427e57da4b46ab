/* A device that is the host: every operation of struct mu_device_ops in plain C on the host's memory.
 *
 * It is two things. It is the definition of the operations: kernels/ref for what that has, and the formulas of the
 * forward pass for the rest, each as simple as it can be; the kernels of an accelerator are held to its bits. And it
 * stands in for a device where there is none, so that what drives devices can be tested anywhere, also as a plugin
 * (libmuster_device_host.so, $MUSTER_DEVICE_PLUGIN).
 *
 * As a stand-in it is as late and as strict as a device may be. What is queued runs when it is waited for, and no
 * further than to that mark, so that reading a result too early, or writing over an upload's source too early, shows.
 * (Transfers of links run at once, with all that is before them: other ranks wait for them. What comes after a send
 * waits until it was received.) Pointers are held against
 * the memory that was taken from the device, or pinned; a wrong one is what the next wait tells. New memory is poisoned
 * with 0xff, and freed memory must not have been written beyond its ends: that aborts.
 *
 *   MUSTER_DEVICE_HOST_COUNT    devices (2)
 *   MUSTER_DEVICE_HOST_MEMORY   bytes of each (1 GiB)
 *   MUSTER_DEVICE_HOST_LACKS    the name of a matrix type that it says it does not have
 *   MUSTER_DEVICE_HOST_HANGS    1: a process that looks for devices (muster _gpus) does not end, as in a bad driver
 *   MUSTER_DEVICE_HOST_ROUGH    1: what may be rough is: such products and such attention are rounded to bf16
 *   MUSTER_DEVICE_HOST_LINK     1: there are links, among threads and processes of this machine (there are none) */
#ifndef MU_TESTS_STUBS_DEVICE_HOST_H
#define MU_TESTS_STUBS_DEVICE_HOST_H

#include "kernels/device.h"

const struct mu_device_ops *mu_device_host_ops(void);

#endif
