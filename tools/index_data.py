"""Data sets for `hadal bench index`: keys, values and queries of one attention head.

    index_data.py shifted OUT --keys 131072 --dim 128     drawn, with the distributions of trained models' heads
    index_data.py model OUT --model DIR --layer 4 --head 0 --keys 131072 --text FILE...     dumped from a model

OUT becomes a directory with one model.safetensors: `keys` and `values` [N, dim], `queries` [M, dim], which an index may
learn from as from those of a prompt, and `tests` [T, dim], which it may not and which are none of them; all bf16.

shifted: keys k = R_k S_k (c + 0.6 z) + mean with a spectrum i^-0.5 and 512 centres of Zipf(1.1) weights, and a shared
mean of 2.5 times the length of what is centred. Queries have another rotation, spectrum and 64 centres, and a mean that
points away from the keys' (cosine -0.4), so that they lie far from every key; each leans a little towards one key. They
are scaled so that scores / sqrt(dim) have a standard deviation of 2.5 over the keys.
model: the layer's own queries and keys (a Llama-like model, by transformers; train_model.py makes one) on windows of the
text, with rotary embeddings applied again at the positions of the whole; the tests are of tokens just after the last key.
Values are v = (A (k - mean) + noise) / sqrt 2, half said by the key and half not; with --own-values the model's.
"""
import argparse
import json
import math
import os

import numpy as np

F = np.float32


def bf16(array):
    bits = np.ascontiguousarray(array, dtype=F).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write(out, tensors):
    header, offset = {}, 0
    for name, array in tensors.items():
        size = array.size * 2
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64 + 56)  # tensors begin on a cache line
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, "model.safetensors"), "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(bf16(array).tobytes())


def values_of(keys, rng):
    centred = keys - keys.mean(0)
    dim = keys.shape[1]
    mixed = centred @ (rng.standard_normal((dim, dim)).astype(F) / F(math.sqrt(dim)))
    mixed /= math.sqrt(float((mixed**2).mean()))
    return (mixed + rng.standard_normal(keys.shape, dtype=F)) / F(math.sqrt(2))


def rotation(rng, dim):
    return np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(F)


def shifted(keys, dim, query_count, seed):
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, 513) ** 1.1
    key_turn, query_turn = rotation(rng, dim), rotation(rng, dim)
    key_spectrum = (np.arange(1, dim + 1) ** -0.5).astype(F)
    query_spectrum = (np.arange(1, dim + 1) ** -0.3).astype(F)
    centres = rng.standard_normal((512, dim)).astype(F)
    of = rng.choice(512, keys, p=weights / weights.sum())
    centred = ((centres[of] + F(0.6) * rng.standard_normal((keys, dim), dtype=F)) * key_spectrum) @ key_turn.T
    length = math.sqrt(float((centred**2).sum(1).mean()))
    away = rng.standard_normal(dim)
    away /= np.linalg.norm(away)
    k = centred + (2.5 * length * away).astype(F)

    query_centres = rng.standard_normal((64, dim)).astype(F)
    of = rng.integers(0, 64, query_count)
    drawn = query_centres[of] + F(0.5) * rng.standard_normal((query_count, dim), dtype=F)
    q = (drawn * query_spectrum) @ query_turn.T
    q /= math.sqrt(float((q**2).sum(1).mean()))
    pulled = centred[rng.integers(0, keys, query_count)]
    pulled = pulled / np.linalg.norm(pulled, axis=1, keepdims=True)
    side = rng.standard_normal(dim)
    side -= (side @ away) * away
    side /= np.linalg.norm(side)
    mean = -0.4 * away + math.sqrt(1 - 0.16) * side
    q = q + F(0.25) * pulled + (1.5 * mean).astype(F)
    deviation = float((q[:512] @ centred[:20000].T).std(1).mean()) / math.sqrt(dim)
    return k, (q * (2.5 / deviation)).astype(F)


def dump(arguments, total):
    """Queries [total, dim] of one head, keys and values of its KV head, at positions 0 .. total - 1."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    tokenizer, ids = AutoTokenizer.from_pretrained(arguments.model), []
    for path in arguments.text:
        if len(ids) < total:
            text = open(path, encoding="utf-8", errors="ignore").read()
            ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) < total:
        raise SystemExit(f"index_data.py: --text has {len(ids)} tokens, {total} are needed: give more files")
    ids = torch.tensor(ids)
    config, layer = model.config, model.model.layers[arguments.layer]
    model.model.layers = model.model.layers[: arguments.layer + 1]  # what comes after it is not looked at
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    base = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
    frequencies = float(base) ** (-torch.arange(dim // 2).double() / (dim // 2))
    window, parts = arguments.window, []
    with torch.inference_mode():
        for first in range(0, total, window):
            captured = {}
            hook = layer.register_forward_pre_hook(
                lambda module, args, kwargs: captured.update(x=args[0] if args else kwargs["hidden_states"]),
                with_kwargs=True)
            model.model(ids[first : first + window][None])
            hook.remove()
            x = layer.input_layernorm(captured["x"])[0]
            q = layer.self_attn.q_proj(x).view(-1, heads, dim)[:, arguments.head]
            kv = arguments.head * kv_heads // heads
            k = layer.self_attn.k_proj(x).view(-1, kv_heads, dim)[:, kv]
            v = layer.self_attn.v_proj(x).view(-1, kv_heads, dim)[:, kv]
            angles = torch.arange(first, first + len(x)).double()[:, None] * frequencies
            cosine, sine = angles.cos().float(), angles.sin().float()

            def turn(y):
                low, high = y[:, : dim // 2], y[:, dim // 2 :]
                return torch.cat([low * cosine - high * sine, high * cosine + low * sine], -1)

            parts.append((turn(q), turn(k), v))
    return [torch.cat(column)[:total].numpy() for column in zip(*parts)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["shifted", "model"])
    parser.add_argument("out")
    parser.add_argument("--keys", type=int, default=131072)
    parser.add_argument("--dim", type=int, default=128, help="shifted: of a key")
    parser.add_argument("--queries", type=int, default=65536)
    parser.add_argument("--tests", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="model: a Hugging Face directory")
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--head", type=int, default=0, help="model: the query head")
    parser.add_argument("--text", nargs="+", default=[], help="model: files to read")
    parser.add_argument("--window", type=int, default=2048, help="model: tokens that are read together")
    parser.add_argument("--own-values", action="store_true", help="model: its values instead of drawn ones")
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed + 1)
    n = arguments.keys
    if arguments.kind == "shifted":
        keys, queries = shifted(n, arguments.dim, arguments.queries + arguments.tests, arguments.seed)
        train, tests, values = queries[: arguments.queries], queries[arguments.queries :], values_of(keys, rng)
    else:
        queries, keys, values = dump(arguments, n + 4096)
        train = queries[np.linspace(0, n - 1, min(arguments.queries, n)).astype(int)]
        tests = queries[n + rng.choice(4096, arguments.tests, replace=False)]
        keys, values = keys[:n], values[:n] if arguments.own_values else values_of(keys[:n], rng)
    write(arguments.out, {"keys": keys, "values": values, "queries": train, "tests": tests})


if __name__ == "__main__":
    main()
