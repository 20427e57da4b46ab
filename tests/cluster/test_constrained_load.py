"""Many constrained requests of many schemas: every answer satisfies its schema, and what it costs beside requests without a form.

    MUSTER_TEST_CONSTRAINED=10000 MUSTER_TEST_VOCAB=128256 MUSTER_TEST_D_MODEL=768 ctest --test-dir build-release -R test_constrained -V

A model of random weights answers in turns: a share of the constrained requests, then as many without a form, with the same prompts and
sampling and as many tokens each as their counterparts had. What it says is random, so schemas meet the unlikeliest texts of their forms.
MUSTER_TEST_VOCAB_OF=FILE.gguf gives it that file's vocabulary (as large as MUSTER_TEST_VOCAB). MUSTER_TEST_RATIO=0.9 makes a lower
throughput than that share a failure; without it the ratio is only told, because other work on the machine changes it.
MUSTER_TEST_FREE=0 leaves out the requests without a form, _THREADS, _CLIENTS, _TEMPERATURE, _TOP_K, _LAYERS and _TURNS say the rest.
"""
import concurrent.futures
import json
import os
import struct
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import pb  # noqa: E402

try:
    from schemas import SCHEMAS, complaint
except ImportError:
    print("SKIPPED: python3-jsonschema is not installed")
    sys.exit(77)

REQUESTS = int(os.environ.get("MUSTER_TEST_CONSTRAINED", "100"))
TURNS = int(os.environ.get("MUSTER_TEST_TURNS", "2"))
VOCAB = int(os.environ.get("MUSTER_TEST_VOCAB", "32768"))
VOCAB_OF = os.environ.get("MUSTER_TEST_VOCAB_OF")
D_MODEL = int(os.environ.get("MUSTER_TEST_D_MODEL", "128"))
LAYERS = int(os.environ.get("MUSTER_TEST_LAYERS", "2"))
CLIENTS = int(os.environ.get("MUSTER_TEST_CLIENTS", "16"))
FREE = os.environ.get("MUSTER_TEST_FREE") != "0"
RATIO = float(os.environ.get("MUSTER_TEST_RATIO", "0"))
TEMPERATURE = float(os.environ.get("MUSTER_TEST_TEMPERATURE", "1"))
TOP_K = int(os.environ.get("MUSTER_TEST_TOP_K", "0"))
THREADS = os.environ.get("MUSTER_TEST_THREADS", "1")


class Gguf:
    """A file's keys and values, and what lies behind them, as bytes."""

    SCALAR = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def __init__(self, path):
        with open(path, "rb") as f:
            self.b = f.read()
        assert self.b[:4] == b"GGUF"
        self.version, self.n_tensor, n_key = struct.unpack_from("<IQQ", self.b, 4)
        at, self.keys = 24, {}
        for _ in range(n_key):
            n, = struct.unpack_from("<Q", self.b, at)
            kind, = struct.unpack_from("<I", self.b, at + 8 + n)
            end = self.skip(kind, at + 12 + n)
            self.keys[self.b[at + 8:at + 8 + n].decode()] = self.b[at:end]
            at = end
        infos = at
        for _ in range(self.n_tensor):
            at = self.skip(8, at)
            dims, = struct.unpack_from("<I", self.b, at)
            at += 4 + 8 * dims + 4 + 8
        self.infos, self.data = self.b[infos:at], self.b[(at + 31) // 32 * 32:]

    def skip(self, kind, at):
        if kind == 8:
            return at + 8 + struct.unpack_from("<Q", self.b, at)[0]
        if kind != 9:
            return at + self.SCALAR[kind]
        kind, n = struct.unpack_from("<IQ", self.b, at)
        if kind != 8:
            return at + 12 + n * self.SCALAR[kind]
        at += 12
        for _ in range(n):
            at = self.skip(kind, at)
        return at

    def write(self, path, keys):
        b = b"GGUF" + struct.pack("<IQQ", self.version, self.n_tensor, len(keys)) + b"".join(keys.values()) + self.infos
        with open(path, "wb") as f:
            f.write(b + b"\0" * (-len(b) % 32) + self.data)


def make_model(path):
    heads = max(1, D_MODEL // 64)
    made = harness.run("synth", "--out", path, "--vocab", str(VOCAB), "--d-model", str(D_MODEL), "--d-ff", str(4 * D_MODEL), "--layers", str(LAYERS),
                       "--heads", str(heads), "--kv-heads", str(1 if heads % 4 else heads // 4), "--ctx", "4096", "--type", "Q8_0")
    if made.returncode:
        raise AssertionError(made.stderr)
    if VOCAB_OF:
        model, other = Gguf(path), Gguf(VOCAB_OF)
        keys = {k: v for k, v in model.keys.items() if not k.startswith("tokenizer.")}
        keys.update((k, v) for k, v in other.keys.items() if k.startswith("tokenizer."))
        model.write(path, keys)


class ConstrainedLoad(unittest.TestCase):
    def ask(self, i, n_token=None):
        """Request i, of its form or with so many tokens: text, tokens, finish."""
        q = pb.GenerateRequest(text=f"Request {i} of form {i % len(SCHEMAS)}, as JSON: ", max_tokens=n_token or 2000, ignore_end=bool(n_token),
                               sampling=pb.Sampling(temperature=TEMPERATURE, top_k=TOP_K, seed=i))
        if not n_token:
            q.json_schema = json.dumps(SCHEMAS[i % len(SCHEMAS)])
        text, last = "", None
        for reply in self.server.generate_call(q, timeout=600):
            text += reply.text
            last = reply
        return text, last.usage.completion_tokens, last.finish

    def turn(self, pool, calls):
        began = time.monotonic()
        answers = list(pool.map(lambda a: self.ask(*a), calls))
        return answers, time.monotonic() - began

    def test_all_valid(self):
        with tempfile.TemporaryDirectory(prefix="muster-load-", dir="/dev/shm") as folder:
            model = os.path.join(folder, "model.gguf")
            make_model(model)
            with harness.Server(model, split="1", args=["--ctx", "2560", "--parallel", str(CLIENTS), "--threads", THREADS]) as self.server, \
                    concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                self.load(pool)

    def load(self, pool):
        seconds, tokens, bad, cut = [0.0, 0.0], [0, 0], [], 0
        for k in range(TURNS):
            calls = range(REQUESTS * k // TURNS, REQUESTS * (k + 1) // TURNS)
            answers, took = self.turn(pool, [(i,) for i in calls])
            for i, (text, _, finish) in zip(calls, answers):
                schema = i % len(SCHEMAS)
                why = complaint(schema, text) if finish == pb.FINISH_END else f"it ends by {finish}"
                if finish == pb.FINISH_LENGTH:
                    cut += 1  # a text of a schema that holds its own kind, and a model that does not find its end
                elif why:
                    bad.append((i, SCHEMAS[schema], text, why))
            n = sum(a[1] + 1 for a in answers)
            seconds[0], tokens[0] = seconds[0] + took, tokens[0] + n
            if not FREE:
                print(f"\n  turn {k + 1}: {n / took:.0f} tokens/s, {len(bad)} bad so far", end="", flush=True)
                continue
            # The end of a text is a token as well: it was computed, but is not counted.
            free, took_free = self.turn(pool, [(i, n + 1) for i, (_, n, _) in zip(calls, answers)])
            n_free = sum(a[1] for a in free)
            seconds[1], tokens[1] = seconds[1] + took_free, tokens[1] + n_free
            rates = n / took, n_free / took_free
            print(f"\n  turn {k + 1}: {rates[0]:.0f} tokens/s of forms, {rates[1]:.0f} without: {rates[0] / rates[1]:.3f}", end="", flush=True)
        rate = [n / s if s else 0 for n, s in zip(tokens, seconds)]
        ratio = rate[0] / rate[1] if FREE else 0
        print(f"\n  {REQUESTS} requests of {len(SCHEMAS)} schemas, {tokens[0]} tokens: {rate[0]:.0f} tokens/s, without a form {rate[1]:.0f}: "
              f"{ratio:.3f}; {cut} longer than max_tokens", flush=True)
        for i, schema, text, why in bad[:10]:
            print(f"  request {i}: {why}\n    {json.dumps(schema)[:500]}\n    {text[:500]}")
        self.assertEqual(len(bad), 0, "answers that do not satisfy their schemas")
        self.assertLessEqual(cut, REQUESTS // 200)
        self.assertEqual(self.server.gang().relaunches, 0)
        self.assertGreaterEqual(ratio, RATIO)


if __name__ == "__main__":
    harness.main()
