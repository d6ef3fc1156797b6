#!/usr/bin/env python3
"""Write the rotary frequencies that Hugging Face transformers computes for every rope kind.

Usage: make_rope_golden.py OUT_FILE

Each case is the rope part of a config.json in both of its spellings, a sequence length, and the inverse frequencies and
the attention factor that LlamaRotaryEmbedding has after a pass of that length. Needs torch and transformers 5.
"""
import json
import sys

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

# name, head_dim, max_position_embeddings, rope_theta, scaling, sequence length
CASES = [
    ("default", 64, 4096, 10000.0, {}, 100),
    ("default-wide", 128, 131072, 1000000.0, {}, 100),
    ("default-odd-base", 80, 4096, 123456.789, {}, 100),
    ("default-needle", 128, 2097152, 1e30, {}, 100),
    ("linear", 64, 4096, 10000.0, {"rope_type": "linear", "factor": 4.0}, 100),
    ("linear-fraction", 96, 4096, 500000.0, {"type": "linear", "factor": 2.3}, 100),
    ("dynamic-within", 64, 512, 10000.0, {"type": "dynamic", "factor": 2.0}, 512),
    ("dynamic-beyond", 64, 512, 10000.0, {"type": "dynamic", "factor": 2.0}, 1333),
    ("dynamic-far", 128, 2048, 500000.0, {"type": "dynamic", "factor": 1.7}, 100001),
    ("llama3", 64, 131072, 500000.0, {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
                                      "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}, 100),
    ("llama3-wide", 128, 131072, 500000.0, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.5,
                                            "high_freq_factor": 7.0, "original_max_position_embeddings": 4096}, 100),
    ("yarn", 64, 4096, 10000.0, {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}, 100),
    ("yarn-qwen", 128, 131072, 1000000.0, {"rope_type": "yarn", "factor": 4.0,
                                           "original_max_position_embeddings": 32768}, 100),
    ("yarn-attention-factor", 128, 65536, 150000.0, {"rope_type": "yarn", "factor": 16.0, "attention_factor": 1.3,
                                                     "original_max_position_embeddings": 4096}, 100),
    ("yarn-mscale", 64, 163840, 10000.0, {"rope_type": "yarn", "factor": 40.0, "mscale": 0.8, "mscale_all_dim": 1.2,
                                          "beta_fast": 24, "beta_slow": 2,
                                          "original_max_position_embeddings": 4096}, 100),
    ("yarn-not-truncated", 64, 131072, 150000.0, {"rope_type": "yarn", "factor": 32.0, "truncate": False,
                                                  "original_max_position_embeddings": 4096}, 100),
    ("yarn-implied-factor", 64, 8192, 10000.0, {"rope_type": "yarn", "factor": None,
                                                "original_max_position_embeddings": 1024}, 100),
    ("yarn-implied-length", 64, 2048, 10000.0, {"rope_type": "yarn", "factor": 2.0}, 100),
]


def spellings(theta, scaling):
    """The older and the newer form of the fields in config.json."""
    older = {"rope_theta": theta}
    if scaling:
        older["rope_scaling"] = scaling
    newer = {"rope_type": scaling.get("rope_type", scaling.get("type", "default")), "rope_theta": theta,
             **{key: value for key, value in scaling.items() if key not in ("type", "rope_type")}}
    return older, {"rope_parameters": newer}


def frequencies(head_dim, positions, fields, length):
    config = LlamaConfig(hidden_size=head_dim * 2, num_attention_heads=2, head_dim=head_dim,
                         max_position_embeddings=positions, **json.loads(json.dumps(fields)))
    rope = LlamaRotaryEmbedding(config)
    rope(torch.zeros(1), torch.arange(length)[None])
    return rope.inv_freq.numpy().astype(np.float32), float(rope.attention_scaling)


def main():
    cases = []
    for name, head_dim, positions, theta, scaling, length in CASES:
        older, newer = spellings(theta, scaling)
        inverse, factor = frequencies(head_dim, positions, newer, length)
        same, same_factor = frequencies(head_dim, positions, older, length)
        assert np.array_equal(inverse, same) and factor == same_factor, name
        cases.append({"name": name, "head_dim": head_dim, "max_position_embeddings": positions, "older": older,
                      "newer": newer, "sequence_tokens": length, "attention_factor": factor,
                      "inverse_frequencies": [float(f"{value:.9g}") for value in inverse]})
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
