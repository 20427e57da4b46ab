/* A harness that holds a plugin's operations to their definition, bit for bit.
 *
 * Two devices are open: side 0 is the definition (tests/stubs/device_host.h), side 1 the plugin under test:
 * $MUSTER_DEVICE_PLUGIN, else the CUDA plugin's kernels on an emulated GPU, which the build knows. Everything exists
 * twice, as a pair; an operation is called on both, and the outputs are compared whole. A test is
 *
 *     struct dt_pair x = dt_floats(n, EXTREME), out = dt_blank(n * sizeof(float));
 *     for (int i = 0; i < 2; i++) {
 *         struct mu_device_norm a = {.x = x.at[i], .form.f32 = out.at[i], …};
 *         dt.ops[i]->norm(dt.dev[i], &a);
 *     }
 *     dt_same(out, DT_F32, "norm of %d values", n);
 *     dt_free_all();
 *
 * Outputs begin with the same pattern on both sides, so what an operation must not write is compared, too; and the
 * plugin's memory has red zones. Values come from values.h, and are the same in every run. What fails, fails the cmocka
 * test that runs. Not for several threads. */
#ifndef MU_TESTS_KERNELS_DEVICE_TEST_H
#define MU_TESTS_KERNELS_DEVICE_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kernels/device.h"
#include "tests/kernels/values.h"

enum { DT_HOST, DT_PLUGIN, DT_SIDES };

extern struct dt {
    const struct mu_device_ops *ops[DT_SIDES];
    struct mu_device *dev[DT_SIDES];
    bool emulated; /* the plugin's kernels run on this processor: sizes should be small */
} dt;

/* Group setup and teardown for cmocka. Without a plugin that could be tested the program ends with 77, a skip. */
int dt_open(void **state);
int dt_close(void **state);

struct dt_pair {
    void *at[DT_SIDES];
    size_t bytes;
};
/* Memory of both devices with these bytes; blank: with a pattern. All pairs live until dt_free_all, which also looks at
 * the red zones of the plugin's. */
struct dt_pair dt_from(const void *data, size_t bytes);
struct dt_pair dt_blank(size_t bytes);
void dt_free_all(void);
void dt_read(struct dt_pair p, int side, void *out); /* all its bytes, once the queue has run */
void dt_wait(const char *what);                      /* until both queues are done; a failure there fails the test */

enum dt_elements { DT_BYTES, DT_I16, DT_I32, DT_F32, DT_BF16 };
/* Waits, and fails where the pair's sides differ, with the first difference and how many there are. A NaN equals any
 * NaN. */
void dt_same(struct dt_pair p, enum dt_elements elements, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* n values: ordinary; up to 1e35 in size among zeros of both signs; or around the smallest normal number. */
void dt_fill(float *x, size_t n, enum values v);
void dt_break(float *x, size_t n, int how_many); /* so many of them become infinite or NaN */
struct dt_pair dt_floats(size_t n, enum values v);

/* n matrices of random weights, one after another in memory, `bytes` apart. of: the first. */
struct dt_mats {
    struct mu_mat of[DT_SIDES];
    size_t bytes[DT_SIDES];
};
struct dt_mats dt_matrices(int n, uint32_t type, int n_row, int n_col, enum values v);

/* Input vectors in all forms; q, s and sum where n_col is a multiple of 32. */
struct dt_acts {
    struct mu_act of[DT_SIDES];
};
struct dt_acts dt_inputs(int n_tok, int n_col, enum values v);
/* The same of values that are given. */
struct dt_acts dt_inputs_from(const float *x, int n_tok, int n_col);

#endif
