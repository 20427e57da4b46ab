"""Rewrites a GGUF file as Ollama's converters write its family: the way back of what model/gguf_ollama.c does.

    make_ollama.py MODEL.gguf OUT.gguf [how]

how: for gemma3 "vision" (4B and larger, one file with the vision part) or "text" (1B, the first converter); for mistral3 "old" or
"new" names of YaRN's keys, or "plain" (Mistral Small, without scaling).
"""
import random
import struct
import sys

U32, F32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class File:
    """keys: {name: (kind, raw bytes)} in their order; tensors: [(name, ne, type, data)]."""

    def __init__(self, path):
        with open(path, "rb") as f:
            b = f.read()
        at = 8

        def take(fmt):
            nonlocal at
            v = struct.unpack_from("<" + fmt, b, at)[0]
            at += struct.calcsize("<" + fmt)
            return v

        def text():
            nonlocal at
            n = take("Q")
            at += n
            return b[at - n:at]

        def skip(kind):
            nonlocal at
            if kind == STRING:
                text()
            elif kind == ARRAY:
                item = take("I")
                for _ in range(take("Q")):
                    skip(item)
            else:
                at += SIZES[kind]

        n_tensor, n_key = take("Q"), take("Q")
        self.keys = {}
        for _ in range(n_key):
            key, kind, begin = text().decode(), take("I"), at
            skip(kind)
            self.keys[key] = (kind, b[begin:at])
        infos = [(text().decode(), [take("Q") for _ in range(take("I"))], take("I"), take("Q")) for _ in range(n_tensor)]
        start = (at + 31) // 32 * 32
        ends = sorted([i[3] for i in infos] + [len(b) - start])
        self.tensors = [(name, ne, kind, b[start + off:start + ends[ends.index(off) + 1]]) for name, ne, kind, off in infos]

    def write(self, path):
        head = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.keys))
        for key, (kind, raw) in self.keys.items():
            head += string(key) + struct.pack("<I", kind) + raw
        data, at = [], 0
        for name, ne, kind, raw in self.tensors:
            raw += b"\0" * (-len(raw) % 32)
            head += string(name) + struct.pack("<I", len(ne)) + b"".join(struct.pack("<Q", d) for d in ne) + struct.pack("<IQ", kind, at)
            data.append(raw)
            at += len(raw)
        with open(path, "wb") as f:
            f.write(head + b"\0" * (-len(head) % 32) + b"".join(data))

    def call(self, names):
        self.keys = {names.get(k, k): v for k, v in self.keys.items()}

    def drop(self, *names):
        for n in names:
            self.keys.pop(n, None)

    def number(self, key):
        kind, raw = self.keys[key]
        return struct.unpack("<" + {U32: "I", F32: "f"}[kind], raw)[0]

    def longer(self, key, n):
        """n more items of an array: copies of the last one."""
        kind, raw = self.keys[key]
        item, count = struct.unpack_from("<IQ", raw)
        if item == STRING:
            more = b"".join(string(f"<image {i}>") for i in range(n))
        else:
            more = raw[-SIZES[item]:] * n
        self.keys[key] = (kind, struct.pack("<IQ", item, count + n) + raw[12:] + more)

    def mxfp4_experts(self, seed):
        """Any MXFP4 weights of the experts' matrices, small enough to compute with."""
        rng = random.Random(seed)
        for i, (name, ne, _, _) in enumerate(self.tensors):
            if name.endswith("_exps.weight"):
                n = ne[0] * ne[1] * ne[2] // 32
                self.tensors[i] = name, ne, 39, b"".join(bytes([rng.randrange(117, 122)]) + rng.randbytes(16) for _ in range(n))

    def add_vision(self, arch):
        self.keys[f"{arch}.vision.block_count"] = u32(1)
        self.keys[f"{arch}.vision.embedding_length"] = u32(8)
        for name in ("v.blk.0.attn_q.weight", "mm.input_projection.weight"):
            self.tensors.insert(len(self.tensors) // 2, (name, [8, 4], 0, bytes(128)))


def string(s):
    return struct.pack("<Q", len(s.encode())) + s.encode()


def u32(v):
    return U32, struct.pack("<I", v)


def f32(v):
    return F32, struct.pack("<f", v)


def layers(f, arch, n):
    """As many layers: the file's own ones again and again."""
    have = int(f.number(f"{arch}.block_count"))
    f.keys[f"{arch}.block_count"] = u32(n)
    ends = [t for t in f.tensors if not t[0].startswith("blk.")]
    inner = {t[0]: t for t in f.tensors if t[0].startswith("blk.")}
    made = []
    for i in range(n):
        for name, t in inner.items():
            if name.startswith(f"blk.{i % have}."):
                made.append((f"blk.{i}." + name.split(".", 2)[2], *t[1:]))
    f.tensors = ends + made


def make_gemma3(f, how):
    a = "gemma3."
    if how == "vision":
        f.drop("tokenizer.chat_template", a + "attention.layer_norm_rms_epsilon", a + "rope.freq_base", a + "rope.freq_base_swa", a + "rope.scaling.type", a + "rope.scaling.factor")
        f.keys[a + "mm.tokens_per_image"] = u32(256)
        f.add_vision("gemma3")
        for key in ("tokens", "scores", "token_type"):
            f.longer("tokenizer.ggml." + key, 3)
    else:
        f.call({a + "rope.freq_base": a + "rope.global.freq_base", a + "rope.freq_base_swa": a + "rope.local.freq_base"})
        f.keys[a + "final_logit_softcapping"] = f32(30)


def make_mistral3(f, how):
    a = "mistral3."
    if how == "old":
        f.call({a + "attention.temperature_scale": a + "rope.scaling_beta", a + "rope.scaling.yarn_log_multiplier": a + "rope.scaling.mscale_all_dim",
                a + "rope.scaling.yarn_beta_fast": a + "rope.scaling.beta_fast", a + "rope.scaling.yarn_beta_slow": a + "rope.scaling.beta_slow"})
        f.keys[a + "rope.scaling.mscale"] = f32(1)
    elif how == "plain":
        f.drop(a + "rope.scaling.original_context_length", a + "attention.temperature_scale")
        f.keys[a + "rope.scaling.type"] = STRING, string("")
        for key in ("factor", "yarn_beta_fast", "yarn_beta_slow"):
            f.keys[a + "rope.scaling." + key] = f32(0)
    f.add_vision("mistral3")
    f.keys["tokenizer.ggml.pre"] = STRING, string("default")


def make_gptoss(f, how):
    names = {".attn_output.": ".attn_out.", ".attn_sinks.weight": ".attn_sinks", ".post_attention_norm.": ".ffn_norm."}
    f.drop("gpt-oss.rope.scaling.type", "gpt-oss.expert_feed_forward_length", "gpt-oss.vocab_size")
    f.keys = {k.replace("gpt-oss.", "gptoss."): v for k, v in f.keys.items()}
    f.keys["general.architecture"] = STRING, string("gptoss")
    f.drop("tokenizer.ggml.pre")
    for old, new in names.items():
        f.tensors = [(t[0].replace(old, new), *t[1:]) for t in f.tensors]


def make(source, out, how=None):
    f = source if isinstance(source, File) else File(source)
    arch = f.keys["general.architecture"][1][8:].decode()
    {"gemma3": make_gemma3, "mistral3": make_mistral3, "gpt-oss": make_gptoss}[arch](f, how)
    f.write(out)


if __name__ == "__main__":
    make(*sys.argv[1:])
