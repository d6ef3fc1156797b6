"""Trains a small Llama-like model, so that there are keys and queries which nobody drew.

    train_model.py OUT --head-dim 128 --minutes 15 --text FILE...

6 layers, width 256, 4 query heads and 2 KV heads of --head-dim, 4,096 tokens of vocabulary made from the text. Two in
five rows are tasks that only attention to what is far can do: a passage that comes again after other text, or the value
of a key that was told before. Windows grow from 512 over 1,024 to 3,072 tokens. OUT is a Hugging Face directory, bf16.
Needs torch and transformers.
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


def train(model, rows, minutes):
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01), torch.optim.AdamW(others, lr=4e-3, weight_decay=0)]
    rates = [0.02, 4e-3]
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        length = 512 if share < 0.5 else 1024 if share < 0.85 else 3072
        row = rows.draw(max(1, 8192 // length), length)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(row).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), row[:, 1:].flatten())
        loss.backward()
        for optimizer, rate in zip(optimizers, rates):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 50) * (1 if share < 0.6 else max(0.02, (1 - share) / 0.4))
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % 50 == 0:
            print(f"step {step}, {share:.0%}, rows of {length}: loss {loss.item():.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    texts = [open(path, encoding="utf-8", errors="ignore").read() for path in arguments.text]
    random.Random(arguments.seed).shuffle(texts)
    tokenizer = make_tokenizer(texts)
    ids = [token for text in texts for token in tokenizer.encode(text).ids + [0]]
    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=6,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=arguments.head_dim, rope_theta=1e6,
                         max_position_embeddings=131072, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0)
    model = LlamaForCausalLM(config)
    print(f"{len(ids)} tokens of text, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters", flush=True)
    train(model, Rows(ids, tokenizer, arguments.seed), arguments.minutes)
    os.makedirs(arguments.out, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
