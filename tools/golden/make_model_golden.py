#!/usr/bin/env python3
"""Write small random-weight models of every supported architecture, and what Hugging Face transformers computes for them.

Usage: make_model_golden.py OUT_DIR [--only NAME[,NAME]] [--check]

OUT_DIR/NAME/ gets a model directory as one would download it (config.json, model.safetensors) and the answers of
transformers on the CPU beside it; tests/golden/README.md says what each file holds. The weights are made from a seed by
numpy alone and are exactly representable in bf16, so that f32 and bf16 runs start from the same numbers.

A golden model has to be able to fail. So the weights are scaled until logits have an RMS of at least 1 and attention is
neither flat nor a single key, sequences run past the sliding window and past original_max_position_embeddings, norm
weights and biases are far from 1 and 0, and every alteration listed for a model is tried here too: one that moves the
logits by less than a hundred tolerances stops the script.

--check writes nothing and compares: it tells whether a newer torch or transformers would give other answers.
Needs numpy, ml_dtypes, safetensors, torch and transformers 5.
"""
import argparse
import copy
import json
import logging
import os
import sys
import tempfile
import zlib

import ml_dtypes
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

VOCABULARY = 512
TOLERANCE = 1e-4        # of the logits' RMS, in f32
ALTERED_AT_LEAST = 1e-2  # of the logits' RMS: what an alteration must move

ATTENTION_SCORE = 2.5   # standard deviation of q.k/sqrt(head_dim): a few keys of a thousand carry the weight
LOGITS_RMS = 2.0
EMBEDDING_UNTIED = 0.05  # small, so that rms_norm_eps shows in the first norm
LENGTH = 1280


def rope_forms(theta, scaling):
    """The older and the newer spelling of the rope settings in config.json."""
    older = {"rope_theta": theta}
    if scaling:
        older["rope_scaling"] = scaling
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **scaling}}
    newer["rope_parameters"].pop("type", None)
    if "type" in scaling:
        newer["rope_parameters"]["rope_type"] = scaling["type"]
    return older, newer


def describe(architecture, model_type, theta=10000.0, scaling=None, eps=1e-5, heads=4, kv_heads=2, head_dim=32,
             explicit_head_dim=False, hidden=128, intermediate=128, layers=2, tied=False, positions=4096, extra=None,
             altered=()):
    """One golden model: its shape, both forms of its config.json and the alterations that must be noticed."""
    common = {
        "architectures": [architecture], "model_type": model_type, "vocab_size": VOCABULARY, "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "hidden_act": "silu", "rms_norm_eps": eps, "max_position_embeddings": positions,
        "tie_word_embeddings": tied, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True,
        **(extra or {}),
    }
    if explicit_head_dim:
        common["head_dim"] = head_dim
    older_rope, newer_rope = rope_forms(theta, scaling or {})
    return {
        "older": {**common, **older_rope, "torch_dtype": "bfloat16", "transformers_version": "4.51.0"},
        "newer": {**common, **newer_rope, "dtype": "bfloat16", "transformers_version": "5.0.0"},
        "scaling": (scaling or {}).get("rope_type", (scaling or {}).get("type", "none")), "head_dim": head_dim,
        "altered": list(altered),
    }


def config_change(name, **changes):
    """An alteration of config.json: the named fields take these values."""
    return {"name": name, "kind": "config", "set": changes}


def tensor_swap(name, first, second):
    """Two tensors of one shape change places."""
    return {"name": name, "kind": "swap", "tensors": [first, second]}


def tensor_fill(name, value, *tensors):
    """Tensors are filled with one value (0: a bias left out; 1: a norm weight left out)."""
    return {"name": name, "kind": "fill", "value": value, "tensors": list(tensors)}


ROPE_OFF = config_change("another rope base", rope_theta=1e12)
EPS = config_change("another eps", rms_norm_eps=1e-2)
FINAL_NORM = tensor_fill("final norm weight left out", 1.0, "model.norm.weight")
LAYER_NORMS = tensor_fill("layer norm weights left out", 1.0, "model.layers.0.input_layernorm.weight",
                          "model.layers.1.post_attention_layernorm.weight")
COMMON = (ROPE_OFF, EPS, FINAL_NORM, LAYER_NORMS)


def biases(layer):
    return tuple(f"model.layers.{layer}.self_attn.{name}_proj.bias" for name in "qkv")


def head_norms(layer):
    return tuple(f"model.layers.{layer}.self_attn.{name}_norm.weight" for name in "qk")


def catalogue():
    scaled = dict(hidden=64, heads=2, kv_heads=1, head_dim=32, intermediate=96, tied=True)
    no_scaling = config_change("scaling left out", rope_scaling=None)
    models = {
        "llama": describe("LlamaForCausalLM", "llama", altered=COMMON),
        "llama-head-dim": describe("LlamaForCausalLM", "llama", theta=500000.0, heads=4, kv_heads=1, head_dim=64,
                                   explicit_head_dim=True, hidden=96, tied=True, eps=1e-6, altered=COMMON),
        "llama-linear": describe("LlamaForCausalLM", "llama", scaling={"type": "linear", "factor": 4.0}, positions=256,
                                 altered=(ROPE_OFF, no_scaling), **scaled),
        "llama-dynamic": describe("LlamaForCausalLM", "llama", scaling={"rope_type": "dynamic", "factor": 2.0},
                                  positions=128, altered=(ROPE_OFF, no_scaling), **scaled),
        "llama-llama3": describe("LlamaForCausalLM", "llama", theta=500000.0, positions=2048,
                                 scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                          "high_freq_factor": 4.0, "original_max_position_embeddings": 128},
                                 altered=(ROPE_OFF, no_scaling), **scaled),
        "llama-yarn": describe("LlamaForCausalLM", "llama", positions=2048,
                               scaling={"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 128},
                               altered=(ROPE_OFF, no_scaling), **scaled),
        "mistral": describe("MistralForCausalLM", "mistral", heads=4, kv_heads=2, extra={"sliding_window": 40},
                            altered=COMMON + (config_change("window + 1", sliding_window=41),
                                              config_change("window - 1", sliding_window=39),
                                              config_change("no window", sliding_window=None))),
        "qwen2": describe("Qwen2ForCausalLM", "qwen2", theta=1000000.0, eps=1e-6,
                          extra={"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 1},
                          altered=COMMON + (tensor_fill("bias left out", 0.0, *biases(0), *biases(1)),
                                            config_change("window used", use_sliding_window=True, max_window_layers=0))),
        "qwen2-window": describe("Qwen2ForCausalLM", "qwen2", eps=1e-6, hidden=64, heads=2, kv_heads=1, intermediate=96,
                                 layers=3, tied=True,
                                 extra={"use_sliding_window": True, "sliding_window": 48, "max_window_layers": 1},
                                 altered=(config_change("window + 1", sliding_window=49),
                                          config_change("window from layer 0", max_window_layers=0),
                                          config_change("window from layer 2", max_window_layers=2),
                                          config_change("no window", use_sliding_window=False))),
        "qwen3": describe("Qwen3ForCausalLM", "qwen3", theta=1000000.0, eps=1e-6, heads=4, kv_heads=2, head_dim=64,
                          explicit_head_dim=True, hidden=96, tied=True,
                          extra={"attention_bias": False, "use_sliding_window": False, "sliding_window": None,
                                 "max_window_layers": 2},
                          altered=COMMON + (tensor_fill("q norm weight left out", 1.0, head_norms(0)[0]),
                                            tensor_fill("k norm weight left out", 1.0, head_norms(1)[1]))),
        "qwen3-yarn": describe("Qwen3ForCausalLM", "qwen3", theta=1000000.0, eps=1e-6, explicit_head_dim=True,
                               positions=2048, scaling={"rope_type": "yarn", "factor": 4.0,
                                                        "original_max_position_embeddings": 256, "beta_fast": 16.0,
                                                        "beta_slow": 2.0, "attention_factor": 1.25},
                               extra={"attention_bias": False},
                               altered=(ROPE_OFF, no_scaling), **scaled),
        "qwen3-moe": describe("Qwen3MoeForCausalLM", "qwen3_moe", theta=1000000.0, eps=1e-6, explicit_head_dim=True,
                              hidden=64, heads=4, kv_heads=2, head_dim=32, intermediate=96, layers=3,
                              extra={"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
                                     "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [1],
                                     "attention_bias": False, "use_sliding_window": False, "sliding_window": None},
                              altered=COMMON + (
                                  tensor_swap("expert order", "model.layers.0.mlp.experts.0.down_proj.weight",
                                              "model.layers.0.mlp.experts.1.down_proj.weight"),
                                  config_change("probabilities of the chosen not normalised", norm_topk_prob=False),
                                  config_change("one expert more", num_experts_per_tok=3))),
        "qwen3-moe-sparse": describe("Qwen3MoeForCausalLM", "qwen3_moe", theta=1000000.0, eps=1e-6,
                                     explicit_head_dim=True, hidden=64, heads=2, kv_heads=1, head_dim=32,
                                     intermediate=96, layers=2, tied=True,
                                     extra={"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
                                            "norm_topk_prob": False, "decoder_sparse_step": 2, "mlp_only_layers": [],
                                            "attention_bias": False},
                                     altered=(config_change("probabilities of the chosen normalised",
                                                            norm_topk_prob=True),)),
        "mixtral": describe("MixtralForCausalLM", "mixtral", theta=1000000.0, hidden=64, heads=4, kv_heads=2, head_dim=16,
                            intermediate=64, extra={"num_local_experts": 4, "num_experts_per_tok": 2,
                                                    "sliding_window": None, "output_router_logits": False},
                            altered=COMMON + (
                                tensor_swap("expert order", "model.layers.0.block_sparse_moe.experts.0.w2.weight",
                                            "model.layers.0.block_sparse_moe.experts.1.w2.weight"),
                                tensor_swap("gate and up exchanged",
                                            "model.layers.1.block_sparse_moe.experts.2.w1.weight",
                                            "model.layers.1.block_sparse_moe.experts.2.w3.weight"),
                                config_change("one expert more", num_experts_per_tok=3))),
    }
    return models


class Weights:
    """The tensors of one model, drawn in a fixed order from a seed of its shape, rounded to bf16."""

    def __init__(self, description):
        self.config = description["newer"]
        self.head_dim = description["head_dim"]
        shape = {key: value for key, value in self.config.items() if not key.startswith("rope")}
        # One shape has one set of weights whatever its rope scaling, so that equal files are stored once.
        shape.pop("max_position_embeddings")
        self.random = np.random.default_rng(zlib.crc32(json.dumps(shape, sort_keys=True).encode()))
        self.tensors = {}

    def normal(self, name, shape, deviation, mean=0.0):
        values = self.random.normal(mean, deviation, shape).astype(np.float32)
        self.tensors[name] = values.astype(ml_dtypes.bfloat16)

    def linear(self, name, rows, columns, gain):
        """A projection whose outputs have the standard deviation `gain` for inputs of RMS 1."""
        self.normal(name, (rows, columns), gain / np.sqrt(columns))

    def norm(self, name, size, mean=1.0):
        self.normal(name, size, 0.25 * mean, mean)

    def attention(self, prefix):
        config, hidden, head_dim = self.config, self.config["hidden_size"], self.head_dim
        q_size, kv_size = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
        sharp = np.sqrt(ATTENTION_SCORE)
        self.linear(prefix + "q_proj.weight", q_size, hidden, sharp)
        self.linear(prefix + "k_proj.weight", kv_size, hidden, sharp)
        self.linear(prefix + "v_proj.weight", kv_size, hidden, 1.0)
        self.linear(prefix + "o_proj.weight", hidden, q_size, 1.0)
        if config["model_type"] == "qwen2":
            for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size)):
                self.normal(f"{prefix}{name}_proj.bias", size, 0.5)
        if config["model_type"].startswith("qwen3"):
            self.norm(prefix + "q_norm.weight", head_dim, sharp)
            self.norm(prefix + "k_norm.weight", head_dim, sharp)

    def gated(self, prefix, intermediate, names=("gate_proj", "up_proj", "down_proj")):
        hidden = self.config["hidden_size"]
        gate, up, down = (f"{prefix}{name}.weight" for name in names)
        self.linear(gate, intermediate, hidden, 1.5)
        self.linear(up, intermediate, hidden, 1.5)
        self.linear(down, hidden, intermediate, 0.8)

    def feed_forward(self, prefix, index):
        config = self.config
        # Routers are decisive: a near tie between the last expert chosen and the first one left out is rare and its
        # weight small, so bf16 rounding seldom changes the route.
        if config["model_type"] == "mixtral":
            self.linear(prefix + "block_sparse_moe.gate.weight", config["num_local_experts"], config["hidden_size"], 4.0)
            for expert in range(config["num_local_experts"]):
                self.gated(f"{prefix}block_sparse_moe.experts.{expert}.", config["intermediate_size"], ("w1", "w3", "w2"))
        elif (config["model_type"] == "qwen3_moe" and index not in config["mlp_only_layers"]
              and (index + 1) % config["decoder_sparse_step"] == 0):
            self.linear(prefix + "mlp.gate.weight", config["num_experts"], config["hidden_size"], 4.0)
            for expert in range(config["num_experts"]):
                self.gated(f"{prefix}mlp.experts.{expert}.", config["moe_intermediate_size"])
        else:
            self.gated(prefix + "mlp.", config["intermediate_size"])

    def make(self):
        config, hidden = self.config, self.config["hidden_size"]
        head = LOGITS_RMS / np.sqrt(hidden)
        tied = config["tie_word_embeddings"]
        self.normal("model.embed_tokens.weight", (VOCABULARY, hidden), head if tied else EMBEDDING_UNTIED)
        for index in range(config["num_hidden_layers"]):
            prefix = f"model.layers.{index}."
            self.norm(prefix + "input_layernorm.weight", hidden)
            self.attention(prefix + "self_attn.")
            self.norm(prefix + "post_attention_layernorm.weight", hidden)
            self.feed_forward(prefix, index)
        self.norm("model.norm.weight", hidden)
        if not tied:
            self.normal("lm_head.weight", (VOCABULARY, hidden), head)
        return self.tensors


def write_config(directory, config, name="config.json"):
    with open(os.path.join(directory, name), "w") as file:
        json.dump(config, file, indent=1)
        file.write("\n")


def run(config, tensors, tokens, dtype=torch.float32, attention="eager", with_attention=False):
    """Logits (f32 numpy, [positions][vocabulary]) of one pass over all tokens, loaded the way a user loads a model."""
    with tempfile.TemporaryDirectory() as directory:
        write_config(directory, config)
        save_file(tensors, os.path.join(directory, "model.safetensors"), {"format": "pt"})
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation=attention, output_loading_info=True)
        wrong = {key: value for key, value in info.items() if value and key != "error_msgs"}
        if wrong:
            raise SystemExit(f"transformers did not load every tensor as meant: {wrong}")
        with torch.no_grad():
            answer = model.eval()(torch.tensor(tokens[None].astype(np.int64)), use_cache=False,
                                  output_attentions=with_attention)
    logits = answer.logits[0].float().numpy()
    return (logits, [layer[0].numpy() for layer in answer.attentions]) if with_attention else logits


def alter(config, tensors, change):
    config, tensors = copy.deepcopy(config), dict(tensors)
    if change["kind"] == "config":
        config.update(change["set"])
    elif change["kind"] == "swap":
        first, second = change["tensors"]
        tensors[first], tensors[second] = tensors[second], tensors[first]
    else:
        for name in change["tensors"]:
            tensors[name] = np.full_like(tensors[name], change["value"])
    return config, tensors


def root_mean_square(values):
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def sampled_positions(config):
    """The first few, those around the window and the original length, and an even sample with the last."""
    marks = [config.get("sliding_window"), config["max_position_embeddings"],
             (config.get("rope_scaling") or {}).get("original_max_position_embeddings")]
    positions = {0, 1, 2, 3, LENGTH - 1}
    for mark in marks:
        positions |= {p for p in range((mark or 0) - 2, (mark or 0) + 3) if 0 <= p < LENGTH}
    positions |= {int(p) for p in np.linspace(5, LENGTH - 2, 24)}
    return sorted(positions)


def effective_keys(attentions):
    """exp(entropy) of attention, averaged over heads and the second half of the positions; the least and most of all layers."""
    counts = []
    for weights in attentions:
        rows = weights[:, LENGTH // 2:].astype(np.float64)
        entropy = -(rows * np.log(np.maximum(rows, 1e-30))).sum(-1)
        counts.append(float(np.exp(entropy).mean()))
    return min(counts), max(counts)


def answers(name, description):
    """Everything that the golden directory of one model holds, as {file name: bytes or object}."""
    config = description["older"]
    tensors = Weights(description).make()
    tokens = np.random.default_rng(zlib.crc32(name.encode())).integers(0, VOCABULARY, LENGTH).astype(np.uint32)
    logits, attentions = run(config, tensors, tokens, with_attention=True)
    rms = root_mean_square(logits)
    keys = effective_keys(attentions)
    if rms < 1 or keys[0] < 1.5 or keys[1] > LENGTH / 8:
        raise SystemExit(f"{name}: badly scaled: logits' RMS {rms:.2f}, effective keys {keys}")
    newer = run(description["newer"], tensors, tokens)
    if np.abs(newer - logits).max() > TOLERANCE / 100 * rms:
        raise SystemExit(f"{name}: the two forms of config.json do not mean the same")

    altered = []
    for change in description["altered"]:
        moved = np.abs(run(*alter(config, tensors, change), tokens) - logits).max() / rms
        if moved < ALTERED_AT_LEAST:
            raise SystemExit(f"{name}: '{change['name']}' moves the logits by only {moved:.1e} of their RMS")
        altered.append({**change, "moves_logits_by": float(f"{moved:.3g}")})

    low = run(config, tensors, tokens, torch.bfloat16, "sdpa")
    ordered = np.sort(logits, axis=1)
    records = np.zeros(LENGTH, np.dtype([("f32_argmax", "<u4"), ("bf16_argmax", "<u4"), ("margin", "<f4"),
                                         ("difference", "<f4")]))
    records["f32_argmax"] = logits.argmax(1)
    records["bf16_argmax"] = low.argmax(1)
    records["margin"] = ordered[:, -1] - ordered[:, -2]
    # A margin is the difference of two logits, so what bf16 can do to it is the spread of the errors, not the largest one.
    records["difference"] = np.ptp(low - logits, axis=1)
    counted = records["margin"] > records["difference"]
    positions = sampled_positions(config)
    index = {
        "name": name, "architecture": config["architectures"][0], "rope_scaling": description["scaling"],
        "vocabulary": VOCABULARY, "tokens": LENGTH, "configs": ["config.json", "config.newer.json"],
        "logit_positions": positions, "logits_rms": rms, "tolerance_of_rms": TOLERANCE,
        "effective_keys_least_and_most": [round(k, 2) for k in keys],
        "bf16_positions_counted": int(counted.sum()),
        "bf16_argmax_agrees_where_counted": int((records["f32_argmax"] == records["bf16_argmax"])[counted].sum()),
        "altered": altered,
        "made_with": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
    }
    if description["scaling"] == "dynamic":
        index["rope_length"] = LENGTH
    return {"config.json": config, "config.newer.json": description["newer"], "model.safetensors": tensors,
            "tokens.bin": tokens.tobytes(), "logits.bin": logits[positions].astype("<f4").tobytes(),
            "bf16.bin": records.tobytes(), "golden.json": index}


def write(directory, files):
    os.makedirs(directory, exist_ok=True)
    for name, content in files.items():
        path = os.path.join(directory, name)
        if name == "model.safetensors":
            save_file(content, path, {"format": "pt"})
            os.chmod(path, 0o644)
        elif isinstance(content, bytes):
            with open(path, "wb") as file:
                file.write(content)
        else:
            write_config(directory, content, name)


def check(directory, files):
    """Compares with what is stored; False when an answer moved by more than a tenth of the tolerance."""
    stored = load_file(os.path.join(directory, "model.safetensors"))
    same_weights = all(np.array_equal(stored[name], values) for name, values in files["model.safetensors"].items())
    with open(os.path.join(directory, "logits.bin"), "rb") as file:
        moved = np.abs(np.frombuffer(file.read(), "<f4") - np.frombuffer(files["logits.bin"], "<f4")).max()
    moved /= files["golden.json"]["logits_rms"]
    print(f"{directory}: weights {'same' if same_weights else 'DIFFER'}, logits moved by {moved:.1e} of their RMS")
    return same_weights and moved <= TOLERANCE / 10


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out")
    arguments.add_argument("--only", default="")
    arguments.add_argument("--check", action="store_true")
    options = arguments.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(2)
    only = [name for name in options.only.split(",") if name]
    good = True
    for name, description in catalogue().items():
        if only and name not in only:
            continue
        directory = os.path.join(options.out, name)
        files = answers(name, description)
        if options.check:
            good &= check(directory, files)
            continue
        write(directory, files)
        index = files["golden.json"]
        print(f"{name}: logits' RMS {index['logits_rms']:.2f}, effective keys {index['effective_keys_least_and_most']}, "
              f"bf16 argmax {index['bf16_argmax_agrees_where_counted']} of {index['bf16_positions_counted']}, "
              f"least alteration {min(a['moves_logits_by'] for a in index['altered']):.2g}", flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
