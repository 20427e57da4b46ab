/* Opening GGUF files: mapping them, joining the parts of a split model, listing and finding tensors.
 *
 * Files are mapped shared and read-only, so every process of a machine reads the same page cache and a rank that
 * wants a few rows touches only those. The price: a file that is cut short while it is mapped raises SIGBUS in
 * whoever reads it; model files are replaced by renaming, never in place. Reading into memory instead would need the
 * whole model twice.
 *
 * Split models: each part is a whole GGUF file with keys split.no (from 0), split.count and split.tensors.count; the
 * first part holds the model's metadata, and its name says where the others are. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/arena.h"
#include "base/bytes.h"
#include "model/gguf_part.h"
#include "model/hf.h"

enum { MAX_PARTS = 10000, SUFFIX_BYTES = sizeof "-00001-of-00002.gguf" - 1 };

void mu_gguf_part_free_values(struct mu_gguf_part *p)
{
    for (size_t i = 0; i < p->n_value; i++) mu_free((void *)p->values[i].strings);
    mu_free(p->values);
    mu_free(p->by_key);
    p->values = NULL;
    p->by_key = NULL;
    p->n_value = p->cap_value = 0;
}

void mu_gguf_part_clear(struct mu_gguf_part *p)
{
    mu_gguf_part_free_values(p);
    mu_free(p->tensors);
    if (p->in_memory)
        mu_free((void *)p->map);
    else if (p->map)
        munmap((void *)p->map, p->size);
    mu_free(p->path);
    memset(p, 0, sizeof *p);
}

static void show_path(struct mu_gguf_part *p)
{
    size_t len = strlen(p->path);
    const char *from = len < sizeof p->shown ? p->path : p->path + len - (sizeof p->shown - 4);
    mu_str_show((struct mu_str){from, strlen(from)}, p->shown + (from > p->path ? 3 : 0),
                sizeof p->shown - (from > p->path ? 3 : 0));
    if (from > p->path) memcpy(p->shown, "...", 3);
}

/* The error of a system call on the path; what: "open", "map". */
static enum mu_status system_fail(const struct mu_gguf_part *p, const char *what, struct mu_err *err)
{
    int e = errno;
    enum mu_status code = e == ENOENT || e == ENOTDIR ? MU_ENOENT : e == ENOMEM ? MU_ENOMEM : MU_EIO;
    return mu_fail(err, code, "cannot %s file '%s': %s%s", what, p->shown, strerror(e),
                   code == MU_ENOENT ? "; check the path" : "");
}

static enum mu_status part_map(struct mu_gguf_part *p, struct mu_err *err)
{
    struct stat sb;
    enum mu_status st = MU_OK;
    /* Without O_NONBLOCK opening a pipe would wait for a writer. */
    int fd = open(p->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return system_fail(p, "open", err);
    if (fstat(fd, &sb) != 0) {
        st = system_fail(p, "examine", err);
    } else if (!S_ISREG(sb.st_mode)) {
        st = mu_fail(err, MU_EINVAL, "'%s' is %s; expected the path of a .gguf file", p->shown,
                     S_ISDIR(sb.st_mode) ? "a folder" : "not a regular file");
    } else if (sb.st_size == 0) {
        st = mu_fail(err, MU_EFORMAT, "file '%s' is empty: expected a GGUF file; download or copy it again", p->shown);
    } else {
        void *map = mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) {
            st = system_fail(p, "map", err);
        } else {
            p->map = map;
            p->size = (uint64_t)sb.st_size;
            const uint64_t file[] = {(uint64_t)sb.st_size,         (uint64_t)sb.st_mtim.tv_sec,
                                     (uint64_t)sb.st_mtim.tv_nsec, (uint64_t)sb.st_ctim.tv_sec,
                                     (uint64_t)sb.st_ctim.tv_nsec, (uint64_t)sb.st_ino,
                                     (uint64_t)sb.st_dev};
            p->identity = mu_hash64(0, file, sizeof file);
        }
    }
    close(fd);
    return st;
}

enum mu_status mu_gguf_part_map(const char *path, struct mu_gguf_part *p, struct mu_err *err)
{
    p->path = mu_strdup(path);
    if (!p->path) return mu_fail(err, MU_ENOMEM, "no memory to open file '%.100s'", path);
    show_path(p);
    return part_map(p, err);
}

static enum mu_status part_open(const char *path, struct mu_gguf_part *p, struct mu_err *err)
{
    enum mu_status st;
    MU_TRY(st, mu_gguf_part_map(path, p, err), fail);
    MU_TRY(st, mu_gguf_part_parse(p, err), fail);
    return MU_OK;
fail:
    mu_gguf_part_clear(p);
    return st;
}

/* split.no and split.count; 0 of 1 where the file is whole. */
static enum mu_status part_split(const struct mu_gguf_part *p, uint64_t *no_out, uint64_t *count_out,
                                 struct mu_err *err)
{
    static const struct mu_str key_no = {"split.no", 8}, key_count = {"split.count", 11};
    enum mu_status st;
    *no_out = 0;
    MU_TRY(st, mu_gguf_part_u64(p, mu_gguf_part_find(p, key_count), 0, MAX_PARTS, 1, count_out, err), fail);
    if (*count_out > 1)
        st = mu_gguf_part_u64(p, mu_gguf_part_find(p, key_no), 0, *count_out - 1, UINT64_MAX, no_out, err);
    if (st == MU_OK && *no_out == UINT64_MAX)
        st = mu_fail(err, MU_EFORMAT,
                     "file '%s': key 'split.count' says that it is one of %" PRIu64
                     " parts, but key 'split.no', which part it is, is missing",
                     p->shown, *count_out);
fail:
    return st;
}

/* Opens the other parts of a model around the one that is open in g->parts[0], which moves to its place. */
static enum mu_status open_parts(struct mu_gguf *g, struct mu_err *err)
{
    static const struct mu_str key_tensors = {"split.tensors.count", 19};
    struct mu_gguf_part *first = g->parts;
    uint64_t no, count, n_expected, n_found = 0;
    char suffix[64], *path = NULL;
    enum mu_status st;
    MU_TRY(st, part_split(first, &no, &count, err), fail);
    if (count <= 1) return MU_OK;

    size_t len = strlen(first->path);
    snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", (int)no + 1, (int)count);
    if (len < SUFFIX_BYTES || strcmp(first->path + len - SUFFIX_BYTES, suffix) != 0)
        return mu_fail(
            err, MU_EINVAL,
            "file '%s' is part %d of a model split into %d files, so its name must end in '%s' and the other parts "
            "must lie beside it: give the parts their names back",
            first->shown, (int)no + 1, (int)count, suffix);
    g->parts = mu_calloc(count, sizeof *g->parts);
    path = mu_strdup(first->path);
    if (!g->parts || !path) {
        mu_free(g->parts);
        g->parts = first;
        st = mu_fail(err, MU_ENOMEM, "no memory for the %d parts of '%s'", (int)count, first->shown);
        goto fail;
    }
    g->parts[no] = *first;
    mu_free(first);
    g->n_part = (int)count;
    first = &g->parts[no];

    for (uint64_t i = 0; i < count; i++) {
        struct mu_gguf_part *p = &g->parts[i];
        uint64_t part_no, part_count;
        if (i != no) {
            snprintf(suffix, sizeof suffix, "-%05d-of-%05d.gguf", (int)i + 1, (int)count);
            memcpy(path + len - SUFFIX_BYTES, suffix, SUFFIX_BYTES);
            st = part_open(path, p, err);
            if (st != MU_OK) {
                mu_err_wrap(err, "part %d of %d of the split model is needed", (int)i + 1, (int)count);
                goto fail;
            }
            MU_TRY(st, part_split(p, &part_no, &part_count, err), fail);
            if (part_no != i || part_count != count) {
                st =
                    mu_fail(err, MU_EFORMAT, "file '%s': expected part %d of %d by its name, found part %d of %d in it",
                            p->shown, (int)i + 1, (int)count, (int)part_no + 1, (int)part_count);
                goto fail;
            }
        }
        n_found += p->n_tensor;
    }
    MU_TRY(st, mu_gguf_part_u64(first, mu_gguf_part_find(first, key_tensors), 0, UINT64_MAX, n_found, &n_expected, err),
           fail);
    if (n_expected != n_found)
        st = mu_fail(err, MU_EFORMAT,
                     "file '%s': expected %" PRIu64
                     " tensors in all %d parts (key 'split.tensors.count'), found %" PRIu64,
                     first->shown, n_expected, (int)count, n_found);
    for (uint64_t i = 1; i < count; i++) mu_gguf_part_free_values(&g->parts[i]);
fail:
    mu_free(path);
    return st;
}

static int compare_places(const void *a, const void *b)
{
    const struct mu_gguf_tensor *x = *(const struct mu_gguf_tensor *const *)a,
                                *y = *(const struct mu_gguf_tensor *const *)b;
    if (x->part != y->part) return x->part < y->part ? -1 : 1;
    return (x->offset > y->offset) - (x->offset < y->offset);
}

static int compare_names(const void *a, const void *b)
{
    return mu_str_compare((*(const struct mu_gguf_tensor *const *)a)->name,
                          (*(const struct mu_gguf_tensor *const *)b)->name);
}

/* All parts' tensors in one list. */
static enum mu_status join_tensors(struct mu_gguf *g, struct mu_err *err)
{
    for (int i = 0; i < g->n_part; i++) g->n_tensor += g->parts[i].n_tensor;
    g->tensors = mu_calloc(g->n_tensor ? g->n_tensor : 1, sizeof *g->tensors);
    g->by_name = mu_calloc(g->n_tensor ? g->n_tensor : 1, sizeof *g->by_name);
    if (!g->tensors || !g->by_name)
        return mu_fail(err, MU_ENOMEM, "file '%s': no memory for a list of %zu tensors", g->parts[0].shown,
                       g->n_tensor);
    size_t n = 0;
    for (int i = 0; i < g->n_part; i++) {
        struct mu_gguf_part *p = &g->parts[i];
        for (size_t j = 0; j < p->n_tensor; j++) {
            g->tensors[n] = p->tensors[j];
            g->tensors[n].part = i;
            g->by_name[n] = &g->tensors[n];
            n++;
        }
        mu_free(p->tensors);
        p->tensors = NULL;
        p->n_tensor = p->cap_tensor = 0;
    }
    return MU_OK;
}

/* No two tensors share bytes. */
static enum mu_status check_overlap(struct mu_gguf *g, struct mu_err *err)
{
    char shown[MU_GGUF_NAME_SHOWN], shown2[MU_GGUF_NAME_SHOWN];
    qsort(g->by_name, g->n_tensor, sizeof *g->by_name, compare_places);
    for (size_t i = 1; i < g->n_tensor; i++) {
        const struct mu_gguf_tensor *a = g->by_name[i - 1], *b = g->by_name[i];
        if (a->part == b->part && a->offset + a->bytes > b->offset)
            return MU_PART_FAIL(
                &g->parts[b->part], err, MU_EFORMAT, b->offset,
                "tensor '%s': expected data of its own, found that it overlaps tensor '%s' (offset %" PRIu64
                ", %zu bytes): the file is corrupt",
                mu_str_show(b->name, shown, sizeof shown), mu_str_show(a->name, shown2, sizeof shown2), a->offset,
                a->bytes);
    }
    return MU_OK;
}

enum mu_status mu_gguf_index_names(struct mu_gguf *g, struct mu_err *err)
{
    char shown[MU_GGUF_NAME_SHOWN];
    qsort(g->by_name, g->n_tensor, sizeof *g->by_name, compare_names);
    for (size_t i = 1; i < g->n_tensor; i++)
        if (mu_str_compare(g->by_name[i - 1]->name, g->by_name[i]->name) == 0)
            return MU_PART_FAIL(&g->parts[g->by_name[i]->part], err, MU_EFORMAT, g->by_name[i]->offset,
                                "expected every tensor once, found '%s' twice",
                                mu_str_show(g->by_name[i]->name, shown, sizeof shown));
    return MU_OK;
}

enum mu_status mu_gguf_open(const char *path, struct mu_gguf **gguf_out, struct mu_err *err)
{
    enum mu_status st;
    struct mu_gguf *g = mu_calloc(1, sizeof *g);
    if (!g) return mu_fail(err, MU_ENOMEM, "no memory to open file '%.100s'", path);
    g->path = mu_strdup(path);
    g->parts = mu_calloc(1, sizeof *g->parts);
    if (!g->path || !g->parts) {
        st = mu_fail(err, MU_ENOMEM, "no memory to open file '%.100s'", path);
        goto fail;
    }
    g->n_part = 1;
    if (mu_hf_is_folder(path)) {
        MU_TRY(st, mu_hf_open(g, err), fail);
    } else {
        MU_TRY(st, part_open(path, &g->parts[0], err), fail);
        MU_TRY(st, open_parts(g, err), fail);
        MU_TRY(st, join_tensors(g, err), fail);
        MU_TRY(st, check_overlap(g, err), fail);
        MU_TRY(st, mu_gguf_index_names(g, err), fail);
        MU_TRY(st, mu_gguf_ollama(g, err), fail);
    }
    *gguf_out = g;
    return MU_OK;
fail:
    mu_gguf_close(g);
    return st;
}

void mu_gguf_close(struct mu_gguf *g)
{
    if (!g) return;
    for (int i = 0; i < g->n_part; i++) mu_gguf_part_clear(&g->parts[i]);
    mu_arena_destroy(g->arena);
    mu_free(g->parts);
    mu_free(g->tensors);
    mu_free(g->by_name);
    mu_free(g->path);
    mu_free(g);
}

const char *mu_gguf_path(const struct mu_gguf *g)
{
    return g->path;
}

uint64_t mu_gguf_identity(const struct mu_gguf *g)
{
    uint64_t h = 0;
    for (int i = 0; i < g->n_part; i++) {
        const struct mu_gguf_part *p = &g->parts[i];
        uint64_t one = p->in_memory ? mu_hash64(0, p->map, p->size) : p->identity;
        h = mu_hash64(h, p->path, p->path ? strlen(p->path) : 0);
        h = mu_hash64(h, &one, sizeof one);
    }
    return h;
}

uint64_t mu_gguf_file_bytes(const struct mu_gguf *g)
{
    uint64_t sum = 0;
    for (int i = 0; i < g->n_part; i++) sum += g->parts[i].size;
    return sum;
}

size_t mu_gguf_n_value(const struct mu_gguf *g)
{
    return g->parts[0].n_value;
}

const struct mu_gguf_value *mu_gguf_value_at(const struct mu_gguf *g, size_t i)
{
    return i < g->parts[0].n_value ? &g->parts[0].values[i] : NULL;
}

size_t mu_gguf_n_tensor(const struct mu_gguf *g)
{
    return g->n_tensor;
}

const struct mu_gguf_tensor *mu_gguf_tensor_at(const struct mu_gguf *g, size_t i)
{
    return i < g->n_tensor ? &g->tensors[i] : NULL;
}

const struct mu_gguf_tensor *mu_gguf_tensor(const struct mu_gguf *g, const char *name)
{
    struct mu_gguf_tensor probe = {.name = {name, strlen(name)}};
    const struct mu_gguf_tensor *probe_ptr = &probe, **hit;
    if (!g->n_tensor) return NULL;
    hit = bsearch(&probe_ptr, g->by_name, g->n_tensor, sizeof *g->by_name, compare_names);
    return hit ? *hit : NULL;
}

/* madvise over all pages that the range touches. Advice only: a range outside of every part is ignored, and so are
 * errors. */
void mu_gguf_will_read(const struct mu_gguf *g, const void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)data, to;
    if (__builtin_add_overflow(from, bytes, &to)) return;
    for (int i = 0; i < g->n_part; i++) {
        uintptr_t start = (uintptr_t)g->parts[i].map;
        if (from < start || to > start + g->parts[i].size) continue;
        from &= ~(page - 1);
        if (from < to) madvise((void *)from, to - from, MADV_WILLNEED);
        return;
    }
}

/* Rows from row r on that follow each other in memory, at most n. */
static uint64_t row_span(const struct mu_gguf_tensor *t, uint64_t r, uint64_t n)
{
    if (!t->runs) return n;
    uint64_t at = t->run_skip + r, span = t->run_rows - at % t->run_rows; /* to the end of its run, then whole ones */
    while (span < n && t->runs[(at + span) / t->run_rows] == mu_gguf_row(t, r) + span * t->row_bytes)
        span += t->run_rows;
    return span < n ? span : n;
}

bool mu_gguf_rows_scattered(const struct mu_gguf_tensor *t, uint64_t row0, uint64_t n)
{
    return n > 0 && (t->apart || row_span(t, row0, n) < n);
}

/* ---- blocks and scales apart ---- */

enum { MX_VALUES = 32, MX_BYTES = 16 };

/* Which row of the file row r is. */
static uint64_t row_there(const struct mu_gguf_apart *a, uint64_t r)
{
    return r / a->n_here * a->n_there + a->first + r % a->n_here * a->step;
}

/* In the type's own order value i is in the low half of byte i, and value i + 16 in the high one. */
static void row_join(const struct mu_gguf_tensor *t, uint64_t r, uint8_t *to)
{
    size_t n_block = (size_t)t->ne[0] / MX_VALUES, at = (size_t)row_there(t->apart, r) * n_block;
    const uint8_t *from = t->apart->blocks + at * MX_BYTES, *scale = t->apart->scales + at;
    for (size_t b = 0; b < n_block; b++, from += MX_BYTES) {
        *to++ = scale[b];
        for (int i = 0; i < MX_BYTES / 2; i++) {
            uint8_t low = from[i], high = from[i + MX_BYTES / 2];
            *to++ = (uint8_t)((low & 0x0f) | high << 4);
            *to++ = (uint8_t)(low >> 4 | (high & 0xf0));
        }
    }
}

/* Every other row of an expert is as good as all of them. */
static void will_read_apart(const struct mu_gguf *g, const struct mu_gguf_tensor *t, uint64_t row0, uint64_t n)
{
    size_t n_block = (size_t)t->ne[0] / MX_VALUES;
    for (uint64_t r = row0, end; r < row0 + n; r = end) {
        end = (r / t->apart->n_here + 1) * t->apart->n_here;
        if (end > row0 + n) end = row0 + n;
        size_t from = (size_t)row_there(t->apart, r) * n_block,
               to = ((size_t)row_there(t->apart, end - 1) + 1) * n_block;
        mu_gguf_will_read(g, t->apart->blocks + from * MX_BYTES, (to - from) * MX_BYTES);
        mu_gguf_will_read(g, t->apart->scales + from, to - from);
    }
}

const uint8_t *mu_gguf_rows(const struct mu_gguf_tensor *t, uint64_t row0, uint64_t n, uint8_t *buf)
{
    if (!mu_gguf_rows_scattered(t, row0, n)) return mu_gguf_row(t, row0);
    for (uint64_t i = 0; t->apart && i < n; i++) row_join(t, row0 + i, buf + i * t->row_bytes);
    if (t->apart) return buf;
    for (uint64_t i = 0; i < n; i++) memcpy(buf + i * t->row_bytes, mu_gguf_row(t, row0 + i), t->row_bytes);
    return buf;
}

/* Rows in another order but in one place are one range; those of experts are one each. */
void mu_gguf_will_read_rows(const struct mu_gguf *g, const struct mu_gguf_tensor *t, uint64_t row0, uint64_t n)
{
    const uint8_t *low = NULL, *high = NULL;
    if (t->apart) {
        will_read_apart(g, t, row0, n);
        return;
    }
    for (uint64_t r = row0, span; r < row0 + n; r += span) {
        span = row_span(t, r, row0 + n - r);
        const uint8_t *from = mu_gguf_row(t, r), *to = from + span * t->row_bytes;
        if (!low || from < low) low = from;
        if (!high || to > high) high = to;
    }
    if (low && (size_t)(high - low) <= 2 * n * t->row_bytes) {
        mu_gguf_will_read(g, low, (size_t)(high - low));
        return;
    }
    for (uint64_t r = row0, span; r < row0 + n; r += span) {
        span = row_span(t, r, row0 + n - r);
        mu_gguf_will_read(g, mu_gguf_row(t, r), span * t->row_bytes);
    }
}
