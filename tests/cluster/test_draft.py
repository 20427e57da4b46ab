"""A draft model on real gangs: no answer is another one, whatever it guesses and however the gang is split, also after a kill -9;
what cannot be a draft model is refused in a sentence."""
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402

N_TOKEN = 100
PROMPTS = ["ROMEO:", "The king", "What say you to", "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:"]
JOBS = [(p, 50 + i, t) for i, p in enumerate(PROMPTS) for t in (0.0, 1.0)]


def answers(server, together=1, on_token=None):
    """Of all jobs, so many at a time."""
    results = [None] * len(JOBS)

    def one(first):
        for i in range(first, len(JOBS), together):
            prompt, seed, temperature = JOBS[i]
            results[i] = server.generate(prompt, N_TOKEN, seed=seed, temperature=temperature, on_token=on_token)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(together)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(240)
    return results


def fewer_layers(path, n, to):
    """The same model without all layers but the first n: smaller, of the same vocabulary, and it agrees now and then."""
    with open(path, "rb") as f:
        data = f.read()
    n_tensor, n_key = struct.unpack_from("<QQ", data, 8)
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def after_string(at):
        return at + 8 + struct.unpack_from("<Q", data, at)[0]

    def after_value(kind, at):
        if kind == 8:
            return after_string(at)
        if kind != 9:
            return at + sizes[kind]
        kind, count = struct.unpack_from("<IQ", data, at)
        at += 12
        for _ in range(count):
            at = after_value(kind, at)
        return at

    at, edited = 24, bytearray(data)
    for _ in range(n_key):
        name_at, at = at, after_string(at)
        if data[name_at + 8:at].endswith(b".block_count"):
            struct.pack_into("<I", edited, at + 4, n)
        at = after_value(struct.unpack_from("<I", data, at)[0], at + 4)
    keys_end, kept = at, []
    for _ in range(n_tensor):
        begin, at = at, after_string(at)
        name = data[begin + 8:at].decode()
        at += 4 + 8 * struct.unpack_from("<I", data, at)[0] + 4 + 8
        if not name.startswith("blk.") or int(name.split(".")[1]) < n:
            kept.append(data[begin:at])
    out = data[:8] + struct.pack("<QQ", len(kept), n_key) + bytes(edited[24:keys_end]) + b"".join(kept)
    with open(to, "wb") as f:
        f.write(out + bytes(-len(out) % 32) + data[at + -at % 32:])


def guesses(server):
    """How many the draft model made and how many of them were right. Counts come twice a second; whether it is asked at all depends on
    what steps took, so there may have been none yet."""
    for _ in range(3):
        time.sleep(0.7)
        gang = server.gang()
        if gang.model_drafted:
            break
        answers(server)
    return gang.model_drafted, gang.model_drafts_taken


def packed_and_found(server):
    """What the ranks said of the model's weights, and the leader of the draft model's: how often they packed them, and found them."""
    said = server.logged()
    return tuple((said.count(f"of {whose}weights packed"), said.count(f"of {whose}weights are there from an earlier launch"))
                 for whose in ("", "the draft model's "))


class Draft(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="muster-draft-")
        cls.small = os.path.join(cls.folder.name, "small.gguf")
        cls.other = os.path.join(cls.folder.name, "other.gguf")
        fewer_layers(harness.BARD, 1, cls.small)
        made = harness.run("synth", "--out", cls.other, "--layers", "1", "--d-model", "128", "--vocab", "512")
        assert made.returncode == 0, made.stderr
        with harness.Server(split="1", args=["--no-speculation"]) as server:
            cls.expected = answers(server)
            assert server.gang().drafted == 0

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def compare(self, results):
        for i, r in enumerate(results):
            self.assertIsNotNone(r, f"stream {i}")
            self.assertEqual(r[0], self.expected[i][0], f"stream {i}")
            self.assertEqual(r[1], self.expected[i][1], f"stream {i}")

    def test_same_answers(self):
        total = 0
        for draft in (self.small, harness.BARD):
            for split in ("1", "2:1/1"):
                with harness.Server(split=split, args=["--draft", draft]) as server:
                    self.compare(answers(server))
                    self.compare(answers(server, together=3))
                    drafted, right = guesses(server)
                    print(f"{os.path.basename(draft)}, split {split}: {right} of {drafted} guesses right")
                    if draft == harness.BARD:  # it knows what it will say itself
                        self.assertEqual(right, drafted)
                    else:
                        self.assertTrue(right < drafted or not drafted)
                    total += drafted
        self.assertGreater(total, 0)

    def test_random_models(self):
        """A larger model, beside which guesses are cheap, and a small one that knows nothing of it: no guess is right but by chance, or
        because at a high temperature both follow the same noise."""
        target, draft = (os.path.join(self.folder.name, name) for name in ("target.gguf", "draft.gguf"))
        for out, layers, width, seed in ((target, "12", "512", "1"), (draft, "1", "128", "2")):
            made = harness.run("synth", "--out", out, "--layers", layers, "--d-model", width, "--vocab", "4096", "--type", "q8_0", "--seed", seed)
            self.assertEqual(made.returncode, 0, made.stderr)
        prompt = [(7 * i) % 400 + 10 for i in range(70)]
        jobs = [(prompt[:n], 3 + n, t) for n in (3, 70) for t in (0.0, 1.0)]

        def say(server):
            return [server.generate(p, N_TOKEN, seed=seed, temperature=t)[0] for p, seed, t in jobs]

        for temperature in ("0", "1"):
            args = ["run", target, "What?", "--raw", "--temperature", temperature, "--seed", "7", "-n", "150", "-t", "1", "--verbose"]
            without = harness.run(*args)
            for _ in range(5):  # whether it is asked depends on what steps took
                r = harness.run(*args, "--draft", draft)
                print(f"run, temperature {temperature}: {[line for line in r.stderr.splitlines() if line.startswith('guessed')]}")
                self.assertEqual((r.returncode, r.stdout), (0, without.stdout), r.stderr)
                if "guessed" in r.stderr:
                    break
            self.assertIn("guessed", r.stderr)
        with harness.Server(target, split="1", args=["--no-speculation"]) as server:
            expected = say(server)
        for split in ("1", "1/1"):
            with harness.Server(target, split=split, args=["--draft", draft]) as server:
                for _ in range(10):
                    self.assertEqual(say(server), expected)
                    time.sleep(0.7)
                    if server.gang().model_drafted:
                        break
                gang = server.gang()
                print(f"split {split}: {gang.model_drafts_taken} of {gang.model_drafted} guesses right")
                self.assertGreater(gang.model_drafted, 0)
                self.assertGreater(gang.model_drafted, gang.model_drafts_taken)

    def test_kill(self):
        total = 0
        for rank in (2, 1):  # the leader, which has the draft model, and one that knows nothing of it
            with harness.Server(split="2:1/1", args=["--draft", self.small]) as server:
                gang = server.wait_ready()
                memories = server.kept_memories()
                self.assertEqual(len(memories), len(gang.rank) + 1)
                self.assertEqual(packed_and_found(server), ((len(gang.rank), 0), (1, 0)))
                self.compare(answers(server, together=2, on_token=harness.killer(gang.rank[rank].pid, 40)))
                server.wait_ready(epoch_after=gang.epoch)
                self.assertEqual(packed_and_found(server), ((len(gang.rank), len(gang.rank)), (1, 1)))
                self.assertEqual(server.kept_memories(), memories)
                total += guesses(server)[0]
        self.assertGreater(total, 0)

    def test_run(self):
        """In one process."""
        for temperature in ("0", "1"):
            def say(*more):
                r = harness.run("run", harness.BARD, "ROMEO:", "--raw", "--temperature", temperature, "--seed", "7", "-n", "200", "-t", "1", "--verbose",
                                *more)
                self.assertEqual(r.returncode, 0, r.stderr)
                return r.stdout, re.findall(r"guessed: +(\d+) tokens, (\d+) of them right", r.stderr)
            expected, none = say()
            self.assertEqual(none, [])
            for draft in (self.small, harness.BARD):
                text, told = say("--draft", draft)
                self.assertEqual(text, expected)
                print(f"{os.path.basename(draft)}, temperature {temperature}: {told} guesses")
                for drafted, right in told:
                    self.assertTrue(draft != harness.BARD or drafted == right)
        r = harness.run("run", harness.BARD, "x", "--raw", "--draft", self.other)
        self.assertIn("has another vocabulary than", r.stderr)
        r = harness.run("run", harness.BARD, "x", "--raw", "--draft", self.small, "--split", "1:1")
        self.assertIn("--split 1", r.stderr)
        self.assertNotEqual(r.returncode, 0)

    def refused(self, *args):
        r = subprocess.run([harness.MUSTER, "serve", harness.BARD, "--listen", "127.0.0.1:0", *args], capture_output=True, text=True, timeout=60)
        self.assertNotEqual(r.returncode, 0)
        return next(line for line in r.stderr.splitlines() if line.startswith("muster serve:"))

    def test_refusals(self):
        self.assertRegex(self.refused("--draft", self.other), r"--draft '.*other.gguf' has another vocabulary than '.*bard.*', so what it guesses would mean something else: token \d+ is '.*' in one and '.*' in the other")
        self.assertIn("nowhere.gguf", self.refused("--draft", "nowhere.gguf"))
        self.assertIn("--parallel 2", self.refused("--draft", self.small, "--parallel", "1"))
        self.assertIn("--no-speculation", subprocess.run([harness.MUSTER, "serve", harness.BARD, "--draft", self.small, "--no-speculation"],
                                                         capture_output=True, text=True, timeout=60).stderr)


if __name__ == "__main__":
    harness.main()
