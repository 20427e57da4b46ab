/* What a person sees: errors in plain words, progress bars, tables. */
#include <errno.h>
#include <locale.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/utf8.h"
#include "cli/cli.h"
#include "cli/wrap.h"
#include "transport/rpc.h"

bool mu_out_gone(void)
{
    struct pollfd out = {.fd = STDOUT_FILENO};
    return ferror(stdout) && poll(&out, 1, 0) == 1 && (out.revents & POLLERR);
}

int mu_cli_fail(const char *verb, const struct mu_err *err)
{
    if (mu_out_gone()) return MU_EXIT_FAILED;
    fprintf(stderr, "muster %s: %s\n", verb, err->text[0] ? err->text : mu_status_text(err->code));
    return MU_EXIT_FAILED;
}

enum mu_status mu_out_write(const char *text, size_t len, struct mu_err *err)
{
    if (fwrite(text, 1, len, stdout) == len && fflush(stdout) == 0) return MU_OK;
    return mu_fail(err, MU_EIO, "cannot write to standard output: %s", strerror(errno));
}

int mu_out_finish(const char *verb, int status)
{
    int why = fflush(stdout) ? errno : 0;
    if (!why && !ferror(stdout)) return status;
    if (why && !mu_out_gone() && status == MU_EXIT_OK)
        fprintf(stderr, "muster %s: cannot write to standard output: %s\n", verb, strerror(why));
    return status == MU_EXIT_OK ? MU_EXIT_FAILED : status;
}

void mu_no_server(const char *address, struct mu_err *err)
{
    mu_rpc_nobody("server", "muster serve MODEL", address, err);
}

bool mu_term_obeys(int fd)
{
    const char *term = getenv("TERM");
    return isatty(fd) && term && strcmp(term, "dumb") != 0;
}

enum { BAR_CELLS = 30, BAR_FRAME = 9 /* " [", "] 100%" and the last column, which would begin another line */ };

/* Cells of the bar that leave it on one line: only that can be written over. Below 0: not even the label fits. */
static int bar_cells(const char *label)
{
    struct winsize size;
    bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
    int room = (known ? size.ws_col : 80) - (int)strlen(label) - BAR_FRAME;
    return room < BAR_CELLS ? room : BAR_CELLS;
}

void mu_bar_update(struct mu_bar *bar, uint64_t done, uint64_t total)
{
    if (!total || !mu_term_obeys(STDERR_FILENO)) return;
    int64_t now = mu_now_ns();
    bool end = done >= total;
    if (!end && now - bar->last_ns < 100 * MU_MS) return;
    if (end && !bar->shown) return; /* too quick to be worth a line */
    int most = bar_cells(bar->label);
    if (!end && most < 0) return;
    bar->last_ns = now;
    bar->shown = true;
    if (end) {
        fputs("\r\033[K", stderr);
    } else {
        char line[BAR_CELLS];
        memset(line, ' ', sizeof line);
        memset(line, '#', (size_t)(done * (uint64_t)most / total));
        fprintf(stderr, "\r%s [%.*s] %3d%%\033[K", bar->label, most, line, (int)(done * 100 / total));
    }
    fflush(stderr);
}

void mu_bar_load(uint64_t done, uint64_t total, void *bar)
{
    mu_bar_update(bar, done, total);
}

void mu_human_bytes(uint64_t bytes, char *buf, size_t buf_bytes)
{
    static const char *const unit[] = {"B", "kB", "MB", "GB", "TB", "PB"};
    double v = (double)bytes;
    int u = 0;
    while (v >= 999.5 && u < 5) v /= 1000, u++;
    snprintf(buf, buf_bytes, v < 9.995 && u ? "%.2f %s" : v < 99.95 && u ? "%.1f %s" : "%.0f %s", v, unit[u]);
}

void mu_gpu_print(const struct mu_gpu *g, int number, const char *indent)
{
    char total[32], avail[32];
    mu_human_bytes(g->memory_bytes, total, sizeof total);
    mu_human_bytes(g->free_bytes, avail, sizeof avail);
    printf("%sGPU %d  %s, %s memory (%s free)\n", indent, number, g->name, total, avail);
    if (g->read_gbps > 0) {
        printf("%s       reads %.0f GB/s, int8 %.1f TOP/s, bf16 %.1f, f32 %.1f TFLOP/s\n", indent, g->read_gbps,
               g->int8_gops / 1e3, g->bf16_gops / 1e3, g->f32_gops / 1e3);
        printf("%s       from the host %.1f GB/s, to it %.1f", indent, g->up_gbps, g->down_gbps);
        if (g->numa >= 0) printf(", NUMA node %d", g->numa);
        putchar('\n');
    }
}

json_t *mu_text_n_json(const char *text, size_t len)
{
    static const char replacement[] = "\xEF\xBF\xBD";
    enum { N = sizeof replacement - 1 };
    char *clean = text ? mu_reallocarray(NULL, len + 1, N) : NULL;
    size_t n_clean = 0;
    if (!clean) return NULL;
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        size_t n = (size_t)mu_utf8_next(text + i, len - i, &cp);
        memcpy(clean + n_clean, n ? text + i : replacement, n ? n : N);
        n_clean += n ? n : N;
        i += n ? n : 1;
    }
    json_t *j = json_stringn(clean, n_clean);
    mu_free(clean);
    return j;
}

json_t *mu_text_json(const char *text)
{
    return text ? mu_text_n_json(text, strlen(text)) : NULL;
}

enum { MAX_COLUMNS = 32 };

/* Columns of a terminal that text takes; bytes that are no UTF-8 are shown as a character each. */
static int text_columns(const char *text)
{
    int n = 0;
    for (size_t i = 0, len = strlen(text); i < len;) {
        uint32_t cp;
        int bytes = mu_utf8_next(text + i, len - i, &cp), wide = bytes ? mu_wrap_columns((wchar_t)cp) : 1;
        n += wide > 0 ? wide : 0;
        i += bytes ? (size_t)bytes : 1;
    }
    return n;
}

void mu_table_print(const char *const *cells, int n_row, int n_col, const bool *right)
{
    int width[MAX_COLUMNS] = {0};
    /* Characters have widths only in a locale that knows them; the program's stays as it is. */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0), before = uselocale(utf8);
    if (n_col > MAX_COLUMNS) n_col = MAX_COLUMNS;
    for (int r = 0; r < n_row; r++)
        for (int c = 0; c < n_col; c++) {
            int w = text_columns(cells[r * n_col + c]);
            if (w > width[c]) width[c] = w;
        }
    for (int r = 0; r < n_row; r++)
        for (int c = 0; c < n_col; c++) {
            const char *cell = cells[r * n_col + c];
            const char *gap = c + 1 < n_col ? "  " : "\n";
            int pad = width[c] - text_columns(cell);
            if (right && right[c])
                printf("%*s%s%s", pad, "", cell, gap);
            else if (c + 1 < n_col)
                printf("%s%*s%s", cell, pad, "", gap);
            else
                printf("%s%s", cell, gap);
        }
    uselocale(before);
    if (utf8) freelocale(utf8);
}
