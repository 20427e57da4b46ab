/* Runs a fuzz target without libFuzzer: its seeds, then the files and folders named, then mutations of all of them.
 *
 *   fuzz_x [-n ITERATIONS] [-t SECONDS] [-s SEED] [-w DIR] [FILE|FOLDER]…
 *
 * The mutations depend on the seed only: the same command fails at the same iteration. The input that runs is kept in
 * a file that is named at the start and removed at a clean end, so that after a crash it is there to be replayed by
 * naming it. -w writes the seeds. Without -n there are MUSTER_FUZZ_RUNS mutations, else 20,000; without -t 10 s for each
 * 20,000 of them. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "tests/fuzz/fuzz.h"

enum { MAX_POOL = 4096, MAX_INPUT_BYTES = 1 << 20 };

struct input {
    uint8_t *data;
    size_t len;
};

static struct input pool[MAX_POOL];
static int n_pool;
static uint64_t rng_state = 1;

/* xorshift64* (Vigna, ACM TOMS 2016). */
static uint64_t next_random(void)
{
    rng_state ^= rng_state >> 12;
    rng_state ^= rng_state << 25;
    rng_state ^= rng_state >> 27;
    return rng_state * 0x2545f4914f6cdd1dull;
}

static size_t below(size_t n)
{
    return n ? (size_t)(next_random() % n) : 0;
}

static void add_input(uint8_t *data, size_t len)
{
    if (n_pool < MAX_POOL && len <= MAX_INPUT_BYTES)
        pool[n_pool++] = (struct input){data, len};
    else
        free(data);
}

static void add_path(const char *path)
{
    struct stat sb;
    if (stat(path, &sb) != 0) return; /* a corpus folder that is not there yet is an empty one */
    if (S_ISDIR(sb.st_mode)) {
        struct dirent **names;
        int n = scandir(path, &names, NULL, alphasort); /* sorted: the order is part of what makes runs repeatable */
        for (int i = 0; i < n; i++) {
            char child[4096];
            snprintf(child, sizeof child, "%s/%s", path, names[i]->d_name);
            if (names[i]->d_name[0] != '.') add_path(child);
            free(names[i]);
        }
        if (n >= 0) free(names);
        return;
    }
    FILE *f = fopen(path, "rb");
    uint8_t *data = malloc((size_t)sb.st_size + 1);
    if (f && data) {
        add_input(data, fread(data, 1, (size_t)sb.st_size, f));
    } else {
        free(data);
    }
    if (f) fclose(f);
}

/* Half of the places are near the front, where headers are. */
static size_t place(size_t len)
{
    return next_random() & 1 ? below(len) : below(len < 512 ? len : 512);
}

static const uint64_t extremes[] = {
    0,
    1,
    2,
    7,
    8,
    9,
    16,
    31,
    32,
    33,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x10000,
    0x7fffffff,
    0x80000000,
    0xffffffff,
    0x100000000,
    0x1fffffffffffffff,
    0x2000000000000000,
    0x3fffffffffffffff,
    0x4000000000000000,
    0x7fffffffffffffff,
    0x8000000000000000,
    0xfffffffffffffff0,
    0xffffffffffffffff,
};

static size_t insert(uint8_t *d, size_t len, size_t at, const uint8_t *from, size_t n)
{
    if (len + n > MAX_INPUT_BYTES) return len;
    memmove(d + at + n, d + at, len - at);
    if (from)
        memcpy(d + at, from, n);
    else
        for (size_t i = 0; i < n; i++) d[at + i] = (uint8_t)next_random();
    return len + n;
}

/* One change of d[len], which has room for MAX_INPUT_BYTES; the new length. */
static size_t mutate(uint8_t *d, size_t len)
{
    static uint8_t copy[256];
    size_t at = place(len), width = (size_t)1 << below(4), n;
    uint64_t v = 0;
    if (len == 0) return insert(d, 0, 0, NULL, 1 + below(16));
    switch (below(10)) {
    case 0: d[at] ^= (uint8_t)(1u << below(8)); return len;
    case 1: d[at] = (uint8_t)next_random(); return len;
    case 2:
    case 3: /* an integer becomes an extreme one */
        v = extremes[below(sizeof extremes / sizeof *extremes)];
        if (at + width <= len) memcpy(d + at, &v, width);
        return len;
    case 4: /* or a little more or less */
        if (at + width > len) return len;
        memcpy(&v, d + at, width);
        v += below(33) - 16;
        memcpy(d + at, &v, width);
        return len;
    case 5: return place(len); /* cut */
    case 6:                    /* taken out */
        n = 1 + below(len - at < 64 ? len - at : 64);
        memmove(d + at, d + at + n, len - at - n);
        return len - n;
    case 7: return insert(d, len, at, NULL, 1 + below(32));
    case 8: /* repeated somewhere */
        n = 1 + below(len - at < sizeof copy ? len - at : sizeof copy);
        memcpy(copy, d + at, n);
        return insert(d, len, place(len), copy, n);
    default: { /* the rest of another input */
        const struct input *other = &pool[below((size_t)n_pool)];
        size_t from = place(other->len);
        n = other->len - from;
        if (at + n > MAX_INPUT_BYTES) return len;
        if (n) memcpy(d + at, other->data + from, n);
        return at + n;
    }
    }
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int write_seeds(const char *dir)
{
    uint8_t *data;
    size_t len;
    mkdir(dir, 0777);
    for (int i = 0; mu_fuzz_seed(i, &data, &len); i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/seed-%d", dir, i);
        FILE *f = fopen(path, "wb");
        bool ok = f && fwrite(data, 1, len, f) == len;
        free(data);
        if ((f && fclose(f) != 0) || !ok) {
            perror(path);
            return 1;
        }
    }
    return 0;
}

/* The file that holds the running input: a shared mapping, which outlives a crash. */
static uint8_t *map_current(char *path, size_t path_bytes, int *fd_out)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(path, path_bytes, "%s/fuzz-input-%d", tmp ? tmp : "/tmp", (int)getpid());
    *fd_out = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (*fd_out < 0 || ftruncate(*fd_out, MAX_INPUT_BYTES) != 0) return NULL;
    void *map = mmap(NULL, MAX_INPUT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, *fd_out, 0);
    return map == MAP_FAILED ? NULL : map;
}

/* Runs the first len bytes of the file. The target sees a copy of exactly that length, so that the sanitizers see
 * reads beyond it. */
static bool run_current(const uint8_t *current, int fd, size_t len)
{
    uint8_t *exact = malloc(len ? len : 1);
    if (!exact || ftruncate(fd, (off_t)len) != 0) return false;
    memcpy(exact, current, len);
    LLVMFuzzerTestOneInput(exact, len);
    free(exact);
    return ftruncate(fd, MAX_INPUT_BYTES) == 0;
}

int main(int argc, char **argv)
{
    const char *runs = getenv("MUSTER_FUZZ_RUNS");
    long n_iteration = runs ? atol(runs) : 20000;
    double limit_s = 0, start;
    char path[4096];
    uint8_t *current, *data;
    size_t len;
    int opt, fd;
    while ((opt = getopt(argc, argv, "n:t:s:w:")) != -1) {
        switch (opt) {
        case 'n': n_iteration = atol(optarg); break;
        case 't': limit_s = atof(optarg); break;
        case 's': rng_state = strtoull(optarg, NULL, 10) | 1; break;
        case 'w': return write_seeds(optarg);
        default:
            fprintf(stderr, "usage: %s [-n ITERATIONS] [-t SECONDS] [-s SEED] [-w DIR] [FILE|FOLDER]…\n", argv[0]);
            return 2;
        }
    }
    if (limit_s <= 0) limit_s = (double)n_iteration / 2000;
    for (int i = 0; mu_fuzz_seed(i, &data, &len); i++) add_input(data, len);
    int n_seed = n_pool;
    for (int i = optind; i < argc; i++) add_path(argv[i]);
    current = map_current(path, sizeof path, &fd);
    if (!current || !n_pool) {
        fprintf(stderr, "%s: %s\n", argv[0],
                current ? "no seeds and no files: nothing to do" : "cannot make the input's file");
        return 2;
    }
    fprintf(stderr, "%d seeds, %d files; the running input is kept in %s\n", n_seed, n_pool - n_seed, path);
    start = seconds();
    for (int i = 0; i < n_pool; i++) {
        memcpy(current, pool[i].data, pool[i].len);
        if (!run_current(current, fd, pool[i].len)) return 2;
    }
    long done = 0;
    for (; done < n_iteration && seconds() - start < limit_s; done++) {
        const struct input *base = &pool[below((size_t)n_pool)];
        len = base->len;
        memcpy(current, base->data, len);
        for (size_t i = 1 + below(6); i > 0; i--) len = mutate(current, len);
        if (!run_current(current, fd, len)) return 2;
    }
    printf("%ld mutations in %.1f s, nothing found\n", done, seconds() - start);
    munmap(current, MAX_INPUT_BYTES);
    close(fd);
    unlink(path);
    for (int i = 0; i < n_pool; i++) free(pool[i].data);
    return 0;
}
