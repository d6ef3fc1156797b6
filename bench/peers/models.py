#!/usr/bin/env python3
"""Write a model of the Llama-3.2-1B shape with random weights, for every engine the same numbers.

Usage: models.py hf DIR            a Hugging Face directory: config.json, model.safetensors (bf16), tokenizer.json
       models.py small DIR         the same in the shape of Qwen2.5-0.5B, for two million positions
       models.py 8b DIR            the same in the shape of Llama-3.1-8B, 16 GB: all tensors begin with the same numbers
       models.py gguf DIR FILE TYPE  the weights of DIR as a GGUF file; TYPE is bf16 or q8_0

Speed depends on shapes and types, not on values, so weights are normal numbers of deviation 0.02 from a fixed seed and the
vocabulary is bytes and fillers. hf needs numpy, gguf also the package gguf.
"""
import json
import os
import struct
import sys

import numpy as np

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCABULARY = 16, 2048, 32, 8, 64, 8192, 128256
POSITIONS, THETA, EPSILON = 131072, 500000.0, 1e-5
ROPE = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}
if sys.argv[1:2] == ["small"]:
    LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCABULARY = 24, 896, 14, 2, 64, 4864, 151936
    POSITIONS, THETA, EPSILON, ROPE = 2097152, 1000000.0, 1e-6, None
REPEATS = sys.argv[1:2] == ["8b"]  # drawing eight billion numbers takes minutes
if REPEATS:
    LAYERS, HIDDEN, WIDTH, HEAD_DIM, ROPE["factor"] = 32, 4096, 14336, 128, 8.0
BEGIN, END = VOCABULARY - 2, VOCABULARY - 1


def tensors():
    """Name, GGUF's name and shape of every tensor, in the order of the file."""
    yield "model.embed_tokens.weight", "token_embd.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        yield ours + "input_layernorm.weight", theirs + "attn_norm.weight", (HIDDEN,)
        yield ours + "self_attn.q_proj.weight", theirs + "attn_q.weight", (HEADS * HEAD_DIM, HIDDEN)
        yield ours + "self_attn.k_proj.weight", theirs + "attn_k.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield ours + "self_attn.v_proj.weight", theirs + "attn_v.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield ours + "self_attn.o_proj.weight", theirs + "attn_output.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield ours + "post_attention_layernorm.weight", theirs + "ffn_norm.weight", (HIDDEN,)
        yield ours + "mlp.gate_proj.weight", theirs + "ffn_gate.weight", (WIDTH, HIDDEN)
        yield ours + "mlp.up_proj.weight", theirs + "ffn_up.weight", (WIDTH, HIDDEN)
        yield ours + "mlp.down_proj.weight", theirs + "ffn_down.weight", (HIDDEN, WIDTH)
    yield "model.norm.weight", "output_norm.weight", (HIDDEN,)


def random_bf16(generator, shape):
    if len(shape) == 1:
        return np.full(shape, 0x3F80, np.uint16)  # a norm's weights are 1
    bits = (generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def write_safetensors(path):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, _, shape in tensors():
        end = offset + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    generator = np.random.default_rng(1)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        repeated = random_bf16(generator, (1, 1 << 24)) if REPEATS else None
        for _, _, shape in tensors():
            values = np.resize(repeated, shape) if REPEATS and len(shape) > 1 else random_bf16(generator, shape)
            file.write(values.tobytes())


def byte_characters():
    """The printable character that byte-level tokenizers write for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + index) for index, _ in enumerate(others)]


def tokenizer():
    words = byte_characters()
    words += [f"<filler {index}>" for index in range(len(words), BEGIN)]
    special = [{"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
                "special": True} for index, content in ((BEGIN, "<|begin_of_text|>"), (END, "<|end_of_text|>"))]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
            "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                      "vocab": {word: index for index, word in enumerate(words)}, "merges": []}}


def write_hf(directory):
    os.makedirs(directory, exist_ok=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": WIDTH,
              "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM,
              "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "rms_norm_eps": EPSILON, "rope_theta": THETA,
              "rope_scaling": ROPE, "tie_word_embeddings": True, "hidden_act": "silu", "torch_dtype": "bfloat16",
              "attention_bias": False, "mlp_bias": False, "bos_token_id": BEGIN, "eos_token_id": END}
    files = {"config.json": config, "tokenizer.json": tokenizer(),
             "generation_config.json": {"bos_token_id": BEGIN, "eos_token_id": END},
             "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>",
                                       "eos_token": "<|end_of_text|>", "model_max_length": POSITIONS}}
    write_safetensors(os.path.join(directory, "model.safetensors"))
    for name, content in files.items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            json.dump(content, file, ensure_ascii=False)


def read_safetensors(path):
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", 8 + length)
    return {name: data[slice(*entry["data_offsets"])].view(np.uint16).reshape(entry["shape"])
            for name, entry in header.items() if name != "__metadata__"}


def rope_factors():
    """By how much each frequency is divided: the third number of a GGUF's rope, which has no llama3 kind of its own."""
    frequencies = THETA ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turns = ROPE["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high, factor = ROPE["low_freq_factor"], ROPE["high_freq_factor"], ROPE["factor"]
    keep = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - keep) / factor + keep)).astype(np.float32)


def interleave_rotary(weights, heads):
    """Hugging Face rotates halves, GGUF's llama neighbours: the rows of queries and keys change places."""
    return weights.reshape(heads, 2, HEAD_DIM // 2, HIDDEN).swapaxes(1, 2).reshape(weights.shape)


def write_gguf(directory, path, kind):
    import gguf

    dtype = gguf.GGMLQuantizationType[kind.upper()]
    source = read_safetensors(os.path.join(directory, "model.safetensors"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_tensor("rope_freqs.weight", rope_factors())
    for name, theirs, shape in tensors():
        weights = source[name]
        if name.endswith("q_proj.weight"):
            weights = interleave_rotary(weights, HEADS)
        elif name.endswith("k_proj.weight"):
            weights = interleave_rotary(weights, KV_HEADS)
        values = (weights.astype(np.uint32) << 16).view(np.float32)
        if len(shape) == 1:
            writer.add_tensor(theirs, values)
        else:
            writer.add_tensor(theirs, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(arguments):
    if len(arguments) == 2 and arguments[0] in ("hf", "small", "8b"):
        write_hf(arguments[1])
    elif len(arguments) == 4 and arguments[0] == "gguf":
        write_gguf(*arguments[1:])
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
