/* Run folders of processes that were killed: swept, and nothing else is. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/io.h"

static struct mu_err err = MU_ERR_INIT;
static char *dir; /* the parent of all folders here */

static void put_file(const char *folder, const char *name)
{
    char *path = mu_asprintf("%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    close(fd);
    mu_free(path);
}

static char *make_folder(const char *name)
{
    char *path = mu_asprintf("%s/%s", dir, name);
    assert_int_equal(mkdir(path, 0700), 0);
    return path;
}

static int there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* A process that makes a folder with a file in it and waits to be killed. */
static pid_t child_with_folder(char *path_out, size_t bytes)
{
    int tell[2];
    assert_int_equal(pipe(tell), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        char *path, line[128] = "";
        if (mu_run_dir_create(&path, &err) != MU_OK) _exit(1);
        snprintf(line, sizeof line, "%s", path);
        put_file(path, "engine");
        if (write(tell[1], line, sizeof line) != (ssize_t)sizeof line) _exit(1);
        for (;;) pause();
    }
    close(tell[1]);
    assert_int_equal(read(tell[0], path_out, bytes), (ssize_t)bytes); /* a pipe gives it whole: less than PIPE_BUF */
    close(tell[0]);
    return pid;
}

static void the_dead_are_swept(void **state)
{
    (void)state;
    char killed[128], alive[128];
    char *ours;
    pid_t a = child_with_folder(killed, sizeof killed), b = child_with_folder(alive, sizeof alive);
    assert_int_equal(mu_run_dir_create(&ours, &err), MU_OK);
    mu_run_dir_sweep();
    assert_true(there(killed) && there(alive) && there(ours));
    assert_int_equal(kill(a, SIGKILL), 0);
    assert_int_equal(waitpid(a, NULL, 0), a);
    mu_run_dir_sweep();
    assert_false(there(killed));
    assert_true(there(alive) && there(ours));
    assert_int_equal(kill(b, SIGKILL), 0);
    assert_int_equal(waitpid(b, NULL, 0), b);
    mu_run_dir_sweep();
    assert_false(there(alive));
    assert_true(there(ours));
    mu_run_dir_remove(ours);
    assert_false(there(ours));
    mu_free(ours);
}

static void strangers_stay(void **state)
{
    (void)state;
    char *empty = make_folder("muster-123-abcdef"), *no_lock = make_folder("muster-124-abcdef"),
         *other_name = make_folder("muster-proto-abcdef"), *long_name = make_folder("muster-125-abcdefg"),
         *dead = make_folder("muster-126-abcdef"), *outside = make_folder("outside"),
         *link = mu_asprintf("%s/muster-127-abcdef", dir);
    put_file(no_lock, "engine");
    put_file(dead, "lock");
    put_file(outside, "lock");
    assert_int_equal(symlink(outside, link), 0);
    mu_run_dir_sweep();
    assert_false(there(empty)); /* killed before it had a lock */
    assert_true(there(no_lock));
    assert_true(there(other_name) && there(long_name)); /* not our pattern, though empty */
    assert_false(there(dead));
    char *kept = mu_asprintf("%s/lock", outside);
    assert_true(there(link) && there(kept));
    mu_free(kept);
    mu_run_dir_remove(no_lock);
    assert_int_equal(rmdir(other_name) | rmdir(long_name) | unlink(link), 0);
    mu_free(empty), mu_free(no_lock), mu_free(other_name), mu_free(long_name), mu_free(dead), mu_free(outside);
    mu_free(link);
}

static void removal_gives_the_lock_back(void **state)
{
    (void)state;
    int before = dup(0);
    for (int i = 0; i < 20; i++) {
        char *path;
        assert_int_equal(mu_run_dir_create_in(dir, &path, &err), MU_OK);
        char *lock = mu_asprintf("%s/lock", path);
        int fd = open(lock, O_RDWR | O_CLOEXEC);
        assert_true(fd >= 0);
        assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), -1);
        close(fd);
        mu_run_dir_remove(path);
        assert_false(there(path));
        mu_free(lock), mu_free(path);
    }
    int after = dup(0);
    assert_int_equal(after, before + 1); /* no descriptor stayed open */
    close(before), close(after);
    char *path = NULL;
    assert_int_equal(mu_run_dir_create_in("/nonexistent/folder", &path, &err), MU_EIO);
    assert_non_null(strstr(err.text, "/nonexistent/folder"));
}

/* Sweeps as fast as they can while folders are made: each folder that was handed out stays until it is removed. */
static void sweeps_and_makers_race(void **state)
{
    (void)state;
    pid_t sweeper[2];
    for (int i = 0; i < 2; i++) {
        sweeper[i] = fork();
        assert_true(sweeper[i] >= 0);
        if (sweeper[i] == 0)
            for (;;) mu_run_dir_sweep();
    }
    int lost = 0;
    int64_t end = mu_now_ns() + MU_SEC;
    for (int i = 0; i < 200 || mu_now_ns() < end; i++) {
        char *path;
        assert_int_equal(mu_run_dir_create(&path, &err), MU_OK);
        if (i % 16 == 0) mu_sleep_ms(2);
        char *lock = mu_asprintf("%s/lock", path);
        lost += !there(lock);
        mu_run_dir_remove(path);
        lost += there(path);
        mu_free(lock), mu_free(path);
    }
    for (int i = 0; i < 2; i++) kill(sweeper[i], SIGKILL), waitpid(sweeper[i], NULL, 0);
    assert_int_equal(lost, 0);
}

static void commas_are_left_out(void **state)
{
    (void)state;
    char *parent = mu_asprintf("%s/a,b", dir), *path;
    assert_int_equal(mkdir(parent, 0700), 0);
    setenv("TMPDIR", parent, 1);
    assert_int_equal(mu_run_dir_create(&path, &err), MU_OK);
    setenv("TMPDIR", dir, 1);
    assert_null(strchr(path, ','));
    mu_run_dir_remove(path);
    mu_free(path);
    mu_free(parent);
}

int main(void)
{
    setenv("TMPDIR", "/tmp", 1);
    unsetenv("XDG_RUNTIME_DIR");
    if (mu_run_dir_create(&dir, &err) != MU_OK) return 1;
    setenv("TMPDIR", dir, 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_dead_are_swept),          cmocka_unit_test(strangers_stay),
        cmocka_unit_test(removal_gives_the_lock_back), cmocka_unit_test(sweeps_and_makers_race),
        cmocka_unit_test(commas_are_left_out),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mu_run_dir_remove(dir);
    mu_free(dir);
    return failed;
}
