"""Processes die in the middle of tokens; every stream goes on with exactly the tokens it would have had."""
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import grpc, pb  # noqa: E402

N_STREAM, N_TOKEN = 6, 440  # long enough that harm comes in time on a busy machine


def worker_pid(server):
    """The child of the server that is a worker."""
    for pid in server.processes():
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            if b"\0worker\0" in f.read():
                return pid
    raise AssertionError("no worker process")


class Survive(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(harness.Server(split="2:1/1", args=["--stall-ms", "3000" if harness.STALL_MS else "1500"]))
        cls.jobs = [(f"SCENE {i}\n", 100 + i, 0.0 if i % 2 else 0.8) for i in range(N_STREAM)]
        cls.expected = [cls.server.generate(p, N_TOKEN, seed=s, temperature=t)[0] for p, s, t in cls.jobs]

    def interrupt(self, harm):
        """Runs the streams, does harm to the gang when all are on their way, and compares. The gang after."""
        gang = self.server.until_resumed(lambda gang: self.interrupt_once(gang, harm))
        print(f"  said: {gang.last_failure}")
        return gang

    def interrupt_once(self, gang, harm):
        started, results, errors = threading.Barrier(N_STREAM + 1), [None] * N_STREAM, []
        most = [0] * N_STREAM

        def one(i):
            prompt, seed, temperature = self.jobs[i]
            waited = []

            def on_token(n):
                most[i] = n
                if n >= 3 and not waited:
                    waited.append(True)
                    started.wait(60)

            try:
                results[i] = self.server.generate(prompt, N_TOKEN, seed=seed, temperature=temperature, on_token=on_token)
            except Exception as e:  # told by the main thread
                errors.append((i, e))
                started.abort()

        threads = [threading.Thread(target=one, args=(i,)) for i in range(N_STREAM)]
        for t in threads:
            t.start()
        try:
            started.wait(60)
        except threading.BrokenBarrierError:
            self.fail(f"streams did not start: {errors}")
        begin = time.monotonic()
        harm(gang)
        for t in threads:
            t.join(120)
        took = time.monotonic() - begin
        self.assertEqual(errors, [])
        for i, r in enumerate(results):
            self.assertIsNotNone(r, f"stream {i} is stuck")
            self.assertEqual(r[0], self.expected[i], f"stream {i}")
        print(f"  all {N_STREAM} streams whole {took:.1f} s after")
        return any(r[2].usage.resumed for r in results)

    def test_kill_a_rank(self):
        gang = self.interrupt(lambda gang: os.kill(gang.rank[1].pid, signal.SIGKILL))
        self.assertIn("rank 1", gang.last_failure)

    def test_kill_the_leader(self):
        gang = self.interrupt(lambda gang: os.kill(gang.rank[2].pid, signal.SIGKILL))
        self.assertIn("rank 2", gang.last_failure)

    def test_kill_mpirun(self):
        self.interrupt(lambda gang: os.kill(gang.mpirun_pid, signal.SIGKILL))

    def test_kill_the_worker(self):
        self.interrupt(lambda gang: os.kill(worker_pid(self.server), signal.SIGKILL))

    def test_stop_a_rank(self):
        gang = self.interrupt(lambda gang: os.kill(gang.rank[0].pid, signal.SIGSTOP))
        self.assertIn("rank 0", gang.last_failure)

    def test_stop_the_leader(self):
        gang = self.interrupt(lambda gang: os.kill(gang.rank[2].pid, signal.SIGSTOP))
        self.assertIn("rank 2", gang.last_failure)

    def test_idle_rank_dies(self):
        gang = self.server.wait_ready()
        os.kill(gang.rank[1].pid, signal.SIGKILL)
        self.server.wait_ready(epoch_after=gang.epoch)
        ids, _, _ = self.server.generate(self.jobs[1][0], N_TOKEN, seed=self.jobs[1][1])
        self.assertEqual(ids, self.expected[1])


class Kept(unittest.TestCase):
    """The weights that ranks packed outlive them, as long as the worker lives and they are the ones that are wanted."""

    N_RANK = 2

    def setUp(self):
        folder = self.enterContext(tempfile.TemporaryDirectory(prefix="muster-kept-"))
        self.model = os.path.join(folder, "model.gguf")
        shutil.copyfile(harness.BARD, self.model)
        self.server = self.enterContext(harness.Server(model=self.model, split="1:1"))
        self.epoch = self.server.wait_ready().epoch
        self.expected = self.server.generate("SCENE", 40, seed=7, temperature=0.8)[0]
        self.said = 0
        self.packed_and_found(self.N_RANK, 0)

    def packed_and_found(self, packed, found):
        """What the ranks said about their weights since last time."""
        said = self.server.logged()[self.said:]
        self.said += len(said)
        self.assertEqual((said.count("of weights packed"), said.count("from an earlier launch")), (packed, found), said)

    def killed(self, pid):
        os.kill(pid, signal.SIGKILL)
        self.epoch = self.server.wait_ready(epoch_after=self.epoch).epoch
        self.assertEqual(self.server.generate("SCENE", 40, seed=7, temperature=0.8)[0], self.expected)

    def test_ranks_die(self):
        memories = self.server.kept_memories()
        self.assertEqual(len(memories), self.N_RANK)
        for rank in (1, 0, 1):
            self.killed(self.server.gang().rank[rank].pid)
            self.packed_and_found(0, self.N_RANK)
        self.assertEqual(self.server.kept_memories(), memories)
        self.killed(self.server.gang().mpirun_pid)
        self.packed_and_found(0, self.N_RANK)

    def test_the_worker_dies(self):
        memories = self.server.kept_memories()
        self.killed(worker_pid(self.server))
        self.packed_and_found(self.N_RANK, 0)
        self.assertEqual(len(self.server.kept_memories()), self.N_RANK)
        self.assertFalse(self.server.kept_memories() & memories)

    def test_the_file_changes(self):
        memories = self.server.kept_memories()
        os.utime(self.model, (1, 1))
        self.killed(self.server.gang().rank[0].pid)
        self.packed_and_found(self.N_RANK, 0)
        self.assertFalse(self.server.kept_memories() & memories)
        self.killed(self.server.gang().rank[0].pid)
        self.packed_and_found(0, self.N_RANK)


class NoMemory(unittest.TestCase):
    """A rank that ends with an error which would have kept it from starting, but it did run: its requests go on."""

    def test_now_and_then(self):
        prompt, n = [5, 10, 20], 330  # a step each without guesses; what a leader has not sent yet is lost, and three deaths are the end
        with harness.Server(split="1/1") as server:
            expected = server.generate(prompt, n)[0]
        with harness.Server(split="1/1", args=["--no-speculation"], env={"MUSTER_FAULT": "rank.step@1:300"}) as server:  # rank 1 leads
            ids, _, last = server.generate(prompt, n)
            self.assertEqual(ids, expected)
            self.assertGreater(last.usage.resumed, 0)

    def test_always(self):
        with harness.Server(split="1/1", env={"MUSTER_FAULT": "rank.step@1:1"}) as server:
            with self.assertRaises(grpc.RpcError) as caught:
                server.generate([5, 10, 20], 60)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.ABORTED, caught.exception.details())
            self.assertIn("rank 1: step 1: a fault point was hit", caught.exception.details())


class Replaced(unittest.TestCase):
    """Another file takes the program's place, as in an upgrade: what runs goes on as what it is."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="muster-replaced-")
        self.program = os.path.join(self.folder.name, "muster")
        shutil.copy(harness.MUSTER, self.program)

    def tearDown(self):
        self.folder.cleanup()

    def replace(self):
        other = self.program + ".new"
        with open(other, "w") as f:
            f.write("#!/bin/sh\nexit 9\n")
        os.chmod(other, 0o755)
        os.rename(other, self.program)

    def test_streams_go_on(self):
        with harness.Server(split="1:1") as server:
            expected = server.generate("SCENE", N_TOKEN, seed=7, temperature=0.8)[0]
        args, death = ["--no-speculation"], {"MUSTER_FAULT": "rank.step@1:300=abort"}  # a step for each id
        with harness.Server(split="1:1", program=self.program, args=args, env=death) as server:
            self.replace()
            ids, _, last = server.generate("SCENE", N_TOKEN, seed=7, temperature=0.8)
            self.assertEqual(ids, expected)
            self.assertGreater(last.usage.resumed, 0)
            epoch = server.gang().epoch
            os.kill(worker_pid(server), signal.SIGKILL)
            server.wait_ready(epoch_after=epoch)
            self.assertEqual(server.generate("SCENE", N_TOKEN, seed=7, temperature=0.8)[0], expected)

    def test_gpus_are_refused(self):
        plugin = os.path.join(os.path.dirname(harness.MUSTER), "..", "tests", "stubs", "libmuster_device_host.so")
        with harness.Server(split="1@gpu0", program=self.program, env={"MUSTER_DEVICE_PLUGIN": plugin}) as server:
            self.replace()
            os.kill(server.gang().rank[0].pid, signal.SIGKILL)
            with self.assertRaises(grpc.RpcError) as caught:
                server.generate("SCENE", N_TOKEN)
            self.assertIn("the program was replaced", caught.exception.details())


class Stream(unittest.TestCase):
    """The leader's stream to the coordinator breaks and nothing else: its gang is over, the next one goes on."""

    def test_the_stream_breaks(self):
        with harness.Server(split="1:1", env={"MUSTER_FAULT": "engine.send@0:300"}) as server:
            first, second = (server.generate("SCENE", N_TOKEN, seed=7, temperature=0.8) for _ in range(2))
            gang = server.gang()
            self.assertIn("the stream to the coordinator", gang.last_failure)
            for ids, _, last in (first, second):  # it breaks elsewhere in the second one
                self.assertEqual(len(ids), N_TOKEN)
                self.assertGreater(last.usage.resumed, 0)
            self.assertEqual(first[0], second[0])


class Form(unittest.TestCase):
    """A rank dies in the middle of an answer of a form: it goes on where the form was."""

    def test_the_form_goes_on(self):
        schema = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 120, "maxItems": 120}
        request = pb.GenerateRequest(text="SCENE", json_schema=json.dumps(schema), max_tokens=480, return_ids=True)
        request.sampling.temperature, request.sampling.seed = 0.9, 5

        def answer(server, on_token=None):
            ids, text, last = [], "", None
            for last in server.generate_call(request, timeout=120):
                ids += last.ids
                text += last.text
                if on_token and last.ids:
                    on_token(len(ids))
            return ids, text, last

        with harness.Server(split="1:1") as server:
            expected, text, _ = answer(server)
            self.assertEqual(len(json.loads(text)), 120)

            def killed(gang):
                ids, _, last = answer(server, harness.killer(gang.rank[1].pid, len(expected) // 4))
                self.assertEqual(ids, expected)
                return last.usage.resumed

            server.until_resumed(killed)


class Poison(unittest.TestCase):
    """A request that kills ranks: it runs alone, then fails by name; the others lose nothing."""

    def test_poison(self):
        poison = 777
        with harness.Server(split="1:1", env={"MUSTER_FAULT": f"rank.token:{poison}=abort"}) as server:
            prompts = [[5, 10 + i, 20] for i in range(3)]
            # Only streams that do not produce the poisonous token themselves can show that nobody else suffers.
            results, errors = {}, {}

            def one(name, prompt, n):
                try:
                    results[name] = server.generate(prompt, n)
                except grpc.RpcError as e:
                    errors[name] = e

            threads = [threading.Thread(target=one, args=(i, p, 60)) for i, p in enumerate(prompts)]
            threads.append(threading.Thread(target=one, args=("poison", [5, 6, poison], 10)))
            for t in threads:
                t.start()
            for t in threads:
                t.join(120)
            self.assertIn("poison", errors, server.logged())
            self.assertEqual(errors["poison"].code(), grpc.StatusCode.ABORTED)
            self.assertIn("alone", errors["poison"].details())
            self.assertEqual(len(errors), 1, errors)
            for i in range(3):
                self.assertEqual(len(results[i][0]), 60)


if __name__ == "__main__":
    harness.main()
