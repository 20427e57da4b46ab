/* What the benchmarks of devices share: the device that is measured, and its errors, which end the program. */
#ifndef MU_TESTS_BENCH_DEVICE_BENCH_H
#define MU_TESTS_BENCH_DEVICE_BENCH_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "kernels/device.h"

static const struct mu_device_ops *ops;
static struct mu_device *dev;
static struct mu_device_speed speed;

static void must(enum mu_status st, const struct mu_err *err)
{
    if (st == MU_OK) return;
    fprintf(stderr, "%s: %s\n", program_invocation_short_name, err->text);
    exit(1);
}

/* Everything that is queued has run. */
static void settle(void)
{
    struct mu_err err = MU_ERR_INIT;
    must(ops->wait(dev, MU_DEVICE_MARKS, 120000, "the benchmark", &err), &err);
}

#endif
