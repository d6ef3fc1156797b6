"""A byte-level BPE tokenizer in the format of tokenizer.json: trained, written, read and applied with the standard library alone.

It exists so that the demo needs no Python package for text. For the pre-tokenizer that it writes, its ids are those of
the `tokenizers` library; it reads no other tokenizer.json.
"""
import collections
import json
import re

# One digit is one word, so every number is spelt alike; Oniguruma's classes on the left, Python's on the right.
PATTERN = r"\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
WORDS = re.compile(r"\d| ?[^\W\d_]+| ?(?:_|[^\s\w])+|\s+(?!\S)|\s+")


def byte_characters():
    """The printable character that stands for each byte in a byte-level vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in characters)
    characters.update({byte: chr(0x100 + index) for index, byte in enumerate(others)})
    return characters


CHARACTERS = byte_characters()


def spell(word):
    return [CHARACTERS[byte] for byte in word.encode()]


class Tokenizer:
    def __init__(self, special, merges):
        self.special = list(special)
        self.merges = [tuple(merge) for merge in merges]
        entries = self.special + sorted(CHARACTERS.values()) + [left + right for left, right in self.merges]
        self.ids = {entry: index for index, entry in enumerate(entries)}
        self.texts = {index: entry for entry, index in self.ids.items()}
        self.ranks = {merge: rank for rank, merge in enumerate(self.merges)}
        self.known = {}
        self.specials = re.compile("(" + "|".join(map(re.escape, self.special)) + ")")

    def encode_word(self, word):
        if word not in self.known:
            symbols = spell(word)
            while len(symbols) > 1:
                pairs = [(self.ranks.get(pair, len(self.ranks)), at) for at, pair in enumerate(zip(symbols, symbols[1:]))]
                rank, at = min(pairs)
                if rank == len(self.ranks):
                    break
                symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
            self.known[word] = [self.ids[symbol] for symbol in symbols]
        return self.known[word]

    def encode(self, text):
        ids = []
        for part in self.specials.split(text):
            if part in self.ids and part in self.special:
                ids.append(self.ids[part])
            else:
                for word in WORDS.findall(part):
                    ids += self.encode_word(word)
        return ids

    def decode(self, ids):
        bytes_of = {character: byte for byte, character in CHARACTERS.items()}
        out = bytearray()
        for index in ids:
            entry = self.texts[index]
            out += entry.encode() if entry in self.special else bytes(bytes_of[character] for character in entry)
        return out.decode(errors="replace")

    def to_json(self):
        added = [{"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
                  "normalized": False, "special": True} for index, content in enumerate(self.special)]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        return {
            "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}, byte_level]},
            "post_processor": None,
            "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": self.ids, "merges": [list(merge) for merge in self.merges]},
        }

    @classmethod
    def from_file(cls, path):
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
        if data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] != PATTERN:
            raise SystemExit(f"{path}: not a tokenizer that make_needle_model.py wrote")
        special = [token["content"] for token in sorted(data["added_tokens"], key=lambda token: token["id"])]
        return cls(special, data["model"]["merges"])


def train(text, special, size):
    """The tokenizer of exactly `size` entries that merges the most frequent pair first; ties go by the pair itself."""
    words = [[spell(word), count] for word, count in sorted(collections.Counter(WORDS.findall(text)).items())]
    counts, places = collections.Counter(), collections.defaultdict(set)
    for index, (symbols, count) in enumerate(words):
        for pair in zip(symbols, symbols[1:]):
            counts[pair] += count
            places[pair].add(index)
    merges = []
    while len(special) + len(CHARACTERS) + len(merges) < size:
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] <= 0:
            raise SystemExit(f"the text has too few different words for a vocabulary of {size}")
        merges.append(best)
        for index in list(places[best]):
            symbols, count = words[index]
            for pair in zip(symbols, symbols[1:]):
                counts[pair] -= count
                places[pair].discard(index)
            at = 0
            while at < len(symbols) - 1:
                if (symbols[at], symbols[at + 1]) == best:
                    symbols[at:at + 2] = [symbols[at] + symbols[at + 1]]
                at += 1
            for pair in zip(symbols, symbols[1:]):
                counts[pair] += count
                places[pair].add(index)
        del counts[best]
    return Tokenizer(special, merges)
