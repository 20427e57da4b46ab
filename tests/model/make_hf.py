"""Makes a Hugging Face folder of a GGUF file, following that library's conventions: the way back of what model/hf.c does.

    make_hf.py MODEL.gguf FOLDER [--shards N] [--v5] [--dtype F32] [--odd]

Weights keep their bits (--dtype F32 widens F16). There is no tokenizer: ids go without one. --odd leaves the header
unpadded, so that no tensor is aligned.
"""
import array
import json
import math
import os
import struct
import sys

F32, F16, BF16, MXFP4, U8 = 0, 1, 30, 39, -1
SIZE = {F32: 4, F16: 2, BF16: 2, MXFP4: 17 / 32}
NAME = {F32: "F32", F16: "F16", BF16: "BF16", U8: "U8"}


def read_gguf(path):
    with open(path, "rb") as f:
        b = f.read()
    at = 4 + 4

    def take(fmt):
        nonlocal at
        v = struct.unpack_from("<" + fmt, b, at)[0]
        at += struct.calcsize("<" + fmt)
        return v

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return b[at - n:at].decode("utf-8", "replace")

    def value(kind):
        if kind == 8:
            return text()
        if kind == 9:
            item = take("I")
            return [value(item) for _ in range(take("Q"))]
        return take({0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}[kind])

    n_tensor, n_value = take("Q"), take("Q")
    keys = {}
    for _ in range(n_value):
        key = text()
        keys[key] = value(take("I"))
    infos = []
    for _ in range(n_tensor):
        name = text()
        ne = [take("Q") for _ in range(take("I"))]
        infos.append((name, ne, take("I"), take("Q")))
    align = keys.get("general.alignment", 32)
    start = (at + align - 1) // align * align
    tensors = {}
    for name, ne, kind, offset in infos:
        n = SIZE[kind]
        for d in ne:
            n *= d
        tensors[name] = (ne[::-1], kind, b[start + offset:start + offset + int(n)])
    return keys, tensors


def rows(tensor):
    shape, kind, data = tensor
    n = len(data) // shape[0]
    return [data[i * n:(i + 1) * n] for i in range(shape[0])]


def halves(tensor, n_head):
    """GGUF's neighbouring pairs to the two halves of a head."""
    r = rows(tensor)
    d = len(r) // n_head
    return tensor[0], tensor[1], b"".join(r[h * d + 2 * i + j] for h in range(n_head) for j in range(2) for i in range(d // 2))


def by_group(tensor, n_head, n_kv):
    """All queries, keys, values to one group's queries, key, value after another."""
    r = rows(tensor)
    d = len(r) // (n_head + 2 * n_kv)
    head = [b"".join(r[i * d:(i + 1) * d]) for i in range(n_head + 2 * n_kv)]
    rep = n_head // n_kv
    out = []
    for g in range(n_kv):
        out += head[g * rep:(g + 1) * rep] + [head[n_head + g], head[n_head + n_kv + g]]
    return tensor[0], tensor[1], b"".join(out)


def stacked(parts, in_turn):
    """Tensors of all experts as one: each expert's rows after another's, or row by row in turn."""
    cut = [[rows((t[0][1:], t[1], e)) for e in rows(t)] for t in parts]
    out = []
    for expert in zip(*cut):
        out += [r for group in zip(*expert) for r in group] if in_turn else [r for part in expert for r in part]
    shape = list(parts[0][0])
    shape[1] = sum(t[0][1] for t in parts)
    return shape, parts[0][1], b"".join(out)


def apart(tensor):
    """MXFP4 as blocks and scales; value 2i of a block in the low half of byte i."""
    shape, _, data = tensor
    blocks, scales = bytearray(), bytearray()
    for at in range(0, len(data), 17):
        scales.append(data[at])
        q = data[at + 1:at + 17]
        v = [x & 15 for x in q] + [x >> 4 for x in q]
        blocks += bytes(v[2 * i] | v[2 * i + 1] << 4 for i in range(16))
    n = shape[2] // 32
    return ([shape[0], shape[1], n, 16], U8, bytes(blocks)), ([shape[0], shape[1], n], U8, bytes(scales))


def fuse_experts(arch, tensors):
    """The experts' tensors of a layer as the families have them that keep all in one: {name: tensor}."""
    g, u, d = (tensors[f"ffn_{x}_exps.weight"] for x in ("gate", "up", "down"))
    if arch == "granitemoe":
        return {"block_sparse_moe.input_linear.weight": stacked((g, u), False), "block_sparse_moe.output_linear.weight": d}
    out = {"mlp.experts.down_proj_bias": tensors["ffn_down_exps.bias"]}
    biases = [[struct.unpack(f"<{t[0][1]}f", r) for r in rows(t)] for t in (tensors["ffn_gate_exps.bias"], tensors["ffn_up_exps.bias"])]
    values = [v for a, b in zip(*biases) for pair in zip(a, b) for v in pair]
    out["mlp.experts.gate_up_proj_bias"] = [d[0][0], 2 * g[0][1]], F32, struct.pack(f"<{len(values)}f", *values)
    for name, t in (("gate_up", stacked((g, u), True)), ("down", d)):
        out[f"mlp.experts.{name}_proj_blocks"], out[f"mlp.experts.{name}_proj_scales"] = apart(t)
    return out


def less_one(tensor):
    a = array.array("f")
    a.frombytes(tensor[2])
    return tensor[0], F32, array.array("f", [x - 1 for x in a]).tobytes()


DENSE = {"attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
         "attn_output.weight": "self_attn.o_proj.weight", "attn_qkv.weight": "self_attn.qkv_proj.weight",
         "ffn_gate.weight": "mlp.gate_proj.weight", "ffn_up.weight": "mlp.up_proj.weight", "ffn_down.weight": "mlp.down_proj.weight",
         "attn_q_norm.weight": "self_attn.q_norm.weight", "attn_k_norm.weight": "self_attn.k_norm.weight"}
for _x in "qkv":
    for _y in ("weight", "bias"):
        DENSE[f"attn_{_x}.{_y}"] = f"self_attn.{_x}_proj.{_y}"
GEMMA2 = DENSE | {"ffn_norm.weight": "pre_feedforward_layernorm.weight", "post_attention_norm.weight": "post_attention_layernorm.weight",
                  "post_ffw_norm.weight": "post_feedforward_layernorm.weight"}
MIXTRAL = DENSE | {"ffn_gate_inp.weight": "block_sparse_moe.gate.weight", "ffn_gate_exps.weight": "block_sparse_moe.experts.*.w1.weight",
                   "ffn_up_exps.weight": "block_sparse_moe.experts.*.w3.weight", "ffn_down_exps.weight": "block_sparse_moe.experts.*.w2.weight"}
QWEN3MOE = DENSE | {"ffn_gate_inp.weight": "mlp.gate.weight", "ffn_gate_exps.weight": "mlp.experts.*.gate_proj.weight",
                    "ffn_up_exps.weight": "mlp.experts.*.up_proj.weight", "ffn_down_exps.weight": "mlp.experts.*.down_proj.weight"}
GRANITEMOE = DENSE | {"ffn_gate_inp.weight": "block_sparse_moe.router.layer.weight"}
GPT_OSS = DENSE | {"post_attention_norm.weight": "post_attention_layernorm.weight", "attn_output.bias": "self_attn.o_proj.bias",
                   "attn_sinks.weight": "self_attn.sinks", "ffn_gate_inp.weight": "mlp.router.weight", "ffn_gate_inp.bias": "mlp.router.bias"}
PHI2 = DENSE | {"attn_norm.bias": "input_layernorm.bias", "attn_output.weight": "self_attn.dense.weight", "attn_output.bias": "self_attn.dense.bias",
                "ffn_up.weight": "mlp.fc1.weight", "ffn_up.bias": "mlp.fc1.bias", "ffn_down.weight": "mlp.fc2.weight", "ffn_down.bias": "mlp.fc2.bias"}
PHI3 = DENSE | {"ffn_up.weight": "mlp.gate_up_proj.weight"}
FALCON = {"attn_qkv.weight": "self_attention.query_key_value.weight", "attn_output.weight": "self_attention.dense.weight",
          "ffn_up.weight": "mlp.dense_h_to_4h.weight", "ffn_down.weight": "mlp.dense_4h_to_h.weight"}
NORMS = {"attn_norm": "input_layernorm"}, {"attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"}
ENDS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
PHI2_ENDS = ENDS | {"output_norm.weight": "model.final_layernorm.weight", "output_norm.bias": "model.final_layernorm.bias", "output.bias": "lm_head.bias"}
FALCON_ENDS = {"token_embd.weight": "transformer.word_embeddings.weight", "output_norm.weight": "transformer.ln_f.weight",
               "output_norm.bias": "transformer.ln_f.bias", "output.weight": "lm_head.weight"}


def floats(tensor):
    a = array.array("f")
    a.frombytes(tensor[2])
    return list(a)


def convert(keys, tensors, v5):
    arch = keys["general.architecture"]
    k = {key[len(arch) + 1:]: v for key, v in keys.items() if key.startswith(arch + ".")}
    n_head, n_layer, d_model = k["attention.head_count"], k["block_count"], k["embedding_length"]
    n_kv = k.get("attention.head_count_kv", n_head)
    d_head = k.get("attention.key_length", d_model // n_head)
    window, moe = k.get("attention.sliding_window"), k.get("expert_count", 0)
    kind = {"llama": "mixtral" if moe else "mistral" if window else "llama", "qwen3moe": "qwen3_moe", "phi2": "phi", "gemma3": "gemma3_text", "mistral3": "ministral3",
            "gpt-oss": "gpt_oss"}.get(arch, arch)
    c = {"model_type": kind, "hidden_size": d_model, "num_hidden_layers": n_layer, "num_attention_heads": n_head, "vocab_size": tensors["token_embd.weight"][0][0],
         "max_position_embeddings": k["context_length"], "tie_word_embeddings": "output.weight" not in tensors, "torch_dtype": "float16"}
    rope = {}
    theta = k.get("rope.freq_base", 1e6 if arch == "gemma3" else 10000.0)
    names, ends, prefix, layer = DENSE, ENDS, "model.layers.", {}
    if arch == "falcon":
        names, ends, prefix = FALCON, FALCON_ENDS, "transformer.h."
        new = "blk.0.attn_norm_2.weight" in tensors
        layer = {f"{a}.{x}": f"{b}.{x}" for a, b in NORMS[new].items() for x in ("weight", "bias")}
        c |= {"alibi": False, "bias": False, "parallel_attn": True, "new_decoder_architecture": new, "multi_query": True,
              "layer_norm_epsilon": k["attention.layer_norm_epsilon"]}
        if new:
            c["num_kv_heads"] = n_kv
        del c["max_position_embeddings"]
    else:
        c |= {"num_key_value_heads": n_kv, "intermediate_size": k["feed_forward_length"]}
        c["layer_norm_eps" if arch == "phi2" else "rms_norm_eps"] = k.get("attention.layer_norm_epsilon", k.get("attention.layer_norm_rms_epsilon"))
    if "attention.key_length" in k or arch == "gemma":
        c["head_dim"] = d_head
    if moe:
        c["num_experts" if arch == "qwen3moe" else "num_local_experts"] = moe
        c["num_experts_per_tok"] = k["expert_used_count"]
    if arch == "qwen3moe":
        c |= {"moe_intermediate_size": k["expert_feed_forward_length"], "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    if arch.startswith("qwen"):
        c |= {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": n_layer, "hidden_act": "silu"}
    if arch == "phi2":
        c |= {"partial_rotary_factor": k["rope.dimension_count"] / d_head, "hidden_act": "gelu_new"}
        names, ends = PHI2, PHI2_ENDS
    if window and not arch.startswith("qwen"):
        c["sliding_window"] = window
    if arch in ("gemma2", "gemma3"):
        c |= {"query_pre_attn_scalar": d_head, "hidden_activation": "gelu_pytorch_tanh"}
        names = GEMMA2
    if arch == "gemma2":
        c |= {"attn_logit_softcapping": k.get("attn_logit_softcapping", 50.0), "final_logit_softcapping": k.get("final_logit_softcapping", 30.0)}
    if arch in ("gemma2", "gemma3") and v5:
        period = 2 if arch == "gemma2" else 6
        c["layer_types"] = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n_layer)]
    if arch == "phi3":
        names = PHI3
        c["original_max_position_embeddings"] = k["rope.scaling.original_context_length"]
    if arch == "llama" and moe:
        names = MIXTRAL
    if arch in ("qwen3moe", "granitemoe", "gpt-oss"):
        names = {"qwen3moe": QWEN3MOE, "granitemoe": GRANITEMOE, "gpt-oss": GPT_OSS}[arch]
    if arch == "gpt-oss":
        c |= {"quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "swiglu_limit": 7.0, "hidden_act": "silu"}
        if v5:
            c["layer_types"] = ["full_attention" if (i + 1) % 2 == 0 else "sliding_attention" for i in range(n_layer)]
    if "rope_factors_long.weight" in tensors:
        rope = {"rope_type" if v5 else "type": "longrope", "short_factor": floats(tensors["rope_factors_short.weight"]),
                "long_factor": floats(tensors["rope_factors_long.weight"])}
        original, factor = k["rope.scaling.original_context_length"], k["rope.scaling.attn_factor"]
        if abs(math.sqrt(1 + math.log(k["context_length"] / original) / math.log(original)) - factor) > 1e-6:  # not the usual one
            rope["attention_factor"] = factor
    elif "rope_freqs.weight" in tensors:  # what the fixture was made with
        rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}
    elif k.get("rope.scaling.type") == "yarn":
        rope = {"rope_type": "yarn", "factor": k["rope.scaling.factor"], "original_max_position_embeddings": k["rope.scaling.original_context_length"]}
        if arch == "gpt-oss":
            rope |= {"truncate": False, "beta_fast": 32.0, "beta_slow": 1.0}
        if "rope.scaling.yarn_log_multiplier" in k:
            rope |= {"mscale": 1.0, "mscale_all_dim": k["rope.scaling.yarn_log_multiplier"]}
        if "attention.temperature_scale" in k:
            rope["llama_4_scaling_beta"] = k["attention.temperature_scale"]
    elif k.get("rope.scaling.type") == "linear":
        rope = {"rope_type": "linear", "factor": k["rope.scaling.factor"]}
    if v5:
        rope = {"rope_type": "default"} | rope | {"rope_theta": theta}
        if arch == "gemma3":
            rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": k.get("rope.freq_base_swa", 10000.0)}}
        c["rope_parameters"] = rope
        c["dtype"] = c.pop("torch_dtype")
    else:
        c |= {"rope_theta": theta, "rope_scaling": rope or None}
        if arch == "gemma3":
            c["rope_local_base_freq"] = k.get("rope.freq_base_swa", 10000.0)
    if arch.startswith("granite"):
        c |= {"embedding_multiplier": k["embedding_scale"], "residual_multiplier": k["residual_scale"], "attention_multiplier": k["attention.scale"],
              "logits_scaling": k["logit_scale"]}
    if arch == "smollm3":
        c |= {"no_rope_layers": [int((i + 1) % 4 != 0) for i in range(n_layer)], "no_rope_layer_interval": 4}
    names = names | layer

    out = {}
    if arch in ("granitemoe", "gpt-oss"):
        for n in range(n_layer):
            experts = {name.split(".", 2)[2]: t for name, t in tensors.items() if name.startswith(f"blk.{n}.")}
            out |= {f"{prefix}{n}.{name}": t for name, t in fuse_experts(arch, experts).items()}
        tensors = {name: t for name, t in tensors.items() if "_exps." not in name}
    for name, t in tensors.items():
        if name.startswith("rope_f"):
            continue
        if arch.startswith("gemma") and "norm" in name:
            t = less_one(t)
        if not name.startswith("blk."):
            out[ends[name]] = t
            continue
        _, n, rest = name.split(".", 2)
        if arch in ("llama", "mistral3", "smollm3", "granite", "granitemoe") and rest in ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias"):
            t = halves(t, n_head if "_q" in rest else n_kv)
        if arch == "falcon" and rest == "attn_qkv.weight" and n_kv > 1:
            t = by_group(t, n_head, n_kv)
        hf = f"{prefix}{n}.{names[rest]}"
        if "*" in hf:
            for e, part in enumerate(rows(t)):
                out[hf.replace("*", str(e))] = (t[0][1:], t[1], part)
        else:
            out[hf] = t
    return c, out


def widen(t):
    if t[1] != F16:
        return t
    n = len(t[2]) // 2
    return t[0], F32, struct.pack(f"<{n}f", *struct.unpack(f"<{n}e", t[2]))


def write_shard(path, tensors, odd):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, kind, data) in tensors.items():
        header[name] = {"dtype": NAME[kind], "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * ((-len(text) % 8) if not odd else (1 - len(text)) % 2)  # odd: data begins at an odd offset
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            f.write(data)


def multimodal(config, tensors, outer, v5):
    """The language model as a part of a larger one; newer files keep "model." in front and the output matrix outside."""
    def rename(name):
        if not v5:
            return "language_model." + name
        return name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name

    vision = ([2, 3], F32, bytes(24))
    names = ("model.vision_tower.w", "model.multi_modal_projector.w") if v5 else ("vision_tower.w", "multi_modal_projector.w")
    return {"model_type": outer, "text_config": config, "vision_config": {"hidden_size": 3}}, {rename(n): t for n, t in tensors.items()} | {n: vision for n in names}


def make(model, folder, shards=1, v5=False, dtype=None, odd=False, outer=None):
    keys, tensors = read_gguf(model)
    config, out = convert(keys, tensors, v5)
    if outer:
        config, out = multimodal(config, out, outer, v5)
    if dtype == "F32":
        out = {name: widen(t) for name, t in out.items()}
    write(config, out, folder, shards, odd)


def write(config, out, folder, shards=1, odd=False):
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
    if shards == 1:
        write_shard(os.path.join(folder, "model.safetensors"), out, odd)
        return
    names, index = list(out), {}
    for i in range(shards):  # every n-th, so that a layer's experts lie in several files
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        write_shard(os.path.join(folder, file), {n: out[n] for n in names[i::shards]}, odd)
        index |= {n: file for n in names[i::shards]}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {}, "weight_map": index}, f)


if __name__ == "__main__":
    args = sys.argv[1:]
    make(args[0], args[1], shards=int(args[args.index("--shards") + 1]) if "--shards" in args else 1, v5="--v5" in args,
         dtype=args[args.index("--dtype") + 1] if "--dtype" in args else None, odd="--odd" in args)
