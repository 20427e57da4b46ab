/* Which CPUs ranks get, on machines that hwloc makes up. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <hwloc.h>

#include "base/numa.h"
#include "base/place.h"

enum { MAX_RANKS = 64, GPU_THREADS = 4, ON_CPU = -2 };

static struct mu_topo topo;
static struct mu_err err;

static void machine(const char *synthetic)
{
    setenv("HWLOC_SYNTHETIC", synthetic, 1);
    enum mu_status st = mu_topo_read(&topo, &err);
    unsetenv("HWLOC_SYNTHETIC");
    if (st != MU_OK) fail_msg("%s: %s", synthetic, err.text);
    topo.n_usable = topo.n_core; /* whatever quota this process has */
}

/* As a cpuset that leaves out CPUs [first, first + n) would make it. */
static void without(int first, int n)
{
    struct mu_topo t = topo;
    t.n_cpu = t.n_core = 0;
    for (int k = 0; k < t.n_numa; k++) t.numa[k].n_cpu = t.numa[k].n_core = 0;
    for (int i = 0; i < topo.n_cpu; i++) {
        if (topo.cpus[i] >= first && topo.cpus[i] < first + n) continue;
        for (int k = 0; k < t.n_numa; k++) {
            if (t.numa[k].node != topo.numa_of[i]) continue;
            t.numa[k].n_cpu++;
            t.numa[k].n_core += i < topo.n_core;
        }
        t.n_core += i < topo.n_core;
        t.cpus[t.n_cpu] = topo.cpus[i];
        t.numa_of[t.n_cpu++] = topo.numa_of[i];
    }
    t.n_usable = t.n_core;
    topo = t;
}

/* "0:0-3 1:4-7": of each rank its node (x: none) and CPUs; "~" before them: its threads share them; "+n" after them: n
 * threads, where that is another number than that of the CPUs. near[i]: ON_CPU, or the node of its GPU. */
static void expect(int n_rank, const int *near, int n_thread, const char *want)
{
    struct mu_place_wish wish[MAX_RANKS];
    static struct mu_place place;
    char got[1024] = "", cpus[80];
    int len = 0;
    for (int i = 0; i < n_rank; i++)
        wish[i] = (struct mu_place_wish){.on_gpu = near && near[i] != ON_CPU, .near = near ? near[i] : -1};
    if (!n_thread) n_thread = mu_place_threads(&topo, wish, n_rank);
    for (int i = 0; i < n_rank; i++) {
        mu_place_rank(&topo, wish, n_rank, n_thread, n_thread < GPU_THREADS ? n_thread : GPU_THREADS, i, &place);
        mu_place_cpus_text(place.cpu, place.n_cpu, cpus, sizeof cpus);
        char node[12] = "x", more[16] = "";
        if (place.numa >= 0) snprintf(node, sizeof node, "%d", place.numa);
        if (place.n_thread != place.n_cpu) snprintf(more, sizeof more, "+%d", place.n_thread);
        len += snprintf(got + len, sizeof got - (size_t)len, "%s%s:%s%s%s", i ? " " : "", node, place.pinned ? "" : "~",
                        cpus, more);
    }
    assert_string_equal(got, want);
}

static void one_node(void **state)
{
    (void)state;
    machine("core:4 pu:1");
    expect(1, NULL, 0, "0:0-3");
    expect(2, NULL, 0, "0:0-1 0:2-3");
    expect(3, NULL, 0, "0:0 0:1 0:2");
    expect(2, NULL, 4, "0:~+4 0:~+4"); /* more threads than cores: the system's business */
    machine("core:2 pu:2(indexes=0,2,1,3)");
    expect(1, NULL, 0, "0:0-1");
    expect(1, NULL, 4, "0:~+4"); /* SMT siblings by wish */
}

static void a_rank_a_node(void **state)
{
    (void)state;
    machine("numa:2 core:4 pu:2(indexes=0,8,1,9,2,10,3,11,4,12,5,13,6,14,7,15)");
    expect(2, NULL, 0, "0:0-3 1:4-7");
    expect(2, NULL, 2, "0:0-1 1:4-5");
    expect(2, NULL, 1, "0:0 1:4");
    expect(2, NULL, 8, "0:~0-3,8-11 1:~4-7,12-15"); /* with SMT siblings, each rank still on its node */
    machine("numa:4 core:2 pu:1");
    expect(4, NULL, 0, "0:0-1 1:2-3 2:4-5 3:6-7");
}

static void splits_by_hand(void **state)
{
    (void)state;
    machine("numa:2 core:8 pu:1");
    expect(1, NULL, 0, "x:0-15"); /* one rank with everything */
    expect(1, NULL, 8, "0:0-7");
    expect(1, NULL, 3, "0:0-2");
    expect(4, NULL, 0, "0:0-3 0:4-7 1:8-11 1:12-15");
    expect(4, NULL, 2, "0:0-1 0:2-3 1:8-9 1:10-11");
    expect(3, NULL, 4, "0:0-3 0:4-7 1:8-11");
    expect(3, NULL, 0, "0:0-4 x:5-9 1:10-14"); /* five each: the second spans */
    expect(4, NULL, 8, "0:~0-7 0:~0-7 1:~8-15 1:~8-15");
    expect(1, NULL, 20, "x:~+20");
    machine("numa:4 core:4 pu:1");
    expect(2, NULL, 0, "x:0-7 x:8-15");
    expect(2, NULL, 4, "0:0-3 1:4-7");
}

static void uneven_nodes(void **state)
{
    (void)state;
    machine("numa:2 core:6 pu:1");
    without(8, 4); /* 6 and 2 */
    expect(2, NULL, 0, "0:0-5 1:6-7");
    expect(2, NULL, 2, "0:0-1 1:6-7");
    expect(4, NULL, 0, "0:0-1 0:2-3 0:4-5 1:6-7");
    machine("numa:3 core:6 pu:1");
    without(8, 4);
    without(14, 4);                /* 6, 2 and 2 */
    expect(2, NULL, 1, "0:0 1:6"); /* a node of its own, though the first would be less full with both */
}

static void quotas(void **state)
{
    (void)state;
    machine("numa:2 core:8 pu:1");
    topo.n_usable = 4;
    expect(2, NULL, 0, "0:~0-7+2 1:~8-15+2");
    expect(1, NULL, 0, "0:~0-7+4");
    topo.n_usable = 3;
    expect(2, NULL, 0, "0:~0-7+2 1:~8-15+1");
    topo.n_usable = 1; /* not a thread for each */
    expect(1, NULL, 0, "0:~0-7+1");
    expect(2, NULL, 0, "0:~0-7+1 1:~8-15+1");
    machine("core:8 pu:1");
    topo.n_usable = 2;
    expect(1, NULL, 0, "0:~+2"); /* anywhere */
}

static void gpus(void **state)
{
    (void)state;
    static const int one[] = {1}, mixed[] = {ON_CPU, 0, 1, -1};
    machine("numa:2 core:8 pu:1");
    expect(1, one, 0, "1:~8-15+4");
    expect(4, mixed, 0, "x:0-12 0:~0-7+4 1:~8-15+4 x:~+4"); /* a core for each GPU's waiting thread */
    expect(3, (const int[]){ON_CPU, ON_CPU, 1}, 0, "0:0-6 1:8-14 1:~8-15+4");
    machine("core:8 pu:1");
    expect(1, (const int[]){0}, 0, "x:~+4");
    expect(2, (const int[]){0, ON_CPU}, 0, "x:~+4 0:0-6");
    machine("core:2 pu:1");
    expect(2, (const int[]){0, ON_CPU}, 0, "x:~+1 0:0");
    expect(4, (const int[]){0, 0, 0, ON_CPU}, 0, "x:~+1 x:~+1 x:~+1 0:0");
}

/* Two sockets, of which one has no memory of its own; memory near the whole machine that is nobody's (an expander). */
static void odd_nodes(void **state)
{
    (void)state;
    machine("[numa(memory=1000000000 indexes=2)] package:2 [numa(memory=1000000000 indexes=0,1)] core:2 pu:1");
    assert_int_equal(topo.n_numa, 2);
    assert_int_equal(topo.numa[1].node, 1);
    expect(2, NULL, 0, "0:0-1 1:2-3");
    machine("package:2 [numa(memory=0)] core:2 pu:1"); /* nobody says how much */
    assert_int_equal(topo.n_numa, 2);
}

/* Three sockets, of which the second has no memory: its cores belong to the node that the firmware calls nearest. hwloc
 * reads the machine from a file, as it does recorded ones. */
static void memory_missing(void **state)
{
    (void)state;
    static const hwloc_uint64_t distance[9] = {10, 21, 21, 21, 10, 12, 21, 12, 10};
    hwloc_topology_t t;
    hwloc_obj_t node[3];
    char path[] = "/tmp/muster-topo-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(hwloc_topology_init(&t), 0);
    assert_int_equal(hwloc_topology_set_synthetic(t, "numa:3 core:2 pu:1"), 0);
    assert_int_equal(hwloc_topology_load(t), 0);
    for (unsigned i = 0; i < 3; i++) node[i] = hwloc_get_obj_by_type(t, HWLOC_OBJ_NUMANODE, i);
    for (int i = 0; i < 2; i++) { /* a machine may say it twice */
        hwloc_distances_add_handle_t add = hwloc_distances_add_create(
            t, i ? "again" : "NUMALatency", HWLOC_DISTANCES_KIND_FROM_USER | HWLOC_DISTANCES_KIND_MEANS_LATENCY, 0);
        assert_non_null(add);
        assert_int_equal(hwloc_distances_add_values(t, add, 3, node, (hwloc_uint64_t *)distance, 0), 0);
        assert_int_equal(hwloc_distances_add_commit(t, add, 0), 0);
    }
    hwloc_get_obj_by_type(t, HWLOC_OBJ_NUMANODE, 1)->attr->numanode.local_memory = 0;
    assert_int_equal(hwloc_topology_export_xml(t, path, 0), 0);
    hwloc_topology_destroy(t);
    setenv("HWLOC_XMLFILE", path, 1);
    enum mu_status st = mu_topo_read(&topo, &err);
    unsetenv("HWLOC_XMLFILE");
    unlink(path);
    assert_int_equal(st, MU_OK);
    topo.n_usable = topo.n_core;
    assert_int_equal(topo.n_numa, 2);
    assert_int_equal(topo.numa[1].node, 2);
    expect(2, NULL, 0, "0:0-1 2:2-5");
}

static void texts(void **state)
{
    (void)state;
    char buf[64];
    mu_place_cpus_text((const int[]){8, 2, 1, 0, 5}, 5, buf, sizeof buf);
    assert_string_equal(buf, "0-2,5,8");
    mu_place_cpus_text(NULL, 0, buf, sizeof buf);
    assert_string_equal(buf, "");
    mu_place_cpus_text((const int[]){100, 102, 104, 106, 108}, 5, buf, 16);
    assert_string_equal(buf, "100,102,104…");
}

/* On a machine of one node there is nothing to choose, and everybody takes NULL. */
static void no_choice(void **state)
{
    (void)state;
    struct mu_numa *numa = (void *)1;
    char memory[100] = {0};
    setenv("HWLOC_SYNTHETIC", "core:2 pu:1", 1);
    assert_int_equal(mu_numa_open(0, &numa, &err), MU_OK);
    unsetenv("HWLOC_SYNTHETIC");
    assert_null(numa);
    assert_int_equal(mu_numa_open(-1, &numa, &err), MU_OK);
    assert_null(numa);
    assert_int_equal(mu_numa_node(numa), -1);
    mu_numa_bind(numa, memory, sizeof memory);
    assert_true(mu_numa_share(numa, memory, sizeof memory) < 0);
    mu_numa_close(numa);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_node),     cmocka_unit_test(a_rank_a_node),  cmocka_unit_test(splits_by_hand),
        cmocka_unit_test(uneven_nodes), cmocka_unit_test(quotas),         cmocka_unit_test(gpus),
        cmocka_unit_test(odd_nodes),    cmocka_unit_test(memory_missing), cmocka_unit_test(texts),
        cmocka_unit_test(no_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
