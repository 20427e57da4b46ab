/* Codebooks of the IQ types (grids.c), what their digits stand for, and the eighth sign. Private to kernels/.
 * A file of device code that reads the codebooks includes grids.c: they are its own, in the device's memory. */
#ifndef MU_KERNELS_GRIDS_H
#define MU_KERNELS_GRIDS_H

#include <stdint.h>

#include "kernels/inline.h"

#ifdef __cplusplus
#define MU_GRID MU_DEVICE_TABLE
#else
#define MU_GRID const
extern const uint16_t mu_iq2_xxs_grid[256], mu_iq2_xs_grid[512], mu_iq2_s_grid[1024], mu_iq3_xxs_grid[256],
    mu_iq3_s_grid[512], mu_iq1_grid[2048];
#endif

MU_DEVICE_TABLE uint8_t mu_iq2_magnitudes[4] = {8, 25, 43}, mu_iq3_xxs_magnitudes[8] = {4, 12, 20, 28, 36, 44, 52, 62};
MU_DEVICE_INLINE int mu_iq3_s_magnitude(unsigned digit)
{
    return (int)(2 * digit + 1);
}
/* All values of a group of IQ1 are shifted by this, up or down. */
static const float mu_iq1_delta = 0.125f;

/* Signs of 8 values, bit i set where value i is negative, from the seven that a file has: an even number of them is. */
MU_DEVICE_INLINE unsigned mu_iq_signs(unsigned seven)
{
    return seven | (0x6996u >> ((seven ^ seven >> 4) & 15) & 1) << 7; /* the word has the parity of each nibble */
}

#endif
