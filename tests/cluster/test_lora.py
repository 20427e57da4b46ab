"""LoRA adapters: streams of different adapters in one batch, each the same as alone, also when a rank dies meanwhile."""
import json
import os
import random
import signal
import struct
import sys
import tempfile
import threading
import unittest

sys.path.insert(0, os.path.dirname(__file__))
import harness  # noqa: E402
from harness import grpc, pb  # noqa: E402

N_TOKEN = 360  # long enough that harm comes in time
D_MODEL, D_KV, D_FF = 256, 64, 768  # of the demonstration model


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def write_adapter(path, seed, layers, shapes, rank=4, alpha=8.0, arch="llama"):
    """A GGUF adapter of random weights: shapes is {matrix: (columns, rows)}."""
    rng = random.Random(seed)
    tensors = []
    for layer in layers:
        for name, (n_col, n_row) in shapes.items():
            tensors.append((f"blk.{layer}.{name}.weight.lora_a", n_col, rank))
            tensors.append((f"blk.{layer}.{name}.weight.lora_b", rank, n_row))
    keys = [("general.architecture", arch), ("general.type", "adapter"), ("adapter.type", "lora")]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys) + 1)
    for key, value in keys:
        head += text(key) + struct.pack("<I", 8) + text(value)
    head += text("adapter.lora.alpha") + struct.pack("<If", 6, alpha)
    data = b""
    for name, n_col, n_row in tensors:
        data += b"\0" * (-len(data) % 32)
        head += text(name) + struct.pack("<IQQIQ", 2, n_col, n_row, 0, len(data))
        data += struct.pack(f"<{n_col * n_row}f", *(rng.uniform(-0.2, 0.2) for _ in range(n_col * n_row)))
    head += b"\0" * (-len(head) % 32)
    with open(path, "wb") as f:
        f.write(head + data)


def folder_of(path, target, d_head):
    """The same adapter as write_adapter's file at `path`, as a PEFT folder."""
    modules = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
               "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    with open(path, "rb") as f:
        raw = f.read()
    n_tensor, n_key = struct.unpack_from("<QQ", raw, 8)
    at = 24

    def string():
        nonlocal at
        n = struct.unpack_from("<Q", raw, at)[0]
        at += 8 + n
        return raw[at - n:at].decode()

    keys, tensors = {}, []
    for _ in range(n_key):
        key = string()
        kind = struct.unpack_from("<I", raw, at)[0]
        at += 4
        if kind == 8:
            keys[key] = string()
        else:
            keys[key] = struct.unpack_from("<f", raw, at)[0]
            at += 4
    for _ in range(n_tensor):
        name = string()
        _, n_col, n_row, _, offset = struct.unpack_from("<IQQIQ", raw, at)
        at += 32
        tensors.append((name, n_col, n_row, offset))
    start = (at + 31) // 32 * 32
    header, data = {}, b""
    for name, n_col, n_row, offset in tensors:
        _, layer, matrix, _, half = name.split(".")
        rows = [raw[start + offset + 4 * n_col * i:start + offset + 4 * n_col * (i + 1)] for i in range(n_row)]
        if half == "lora_b" and matrix in ("attn_q", "attn_k"):  # pairs become the halves of a head
            rows = [rows[h * d_head + i] for h in range(n_row // d_head) for i in [*range(0, d_head, 2), *range(1, d_head, 2)]]
        full = f"base_model.model.model.layers.{layer}.{modules[matrix]}.lora_{half[-1].upper()}.weight"
        header[full] = {"dtype": "F32", "shape": [n_row, n_col], "data_offsets": [len(data), len(data) + 4 * n_col * n_row]}
        data += b"".join(rows)
    os.mkdir(target)
    text = json.dumps(header).encode()
    with open(os.path.join(target, "adapter_model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)
    with open(os.path.join(target, "adapter_config.json"), "w") as f:
        json.dump({"peft_type": "LORA", "r": tensors[0][2], "lora_alpha": keys["adapter.lora.alpha"], "target_modules": ["q_proj"]}, f)


class Lora(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="muster-lora-")
        cls.addClassCleanup(cls.folder.cleanup)
        d, q, kv, ff = D_MODEL, D_MODEL, D_KV, D_FF
        cls.a, cls.b = (os.path.join(cls.folder.name, n) for n in ("first.gguf", "second.gguf"))
        write_adapter(cls.a, 1, (0, 1, 2), {"attn_q": (d, q), "attn_v": (d, kv), "ffn_down": (ff, d)})
        write_adapter(cls.b, 2, (1,), {"attn_output": (q, d), "ffn_gate": (d, ff), "ffn_up": (d, ff)}, rank=20)
        cls.peft = os.path.join(cls.folder.name, "same")
        folder_of(cls.a, cls.peft, 32)
        cls.server = cls.enterClassContext(harness.Server(split="2:1/1", args=["--lora", cls.a, "--lora", cls.peft, "--lora", f"loud={cls.b}:1.5",
                                                                               "--stall-ms", "1500"]))
        cls.jobs = [(f"SCENE {i}\n", 100 + i, 0.0 if i % 2 else 0.8, more)
                    for i, more in enumerate([{"adapter": "first"}, {"adapter": "loud"}, {}, {"adapter": "first", "adapter_scale": -0.5},
                                              {"adapter": "first"}, {"adapter": "loud", "adapter_scale": 2}])]
        cls.expected = [cls.server.generate(p, N_TOKEN, seed=s, temperature=t, **more)[0] for p, s, t, more in cls.jobs]

    def together(self, harm=None):
        """All jobs at once; harm is done when all are on their way."""
        started, results, errors = threading.Barrier(len(self.jobs) + 1), [None] * len(self.jobs), []

        def one(i):
            prompt, seed, temperature, more = self.jobs[i]
            waited = []

            def on_token(n):
                if n >= 3 and not waited:
                    waited.append(True)
                    started.wait(60)

            try:
                results[i] = self.server.generate(prompt, N_TOKEN, seed=seed, temperature=temperature, on_token=on_token, **more)
            except Exception as e:  # told by the main thread
                errors.append((i, e))
                started.abort()

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(self.jobs))]
        for t in threads:
            t.start()
        try:
            started.wait(60)
        except threading.BrokenBarrierError:
            self.fail(f"streams did not start: {errors}")
        if harm:
            harm()
        for t in threads:
            t.join(120)
        self.assertEqual(errors, [])
        for i, r in enumerate(results):
            self.assertIsNotNone(r, f"stream {i} is stuck")
            self.assertEqual(r[0], self.expected[i], f"stream {i}")
        return results

    def test_adapters_do_something(self):
        greedy = [self.server.generate("ROMEO:\n", 40, **more)[0] for more in ({}, {"adapter": "first"}, {"adapter": "loud"})]
        self.assertEqual(len({tuple(g) for g in greedy}), 3)
        self.assertEqual(self.server.generate("ROMEO:\n", 40, adapter="first", adapter_scale=1)[0], greedy[1])

    def test_a_folder_is_the_same(self):
        for job, want in zip(self.jobs, self.expected):
            prompt, seed, temperature, more = job
            if more == {"adapter": "first"}:
                self.assertEqual(self.server.generate(prompt, N_TOKEN, seed=seed, temperature=temperature, adapter="same")[0], want)

    def test_together_as_alone(self):
        self.together()

    def test_kill_a_rank(self):
        def killed(gang):
            results = self.together(lambda: os.kill(gang.rank[1].pid, signal.SIGKILL))
            return any(r[2].usage.resumed for r in results)

        self.server.until_resumed(killed)

    def test_in_one_process(self):
        for adapter, lora in (("first", self.a), ("loud", self.b + ":1.5")):
            ids, told, _ = self.server.generate("ROMEO:\n", 40, adapter=adapter)
            alone = harness.run("run", harness.BARD, "ROMEO:\n", "-n", "40", "--lora", lora, "--ignore-end", "--quiet", "--raw")
            self.assertEqual(alone.returncode, 0, alone.stderr)
            self.assertEqual(alone.stdout, told + "\n")
            remote = harness.run("run", harness.BARD, "ROMEO:\n", "-n", "40", "--raw", "--server", self.server.address, "--adapter", adapter,
                                 "--ignore-end", "--quiet")
            self.assertEqual(remote.stdout, told + "\n")

    def test_status(self):
        status = self.server.unary("ModelStatus", pb.ModelStatusRequest(), pb.ModelStatusReply)
        adapters = status.adapter
        self.assertEqual(status.default_adapter, "")
        self.assertEqual([(a.name, a.path, a.scale, a.rank) for a in adapters],
                         [("first", self.a, 1.0, 4), ("same", self.peft, 1.0, 4), ("loud", self.b, 1.5, 20)])

    def test_refused(self):
        def refusal(**more):
            with self.assertRaises(grpc.RpcError) as caught:
                self.server.generate("x", 1, **more)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            return caught.exception.details()

        self.assertEqual(refusal(adapter="third"), "adapter 'third' is not loaded here; loaded: first, same, loud")
        self.assertIn("adapter_scale", refusal(adapter="first", adapter_scale=float("nan")))
        self.assertIn("adapter_scale", refusal(adapter_scale=2))

    def test_cannot_start(self):
        other = os.path.join(self.folder.name, "other.gguf")
        write_adapter(other, 3, (0,), {"attn_q": (D_MODEL + 32, D_MODEL)})
        wrong = harness.run("serve", harness.BARD, "--lora", other, "--listen", "127.0.0.1:0")
        self.assertEqual(wrong.returncode, 1)
        self.assertIn(f"adapter '{other}': tensor 'blk.0.attn_q.weight.lora_a': expected rows of {D_MODEL} values", wrong.stderr)
        twice = harness.run("serve", harness.BARD, "--lora", self.a, "--lora", self.a, "--listen", "127.0.0.1:0")
        self.assertEqual(twice.returncode, 1)
        self.assertIn("two adapters are called 'first'", twice.stderr)
        missing = harness.run("serve", harness.BARD, "--lora", "/nowhere/at-all.gguf", "--listen", "127.0.0.1:0")
        self.assertIn("cannot open file '/nowhere/at-all.gguf'", missing.stderr)
        usage = harness.run("serve", harness.BARD, "--lora", "a=" + self.a + ":loud")
        self.assertEqual(usage.returncode, 2)
        self.assertIn("expected a scale", usage.stderr)
        reserved = harness.run("serve", harness.BARD, "--lora", "none=" + self.a)
        self.assertEqual(reserved.returncode, 2)
        self.assertIn("give it another name", reserved.stderr)


class OwnAdapter(unittest.TestCase):
    """A store's model with an ADAPTER of its own: what requests get that name none."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="muster-lora-")
        d, q, kv, ff = D_MODEL, D_MODEL, D_KV, D_FF
        os.mkdir(os.path.join(cls.folder.name, "real"))
        cls.a, cls.b = (os.path.join(cls.folder.name, n) for n in ("first.gguf", "real/second.gguf"))
        write_adapter(cls.a, 1, (0, 1, 2), {"attn_q": (d, q), "attn_v": (d, kv), "ffn_down": (ff, d)})
        write_adapter(cls.b, 2, (1,), {"ffn_gate": (d, ff), "ffn_up": (d, ff)})
        cls.link = os.path.join(cls.folder.name, "link")
        os.symlink("real", cls.link)
        modelfile = os.path.join(cls.folder.name, "Modelfile")
        with open(modelfile, "w") as f:
            f.write(f"FROM {harness.BARD}\nADAPTER {cls.a}\n")
        cls.env = {"MUSTER_MODELS": os.path.join(cls.folder.name, "store")}
        made = harness.run("create", "adapted", "-f", modelfile, env=cls.env)
        if made.returncode:
            raise AssertionError(made.stderr)
        cls.server = harness.Server(model="adapted", args=["--lora", os.path.join(cls.link, "second.gguf")], env=cls.env)

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__(None, None, None)
        cls.folder.cleanup()

    def generated(self, **more):
        return self.server.generate("ROMEO:\n", 40, **more)[1] + "\n"

    def run_alone(self, *args):
        alone = harness.run("run", *args, "ROMEO:\n", "-n", "40", "--ignore-end", "--quiet", "--raw", env=self.env)
        self.assertEqual(alone.returncode, 0, alone.stderr)
        return alone.stdout

    def test_generate(self):
        adapted, bare = self.run_alone(harness.BARD, "--lora", self.a), self.run_alone(harness.BARD)
        self.assertNotEqual(adapted, bare)
        self.assertEqual(self.generated(), adapted)
        self.assertEqual(self.run_alone("adapted"), adapted)
        self.assertEqual(self.run_alone("adapted", "--lora", "none"), bare)
        self.assertEqual(self.generated(adapter="own"), adapted)
        self.assertEqual(self.generated(adapter="none"), bare)
        self.assertEqual(self.generated(adapter_scale=-0.5), self.run_alone(harness.BARD, "--lora", self.a + ":-0.5"))
        self.assertEqual(self.generated(adapter="second"), self.run_alone(harness.BARD, "--lora", self.b))

    def test_embed(self):
        texts = ["ROMEO:\n", "To be, or not"]

        def alone(*args):
            done = harness.run("embed", *args, "--", *texts, env=self.env)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout

        bare, adapted = alone(harness.BARD), alone(harness.BARD, "--lora", self.a)
        self.assertNotEqual(bare, adapted)
        self.assertEqual(alone("adapted"), adapted)
        self.assertEqual(alone("adapted", "--lora", "none"), bare)
        served = ("default", "--server", self.server.address)
        self.assertEqual(alone(*served), adapted)
        self.assertEqual(alone(*served, "--adapter", "none"), bare)
        self.assertEqual(alone(*served, "--adapter", "second"), alone(harness.BARD, "--lora", self.b))
        request = pb.EmbedRequest(adapter_scale=-0.5)
        request.input.add().text = texts[0]
        value = list(self.server.unary("Embed", request, pb.EmbedReply).embedding[0].value)
        weaker = json.loads(alone(harness.BARD, "--lora", self.a + ":-0.5").splitlines()[0])
        self.assertEqual(value, list(struct.unpack(f"{D_MODEL}f", struct.pack(f"{D_MODEL}f", *weaker))))
        for more in ({"adapter": "third"}, {"adapter": "none", "adapter_scale": 2}):
            request = pb.EmbedRequest(**more)
            request.input.add().text = "x"
            with self.assertRaises(grpc.RpcError) as caught:
                self.server.unary("Embed", request, pb.EmbedReply)
            self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
            self.assertIn("adapter", caught.exception.details())

    def test_status(self):
        status = self.server.unary("ModelStatus", pb.ModelStatusRequest(), pb.ModelStatusReply)
        self.assertEqual(status.default_adapter, "own")
        self.assertEqual([(a.name, a.path) for a in status.adapter], [("own", self.a), ("second", os.path.join(self.link, "second.gguf"))])

    def test_scale_of_none(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.server.generate("x", 1, adapter="none", adapter_scale=2)
        self.assertIn("adapter_scale is set", caught.exception.details())


if __name__ == "__main__":
    harness.main()
