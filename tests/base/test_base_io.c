/* Descriptors, files and run folders: short writes, deadlines, peers that go, files that are never half there. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/io.h"

static char *dir; /* everything below is in here */
static struct mu_err err;

static char *in_dir(const char *name)
{
    char *path = mu_asprintf("%s/%s", dir, name);
    assert_non_null(path);
    return path;
}

/* ---- descriptors ---- */

enum { BIG = 3 << 20 };
static unsigned char big[BIG], got[BIG];

static void *swallow(void *fd)
{
    size_t len = 0;
    for (ssize_t n; len < BIG && (n = read(*(int *)fd, got + len, 5000)) > 0; len += (size_t)n)
        if (len % 100000 < 5000) mu_sleep_ms(1);
    return NULL;
}

static void make_pair(int kind, int fds[2])
{
    assert_int_equal(kind == 2 ? pipe(fds) : socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    if (kind == 1) fcntl(fds[0], F_SETFL, O_NONBLOCK), fcntl(fds[1], F_SETFL, O_NONBLOCK);
}

/* Kinds: a blocking socket, a non-blocking one, a pipe. fds[0] reads, fds[1] writes. */
static void short_writes(void **state)
{
    (void)state;
    for (size_t i = 0; i < BIG; i++) big[i] = (unsigned char)(i * 31 + i / 251);
    for (int kind = 0; kind < 3; kind++) {
        int fds[2];
        pthread_t thread;
        make_pair(kind, fds);
        if (kind == 1) fcntl(fds[0], F_SETFL, 0); /* the thread reads without poll */
        memset(got, 0, sizeof got);
        assert_int_equal(pthread_create(&thread, NULL, swallow, &fds[0]), 0);
        assert_int_equal(mu_fd_write(fds[1], big, BIG, mu_now_ns() + 30 * MU_SEC, "peer", &err), MU_OK);
        pthread_join(thread, NULL);
        assert_memory_equal(got, big, BIG);
        close(fds[0]), close(fds[1]);
    }
}

static void deadlines_hold(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        int fds[2];
        make_pair(kind, fds);
        int64_t start = mu_now_ns(); /* nobody reads: a blocking write() would never return */
        assert_int_equal(mu_fd_write(fds[1], big, BIG, start + 30 * MU_MS, "node-7", &err), MU_ETIMEOUT);
        int64_t waited = mu_now_ns() - start;
        assert_true(waited >= 30 * MU_MS && waited < 10 * MU_SEC);
        assert_non_null(strstr(err.text, "node-7"));
        close(fds[0]), close(fds[1]);
    }
}

static void peers_that_go(void **state)
{
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        int fds[2];
        make_pair(kind, fds);
        close(fds[0]);
        if (kind == 2) signal(SIGPIPE, SIG_IGN); /* for sockets the default, which kills, stays */
        assert_int_equal(mu_fd_write(fds[1], big, 100, mu_now_ns() + MU_SEC, "node-7", &err), MU_EPEER);
        signal(SIGPIPE, SIG_DFL);
        close(fds[1]);
    }
    assert_int_equal(mu_fd_write(-1, got, 5, mu_now_ns() + MU_SEC, "nobody", &err), MU_EIO);
}

/* ---- whole files ---- */

static void put_file(const char *path, const char *text, size_t len)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, len, f), len);
    fclose(f);
}

static void expect_file(const char *path, const char *text)
{
    char *data;
    size_t len;
    if (mu_file_read(path, 1 << 20, &data, &len, &err) != MU_OK) fail_msg("%s", err.text);
    assert_int_equal(len, strlen(text));
    assert_string_equal(data, text);
    mu_free(data);
}

static void whole_files(void **state)
{
    (void)state;
    char *path = in_dir("read"), *data = NULL;
    size_t len;
    for (size_t size = 0; size < 20000; size = size * 2 + 1) {
        put_file(path, (char *)big, size);
        assert_int_equal(mu_file_read(path, size, &data, &len, &err), MU_OK);
        assert_int_equal(len, size);
        assert_memory_equal(data, big, size);
        assert_int_equal(data[size], 0);
        mu_free(data);
        data = NULL;
        if (size) assert_int_equal(mu_file_read(path, size - 1, &data, &len, &err), MU_ELIMIT);
        assert_null(data);
    }
    assert_non_null(strstr(err.text, path));
    assert_int_equal(mu_file_read("/proc/self/status", 1 << 20, &data, &len, &err), MU_OK); /* its size says 0 */
    assert_true(len > 100 && strncmp(data, "Name:", 5) == 0);
    mu_free(data);
    assert_int_equal(mu_file_read("/proc/self/status", 100, &data, &len, &err), MU_ELIMIT);
    assert_int_equal(mu_file_read(dir, 100000, &data, &len, &err), MU_EIO);
    unlink(path);
    assert_int_equal(mu_file_read(path, 100, &data, &len, &err), MU_ENOENT);
    mu_free(path);
}

static char *partial_of(const char *path)
{
    char *p = mu_asprintf("%s.partial-%d", path, (int)getpid());
    assert_non_null(p);
    return p;
}

static struct mu_file_writer *open_writer(const char *path)
{
    struct mu_file_writer *w;
    if (mu_file_writer_open(path, &w, &err) != MU_OK) fail_msg("%s", err.text);
    return w;
}

static void files_appear_whole(void **state)
{
    (void)state;
    char *path = in_dir("file"), *partial = partial_of(path);
    struct mu_file_writer *w = open_writer(path);
    assert_int_equal(mu_file_writer_write(w, "first", 5, &err), MU_OK);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(partial, F_OK), 0);
    assert_int_equal(mu_file_writer_close(w, 1, &err), MU_OK);
    expect_file(path, "first");
    assert_int_equal(access(partial, F_OK), -1);

    w = open_writer(path); /* given up: the old one stays */
    assert_int_equal(mu_file_writer_write(w, "second", 6, &err), MU_OK);
    expect_file(path, "first");
    assert_int_equal(mu_file_writer_close(w, 0, &err), MU_OK);
    expect_file(path, "first");
    assert_int_equal(access(partial, F_OK), -1);

    put_file(partial, "left by a dead process, and longer", 34);
    w = open_writer(path);
    struct mu_file_writer *other = NULL;
    assert_int_equal(mu_file_writer_open(path, &other, &err), MU_EBUSY);
    assert_null(other);
    assert_int_equal(mu_file_writer_write(w, "third", 5, &err), MU_OK);
    assert_int_equal(mu_file_writer_close(w, 1, &err), MU_OK);
    expect_file(path, "third");

    symlink(path, partial); /* never written through */
    assert_int_equal(mu_file_writer_open(path, &w, &err), MU_EIO);
    expect_file(path, "third");
    unlink(partial);
    assert_int_equal(mu_file_writer_close(NULL, 1, &err), MU_OK);
    char *link = in_dir("link"), *fifo = in_dir("fifo"); /* links are followed; what is no file is never renamed over */
    assert_int_equal(symlink(path, link), 0);
    w = open_writer(link);
    assert_int_equal(mu_file_writer_write(w, "fourth", 6, &err), MU_OK);
    assert_int_equal(mu_file_writer_close(w, 1, &err), MU_OK);
    expect_file(path, "fourth");
    struct stat st;
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(mu_file_writer_open(fifo, &w, &err), MU_EINVAL);
    assert_non_null(strstr(err.text, "pipe"));
    assert_int_equal(mu_file_writer_open("/dev/null", &w, &err), MU_EINVAL);
    mu_free(link), mu_free(fifo);
    mu_free(path), mu_free(partial);
    path = in_dir("no/such/folder");
    assert_int_equal(mu_file_writer_open(path, &w, &err), MU_ENOENT);
    mu_free(path);
}

static void pieces_of_any_size(void **state)
{
    (void)state;
    char *path = in_dir("pieces"), *data;
    struct mu_file_writer *w = open_writer(path);
    size_t offset = 0, len;
    for (size_t piece = 0; offset + piece < BIG; piece = piece * 2 + 1) {
        assert_int_equal(mu_file_writer_write(w, big + offset, piece, &err), MU_OK);
        offset += piece;
        assert_int_equal(mu_file_writer_offset(w), offset);
    }
    assert_int_equal(mu_file_writer_close(w, 1, &err), MU_OK);
    assert_int_equal(mu_file_read(path, BIG, &data, &len, &err), MU_OK);
    assert_int_equal(len, offset);
    assert_memory_equal(data, big, len);
    mu_free(data), mu_free(path);
}

/* A process killed in the middle and a disk that is full: what was there before stays. */
static void never_half_a_file(void **state)
{
    (void)state;
    char *path = in_dir("killed");
    put_file(path, "before", 6);
    pid_t child = fork();
    if (child == 0) {
        struct mu_file_writer *w;
        if (mu_file_writer_open(path, &w, NULL) == MU_OK && mu_file_writer_write(w, big, 200000, NULL) == MU_OK)
            kill(getpid(), SIGKILL);
        _exit(1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    expect_file(path, "before");

    child = fork();
    if (child == 0) {
        struct rlimit limit = {100000, 100000};
        struct mu_file_writer *w;
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        if (mu_file_writer_open(path, &w, NULL) != MU_OK) _exit(1);
        if (mu_file_writer_write(w, big, 200000, &err) != MU_EIO) _exit(2);
        if (mu_file_writer_write(w, "more", 4, &err) != MU_EIO) _exit(3);
        char *partial = partial_of(path);
        if (mu_file_writer_close(w, 1, &err) != MU_EIO) _exit(4);
        int left = access(partial, F_OK) == 0;
        mu_free(partial), mu_free(path), mu_free(dir);
        _exit(left ? 5 : 42);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 42);
    expect_file(path, "before");
    mu_free(path);
}

/* ---- run folders ---- */

static void run_folders(void **state)
{
    (void)state;
    char *a, *b, *inside, *outside = in_dir("outside"), *link;
    put_file(outside, "x", 1);
    setenv("XDG_RUNTIME_DIR", dir, 1);
    assert_int_equal(mu_run_dir_create(&a, &err), MU_OK);
    assert_int_equal(mu_run_dir_create(&b, &err), MU_OK);
    assert_string_not_equal(a, b);
    assert_int_equal(strncmp(a, dir, strlen(dir)), 0);
    assert_true(strlen(a) <= 76);
    struct stat sb;
    assert_int_equal(stat(a, &sb), 0);
    assert_int_equal(sb.st_mode & 0777, 0700);
    assert_int_equal(mkdir((inside = mu_asprintf("%s/sub", a)), 0755), 0);
    mu_free(inside);
    put_file((inside = mu_asprintf("%s/sub/file", a)), "x", 1);
    mu_free(inside);
    assert_int_equal(symlink(dir, (link = mu_asprintf("%s/sub/link", a))), 0);
    mu_free(link);
    mu_run_dir_remove(a);
    assert_int_equal(access(a, F_OK), -1);
    expect_file(outside, "x"); /* links are not followed */
    mu_run_dir_remove(b);
    mu_free(a), mu_free(b);

    mu_run_dir_remove(NULL);
    mu_run_dir_remove("");
    mu_run_dir_remove(outside); /* no run folder */
    expect_file(outside, "x");
    mu_free(outside);

    setenv("XDG_RUNTIME_DIR", "/nonexistent/folder", 1);
    setenv("TMPDIR", dir, 1);
    assert_int_equal(mu_run_dir_create(&a, &err), MU_OK);
    assert_int_equal(strncmp(a, dir, strlen(dir)), 0);
    mu_run_dir_remove(a), mu_free(a);
    char *deep = in_dir("a-name-that-is-much-too-long-for-the-path-of-a-unix-socket-in-it"); /* exists, but too long */
    assert_int_equal(mkdir(deep, 0700), 0);
    setenv("TMPDIR", deep, 1);
    assert_int_equal(mu_run_dir_create(&a, &err), MU_OK);
    assert_int_equal(strncmp(a, "/tmp/muster-", 12), 0);
    mu_run_dir_remove(a), mu_free(a), mu_free(deep);
    unsetenv("XDG_RUNTIME_DIR"), unsetenv("TMPDIR");
}

int main(void)
{
    setenv("TMPDIR", "/tmp", 1);
    unsetenv("XDG_RUNTIME_DIR");
    if (mu_run_dir_create(&dir, &err) != MU_OK) return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(short_writes),      cmocka_unit_test(deadlines_hold),     cmocka_unit_test(peers_that_go),
        cmocka_unit_test(whole_files),       cmocka_unit_test(files_appear_whole), cmocka_unit_test(pieces_of_any_size),
        cmocka_unit_test(never_half_a_file), cmocka_unit_test(run_folders),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mu_run_dir_remove(dir);
    mu_free(dir);
    return failed;
}
