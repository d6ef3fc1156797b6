"""Trains a small Llama-like model, so that there are keys and queries which nobody drew.

    train_model.py OUT --head-dim 64 --minutes 60 --text FILE...
    train_model.py OUT --from DIR --minutes 20 --text FILE...        goes on from one, with heads twice as wide

6 layers, width 256, 4 query heads and 2 KV heads of --head-dim, 4,096 tokens of vocabulary made from the text. Two in
five rows are tasks that only attention to what is far can do: a passage that comes again after other text, or the value
of a key that was told before. Rows are of 512 tokens, and of 2,048 in the last third. OUT is a Hugging Face directory, bf16.
With --from, each pair of rotated coordinates gets a neighbour at the frequency between: scores begin as they were, and
training finds a use for what was added. Needs torch and transformers.
"""
import argparse
import os
import random
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 4096
END = "<|end_of_text|>"


def make_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator((text[:60000] for text in texts[:250]), trainer)
    return tokenizer


class Rows:
    """Rows of so many tokens: text as it is, or a task made from it."""

    def __init__(self, ids, tokenizer, seed):
        self.ids, self.tokenizer, self.random = ids, tokenizer, random.Random(seed)
        words = (tokenizer.decode([i]).strip() for i in range(600, VOCABULARY))
        self.words = sorted({word for word in words if word.isascii() and word.isalpha() and 3 < len(word) < 9})

    def passage(self, length):
        first = self.random.randrange(len(self.ids) - length)
        return self.ids[first : first + length]

    def repeated(self, length):
        passage = self.passage(self.random.randrange(16, min(200, length // 4)))
        row = []
        while len(row) < length:
            row += passage + self.passage(self.random.randrange(1, length // 3))
        return row[:length]

    def looked_up(self, length):
        facts = [f" The number of {word} is {self.random.randrange(100, 10**5)}."
                 for word in self.random.sample(self.words, self.random.randrange(2, 10))]
        facts = [self.tokenizer.encode(fact).ids for fact in facts]
        asked = self.random.sample(facts, self.random.randrange(1, len(facts)))
        room = length - sum(map(len, facts + asked))
        row, rest = [], self.passage(room)
        for cut, fact in zip(sorted(self.random.sample(range(room), len(facts))), facts):
            row += rest[: cut - room + len(rest)] + fact
            rest = rest[cut - room + len(rest) :]
        return row + rest + sum(asked, [])

    def draw(self, count, length):
        kinds = self.random.choices([self.passage, self.repeated, self.looked_up], [0.6, 0.15, 0.25], k=count)
        return torch.tensor([kind(length) for kind in kinds])


def widen_rotated(weights, share):
    """Rows of heads: the i-th pair of coordinates becomes pair 2 i of twice as many, and keeps its frequency."""
    heads, dim, width = weights.shape
    wide = weights.std() * share * torch.randn(heads, 2 * dim, width)
    wide[:, 0:dim:2] = weights[:, : dim // 2] * 2**0.25  # scores are divided by the root of a dim twice as large
    wide[:, dim::2] = weights[:, dim // 2 :] * 2**0.25
    return wide


def widen(narrow):
    config = LlamaConfig(**{**narrow.config.to_dict(), "head_dim": 2 * narrow.config.head_dim})
    model, dim = LlamaForCausalLM(config), narrow.config.head_dim
    weights, width = {name: value.float() for name, value in narrow.state_dict().items()}, config.hidden_size
    for name, value in weights.items():
        heads = value.shape[1] // dim if "o_proj" in name else value.shape[0] // dim
        if "q_proj" in name or "k_proj" in name:
            share = 0.3 if "q_proj" in name else 1.0
            weights[name] = widen_rotated(value.view(heads, dim, width), share).flatten(0, 1)
        elif "v_proj" in name:
            rows = value.view(heads, dim, width)
            weights[name] = torch.cat([rows, value.std() * torch.randn_like(rows)], 1).flatten(0, 1)
        elif "o_proj" in name:
            columns = value.view(width, heads, dim)
            weights[name] = torch.cat([columns, torch.zeros_like(columns)], 2).flatten(1)
    model.load_state_dict(weights)
    return model


def train(model, rows, minutes, rate):
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01)
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        length = 512 if share < 2 / 3 else 2048
        row = rows.draw(2048 // length, length)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(row).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), row[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 50) * (1 if share < 0.6 else max(0.02, (1 - share) / 0.4))
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 20 == 0:
            print(f"step {step}, {share:.0%}, rows of {length}: loss {loss.item():.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--from", dest="narrow", metavar="DIR")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    texts = [open(path, encoding="utf-8", errors="ignore").read() for path in arguments.text]
    random.Random(arguments.seed).shuffle(texts)
    if arguments.narrow:
        tokenizer = Tokenizer.from_file(os.path.join(arguments.narrow, "tokenizer.json"))
        model = widen(LlamaForCausalLM.from_pretrained(arguments.narrow, dtype=torch.float32))
    else:
        tokenizer = make_tokenizer(texts)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
            num_key_value_heads=2, head_dim=arguments.head_dim, rope_theta=1e6, max_position_embeddings=131072,
            tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
    ids = [token for text in texts for token in tokenizer.encode(text[:100000], add_special_tokens=False).ids + [0]]
    print(f"{len(ids)} tokens of text, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters", flush=True)
    train(model, Rows(ids, tokenizer, arguments.seed), arguments.minutes, 1e-3 if arguments.narrow else 2e-3)
    os.makedirs(arguments.out, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
