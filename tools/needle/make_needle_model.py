#!/usr/bin/env python3
"""Write a Llama model whose answers at any distance are right by construction: nothing is trained.

Usage: make_needle_model.py OUT_DIR [--ood X] [--dtype bfloat16|float32]

The model continues a text the way an earlier occurrence of its last four tokens went on, from up to two million tokens
away. So " The magic number of WORD is" is answered by the number that followed those words in the document, and any
mistake of a server on the way (a lost page, a wrong position, a key that a selection should have kept) shows in the text.

How it works. Every token has a code of +-1: a word of the extended Golay code [24,12,8], whose 4,096 words differ in at
least 8 places, hence the vocabulary of 4,096. The residual stream holds, one after another, the code of the token, the
codes of the four tokens before it, the code of the answer, a constant and a part that nothing reads. Four layers:

  layer 0  heads 0-3 copy the codes of the 1st to 4th previous token: the query and key are constants, and the rotary
           angles of the fast dimensions single out one distance each. Heads 4-7 look at the first token only.
  layer 1  diffuse heads with small random queries and keys: attention as spread as in real models. Nobody reads it.
  layer 2  heads 0-3 compare (token, 3 before) of the query with (4 before) of every key and copy the token found there to
           the answer. Heads 4-7 are diffuse.
  layer 3  diffuse heads.

The rotary base is 1e30, so that most dimensions turn less than 0.05 rad in a million tokens and carry codes; the few fast
ones carry positions. Four matching tokens score 4, three at most 3.34, and the query's gain of 60 makes that
difference decisive among millions of keys: to lose the one right key is to lose the answer.

--ood X adds to the keys of the retrieval head a component of size X that depends on the token and lies in dimensions
that no query uses. The answer stays the same, but keys and queries then come from different distributions, as in trained
models, and an index that compares keys with keys finds the wrong ones. The default is 2; 0 turns it off.

Needs numpy alone. The vocabulary is learnt from the prose that prose.py generates.
"""
import argparse
import json
import os

import numpy as np

from byte_pair import train
from prose import ADJECTIVES, NOUNS, Prose

CODE = 24                # places of a code word
NGRAM = 4                # tokens that have to match
HEAD = 128               # head dimension
PAIRS = HEAD // 2        # rotary pairs: dimension i turns with i + PAIRS
FAST = 16                # pairs that turn visibly from one token to the next
HIDDEN, HEADS, KV_HEADS, FFN, LAYERS, VOCABULARY = 256, 8, 2, 512, 4, 4096
GROUP = HEADS // KV_HEADS
ROPE_BASE = 1e30
POSITIONS = 1 << 21
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
BEGIN, END, TURN_END, PAD = 0, 1, 4, 5

# Where things lie in the residual stream.
TOKEN = 0
PREVIOUS = TOKEN + CODE
ANSWER = PREVIOUS + NGRAM * CODE
CONSTANT = ANSWER + CODE
UNREAD = CONSTANT + 1
CONSTANT_VALUE = 8.0

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<|user|>{% else %}<|assistant|>{% endif %}"
    "{{ message.content }}{% if not loop.last or message.role == 'user' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def training_text():
    """Prose, and the words of the needles often enough that each is one token: the model looks back four tokens only."""
    needles = "".join(f" The magic number of {word} is." for word in NOUNS + ADJECTIVES)
    return Prose("vocabulary").text(1 << 20) + 8 * needles


def golay_codes():
    """All words of the extended Golay code as rows of +-1, in a fixed random order."""
    generator = np.zeros((12, CODE), int)
    for row in range(12):
        generator[row, row:row + 12] = [1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1]
        generator[row, CODE - 1] = 1                                      # parity
    messages = (np.arange(VOCABULARY)[:, None] >> np.arange(12)) & 1
    words = messages @ generator % 2
    assert words[1:].sum(1).min() == 8
    return (1.0 - 2.0 * words)[np.random.default_rng(7).permutation(VOCABULARY)]


class Layer:
    """The projections of one layer, zero at first; the feed-forward part writes to the unread dimensions only."""

    def __init__(self, random, gain):
        self.random, self.gain = random, gain    # gain: what the norm before this layer multiplies by
        self.q = np.zeros((HEADS * HEAD, HIDDEN))
        self.k = np.zeros((KV_HEADS * HEAD, HIDDEN))
        self.v = np.zeros((KV_HEADS * HEAD, HIDDEN))
        self.o = np.zeros((HIDDEN, HEADS * HEAD))
        self.ffn_gate = random.normal(0, 0.02, (FFN, HIDDEN))
        self.ffn_up = random.normal(0, 0.02, (FFN, HIDDEN))
        self.ffn_down = np.zeros((HIDDEN, FFN))
        self.ffn_down[UNREAD:] = random.normal(0, 0.02, (HIDDEN - UNREAD, FFN))

    def write_unread(self, head):
        self.o[UNREAD:, head * HEAD:(head + 1) * HEAD] = self.random.normal(0, 0.01, (HIDDEN - UNREAD, HEAD))

    def add_diffuse_heads(self, kv_head):
        """Small random queries and keys over what the stream holds."""
        rows = slice(kv_head * HEAD, (kv_head + 1) * HEAD)
        self.k[rows, :UNREAD] = self.random.normal(0, 0.15, (HEAD, UNREAD)) / self.gain
        for head in range(kv_head * GROUP, (kv_head + 1) * GROUP):
            self.q[head * HEAD:(head + 1) * HEAD, :UNREAD] = self.random.normal(0, 0.15, (HEAD, UNREAD)) / self.gain
            self.write_unread(head)
        self.v[rows, :UNREAD] = self.random.normal(0, 0.05, (HEAD, UNREAD)) / self.gain

    def tensors(self, index):
        names = {"self_attn.q_proj": self.q, "self_attn.k_proj": self.k, "self_attn.v_proj": self.v, "self_attn.o_proj": self.o,
                 "mlp.gate_proj": self.ffn_gate, "mlp.up_proj": self.ffn_up, "mlp.down_proj": self.ffn_down,
                 "input_layernorm": np.ones(HIDDEN), "post_attention_layernorm": np.ones(HIDDEN)}
        return {f"model.layers.{index}.{name}.weight": values for name, values in names.items()}


SLOW_DIMENSIONS = np.r_[FAST:PAIRS, PAIRS + FAST:HEAD]
FAST_DIMENSIONS = np.r_[:FAST, PAIRS:PAIRS + FAST]
PLACES = np.arange(CODE)


def add_previous_token_heads(layer):
    """Heads 0-3: attention to the token at distance 1, 2, 3 and 4, whatever it is."""
    frequencies = ROPE_BASE ** (-np.arange(FAST) / PAIRS)
    amplitude = np.sqrt(np.array([40, 16, 8, 6, 4, 4, 4, 4, 4, 4, 3, 3, 2, 2, 2, 2.0]))
    sharpness = np.sqrt(3.0 * np.sqrt(HEAD))
    constant = CONSTANT_VALUE * layer.gain
    layer.k[np.arange(FAST), CONSTANT] = sharpness * amplitude / constant
    for head in range(NGRAM):
        # The query is the key turned back by `head + 1` positions, so their product peaks at that distance.
        angle = (head + 1) * frequencies
        layer.q[head * HEAD + np.arange(FAST), CONSTANT] = sharpness * amplitude * np.cos(angle) / constant
        layer.q[head * HEAD + PAIRS + np.arange(FAST), CONSTANT] = -sharpness * amplitude * np.sin(angle) / constant
        layer.o[PREVIOUS + head * CODE + PLACES, head * HEAD + PLACES] = 1
    layer.v[PLACES, TOKEN + PLACES] = 1 / layer.gain


def add_sink_heads(layer, first_code):
    """Heads 4-7: all attention on the first token, as many heads of trained models do."""
    dimensions = SLOW_DIMENSIONS[:CODE]
    layer.k[HEAD + dimensions, TOKEN + PLACES] = 1 / layer.gain
    for head in range(GROUP, HEADS):
        layer.q[head * HEAD + dimensions, CONSTANT] = first_code * 40 * np.sqrt(HEAD) / CODE / (CONSTANT_VALUE * layer.gain)
        layer.write_unread(head)
    layer.v[HEAD:2 * HEAD, :CODE] = layer.random.normal(0, 0.05, (HEAD, CODE)) / layer.gain


def add_retrieval_heads(layer, ood):
    """Heads 0-3: the last four tokens against the four before every position; the token found there is the answer."""
    match_gain = 60 * np.sqrt(HEAD) / CODE
    for place in range(NGRAM):
        dimensions = SLOW_DIMENSIONS[place * CODE:(place + 1) * CODE]
        layer.k[dimensions, PREVIOUS + place * CODE + PLACES] = 1 / layer.gain
        asked = TOKEN if place == 0 else PREVIOUS + (place - 1) * CODE
        for head in range(GROUP):
            layer.q[head * HEAD + dimensions, asked + PLACES] = match_gain / layer.gain
    if ood:
        mix = layer.random.normal(0, 1, (FAST_DIMENSIONS.size, CODE)) / np.sqrt(CODE)
        mix *= np.sqrt(NGRAM * CODE / FAST_DIMENSIONS.size)
        layer.k[FAST_DIMENSIONS[:, None], TOKEN + PLACES] = ood * mix / layer.gain
    layer.v[PLACES, TOKEN + PLACES] = 1 / layer.gain
    # One of the four equal heads writes; the others make the group as wide as in real models.
    layer.o[ANSWER + PLACES, PLACES] = 1


def build(ood):
    """All tensors by name, in f64."""
    random = np.random.default_rng(11)
    codes = golay_codes()
    embedding = np.zeros((VOCABULARY, HIDDEN))
    embedding[:, TOKEN:TOKEN + CODE] = codes
    embedding[:, CONSTANT] = CONSTANT_VALUE
    head = np.zeros((VOCABULARY, HIDDEN))
    head[:, ANSWER:ANSWER + CODE] = codes
    tensors = {"model.embed_tokens.weight": embedding, "model.norm.weight": np.ones(HIDDEN), "lm_head.weight": head}

    # RMSNorm multiplies by sqrt(HIDDEN / squared norm): the constant and one code, then four more codes.
    first_norm = CODE + CONSTANT_VALUE ** 2
    gains = [np.sqrt(HIDDEN / first_norm)] + 3 * [np.sqrt(HIDDEN / (first_norm + NGRAM * CODE))]
    layers = [Layer(random, gain) for gain in gains]
    add_previous_token_heads(layers[0])
    add_sink_heads(layers[0], codes[BEGIN])
    add_retrieval_heads(layers[2], ood)
    for index, kv_head in ((1, 0), (1, 1), (2, 1), (3, 0), (3, 1)):
        layers[index].add_diffuse_heads(kv_head)
    for index, layer in enumerate(layers):
        tensors.update(layer.tensors(index))
    return tensors


def to_bytes(values, dtype):
    """Little-endian f32, or bf16 rounded to nearest even."""
    f32 = np.ascontiguousarray(values, "<f4")
    if dtype == "float32":
        return f32.tobytes()
    bits = f32.view("<u4")
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def write_safetensors(path, tensors, dtype):
    """The header is JSON behind its length; the data follows in the same order."""
    header, blobs, at = {"__metadata__": {"format": "pt"}}, [], 0
    for name, values in tensors.items():
        blob = to_bytes(values, dtype)
        header[name] = {"dtype": {"float32": "F32", "bfloat16": "BF16"}[dtype], "shape": list(values.shape),
                        "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(blobs)


def write_json(directory, name, content):
    with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("out")
    arguments.add_argument("--ood", type=float, default=2.0, help="size of the keys' part that no query uses; 0: none")
    arguments.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    options = arguments.parse_args()
    os.makedirs(options.out, exist_ok=True)
    write_json(options.out, "tokenizer.json", train(training_text(), SPECIAL, VOCABULARY).to_json())
    write_json(options.out, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": SPECIAL[BEGIN], "eos_token": SPECIAL[END],
        "pad_token": SPECIAL[PAD], "model_max_length": POSITIONS, "chat_template": TEMPLATE})
    write_json(options.out, "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "vocab_size": VOCABULARY, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": ROPE_BASE,
        "max_position_embeddings": POSITIONS, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD, "torch_dtype": options.dtype})
    write_json(options.out, "generation_config.json", {"bos_token_id": BEGIN, "eos_token_id": [END, TURN_END]})
    write_safetensors(os.path.join(options.out, "model.safetensors"), build(options.ood), options.dtype)


if __name__ == "__main__":
    main()
