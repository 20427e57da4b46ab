"""NUMA for real: threads and memory of ranks on a machine with two nodes (machine.py), what init.sh did there."""
import os
import re
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import machine  # noqa: E402

MUSTER = os.environ.get("MUSTER_BIN", "muster")
BUILD = os.environ.get("MUSTER_BINARY_DIR", ".")
BOOT_S = 1500
IDS = "1,17,33,4,99,1000,7"
NODE_CPUS = {0: {0, 1}, 1: {2, 3}}
WEIGHT_PAGES = 900  # of a rank at least: 10 MB in two halves, pages of 4 KiB


def cpu_list(text):
    cpus = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


class Process:
    """What `look` printed of one."""

    def __init__(self, lines):
        self.threads = []  # (name, CPUs)
        self.kept = {0: 0, 1: 0}  # pages of 4 KiB on each node: packed weights that the worker keeps
        self.bound = {0: {0: 0, 1: 0}, 1: {0: 0, 1: 0}}  # preferred node -> pages on each: weights of its own, cache, scratch
        for line in lines:
            if line.startswith("thread "):
                _, name, cpus = line.split()
                self.threads.append((name, cpu_list(cpus)))
            elif line.startswith("map "):
                size = int((re.search(r"kernelpagesize_kB=(\d+)", line) or [0, "4"])[1]) // 4
                pages = {int(n): int(k) * size for n, k in re.findall(r" N(\d)=(\d+)", line)}
                prefer = re.search(r"prefer[^:]*:(\d)", line)
                for node, n in pages.items():
                    if "muster-weights" in line:
                        self.kept[node] += n
                    elif prefer:
                        self.bound[int(prefer[1])][node] += n


def processes(text):
    found, lines = [], None
    for line in text.splitlines():
        if line.startswith("rank-process"):
            lines = []
            found.append(lines)
        elif lines is not None:
            lines.append(line)
    return [Process(x) for x in found]


class Numa(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        machine.qemu()
        machine.busybox()
        vmlinuz = machine.kernel(os.path.join(BUILD, "numa-kernel"))
        with tempfile.TemporaryDirectory() as tmp:
            model, archive, logits = f"{tmp}/model.gguf", f"{tmp}/initramfs", f"{tmp}/logits.f32"
            subprocess.run([MUSTER, "synth", "--layers", "4", "--d-model", "512", "--d-ff", "2048", "--heads", "8", "--kv-heads", "4",
                            "--vocab", "4096", "--ctx", "512", "--out", model], check=True, capture_output=True)
            subprocess.run([MUSTER, "logits", model, "--ids", IDS, "--out", logits], check=True, capture_output=True)
            cls.here = subprocess.run(["sha256sum", logits], check=True, capture_output=True, text=True).stdout.split()[0]
            with open(os.path.join(os.path.dirname(__file__), "init.sh")) as f:
                machine.initramfs(archive, os.path.realpath(MUSTER), {"model.gguf": model}, f.read())
            out = machine.boot(vmlinuz, archive, os.environ.get("MUSTER_TEST_NUMA_LOG", f"{tmp}/log"), BOOT_S)
        cls.out = out
        cls.section, cls.status = {}, {}
        for name, body, status in re.findall(r"@@ begin (\S+)\n(.*?)@@ end \1 (\d+)\n", out, re.S):
            cls.section[name] = body
            cls.status[name] = int(status)
        if "@@ done" not in out:
            raise AssertionError("the virtual machine did not get to its end:\n" + out[-6000:])

    def of(self, name):
        self.assertEqual(self.status.get(name), 0, f"{name}: {self.section.get(name)}")
        return self.section[name]

    def on_node(self, p, node, cpus=None):
        """The process's compute threads are on the node and its memory is there."""
        cpus = cpus or NODE_CPUS[node]
        here = [c for _, c in p.threads if c <= cpus]
        self.assertGreaterEqual(len(here), 1, p.threads)
        for _, c in p.threads:
            if len(c) == 1:
                self.assertLessEqual(c, cpus, p.threads)
        self.assertGreater(p.kept[node], WEIGHT_PAGES)
        self.assertLessEqual(p.kept[1 - node], p.kept[node] // 100, "weights are on the other node")
        self.assertGreater(p.bound[node][node], 50)
        self.assertLessEqual(p.bound[node][1 - node], p.bound[node][node] // 100, "cache or scratch is on the other node")
        self.assertEqual(sum(p.bound[1 - node].values()), 0, "memory is bound to the other node")

    def test_plan_is_a_rank_a_node(self):
        plan = self.of("plan")
        self.assertIn("split 1:1,", plan)
        self.assertRegex(plan, r"NUMA node 0: 2 cores, .* memory, reads [\d.]+ GB/s")
        self.assertRegex(plan, r"NUMA node 1: 2 cores")
        self.assertIn("rank 0: NUMA node 0, CPUs 0-1\n", plan)
        self.assertIn("rank 1: NUMA node 1, CPUs 2-3\n", plan)

    def test_one_answer(self):
        """One process on one node, two ranks on two, and this machine's processor: the same bytes."""
        self.of("alone")
        self.of("two")
        for line in self.of("sums").splitlines():
            self.assertEqual(line.split()[0], self.here)
        answer = self.of("run_alone")
        self.assertGreater(len(answer), 6)
        for name in ("run", "ask", "ask_again", "ask_narrowed", "ask_one", "ask_quota"):
            self.assertEqual(self.of(name), answer, name)

    def test_gang(self):
        ranks = processes(self.of("gang"))
        self.assertEqual(len(ranks), 2)
        for node in (0, 1):
            p = next(r for r in ranks if any(c == {2 * node} for _, c in r.threads))
            self.on_node(p, node)
            self.assertEqual({min(c) for _, c in p.threads if len(c) == 1}, NODE_CPUS[node])

    def test_ps(self):
        ps = self.of("gang")
        for node, cpus in ((0, "0-1"), (1, "2-3")):
            self.assertRegex(ps, rf"NUMA node {node}: CPUs {cpus}, [\d.]+ MB memory")
            self.assertRegex(ps, rf"rank {node}: NUMA node {node}, CPUs {cpus}, (99|100)% of its memory there")

    def test_kept_weights_stay(self):
        self.of("relaunch")
        ranks = processes(self.of("gang_again"))
        self.assertEqual(len(ranks), 2)
        for node in (0, 1):
            self.on_node(next(r for r in ranks if any(c == {2 * node} for _, c in r.threads)), node)
        self.assertIn("weights are there from an earlier launch", self.of("stop"))

    def test_kept_weights_move(self):
        """Both ranks are on the second node now; what the first one had packed on its own is there too."""
        self.of("narrowed")
        ranks = processes(self.of("gang_narrowed"))
        self.assertEqual(len(ranks), 2)
        for p in ranks:
            self.on_node(p, 1)
        self.assertRegex(self.of("stop"), r"(9\d|100)% of the weights have moved to NUMA node 1")

    def test_ranks_of_one_process(self):
        p = Process(self.of("local").splitlines())
        for node in (0, 1):
            self.assertGreaterEqual(len([c for _, c in p.threads if c and c <= NODE_CPUS[node]]), 2, p.threads)
            self.assertGreater(p.bound[node][node], WEIGHT_PAGES)
            self.assertLessEqual(p.bound[node][1 - node], p.bound[node][node] // 100)

    def test_cpuset(self):
        self.assertIn("split 1,", self.of("plan_one"))
        ranks = processes(self.of("gang_one"))
        self.assertEqual(len(ranks), 1)
        for _, c in ranks[0].threads:
            self.assertLessEqual(c, NODE_CPUS[1])
        self.assertGreater(ranks[0].kept[1], 2 * WEIGHT_PAGES)
        self.assertEqual(ranks[0].kept[0], 0)

    def test_quota(self):
        """Two CPUs' time: a thread on each node, which may use all of it. One: a single rank."""
        ranks = processes(self.of("gang_quota"))
        self.assertEqual(len(ranks), 2)
        for node in (0, 1):
            p = next(r for r in ranks if any(c == NODE_CPUS[node] for _, c in r.threads))
            self.on_node(p, node)
        self.assertRegex(self.of("gang_quota"), r"\n1 +0 +cpu +\d+ +1 ")
        self.assertIn("split 1,", self.of("plan_quota"))

    def test_bench_tells(self):
        for node, cpus in ((0, "0-1"), (1, "2-3")):
            self.assertRegex(self.of("bench"), rf"rank {node}: NUMA node {node}, CPUs {cpus}, (99|100)% of its memory there, reads [\d.]+ GB/s")


if __name__ == "__main__":
    unittest.main(verbosity=2)
