"""Layers with a window keep no more than they see: a long conversation in a tenth of the cache, with the ids of the pass in which
every layer holds everything, after a kill -9 as well, and its turns find what the ones before have computed."""
import array
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402

N_TOKEN = 40
ARGS = ["--ctx", "16384", "--parallel", "2"]
FIRST = [(7 * i + i // 60) % 400 + 10 for i in range(2500)]


class Windows(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="muster-windows-")
        cls.model = os.path.join(cls.folder.name, "windows.gguf")
        made = harness.run("synth", "--arch", "gemma3", "--type", "Q8_0", "--layers", "6", "--d-model", "128", "--d-ff", "192", "--heads", "4",
                           "--kv-heads", "2", "--vocab", "420", "--ctx", "16384", "--window", "100", "--out", cls.model)
        assert made.returncode == 0, made.stderr
        with harness.Server(model=cls.model, split="1", args=ARGS) as server:
            cls.answer = server.generate(FIRST, N_TOKEN)[0]
        cls.second = FIRST + cls.answer + [5, 6, 7]

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_the_same_ids(self):
        """Each is the likeliest after those before it, as `logits` has it, where no layer lets go of anything."""
        ids = os.path.join(self.folder.name, "ids")
        out = os.path.join(self.folder.name, "all.f32")
        with open(ids, "w") as f:
            f.write(",".join(str(i) for i in FIRST + self.answer))
        done = harness.run("logits", self.model, "--ids", "@" + ids, "--all", "--out", out)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = array.array("f")
        with open(out, "rb") as f:
            rows.frombytes(f.read())
        n = len(FIRST) + N_TOKEN
        self.assertEqual(len(rows) % n, 0)
        width = len(rows) // n
        self.assertEqual(len(self.answer), N_TOKEN)
        for i in range(N_TOKEN):
            at = (len(FIRST) - 1 + i) * width
            row = rows[at:at + width]
            self.assertEqual(max(range(width), key=row.__getitem__), self.answer[i], f"id {i}")

    def test_splits_and_turns(self):
        for split in ("2:1/1", "1:1:1"):
            with harness.Server(model=self.model, split=split, args=ARGS) as server:
                self.assertEqual(server.generate(FIRST, N_TOKEN)[0], self.answer)
                second = server.generate(self.second, N_TOKEN)
                self.assertGreater(second[2].usage.cached_tokens, 2400)
                # In the middle the window pages may be gone; what is found is right all the same.
                middle = server.generate(FIRST[:1300], N_TOKEN)
                again = server.generate(FIRST[:1300], N_TOKEN)
                self.assertEqual(middle[0], again[0])
                self.assertGreater(again[2].usage.cached_tokens, 1200)
            if split == "2:1/1":
                expected = second[0], middle[0]
        self.assertEqual((second[0], middle[0]), expected)

    def test_memory(self):
        """One layer of six sees all 2 × 16,384 tokens; the others a span of 21 pages and 5 that are cached, of 512."""
        with harness.Server(model=self.model, split="1", args=ARGS) as server:
            page = 2 * 2 * 32 * 32 * 2  # keys and values, heads, dimensions, tokens, f16
            self.assertEqual(server.gang().rank[0].kv_bytes, page * (2 * 512 + 5 * 2 * (21 + 5)))

    def test_kill(self):
        with harness.Server(model=self.model, split="2:1/1", args=ARGS) as server:
            expected = server.generate(FIRST, 1500)[0]

            def killed(gang):
                ids, _, last = server.generate(FIRST, 1500, on_token=harness.killer(gang.rank[1].pid, 10))
                self.assertEqual(ids, expected)
                return last.usage.resumed

            server.until_resumed(killed)


if __name__ == "__main__":
    harness.main()
