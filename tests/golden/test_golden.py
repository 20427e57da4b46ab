"""The command's logits and perplexities against the fixtures' goldens, and the same bytes however they are computed."""
import array
import json
import math
import os
import re
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "cluster"))
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "model"))
import harness  # noqa: E402
import make_hf  # noqa: E402
import make_ollama  # noqa: E402
from harness import BARD, FIXTURES, run  # noqa: E402

# name → (d, KL, log-probability, perplexity) bounds of the fixtures' README: weights as they are; or with 8-bit activations.
FLOAT = (2e-3, 1e-4, 2e-2, 1e-3)
QUANT = (2e-2, 1e-3, 0.2, 3e-3)
MODELS = {"llama2": FLOAT, "llama3": FLOAT, "stories260K": FLOAT, "llama3.BF16": FLOAT, "llama3.Q8_0": QUANT, "llama3.Q4_0": QUANT,
          "llama3.Q4_K_M": QUANT, "llama3.Q6_K": QUANT, "mistral": FLOAT, "qwen2": FLOAT, "qwen3": FLOAT, "phi2": FLOAT, "phi3": FLOAT,
          "phi3-longrope": FLOAT, "gemma": FLOAT, "gemma2": FLOAT, "gemma3": FLOAT, "falcon7b": FLOAT, "falcon40b": FLOAT, "mixtral": FLOAT, "qwen3moe": FLOAT,
          "mixtral.Q4_K_M": QUANT,
          "gemma2.Q8_0": QUANT, "gemma2.Q4_0": QUANT, "gemma2.Q4_K_M": QUANT, "gemma2.Q6_K": QUANT}
MODELS |= {"llama3." + kind: QUANT for kind in ("Q2_K", "Q3_K_M", "Q4_1", "Q5_0", "Q5_1", "Q5_K_M", "IQ4_NL", "IQ4_XS", "MXFP4")}
MODELS["mixtral.MXFP4_MOE"] = QUANT


def floats(path):
    with open(path, "rb") as f:
        a = array.array("f")
        a.frombytes(f.read())
        return a


def logits(model, ids, *args, env=None):
    with tempfile.TemporaryDirectory() as tmp:
        out = os.path.join(tmp, "out.f32")
        done = run("logits", model, "--ids", ",".join(map(str, ids)), "--out", out, *args, env=env)
        if done.returncode:
            raise AssertionError(done.stderr)
        with open(out, "rb") as f:
            return f.read()


def log_softmax(row):
    top = max(row)
    total = math.log(sum(math.exp(x - top) for x in row))
    return [x - top - total for x in row]


class Checks:
    HOW, ENV = (), None  # options and environment of the commands
    PERPLEXITY = True

    def check(self, name, bounds, folder=None):
        d_max, kl_max, lp_max, ppl_max = bounds
        with open(os.path.join(FIXTURES, "goldens", name + ".json")) as f:
            golden = json.load(f)
        values = floats(os.path.join(FIXTURES, "goldens", name + ".bin"))
        model = os.path.join(FIXTURES, "models", folder) if folder else os.path.join(FIXTURES, golden["gguf"])
        n_vocab = golden["n_vocab"]
        worst = 0
        for prompt in golden["prompts"].values() if isinstance(golden["prompts"], dict) else golden["prompts"]:
            ref = prompt["last_logits"]
            want = values[ref["offset"]:ref["offset"] + ref["count"]]
            all_rows = array.array("f")
            all_rows.frombytes(logits(model, prompt["ids"], "--all", *self.HOW, env=self.ENV))
            got = all_rows[-n_vocab:]
            spread = max(want) - min(want)
            d = max(abs(a - b) for a, b in zip(got, want)) / spread
            worst = max(worst, d)
            self.assertTrue(d < d_max, f"{name}: d = {d}")
            p, q = log_softmax(want), log_softmax(got)
            kl = sum(math.exp(a) * (a - b) for a, b in zip(p, q))
            self.assertTrue(kl < kl_max, f"{name}: KL = {kl}")
            if "next_logprobs" in prompt:
                ref = prompt["next_logprobs"]
                want_lp = values[ref["offset"]:ref["offset"] + ref["count"]]
                for i, lp in enumerate(want_lp):
                    row = log_softmax(all_rows[i * n_vocab:(i + 1) * n_vocab])
                    self.assertTrue(abs(row[prompt["ids"][i + 1]] - lp) < lp_max, f"{name}: position {i}")
            self.greedy(name, model, prompt, bounds)
        print(f"  {name}: d {worst:.1e}")
        if "ppl" in golden and self.PERPLEXITY:
            self.perplexity(name, model, golden["ppl"], ppl_max)

    def greedy(self, name, model, prompt, bounds):
        """The golden's own continuation is fed; where its gap says so the arg-max must be its next id."""
        g = prompt.get("greedy")
        if not g or len(prompt["ids"]) > 50:
            return
        ids = prompt["ids"] + g["ids"]
        rows = array.array("f")
        rows.frombytes(logits(model, ids, "--all", *self.HOW, env=self.ENV))
        n_vocab = len(rows) // len(ids)
        wrong = 0
        for i, (want, gap) in enumerate(zip(g["ids"], g["gap"])):
            at = (len(prompt["ids"]) - 1 + i) * n_vocab
            row = rows[at:at + n_vocab]
            if gap > 0.02 and row.index(max(row)) != want:
                wrong += 1
        self.assertLessEqual(wrong, 0 if bounds is FLOAT else 1, name)

    def perplexity(self, name, model, ppl, bound):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
            f.write(" ".join(map(str, ppl["ids"])))
            f.flush()
            done = run("perplexity", model, f.name, "--ids", "--chunk", str(len(ppl["ids"]) // 8), *self.HOW, env=self.ENV)
        self.assertEqual(done.returncode, 0, done.stderr)
        got = float(re.search(r"perplexity ([0-9.]+)", done.stdout)[1])
        print(f"  {name}: perplexity {got:.3f}, golden {ppl['ppl']:.3f}")
        self.assertTrue(abs(got / ppl["ppl"] - 1) < bound, f"{name}: perplexity {got}, golden {ppl['ppl']}")


class Golden(Checks, unittest.TestCase):
    def test_refused_by_name(self):
        with open(os.path.join(FIXTURES, "models", "mixtral.f16.gguf"), "rb") as f:
            data = f.read()
        for was, now in ((b"llama", b"lllll"), (b"llama.expert_used_count", b"llama.expert_shared_cou"), (b"blk.1.ffn_norm", b"blk.1.ffn_nxrm")):
            with tempfile.NamedTemporaryFile(suffix=".gguf") as f:
                f.write(data.replace(was, now, 1))
                f.flush()
                done = run("run", f.name, "a")
            self.assertEqual(done.returncode, 1)
            self.assertIn("expert_used_count" if b"used" in was else now.decode(), done.stderr)



def golden_test(name, bounds):
    return lambda self: self.check(name, bounds)


for _name, _bounds in MODELS.items():
    setattr(Golden, "test_" + re.sub(r"\W", "_", _name), golden_test(_name, _bounds))


for _name in ("llama3", "mistral", "gemma2"):
    setattr(Golden, f"test_{_name}_hf", (lambda n: lambda self: self.check(n, FLOAT, n + "-hf"))(_name))


EMULATED = os.path.join(os.path.dirname(harness.MUSTER), "..", "kernels", "cuda", "libmuster_cuda_emulated.so")


@unittest.skipUnless(os.path.exists(EMULATED), "no emulated GPU was built")
class Rough(Checks, unittest.TestCase):
    """Prompts that a GPU computes roughly are as near to the goldens as int8 activations must be; the GPU is emulated."""
    HOW = ("--split", "1@gpu0", "--gpu-prompts", "rough")
    ENV = {"MUSTER_DEVICE_PLUGIN": EMULATED}
    PERPLEXITY = False  # minutes there; set it and look, where kernels change


for _name in ("llama3.BF16", "llama3.Q8_0", "llama3.Q4_K_M", "llama3.IQ4_XS", "mixtral.Q4_K_M", "phi3-longrope", "gemma2"):
    setattr(Rough, "test_" + re.sub(r"\W", "_", _name), golden_test(_name, QUANT))


class Ollama(unittest.TestCase):
    """A file in the form of Ollama's converters gives the bytes of the file in the common form."""
    IDS = [(i * 37 + 11) % 400 + 3 for i in range(100)]

    def setUp(self):
        self.tmp = tempfile.TemporaryDirectory()
        self.base, self.made = (os.path.join(self.tmp.name, n) for n in ("base.gguf", "made.gguf"))

    def tearDown(self):
        self.tmp.cleanup()

    def same(self, how=None, pre=None):
        make_ollama.make(self.base, self.made, how)
        base = logits(self.base, self.IDS, "--all")
        for split in ("1", "2:1/1"):
            self.assertEqual(logits(self.made, self.IDS, "--all", "--split", split), base, f"{how} {split}")
        if pre:
            f = make_ollama.File(self.base)
            f.keys["tokenizer.ggml.pre"] = make_ollama.STRING, make_ollama.string(pre)
            f.write(self.base)
        said = [run("tokenize", m, "Don't say 12345 WORDS, HelloWorld\n\n!").stdout for m in (self.base, self.made)]
        self.assertEqual(said[0], said[1])
        self.assertTrue(said[0])

    def synth(self, *args):
        made = run("synth", *args, "--type", "F16", "--output-type", "F16", "--d-model", "64", "--d-ff", "64", "--vocab", "500", "--ctx", "256", "--heads",
                   "4", "--kv-heads", "2", "--layers", "2", "--out", self.base)
        self.assertEqual(made.returncode, 0, made.stderr)

    def gemma3(self, n_layer=None):
        f = make_ollama.File(os.path.join(FIXTURES, "models", "gemma3.f16.gguf"))
        if n_layer:
            make_ollama.layers(f, "gemma3", n_layer)
        return f

    def test_gemma3_vision(self):
        self.gemma3(34).write(self.base)
        self.same("vision")

    def test_gemma3_text(self):
        f = self.gemma3()
        f.drop("gemma3.rope.scaling.type", "gemma3.rope.scaling.factor")
        f.write(self.base)
        self.same("text")

    def test_mistral3(self):
        self.synth("--arch", "mistral3", "--yarn", "16", "--short-ctx", "32")
        f = make_ollama.File(self.base)
        for key, value in (("yarn_beta_fast", 20), ("yarn_beta_slow", 2), ("yarn_log_multiplier", 1)):
            f.keys["mistral3.rope.scaling." + key] = make_ollama.f32(value)
        f.write(self.base)
        self.same("old", "tekken")

    def test_mistral3_new(self):
        self.synth("--arch", "mistral3", "--yarn", "16", "--short-ctx", "32")
        self.same("new", "tekken")

    def test_mistral3_plain(self):
        self.synth("--arch", "mistral3")
        f = make_ollama.File(self.base)
        f.drop("mistral3.attention.temperature_scale", "mistral3.rope.scaling.original_context_length")
        f.write(self.base)
        self.same("plain", "tekken")

    def test_gptoss(self):
        self.synth("--arch", "gpt-oss", "--experts", "4", "--experts-used", "2", "--yarn", "4", "--window", "8")
        self.same(None, "gpt-4o")

    def test_gemma3_chat_template(self):
        """What is filled in makes of each conversation what the released template makes of it, or raises the same."""
        self.gemma3(34).write(self.base)
        make_ollama.make(self.base, self.made, "vision")
        released, chat = os.path.join(FIXTURES, "templates", "google-gemma-3-it.jinja"), os.path.join(self.tmp.name, "chat.json")
        with open(os.path.join(FIXTURES, "templates", "conversations.json")) as f:
            conversations = json.load(f)
        for name, conversation in conversations.items():
            with open(chat, "w") as f:
                json.dump(conversation, f)
            done = [run("template", m, "-m", chat, "--bos", "<bos>") for m in (released, self.made)]
            self.assertEqual(done[1].stdout, done[0].stdout, name)
            self.assertEqual(done[1].returncode, done[0].returncode, name)
            if done[0].returncode:
                self.assertEqual(done[1].stderr.split(": ")[-1], done[0].stderr.split(": ")[-1], name)

    def test_llama3_without_pre_tokenizer(self):
        source = os.path.join(FIXTURES, "tokenizers", "llama-bpe.gguf")
        text = "Don't say 12345 WORDS, HelloWorld\n\n!"
        want = run("tokenize", source, text).stdout
        for pre in (None, "default"):
            f = make_ollama.File(source)
            f.drop("tokenizer.ggml.pre")
            if pre:
                f.keys["tokenizer.ggml.pre"] = make_ollama.STRING, make_ollama.string(pre)
            f.write(self.made)
            self.assertEqual(run("tokenize", self.made, text).stdout, want)
        f.keys["tokenizer.ggml.tokens"] = f.keys["tokenizer.ggml.tokens"][0], f.keys["tokenizer.ggml.tokens"][1].replace(b"<|eot_id|>", b"<|eot_xx|>")
        f.write(self.made)
        self.assertNotEqual(run("tokenize", self.made, text).stdout, want, "the text shows no difference between the two")

    def test_refused(self):
        """What a file of that form leaves open."""
        def refusal(change, source, how=None):
            f = source() if callable(source) else make_ollama.File(source)
            change(f)
            make_ollama.make(f, self.made, how)
            done = run("run", self.made, "a", "--raw")
            self.assertEqual(done.returncode, 1)
            return done.stderr

        def of(key, value):
            return lambda f: f.keys.__setitem__(key, value)

        long = refusal(of("gemma3.context_length", make_ollama.u32(131072)), self.gemma3, "vision")
        self.assertIn("of 6 layers this build does not know how positions are scaled", long)
        self.synth("--arch", "mistral3", "--yarn", "16", "--short-ctx", "32")
        early = refusal(lambda f: f.drop("mistral3.rope.scaling.type"), self.base, "old")
        self.assertIn("expected key 'mistral3.rope.scaling.type'", early)
        mscale = refusal(lambda f: f.keys.update({"mistral3.rope.scaling.mscale_all_dim": make_ollama.f32(1)}), self.base, "new")
        self.assertIn("'mistral3.rope.scaling.mscale' of 1", mscale)
        rotated = refusal(of("mistral3.rope.dimension_count", make_ollama.u32(8)), self.base, "new")
        self.assertIn("expected the size of a head, 16, found 8", rotated)
        self.synth("--arch", "gpt-oss", "--experts", "4", "--experts-used", "2", "--yarn", "4", "--window", "8")
        fused = refusal(lambda f: f.tensors.append(("blk.0.attn_qkv.weight", [64, 128], 0, bytes(4 * 64 * 128))), self.base)
        self.assertIn("attn_qkv", fused)

    def test_pictures(self):
        """A conversation with a picture is refused; the same without it is not."""
        self.gemma3(34).write(self.base)
        make_ollama.make(self.base, self.made, "vision")
        chat = os.path.join(self.tmp.name, "chat.json")
        for content, want in ((["text"], ""), (["text", "image_url"], "message 1 has 'image_url': this build gives models text only")):
            with open(chat, "w") as f:
                json.dump([{"role": "user", "content": [{"type": t, "text": "What is it?"} for t in content]}], f)
            done = run("template", self.made, "-m", chat)
            self.assertEqual(done.returncode, 1 if want else 0)
            self.assertIn(want, done.stderr)


class Folders(unittest.TestCase):
    """A Hugging Face folder gives the bytes of the GGUF file with its weights, for every family, however it is written and split."""
    IDS = [(i * 37 + 11) % 400 + 3 for i in range(150)]  # beyond every window, and longrope's first context
    FAMILIES = ("llama2", "llama3", "mistral", "mixtral", "falcon7b", "falcon40b", "phi2", "phi3", "phi3-longrope", "gemma", "gemma2", "gemma3", "qwen2",
                "qwen3", "qwen3moe")

    def file(self, name):
        return os.path.join(FIXTURES, "models", name)

    def test_families(self):
        for name in self.FAMILIES:
            model = self.file(name + ".f16.gguf")
            base = logits(model, self.IDS, "--all")
            for how in ({}, {"shards": 3, "v5": True, "odd": True}, {"dtype": "F32"}):
                with tempfile.TemporaryDirectory() as folder:
                    make_hf.make(model, folder, **how)
                    self.assertEqual(logits(folder, self.IDS, "--all", "--split", "2:1/1" if how else "1"), base, f"{name} {how}")

    def test_multimodal(self):
        for name, outer in (("gemma3", "gemma3"), ("mistral", "mistral3")):
            model = self.file(name + ".f16.gguf")
            base = logits(model, self.IDS, "--all")
            for v5 in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    make_hf.make(model, folder, v5=v5, outer=outer)
                    self.assertEqual(logits(folder, self.IDS, "--all"), base, f"{name} {v5}")

    def test_odd_shapes(self):
        """Sizes that no fixture has, and families without a fixture."""
        heads = ("--heads", "6", "--kv-heads", "3")
        with tempfile.TemporaryDirectory() as tmp:
            for i, args in enumerate((("llama", *heads, "--d-head", "80", "--untied"), ("llama", *heads, "--d-head", "80", "--yarn", "4", "--short-ctx", "64"),
                                      ("llama", *heads, "--window", "9", "--experts", "5"), ("smollm3", *heads, "--layers", "5"), ("granite", *heads),
                                      ("mistral3", *heads, "--yarn", "16", "--short-ctx", "32"), ("qwen3", *heads, "--d-head", "80", "--untied"),
                                      ("qwen3moe", *heads, "--d-head", "80", "--experts", "7", "--experts-used", "3"), ("gemma", *heads, "--d-head", "80"),
                                      ("gemma2", *heads, "--d-head", "80", "--window", "13"), ("phi2", "--heads", "3", "--kv-heads", "3", "--d-rot", "28", "--untied"),
                                      ("gemma3", "--heads", "5", "--kv-heads", "1", "--d-head", "80", "--window", "5", "--layers", "7"),
                                      ("phi3", *heads, "--window", "21", "--short-ctx", "32", "--untied"))):
                out, folder = os.path.join(tmp, f"{i}.gguf"), os.path.join(tmp, f"{i}-hf")
                layers = [] if "--layers" in args else ["--layers", "2"]
                made = run("synth", "--arch", args[0], "--type", "F16", "--output-type", "F16", "--d-model", "288", "--d-ff", "416", "--vocab", "500", "--ctx", "256",
                           *args[1:], *layers, "--out", out)
                self.assertEqual(made.returncode, 0, made.stderr)
                make_hf.make(out, folder, shards=1 + i % 2, v5=i % 3 == 0)
                base = logits(out, self.IDS[:70], "--all")
                for split in ("1", "2:1/1"):
                    self.assertEqual(logits(folder, self.IDS[:70], "--all", "--split", split), base, f"{args} {split}")

    def test_experts_in_one_tensor(self):
        """Families that keep all experts in one tensor, and gpt-oss's MXFP4, whose blocks and scales lie apart."""
        with tempfile.TemporaryDirectory() as tmp:
            out, folder = os.path.join(tmp, "base.gguf"), os.path.join(tmp, "hf")
            for i, args in enumerate((("granitemoe", "--experts", "5"), ("granitemoe", "--experts", "3", "--untied"),
                                      ("gpt-oss", "--experts", "6", "--experts-used", "3", "--yarn", "4", "--short-ctx", "40", "--window", "9"),
                                      ("gpt-oss", "--experts", "4", "--yarn", "8", "--window", "20", "--untied"))):
                made = run("synth", "--arch", args[0], "--type", "F16", "--output-type", "F16", "--d-model", "288", "--d-ff", "416", "--vocab", "500", "--ctx",
                           "256", "--heads", "6", "--kv-heads", "3", "--layers", "3", *args[1:], "--out", out)
                self.assertEqual(made.returncode, 0, made.stderr)
                if args[0] == "gpt-oss":
                    f = make_ollama.File(out)
                    f.mxfp4_experts(i)
                    f.write(out)
                base = logits(out, self.IDS[:70], "--all")
                for k, how in enumerate(({}, {"shards": 3, "v5": True, "odd": True}, {"dtype": "F32"})):
                    make_hf.make(out, folder + f"{i}{k}", **how)
                    for split in ("1", "2:1/1"):
                        self.assertEqual(logits(folder + f"{i}{k}", self.IDS[:70], "--all", "--split", split), base, f"{args} {how} {split}")
                self.assertEqual(logits(folder + f"{i}0", self.IDS[:9], "--quantize", "q8_0"), logits(out, self.IDS[:9], "--quantize", "q8_0"), args)

    def test_gpt_oss_refused(self):
        blocks, scales = (f"model.layers.1.mlp.experts.down_proj_{x}" for x in ("blocks", "scales"))
        with tempfile.TemporaryDirectory() as tmp:
            out = os.path.join(tmp, "base.gguf")
            made = run("synth", "--arch", "gpt-oss", "--type", "F16", "--output-type", "F16", "--d-model", "64", "--d-ff", "64", "--vocab", "500", "--ctx", "256",
                       "--heads", "4", "--kv-heads", "2", "--layers", "2", "--experts", "4", "--yarn", "4", "--window", "8", "--out", out)
            self.assertEqual(made.returncode, 0, made.stderr)
            f = make_ollama.File(out)
            f.mxfp4_experts(1)
            f.write(out)
            changes = ((lambda c, t: t.pop(scales), "expected a tensor of scales beside it"),
                       (lambda c, t: t.update({scales: ([4, 64, 1], make_hf.U8, bytes(256))}), "expected a tensor of scales beside it"),
                       (lambda c, t: t.update({blocks: ([4, 64, 2, 16], make_hf.F16, bytes(16384))}), "expected dtype U8"),
                       (lambda c, t: t.update({blocks: ([4, 64, 4, 8], make_hf.U8, bytes(8192))}), "expected another shape"),
                       (lambda c, t: c.update(swiglu_limit=6.0), '"swiglu_limit": only 7'),
                       (lambda c, t: c["rope_scaling"].pop("truncate"), "rope type 'yarn' with \"truncate\""),
                       (lambda c, t: c.update(quantization_config={"quant_method": "fp8"}), "quant_method: fp8"))
            for i, (change, want) in enumerate(changes):
                config, tensors = make_hf.convert(*make_hf.read_gguf(out), False)
                change(config, tensors)
                folder = os.path.join(tmp, str(i))
                make_hf.write(config, tensors, folder)
                done = run("run", folder, "a", "--raw")
                self.assertEqual(done.returncode, 1)
                self.assertIn(want, done.stderr)

    def test_fixtures(self):
        for folder, model in (("llama3-hf", "llama3.BF16.gguf"), ("mistral-hf", "mistral.f16.gguf")):
            base = logits(self.file(model), self.IDS, "--all")
            for path in ("", "config.json"):
                self.assertEqual(logits(os.path.join(self.file(folder), path), self.IDS, "--all"), base, folder)
        base = logits(self.file("gemma2-hf"), self.IDS, "--all")
        for split in ("1:1", "2:1/1", "1:1:1:1:1"):
            self.assertEqual(logits(self.file("gemma2-hf"), self.IDS, "--all", "--split", split), base, split)

    def test_text(self):
        for folder, model in (("llama3-hf", "llama3.BF16.gguf"), ("mistral-hf", "mistral.f16.gguf"), ("gemma2-hf", "gemma2.f16.gguf")):
            said = [run("run", self.file(m), "KING HENRY: what say you", "-n", "8", "--ignore-end", "--raw").stdout for m in (folder, model)]
            self.assertEqual(said[0], said[1])
            self.assertTrue(said[0].strip())


class Quantize(unittest.TestCase):
    """--quantize: perplexity near the model's, and nearer than the bounds of what llama-quantize makes; the same bytes for every split."""
    WORST = {"q8_0": 1e-3, "q6_k": 3e-3, "q5_k": 5e-3, "q5_0": 5e-3, "q4_k": 6e-3, "q4_0": 8e-3, "mxfp4": 1.5e-2, "q3_k": 2e-2}

    def test_perplexity(self):
        for name in ("llama3", "gemma2"):
            with open(os.path.join(FIXTURES, "goldens", name + ".json")) as f:
                ppl = json.load(f)["ppl"]
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
                f.write(" ".join(map(str, ppl["ids"])))
                f.flush()
                for kind, worst in self.WORST.items():
                    done = run("perplexity", os.path.join(FIXTURES, "models", name + ".f16.gguf"), f.name, "--ids", "--chunk", "250", "--quantize", kind)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    got = float(re.search(r"perplexity ([0-9.]+)", done.stdout)[1])
                    print(f"  {name} {kind}: perplexity {got:.3f}, unquantised {ppl['ppl']:.3f}")
                    self.assertTrue(abs(got / ppl["ppl"] - 1) < worst, f"{name} {kind}: {got}")

    def test_splits(self):
        ids = Folders.IDS[:40]
        for model in ("llama3-hf", "mixtral.f16.gguf", "qwen2.f16.gguf", "qwen3moe.f16.gguf"):
            path = os.path.join(FIXTURES, "models", model)
            for kind in ("q4_k", "q8_0"):
                base = logits(path, ids, "--all", "--quantize", kind)
                self.assertNotEqual(base, logits(path, ids, "--all"))
                for split in ("2:1/1", "1:1:1:1:1"):
                    self.assertEqual(logits(path, ids, "--all", "--quantize", kind, "--split", split), base, f"{model} {kind} {split}")

    def test_refused(self):
        path = os.path.join(FIXTURES, "models", "llama3.Q4_K_M.gguf")
        done = run("run", path, "a", "--quantize", "q8_0")
        self.assertEqual(done.returncode, 1)
        self.assertIn("nothing to do", done.stderr)
        done = run("run", path, "a", "--quantize", "q9")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("Q4_K", done.stderr)


class Cache(unittest.TestCase):
    """--kv q8_0: perplexity near the one of f16, logits too; the same bytes however they are computed."""

    def test_perplexity(self):
        for name in ("llama3", "gemma2", "phi2", "qwen3"):
            with open(os.path.join(FIXTURES, "goldens", name + ".json")) as f:
                ppl = json.load(f)["ppl"]
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as f:
                f.write(" ".join(map(str, ppl["ids"])))
                f.flush()
                done = run("perplexity", os.path.join(FIXTURES, "models", name + ".f16.gguf"), f.name, "--ids", "--chunk", "250", "--kv", "q8_0")
            self.assertEqual(done.returncode, 0, done.stderr)
            got = float(re.search(r"perplexity ([0-9.]+)", done.stdout)[1])
            print(f"  {name}: perplexity {got:.3f}, golden {ppl['ppl']:.3f}")
            self.assertTrue(abs(got / ppl["ppl"] - 1) < 1e-3, f"{name}: {got}")

    def test_same_bytes(self):
        ids = [1 + 7 * i % 250 for i in range(300)]
        base = logits(BARD, ids, "--all", "--kv", "q8_0")
        f16 = logits(BARD, ids, "--all", "--kv", "f16")
        self.assertEqual(f16, logits(BARD, ids, "--all"))
        self.assertNotEqual(base, f16)
        for args in (("--split", "2:1/1"), ("--chunk", "7"), ("--batch", "5"), ("--threads", "1")):
            self.assertEqual(logits(BARD, ids, "--all", "--kv", "Q8_0", *args), base, args)
        for kernels in ("ref", "avx2"):
            self.assertEqual(logits(BARD, ids, "--all", "--kv", "q8_0", env={"MUSTER_KERNELS": kernels}), base, kernels)

    def test_refused(self):
        done = run("logits", BARD, "--ids", "1", "--out", "x", "--kv", "q4")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("--kv may be f16 or q8_0, not 'q4'", done.stderr)


class SameBytes(unittest.TestCase):
    """docs/arithmetic.md: no bit depends on split, threads, instruction set, chunks or company."""
    IDS = [(i * 37 + 11) % 400 + 3 for i in range(70)]

    def check(self, model, ids):
        base = logits(model, ids, "--all")
        variants = [["--split", s] for s in ("1:1", "2:1:1", "1/1", "3:1/1:2", "1:1:1:1:1")]
        variants += [["-t", "1"], ["-t", "3"], ["--chunk", "7"], ["--chunk", "1"], ["--batch", "8"], ["--batch", "8", "--split", "2:1/1", "-t", "2"]]
        for v in variants:
            self.assertEqual(logits(model, ids, "--all", *v), base, f"{model} {v}")
        for kernels in ("ref", "avx2", "avx512", "streams", "panels", "amx", "neon", "dotprod", "i8mm"):
            try:
                got = logits(model, ids, "--all", env={"MUSTER_KERNELS": kernels})
            except AssertionError as e:
                if "MUSTER_KERNELS" not in str(e):
                    raise
                print(f"  {kernels}: not on this processor")
                continue
            self.assertEqual(got, base, f"{model} {kernels}")
        self.assertEqual(logits(model, ids), base[-len(base) // len(ids):], "the last row alone")

    def test_demo(self):
        self.check(BARD, self.IDS)

    def test_every_type(self):
        """Odd shapes: 6 heads over 3 KV heads of 80 (rank boundaries inside blocks of 32), widths that are no power of two."""
        with tempfile.TemporaryDirectory() as tmp:
            for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "MXFP4"):
                out = os.path.join(tmp, kind + ".gguf")
                made = run("synth", "--layers", "3", "--d-model", "288", "--d-ff", "416", "--heads", "6", "--kv-heads", "3", "--d-head", "80", "--vocab", "1100",
                           "--ctx", "256", "--type", kind, "--out", out)
                self.assertEqual(made.returncode, 0, made.stderr)
                self.check(out, self.IDS[:40])
            for kind in ("Q4_K", "Q6_K", "Q2_K", "Q3_K", "Q5_K", "IQ4_XS", "TQ2_0"):
                out = os.path.join(tmp, kind + ".gguf")
                made = run("synth", "--layers", "3", "--d-model", "256", "--d-ff", "768", "--heads", "10", "--kv-heads", "5", "--d-head", "128", "--vocab", "700",
                           "--ctx", "256", "--type", kind, "--untied", "--out", out)
                self.assertEqual(made.returncode, 0, made.stderr)
                self.check(out, self.IDS[:40])


    def test_families(self):
        """Odd shapes of what is not Llama: post-norms and windows, a parallel block, biases, experts, two sets of rotation factors."""
        with tempfile.TemporaryDirectory() as tmp:
            for args in (("gemma2", "Q8_0", "--heads", "6", "--kv-heads", "3", "--d-head", "80", "--window", "13"),
                         ("gemma3", "F16", "--heads", "5", "--kv-heads", "1", "--d-head", "80", "--window", "5", "--layers", "7"),
                         ("falcon", "Q4_0", "--heads", "6", "--kv-heads", "2", "--d-head", "80", "--untied"),
                         ("phi2", "BF16", "--heads", "3", "--kv-heads", "3", "--d-head", "72", "--d-rot", "28", "--untied"),
                         ("phi3", "Q8_0", "--heads", "6", "--kv-heads", "3", "--d-head", "48", "--window", "21", "--short-ctx", "32", "--untied"),
                         ("gpt-oss", "MXFP4", "--heads", "6", "--kv-heads", "2", "--d-head", "80", "--experts", "5", "--experts-used", "3",
                          "--window", "11", "--yarn", "32", "--short-ctx", "16", "--untied"),
                         ("granitemoe", "Q8_0", "--heads", "6", "--kv-heads", "1", "--d-head", "80", "--experts", "6", "--experts-used", "2"),
                         ("mistral3", "Q8_0", "--heads", "6", "--kv-heads", "3", "--d-head", "48", "--yarn", "16", "--short-ctx", "9"),
                         ("smollm3", "F16", "--heads", "3", "--kv-heads", "1", "--d-head", "80", "--layers", "5"),
                         ("qwen3moe", "Q4_0", "--heads", "6", "--kv-heads", "3", "--d-head", "80", "--experts", "7", "--experts-used", "3")):
                out = os.path.join(tmp, args[0] + ".gguf")
                layers = [] if "--layers" in args else ["--layers", "3"]
                made = run("synth", "--arch", args[0], "--type", args[1], "--d-model", "288", "--d-ff", "416", "--vocab", "1100", "--ctx", "256", *args[2:],
                           *layers, "--out", out)
                self.assertEqual(made.returncode, 0, made.stderr)
                self.check(out, self.IDS[:40])


if __name__ == "__main__":
    if "SameBytes" not in " ".join(sys.argv[1:]):
        harness.need_fixtures()
    harness.main()
