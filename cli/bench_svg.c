/* SVG by hand (bench_svg.h). One chart is a band of CHART_H pixels:
 *
 *     title                                   legend
 *     y name
 *     ─┬──────────────────────────────────
 *      │   ▮ ▮     ▮ ▮      bars: a group for each x, a bar for each series, dashed caps for limits
 *      │   ▮ ▮     ▮ ▮      lines: evenly spaced x (sweeps double), dashed lines for limits
 *     ─┴──────────────────────────────────
 *          x         x      x name */
#include "cli/bench_svg.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    WIDTH = 860,
    HEAD_H = 66,
    CHART_H = 330,
    LEFT = 70,
    RIGHT = 24,
    TOP = 72,
    BOTTOM = 54,
    LETTER = 7,
    LEGEND_H = 17
};

static const char *const COLOUR[MU_CHART_MAX_SERIES] = {"#0072b2", "#e69f00", "#009e73", "#cc79a7",
                                                        "#56b4e9", "#d55e00", "#8a8a00", "#7f7f7f"};
static const char INK[] = "#1f2328", SOFT[] = "#59636e", GRID[] = "#d1d9e0";

__attribute__((format(printf, 2, 3))) static void put(struct mu_writer *w, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    mu_write_bytes(w, text, n < (int)sizeof text ? (size_t)n : sizeof text - 1);
}

/* Text as XML has it; what XML cannot hold becomes '?'. */
static void put_text(struct mu_writer *w, const char *s)
{
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '&')
            put(w, "&amp;");
        else if (c == '<')
            put(w, "&lt;");
        else if (c == '>')
            put(w, "&gt;");
        else if (c < 0x20 || c == 0x7f)
            put(w, "?");
        else
            mu_write_bytes(w, s, 1);
    }
}

enum anchor { START, MIDDLE, END };

static void label(struct mu_writer *w, double x, double y, int size, enum anchor anchor, bool soft, const char *text)
{
    static const char *const anchors[] = {"start", "middle", "end"};
    put(w, "<text class=\"%s\" fill=\"%s\" x=\"%.1f\" y=\"%.1f\" font-size=\"%d\" text-anchor=\"%s\"%s>",
        soft ? "soft" : "ink", soft ? SOFT : INK, x, y, size, anchors[anchor], size > 14 ? " font-weight=\"600\"" : "");
    put_text(w, text);
    put(w, "</text>\n");
}

static void rule(struct mu_writer *w, double x1, double y1, double x2, double y2, const char *colour, double width,
                 bool dashed)
{
    put(w, "<line%s x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"%.1f\"%s/>\n",
        colour == GRID ? " class=\"grid\"" : "", x1, y1, x2, y2, colour, width,
        dashed ? " stroke-dasharray=\"5 4\"" : "");
}

void mu_chart_scale(double most, double *end_out, double *step_out)
{
    static const double steps[] = {1, 2, 5, 10};
    enum { TICKS = 5 };
    if (!(most > 0) || !isfinite(most)) most = 1;
    double unit = pow(10, floor(log10(most / TICKS)));
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        *step_out = steps[i] * unit;
        *end_out = ceil(most / *step_out - 1e-9) * *step_out;
        if (*end_out / *step_out <= TICKS + 0.5) return;
    }
}

void mu_chart_number(double v, char *buf, size_t buf_bytes)
{
    double a = fabs(v);
    snprintf(buf, buf_bytes, "%.*f", a == 0 || a >= 99.95 ? 0 : a >= 9.995 ? 1 : 2, v);
}

/* ---- one chart ---- */

struct frame { /* of the plot, in pixels; y grows downwards */
    double x0, y0, x1, y1, end, step;
};

static double y_of(const struct frame *f, double v)
{
    return f->y1 - (f->y1 - f->y0) * v / f->end;
}

static double most_of(const struct mu_chart *c)
{
    double most = 0;
    for (int s = 0; s < c->n_series; s++)
        for (int i = 0; i < c->n_x; i++) {
            if (c->series[s].y[i] > most) most = c->series[s].y[i];
            if (c->series[s].limit[i] > most) most = c->series[s].limit[i];
        }
    return most;
}

static void axes(const struct mu_chart *c, const struct frame *f, struct mu_writer *w)
{
    char text[32];
    for (int i = 0; i * f->step <= f->end * 1.0001; i++) {
        double y = y_of(f, i * f->step);
        rule(w, f->x0, y, f->x1, y, GRID, 1, false);
        snprintf(text, sizeof text, "%g", i * f->step);
        label(w, f->x0 - 8, y + 4, 12, END, true, text);
    }
    label(w, f->x0 - 58, f->y0 - 14, 12, START, true, c->y_name);
    label(w, (f->x0 + f->x1) / 2, f->y1 + 42, 12, MIDDLE, true, c->x_name);
}

/* Names beside each other, in as many rows as they need, which it returns. w NULL: only that. */
static int legend(const struct mu_chart *c, double y, struct mu_writer *w)
{
    double x = LEFT;
    int n_row = 1;
    for (int s = 0; s < c->n_series + (c->limit_name[0] != 0); s++) {
        bool limit = s == c->n_series;
        const char *name = limit ? c->limit_name : c->series[s].name;
        double mark = limit ? 22 : 12, width = mark + 22 + LETTER * (double)strlen(name);
        if (x > LEFT && x + width > WIDTH - RIGHT) {
            x = LEFT;
            y += LEGEND_H;
            n_row++;
        }
        if (w && limit) rule(w, x, y - 4, x + mark, y - 4, "#8c959f", 2, true);
        if (w && !limit)
            put(w, "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" rx=\"2\" fill=\"%s\"/>\n", x, y - 10,
                COLOUR[s]);
        if (w) label(w, x + mark + 6, y, 12, START, false, name);
        x += width;
    }
    return n_row;
}

static void bars(const struct mu_chart *c, const struct frame *f, struct mu_writer *w)
{
    double group = (f->x1 - f->x0) / c->n_x, each = group * 0.7 / c->n_series;
    if (each > 72) each = 72;
    for (int i = 0; i < c->n_x; i++) {
        double middle = f->x0 + group * (i + 0.5), x = middle - each * c->n_series / 2;
        label(w, middle, f->y1 + 20, 12, MIDDLE, false, c->x[i]);
        for (int s = 0; s < c->n_series; s++, x += each) {
            double v = c->series[s].y[i], limit = c->series[s].limit[i];
            char number[32], text[64];
            if (v < 0) continue;
            double top = y_of(f, v);
            put(w, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\" fill=\"%s\"/>\n", x + 2, top,
                each - 4, f->y1 - top, COLOUR[s]);
            if (limit > 0) rule(w, x, y_of(f, limit), x + each, y_of(f, limit), COLOUR[s], 2, true);
            mu_chart_number(v, number, sizeof number);
            snprintf(text, sizeof text, limit > 0 && each > 56 ? "%s (%.0f%%)" : "%s", number,
                     limit > 0 ? 100 * v / limit : 0);
            if (limit > v && y_of(f, limit) > top - 18) top = y_of(f, limit); /* the number stands above both */
            if (each > 28) label(w, x + each / 2, top - 5, 11, MIDDLE, false, text);
        }
    }
}

static void polyline(const struct mu_chart *c, const struct frame *f, const double *v, bool is_limit,
                     const char *colour, struct mu_writer *w)
{
    double gap = c->n_x > 1 ? (f->x1 - f->x0 - 40) / (c->n_x - 1) : 0;
    bool open = false;
    for (int i = 0; i <= c->n_x; i++) {
        bool there = i < c->n_x && (is_limit ? v[i] > 0 : v[i] >= 0);
        if (there && !open)
            put(w, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%s\"%s points=\"", colour,
                is_limit ? "1.5" : "2.5", is_limit ? " stroke-dasharray=\"5 4\"" : "");
        if (there) put(w, "%.1f,%.1f ", f->x0 + 20 + gap * i, y_of(f, v[i]));
        if (!there && open) put(w, "\"/>\n");
        open = there;
    }
    for (int i = 0; i < c->n_x && !is_limit; i++)
        if (v[i] >= 0)
            put(w, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", f->x0 + 20 + gap * i, y_of(f, v[i]),
                colour);
}

static void lines(const struct mu_chart *c, const struct frame *f, struct mu_writer *w)
{
    double gap = c->n_x > 1 ? (f->x1 - f->x0 - 40) / (c->n_x - 1) : 0;
    for (int i = 0; i < c->n_x; i++) label(w, f->x0 + 20 + gap * i, f->y1 + 20, 12, MIDDLE, false, c->x[i]);
    for (int s = 0; s < c->n_series; s++) polyline(c, f, c->series[s].limit, true, COLOUR[s], w);
    for (int s = 0; s < c->n_series; s++) polyline(c, f, c->series[s].y, false, COLOUR[s], w);
    for (int s = 0; s < c->n_series && c->n_series == 1; s++) /* of one line the values are told */
        for (int i = 0; i < c->n_x; i++) {
            char text[32];
            if (c->series[s].y[i] < 0) continue;
            mu_chart_number(c->series[s].y[i], text, sizeof text);
            label(w, f->x0 + 20 + gap * i, y_of(f, c->series[s].y[i]) + 18, 11, MIDDLE, false, text);
        }
}

static void chart(const struct mu_chart *c, double top, struct mu_writer *w)
{
    double rows = legend(c, 0, NULL) - 1;
    struct frame f = {LEFT, top + TOP + rows * LEGEND_H, WIDTH - RIGHT, top + CHART_H - BOTTOM, 1, 1};
    mu_chart_scale(most_of(c), &f.end, &f.step);
    label(w, LEFT - 58, top + 18, 15, START, false, c->title);
    if (c->more) label(w, WIDTH - RIGHT, top + 18, 12, END, true, "not all of them are drawn");
    legend(c, top + 40, w);
    axes(c, &f, w);
    if (c->kind == MU_CHART_BARS)
        bars(c, &f, w);
    else
        lines(c, &f, w);
}

void mu_svg_write(const struct mu_picture *p, struct mu_writer *w)
{
    int height = HEAD_H + p->n_chart * CHART_H + 8;
    put(w,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
        "font-family=\"system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif\">\n",
        WIDTH, height, WIDTH, height);
    put(w, "<style>@media (prefers-color-scheme: dark) { .page { fill: #0d1117 } .ink { fill: #e6edf3 } "
           ".soft { fill: #9198a1 } .grid { stroke: #30363d } }</style>\n<title>");
    put_text(w, p->title);
    put(w, "</title>\n<rect class=\"page\" width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n", WIDTH, height);
    label(w, LEFT - 58, 30, 18, START, false, p->title);
    label(w, LEFT - 58, 50, 12, START, true, p->subtitle);
    for (int i = 0; i < p->n_chart; i++) chart(&p->chart[i], HEAD_H + i * CHART_H, w);
    put(w, "</svg>\n");
}
