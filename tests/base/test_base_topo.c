/* This machine as it is, machines that hwloc makes up, and recorded control groups. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/cgroup.h"
#include "base/io.h"
#include "base/topo.h"

static struct mu_topo topo;
static struct mu_err err;

static void this_machine_is_sane(void **state)
{
    (void)state;
    if (mu_topo_read(&topo, &err) != MU_OK) fail_msg("%s", err.text);
    assert_true(topo.n_cpu >= 1 && topo.n_cpu <= MU_TOPO_MAX_CPUS);
    assert_true(topo.n_core >= 1 && topo.n_core <= topo.n_cpu);
    assert_true(topo.n_numa >= 1 && topo.n_numa <= topo.n_core);
    assert_true(topo.n_usable >= 1 && topo.n_usable <= topo.n_core);
    cpu_set_t mask;
    assert_int_equal(sched_getaffinity(0, sizeof mask, &mask), 0);
    assert_int_equal(topo.n_cpu, CPU_COUNT(&mask));
    for (int i = 0; i < topo.n_cpu; i++) {
        assert_true(CPU_ISSET(topo.cpus[i], &mask));
        for (int j = 0; j < i; j++) assert_int_not_equal(topo.cpus[i], topo.cpus[j]);
    }
    assert_true(topo.mem_total_bytes >= 64u << 20);
    assert_true(topo.mem_available_bytes > 0 && topo.mem_available_bytes <= topo.mem_total_bytes);
    assert_true(strlen(topo.cpu_model) > 0 && strlen(topo.host) > 0);
}

static void the_mask_restricts(void **state)
{
    (void)state;
    assert_int_equal(mu_topo_read(&topo, &err), MU_OK);
    cpu_set_t before, one;
    sched_getaffinity(0, sizeof before, &before);
    int cpu = topo.cpus[topo.n_cpu - 1];
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    enum mu_status st = mu_topo_read(&topo, &err);
    sched_setaffinity(0, sizeof before, &before);
    assert_int_equal(st, MU_OK);
    assert_int_equal(topo.n_cpu, 1);
    assert_int_equal(topo.n_core, 1);
    assert_int_equal(topo.n_usable, 1);
    assert_int_equal(topo.cpus[0], cpu);
}

/* Two NUMA nodes of two cores of two threads, numbered as most systems do: siblings come in the second half. */
static void one_cpu_of_each_core_first(void **state)
{
    (void)state;
    setenv("HWLOC_SYNTHETIC", "numa:2 core:2 pu:2(indexes=0,4,1,5,2,6,3,7)", 1);
    enum mu_status st = mu_topo_read(&topo, &err);
    unsetenv("HWLOC_SYNTHETIC");
    assert_int_equal(st, MU_OK);
    assert_int_equal(topo.n_cpu, 8);
    assert_int_equal(topo.n_core, 4);
    assert_int_equal(topo.n_numa, 2);
    for (int i = 0; i < 8; i++) {
        assert_int_equal(topo.cpus[i], i);
        assert_int_equal(topo.numa_of[i], i % 4 / 2);
    }
}

/* ---- control groups: a folder that looks like / ---- */

static char *root;

static void put(const char *path, const char *text)
{
    char *full = mu_asprintf("%s%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        mkdir(full, 0700);
        *slash = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    mu_free(full);
}

static int root_begin(void **state)
{
    (void)state;
    return mu_run_dir_create(&root, &err) != MU_OK;
}

static int root_end(void **state)
{
    (void)state;
    mu_run_dir_remove(root);
    mu_free(root);
    return 0;
}

static void expect_limits(double cpus, uint64_t limit, uint64_t left)
{
    struct mu_cgroup cg;
    mu_cgroup_read(root, &cg);
    if (!(cg.cpus == cpus)) fail_msg("cpus %g, not %g", cg.cpus, cpus);
    assert_true(cg.mem_limit_bytes == limit);
    assert_true(cg.mem_left_bytes == left);
}

static void expect_throttled(uint64_t us)
{
    struct mu_cgroup cg;
    mu_cgroup_read(root, &cg);
    assert_int_equal(cg.throttled_us, us);
}

static void no_control_groups(void **state)
{
    (void)state;
    expect_limits(0, UINT64_MAX, UINT64_MAX);
    put("/proc/self/cgroup", "nonsense\n0:\n::\n");
    put("/proc/self/mountinfo", "nonsense\n - cgroup2\n1 2 3 - cgroup2 x rw\n");
    expect_limits(0, UINT64_MAX, UINT64_MAX);
}

static void version_2_takes_the_least_on_the_way_up(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/system.slice/muster.service\n");
    put("/proc/self/mountinfo", "22 1 0:20 / / rw - ext4 /dev/sda rw\n"
                                "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
    put("/sys/fs/cgroup/system.slice/muster.service/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n");
    put("/sys/fs/cgroup/system.slice/muster.service/memory.max", "8000000\n");
    put("/sys/fs/cgroup/system.slice/muster.service/memory.current", "5000000\n");
    put("/sys/fs/cgroup/system.slice/muster.service/memory.stat",
        "anon 1\nfile 2\ninactive_file 1000000\nactive_file 500000\nx 3\n");
    put("/sys/fs/cgroup/system.slice/memory.max", "9000000\n");
    put("/sys/fs/cgroup/system.slice/memory.current", "8000000\n");
    expect_limits(1.5, 8000000, 1000000);
    put("/sys/fs/cgroup/system.slice/muster.service/cpu.max", "50000 100000\n");
    put("/sys/fs/cgroup/system.slice/memory.max", "max\n");
    expect_limits(0.5, 8000000, 4500000);
    put("/sys/fs/cgroup/system.slice/muster.service/memory.high", "7000000\n");
    expect_limits(0.5, 7000000, 3500000);
    put("/sys/fs/cgroup/system.slice/memory.high", "6500000\n"); /* without a memory.max */
    put("/sys/fs/cgroup/system.slice/memory.current", "6000000\n");
    expect_limits(0.5, 6500000, 500000);
    put("/sys/fs/cgroup/system.slice/memory.high", "max\n");
    put("/sys/fs/cgroup/system.slice/muster.service/memory.high", "9000000\n");
    expect_limits(0.5, 8000000, 4500000);
    put("/sys/fs/cgroup/system.slice/muster.service/cpu.stat", "usage_usec 77\nnr_throttled 3\nthrottled_usec 1234\n");
    put("/sys/fs/cgroup/system.slice/cpu.stat", "throttled_usec 99\n");
    expect_throttled(1234);
    put("/sys/fs/cgroup/system.slice/muster.service/memory.current", "99000000\n"); /* over the limit, briefly */
    expect_limits(0.5, 8000000, 0);
}

static void version_1(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "4:memory:/box/1\n2:cpuacct,cpu:/box/1\n0::/\n");
    put("/proc/self/mountinfo", "33 31 0:30 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpuacct,cpu\n"
                                "35 31 0:32 /box /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n");
    put("/sys/fs/cgroup/cpu/box/1/cpu.cfs_quota_us", "-1\n");
    put("/sys/fs/cgroup/cpu/box/1/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/memory/1/memory.limit_in_bytes", "9223372036854771712\n"); /* means: none */
    put("/sys/fs/cgroup/memory/1/memory.usage_in_bytes", "1000\n");
    expect_limits(0, UINT64_MAX, UINT64_MAX);
    put("/sys/fs/cgroup/cpu/box/1/cpu.cfs_quota_us", "250000\n");
    put("/sys/fs/cgroup/memory/1/memory.limit_in_bytes", "7000\n");
    put("/sys/fs/cgroup/memory/1/memory.stat",
        "inactive_file 900\nactive_file 800\ntotal_inactive_file 500\ntotal_active_file 300\n");
    expect_limits(2.5, 7000, 6800);
    expect_throttled(0);
    put("/sys/fs/cgroup/cpu/box/1/cpu.stat", "nr_periods 9\nnr_throttled 3\nthrottled_time 5000000\n"); /* ns */
    expect_throttled(5000);
}

/* A container that sees the host's group names but only its own part of the tree. */
static void a_group_outside_of_the_mount(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/docker/abc\n");
    put("/proc/self/mountinfo", "30 22 0:26 /other /sys/fs/cgroup rw - cgroup2 cgroup rw\n");
    put("/sys/fs/cgroup/cpu.max", "300000 100000\n");
    expect_limits(3, UINT64_MAX, UINT64_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(this_machine_is_sane),
        cmocka_unit_test(the_mask_restricts),
        cmocka_unit_test(one_cpu_of_each_core_first),
        cmocka_unit_test_setup_teardown(no_control_groups, root_begin, root_end),
        cmocka_unit_test_setup_teardown(version_2_takes_the_least_on_the_way_up, root_begin, root_end),
        cmocka_unit_test_setup_teardown(version_1, root_begin, root_end),
        cmocka_unit_test_setup_teardown(a_group_outside_of_the_mount, root_begin, root_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
