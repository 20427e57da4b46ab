/* Pictures of figures as SVG: charts one below the other, bars or lines, each value beside its limit.
 *
 * Colours are attributes, which every renderer obeys, and rules for dark pages stand in a style sheet that may be
 * ignored. The palette is Okabe and Ito's (2008), which people with any colour vision tell apart, on white and on black. */
#ifndef MU_CLI_BENCH_SVG_H
#define MU_CLI_BENCH_SVG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/bytes.h"
#include "base/status.h"

enum { MU_CHART_MAX_SERIES = 8, MU_CHART_MAX_X = 64 };
enum mu_chart_kind { MU_CHART_BARS, MU_CHART_LINES };

struct mu_chart_series {
    char name[64];
    int64_t id;                   /* whoever makes the chart tells series of one name by it */
    double y[MU_CHART_MAX_X];     /* below 0: there is none */
    double limit[MU_CHART_MAX_X]; /* what it is compared with, dashed; 0: none */
};
struct mu_chart {
    enum mu_chart_kind kind;
    char title[96], x_name[48], y_name[48], limit_name[48]; /* limit_name "": the series have none */
    int n_x, n_series;
    bool more; /* there were more series or x than it holds: said beside the title */
    char x[MU_CHART_MAX_X][24];
    struct mu_chart_series series[MU_CHART_MAX_SERIES];
};
struct mu_picture {
    char title[160], subtitle[200];
    int n_chart;
    struct mu_chart chart[4];
};

/* The end of an axis from 0 that has room for `most`, and its step: 1, 2 or 5 times a power of ten. */
void mu_chart_scale(double most, double *end_out, double *step_out);
/* A number with as many digits as a reader wants: "0.42", "8.3", "1234". */
void mu_chart_number(double v, char *buf, size_t buf_bytes);
/* Into w, whose `ok` tells of missing memory. Any text may stand in the names. */
void mu_svg_write(const struct mu_picture *p, struct mu_writer *w);

#endif
