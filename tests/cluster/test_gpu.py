"""GPU ranks without a GPU: the plugin is the host as a device (tests/stubs/device_host.c), all else is real. Whatever the places of the ranks,
the tokens are those of processors alone; what cannot be used is said plainly."""
import concurrent.futures
import os
import signal
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import BARD, pb  # noqa: E402

PLUGIN = os.path.join(os.path.dirname(harness.MUSTER), "..", "tests", "stubs", "libmuster_device_host.so")
GPU = {"MUSTER_DEVICE_PLUGIN": PLUGIN}
ROUGH = dict(GPU, MUSTER_DEVICE_HOST_ROUGH="1")
LINKED = dict(GPU, MUSTER_DEVICE_HOST_LINK="1", MUSTER_DEVICE_HOST_COUNT="4")
SMALL = dict(GPU, MUSTER_DEVICE_HOST_MEMORY="36000000", MUSTER_DEVICE_HOST_COUNT="1")  # too little for BARD and steps of 2,048 tokens
HOP = "residuals come from GPU to GPU"  # what a rank says that gets them so
NO_PLUGIN = {"MUSTER_DEVICE_PLUGIN": "none"}
NO_DRIVER = dict(GPU, MUSTER_DEVICE_HOST_COUNT="x")  # a plugin that cannot count any
NAME = "the host as a device"
PROMPT, N_TOKEN = "ROMEO:\n", 60


def text_of(*args, env=None):
    done = harness.run("run", BARD, PROMPT, "-n", str(N_TOKEN), "--ignore-end", "--raw", "--quiet", *args, env=env or GPU)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout


class Serve(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.alone = text_of("--device", "cpu")

    def test_run(self):
        for split in ("1@gpu0", "1@gpu0/1", "1/1@gpu1", "1@gpu0:1@gpu1/1", "1@gpu0:1", "auto", "1@gpu0~4", "3@gpu0~3/1"):
            with self.subTest(split):
                self.assertEqual(text_of("--split", split), self.alone)
        self.assertEqual(text_of("--device", "gpu", env=SMALL), self.alone)
        for split in ("1@gpu0:1@gpu1/1", "1@gpu0/1@gpu1:1@gpu2"):
            with self.subTest(split, linked=True):
                self.assertEqual(text_of("--split", split, env=LINKED), self.alone)

    def test_other_verbs(self):
        with tempfile.TemporaryDirectory() as tmp:
            def logits(split):
                path = os.path.join(tmp, "logits.f32")
                done = harness.run("logits", BARD, "--ids", "1,2,3,4,5,6,7", "--all", "--split", split, "--out", path, env=GPU)
                self.assertEqual(done.returncode, 0, done.stderr)
                with open(path, "rb") as f:
                    return f.read()

            want = logits("1")
            for split in ("1@gpu0", "1@gpu0/1", "1:1@gpu1"):
                self.assertEqual(logits(split), want, split)
            text = os.path.join(tmp, "text")
            with open(text, "w") as f:
                f.write("What light through yonder window breaks?\n" * 5)
            for verb in (("embed", BARD, "--file", text), ("perplexity", BARD, text)):
                told = [harness.run(*verb, "--split", split, env=GPU) for split in ("1", "1@gpu0", "1/1@gpu0")]
                self.assertEqual([t.returncode for t in told], [0] * 3, told)
                self.assertEqual([t.stdout for t in told], [told[0].stdout] * 3)

    def test_serve(self):
        for split, gpus in (("1@gpu0/1", [0, None]), ("1@gpu0", [0]), ("1/1@gpu1:1@gpu0", [None, 1, 0]), ("auto", [0])):
            with self.subTest(split), harness.Server(split=split, env=GPU) as server:
                ids, text, last = server.generate(PROMPT, N_TOKEN)
                self.assertEqual(text + "\n", self.alone)
                ranks = server.gang().rank
                self.assertEqual([r.gpu if r.HasField("gpu") else None for r in ranks], gpus)
                self.assertEqual([r.gpu_name for r in ranks], [NAME if g is not None else "" for g in gpus])
                node = server.status().node[0]
                self.assertEqual([g.name for g in node.gpu], [NAME] * 2)
                self.assertGreater(node.gpu[0].memory_bytes, 0)
                self.assertEqual(node.gpu[0].read_gbps > 0, split == "auto")  # measured where there was a choice
                self.assertIn(f"rank {gpus.index(0)}: GPU 0 ({NAME})", server.logged())
                table = harness.run("ps", "--server", server.address).stdout
                self.assertIn("gpu0", table)
                self.assertIn(f"GPU 1  {NAME}", table)
                self.assertLessEqual(max(len(line) for line in table.splitlines() if line[:5] in ("rank ", "0    ")), 80)

    def test_processors_do_not_look(self):
        for split, args in (("1:1", []), ("auto", ["--device", "cpu"])):
            with self.subTest(split), harness.Server(split=split, args=args, env=GPU) as server:
                self.assertEqual(server.generate(PROMPT, N_TOKEN)[1] + "\n", self.alone)
                self.assertEqual(len(server.status().node[0].gpu), 0)

    def test_linked(self):
        """Between stages of GPUs alone residuals go by link, where nobody forbids it; several streams at once."""
        for split, env, hops in (("1@gpu0/1@gpu1", LINKED, 1), ("1@gpu0/1@gpu1", dict(LINKED, MUSTER_GPU_LINK="0"), 0),
                                 ("1@gpu2:1@gpu0/1@gpu1:1@gpu3", LINKED, 2), ("1/1@gpu0/1@gpu1", LINKED, 1), ("1@gpu0/1@gpu0", LINKED, 0)):
            with self.subTest(split, hops=hops), harness.Server(split=split, env=env) as server:
                self.assertEqual(server.generate(PROMPT, N_TOKEN)[1] + "\n", self.alone)
                self.assertEqual(server.logged().count(HOP), hops, server.logged())
                with concurrent.futures.ThreadPoolExecutor(3) as pool:
                    texts = list(pool.map(lambda _: server.generate(PROMPT, N_TOKEN)[1] + "\n", range(3)))
                self.assertEqual(texts, [self.alone] * 3)

    def test_killed_ranks(self):
        """kill -9 of the rank on a GPU, then of the one on processors, in the middle of a stream: its tokens are the same."""
        self.killed_ranks("1@gpu0/1", GPU)

    def test_streamed(self):
        """A GPU that is too small has its layers come from the host's memory, which is said; several streams; ranks that die."""
        with harness.Server(split="auto", args=["--device", "gpu", "--parallel", "1"], env=SMALL) as server:
            self.assertEqual(server.gang().split, "1@gpu0~4")
            self.assertIn("4 layers are streamed from the host's memory", server.logged())
            self.assertIn(f"rank 0: GPU 0 ({NAME}), 4 layers streamed", server.logged())
            self.assertIn("weights 3.2 MB to be streamed", server.logged())
            self.assertEqual(server.generate(PROMPT, N_TOKEN)[1] + "\n", self.alone)
        with harness.Server(split="1@gpu0~3", env=GPU) as server:
            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                texts = list(pool.map(lambda _: server.generate(PROMPT, N_TOKEN)[1] + "\n", range(4)))
            self.assertEqual(texts, [self.alone] * 4)
        self.killed_ranks("3@gpu0~3/1", GPU)

    def test_killed_linked_ranks(self):
        """The same of two on GPUs with a link between them."""
        self.killed_ranks("1@gpu0/1@gpu1", LINKED)

    def killed_ranks(self, split, env):
        with harness.Server(split=split, args=["--no-speculation"], env=env) as server:
            want, _, _ = server.generate(PROMPT, 200, seed=3, temperature=0.9)
            for rank in (0, 1):
                def killed(gang):
                    got, _, last = server.generate(PROMPT, 200, seed=3, temperature=0.9, on_token=harness.killer(gang.rank[rank].pid, 5))
                    self.assertEqual(got, want)
                    return last.usage.resumed

                gang = server.until_resumed(killed)
                self.assertIn(f"rank {rank}", gang.last_failure)
                self.assertEqual(gang.rank[0].gpu_name, NAME)
            self.assertEqual(server.logged().count(HOP), gang.relaunches + 1 if env is LINKED else 0)  # once an epoch

    def test_killed_worker(self):
        """Its successor is asked for nothing, but what the machine has is still known."""
        with harness.Server(split="1@gpu0", env=GPU) as server:
            gang = server.wait_ready()
            os.kill(server.status().node[0].worker_pid, signal.SIGKILL)
            server.wait_ready(epoch_after=gang.epoch)
            self.assertEqual(len(server.status().node[0].gpu), 2)
            self.assertEqual(server.generate(PROMPT, N_TOKEN)[1] + "\n", self.alone)


class Rough(unittest.TestCase):
    """--gpu-prompts rough: the device rounds what it may. Other bits than exact, but the same ones whatever happens."""

    def logits(self, *args):
        with tempfile.TemporaryDirectory() as tmp:
            path = os.path.join(tmp, "logits.f32")
            done = harness.run("logits", BARD, "--ids", ",".join(str(i) for i in range(1, 60)), "--out", path, *args, env=ROUGH)
            self.assertEqual(done.returncode, 0, done.stderr)
            with open(path, "rb") as f:
                return f.read()

    def test_logits(self):
        exact = self.logits("--split", "1@gpu0")
        rough = self.logits("--split", "1@gpu0", "--gpu-prompts", "rough")
        self.assertNotEqual(exact, rough)
        for how in (["--chunk", "7"], ["--batch", "3"], ["--split", "1@gpu0:1@gpu1"]):
            self.assertEqual(self.logits("--split", "1@gpu0", "--gpu-prompts", "rough", *how), rough, how)
        self.assertEqual(self.logits("--split", "1", "--gpu-prompts", "rough"), exact)

    def test_company_and_death(self):
        """A request alone, beside others, after its beginning was cached, and with a rank killed in its middle."""
        prompt = "\n".join(f"{i}. O Romeo, Romeo! wherefore art thou Romeo?" for i in range(4))
        with harness.Server(split="1@gpu0", args=["--gpu-prompts", "rough"], env=ROUGH) as server:
            def ids(on_token=None):
                return server.generate(prompt, N_TOKEN, seed=5, temperature=0.9, on_token=on_token)[0]

            want = ids()
            others = [threading.Thread(target=server.generate, args=(f"{i}: {prompt}", 100)) for i in range(3)]
            for other in others:
                other.start()
            self.assertEqual(ids(), want)
            for other in others:
                other.join()
            killed = []

            def kill(n):
                if n >= 5 and not killed:
                    killed.append(server.gang().rank[0].pid)
                    os.kill(killed[0], signal.SIGKILL)

            self.assertEqual(ids(kill), want)
            self.assertTrue(killed)

    def test_no_gpu(self):
        with harness.Server(split="1", args=["--gpu-prompts", "rough"], env=ROUGH) as server:
            self.assertIn("no rank is on a GPU, so --gpu-prompts rough makes no difference", server.logged())
        done = harness.run("run", BARD, PROMPT, "-n", "4", "--raw", "--device", "cpu", "--gpu-prompts", "rough", env=ROUGH)
        self.assertIn("no rank is on a GPU, so --gpu-prompts rough makes no difference", done.stderr)
        done = harness.run("serve", BARD, "--gpu-prompts", "bf16", env=ROUGH)
        self.assertIn("--gpu-prompts may be exact or rough, not 'bf16'", done.stderr)


class Said(unittest.TestCase):
    def plan(self, *args, env=None):
        return harness.run("plan", BARD, *args, env=env or GPU)

    def refused(self, words, *args, env=None, verb="plan"):
        done = harness.run(verb, BARD, *args, env=env or GPU)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        said = [line for line in done.stderr.splitlines() if line.startswith(f"muster {verb}: ")]  # serve has a worker, which logs
        self.assertEqual(len(said), 1, done.stderr)
        for word in words:
            self.assertIn(word, said[0])

    def test_no_plugin(self):
        """Silent but where somebody asks."""
        done = harness.run("run", BARD, PROMPT, "-n", "3", "--raw", env=NO_PLUGIN)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotIn("GPU", done.stderr)
        with harness.Server(split="auto", env=NO_PLUGIN) as server:
            self.assertNotIn("GPU", server.logged())
            self.assertNotIn("GPU", harness.run("ps", "--server", server.address).stdout)
        plan = self.plan(env=NO_PLUGIN)
        self.assertEqual(plan.stdout.count("no GPU: "), 1, plan.stdout)
        self.assertIn("split 1,", plan.stdout)

    def test_no_driver(self):
        """A plugin that cannot be used is told once, and processors do it."""
        done = harness.run("run", BARD, PROMPT, "-n", "3", "--raw", env=NO_DRIVER)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr.count("no GPU is used: MUSTER_DEVICE_HOST_COUNT=x is no number"), 1, done.stderr)
        with harness.Server(split="auto", env=NO_DRIVER) as server:
            self.assertEqual(server.logged().count("no GPU is used: "), 1, server.logged())
            self.assertEqual(server.gang().split, "1")
            self.assertIn("no GPU: MUSTER_DEVICE_HOST_COUNT", harness.run("ps", "--server", server.address).stdout)
        self.assertIn("no GPU: MUSTER_DEVICE_HOST_COUNT", self.plan(env=NO_DRIVER).stdout)

    def test_a_type_is_lacking(self):
        """Refused by name; where nobody insists, processors do it."""
        lacks = dict(GPU, MUSTER_DEVICE_HOST_LACKS="Q8_0")
        for verb in ("plan", "serve", "run"):
            self.refused(["no product for Q8_0 matrices of 256 columns", "'token_embd.weight'"], "--split", "1@gpu0", env=lacks, verb=verb)
            self.refused(["--device gpu: ", "no product for Q8_0"], "--device", "gpu", env=lacks, verb=verb)
        plan = self.plan(env=lacks)
        self.assertIn("split 1,", plan.stdout)
        self.assertIn("processors alone: GPU ranks have no product for Q8_0", plan.stdout)

    def test_hung_driver(self):
        """Looking for GPUs is given up at a deadline; opening a pipe that nobody writes to stands for a driver that never answers."""
        with tempfile.TemporaryDirectory() as tmp:
            pipe = os.path.join(tmp, "plugin.so")
            os.mkfifo(pipe)
            with harness.Server(split="auto", env={"MUSTER_DEVICE_PLUGIN": pipe}) as server:
                self.assertIn("no GPU is used: the GPU driver does not answer (waited 20000 ms)", server.logged())
                self.assertEqual(server.generate(PROMPT, N_TOKEN)[1] + "\n", text_of("--device", "cpu"))
                for pid in server.processes():
                    with open(f"/proc/{pid}/cmdline", "rb") as f:
                        self.assertNotIn(b"_gpus", f.read())

    def test_driver_hangs_at_the_end(self):
        """What was found counts; nobody waits for more than a moment for the process that found it."""
        start = time.monotonic()
        done = self.plan("--device", "gpu", env=dict(GPU, MUSTER_DEVICE_HOST_HANGS="1"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("1@gpu0", done.stdout)
        self.assertLess(time.monotonic() - start, 30)
        with harness.Server(split="1@gpu0", env=dict(GPU, MUSTER_DEVICE_HOST_HANGS="1")) as server:
            self.assertEqual([p for p in server.processes() if not harness.alive(p)], [], "zombies")

    def test_broken_plugin(self):
        with tempfile.NamedTemporaryFile(suffix=".so") as f:
            f.write(b"no library\n")
            f.flush()
            done = harness.run("run", BARD, PROMPT, "-n", "3", "--raw", env={"MUSTER_DEVICE_PLUGIN": f.name})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stderr.count("no GPU is used: the GPU plugin"), 1, done.stderr)
        done = harness.run("run", BARD, PROMPT, "-n", "3", "--raw", env={"MUSTER_DEVICE_PLUGIN": "/none/x.so"})
        self.assertEqual(done.stderr.count("no GPU is used: there is no GPU plugin /none/x.so"), 1, done.stderr)

    def test_plan(self):
        plan = self.plan()
        self.assertIn("split 1@gpu0,", plan.stdout)
        self.assertIn(f"GPU 0 ({NAME}) holds the whole model", plan.stdout)
        self.assertIn(f"GPU 1  {NAME}, 1.07 GB memory", plan.stdout)
        self.assertIn("memory: GPU 0: weights ", plan.stdout)
        small = dict(GPU, MUSTER_DEVICE_HOST_MEMORY="11000000", MUSTER_DEVICE_HOST_COUNT="1")
        mixed = self.plan("--parallel", "1", env=small)
        self.assertEqual(mixed.returncode, 0, mixed.stderr)
        self.assertRegex(mixed.stdout, r"1 GPU has room for \d of 4 layers")
        self.assertIn("split 1,", self.plan("--device", "cpu").stdout)
        streamed = self.plan("--parallel", "1", "--device", "gpu", env=SMALL)
        self.assertEqual(streamed.returncode, 0, streamed.stderr)
        self.assertIn("1 GPU has room for 0 of 4 layers, 4 layers are streamed from the host's memory", streamed.stdout)
        self.assertIn("gpu0 (4 streamed)", streamed.stdout)

    def test_refused(self):
        for verb in ("plan", "serve", "run"):
            self.refused(["--device gpu: no GPU: ", "MUSTER_DEVICE_PLUGIN"], "--device", "gpu", env=NO_PLUGIN, verb=verb)
            self.refused(["rank 1 on GPU 7", "this machine has 2"], "--split", "1/1@gpu7", verb=verb)
            self.refused(["no GPU: "], "--split", "1@gpu0", env=NO_PLUGIN, verb=verb)
            self.refused(["--device cpu", "names a GPU"], "--split", "1@gpu0", "--device", "cpu", verb=verb)
            self.refused(["--device gpu", "rank"], "--split", "1@gpu0/1", "--device", "gpu", verb=verb)
            self.refused(["rank 0 stream 5 layers, but its stage has 4"], "--split", "1@gpu0~5", verb=verb)
            self.refused(["position 2: expected '@cpu'"], "--split", "1@gpu0~0", verb=verb)
            tiny = dict(GPU, MUSTER_DEVICE_HOST_MEMORY="4000000")
            self.refused(["--device gpu: the model does not fit", "2 GPUs have 0.0 GB"], "--device", "gpu", env=tiny, verb=verb)
        self.refused(["does not fit GPU 0", "of 4.0 MB free"], "--split", "1@gpu0", env=tiny, verb="run")
        self.refused(["does not fit GPU 0", "of 4.0 MB free"], "--split", "1@gpu0", env=tiny, verb="serve")


if __name__ == "__main__":
    harness.main()
