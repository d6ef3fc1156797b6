#!/usr/bin/env python3
"""Write a document of exactly N tokens with K needles, and print what to ask and what the right answers are.

Usage: make_document.py MODEL_DIR --tokens N [--needles K] [--seed S] [--alike] [--out FILE]

A needle is " The magic number of WORD is DDDDD." at a random place between two sentences. The document is made of the
vocabulary of a model that make_needle_model.py wrote, which answers by looking up its last four tokens, so every four
tokens that lead to a digit of an answer occur once; the script checks that. The text goes to FILE (else it is in the
JSON as "document"); JSON on standard output tells

  {"tokens", "seed", "needles": [{"word", "number", "position", "prompt", "question"}]}

position: where the needle starts, in tokens of the document. Two ways to ask, both answered by " DDDDD." and more prose:
  prompt    goes right behind the document in /v1/completions: "... The magic number of WORD is"
  question  begins an assistant message behind a user message with the document: the template leaves the last message
            open, so with add_generation_prompt false the answer continues it.
Without --seed it is random. Needs the standard library alone.
"""
import argparse
import json
import os
import random
import secrets
import sys

from byte_pair import Tokenizer
from prose import ADJECTIVES, NOUNS, Prose

CONTEXT = 4   # tokens that the model compares
TRIES = 20


def needle_text(word, number):
    return f" The magic number of {word} is {number}."


def choose_needles(tokenizer, count, source, are_alike=False):
    """Words of one token each, and numbers whose first two digits differ: then no four tokens lead to two answers.

    are_alike: the first digits are the same, and so are the last three.
    """
    words = [word for word in NOUNS + ADJECTIVES if len(tokenizer.encode_word(" " + word)) == 1]
    if count > min(len(words), 90):
        raise SystemExit(f"at most {min(len(words), 90)} needles have answers of their own")
    if are_alike:
        if count > 10:
            raise SystemExit("at most 10 needles have numbers that begin alike and answers of their own")
        first, end = source.randrange(1, 10), source.randrange(1000)
        digits = source.sample(range(10), count)
        return [(word, f"{first}{digit}{end:03d}") for word, digit in zip(source.sample(words, count), digits)]
    starts = source.sample(range(10, 100), count)
    return [(word, f"{start}{source.randrange(1000):03d}") for word, start in zip(source.sample(words, count), starts)]


def sentences(prose, tokenizer):
    """Sentences as ids, each with the blank before it; endless."""
    while True:
        yield tokenizer.encode(" " + prose.sentence())


def fill(count, tokenizer, prose):
    """Sentences of exactly `count` tokens together; the last one is cut short, with a stop where there is room."""
    parts, left = [], count
    for ids in sentences(prose, tokenizer):
        if len(ids) > left:
            parts.append(ids[:left])
            return parts
        parts.append(ids)
        left -= len(ids)


def followers(ids, wanted):
    """What follows each occurrence of the wanted runs of four tokens."""
    known = {}
    for at, run in enumerate(zip(*(ids[shift:] for shift in range(CONTEXT)))):
        if run in wanted and at + CONTEXT < len(ids):
            known.setdefault(run, set()).add(ids[at + CONTEXT])
    return known


def is_answered(known, prompt, answer):
    """Whether looking up the last four tokens, again and again, gives the answer and nothing else."""
    tail = list(prompt)
    for expected in answer:
        if known.get(tuple(tail[-CONTEXT:])) != {expected}:
            return False
        tail.append(expected)
    return True


def make_document(tokenizer, count, needles, source):
    """The ids of the document and where each needle starts. None: some answer would be ambiguous."""
    texts = [tokenizer.encode(needle_text(word, number)) for word, number in needles]
    parts = fill(count - sum(map(len, texts)), tokenizer, Prose(source.random()))
    # Needles stand before sentences chosen at random; two may stand side by side.
    before = {}
    for index in range(len(texts)):
        before.setdefault(source.randrange(len(parts)), []).append(index)
    ids, positions = [], {}
    for at, part in enumerate(parts):
        for index in before.get(at, ()):
            positions[index] = len(ids)
            ids += texts[index]
        ids += part
    prompts = [tokenizer.encode(f" The magic number of {word} is") for word, _ in needles]
    answers = [tokenizer.encode(f" {number}.") for _, number in needles]
    wanted = {tuple((prompt + answer)[at:at + CONTEXT]) for prompt, answer in zip(prompts, answers)
              for at in range(len(prompt) - CONTEXT, len(prompt) + len(answer) - CONTEXT)}
    known = followers(ids, wanted)
    ambiguous = not all(is_answered(known, prompt, answer) for prompt, answer in zip(prompts, answers))
    return None if ambiguous else (ids, positions)


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model", help="directory with the tokenizer.json of make_needle_model.py")
    arguments.add_argument("--tokens", type=int, required=True)
    arguments.add_argument("--needles", type=int, default=1)
    arguments.add_argument("--seed", type=int)
    arguments.add_argument("--alike", action="store_true", help="numbers that differ in their second digit alone")
    arguments.add_argument("--out", help="file for the text")
    options = arguments.parse_args()
    tokenizer = Tokenizer.from_file(os.path.join(options.model, "tokenizer.json"))
    seed = options.seed if options.seed is not None else secrets.randbits(32)
    source = random.Random(seed)
    needle_tokens = len(tokenizer.encode(needle_text("word", "12345")))
    if options.needles < 0 or options.tokens < 2 * needle_tokens * max(options.needles, 1):
        arguments.error(f"{options.needles} needles need at least {2 * needle_tokens * max(options.needles, 1)} tokens")

    for _ in range(TRIES):
        needles = choose_needles(tokenizer, options.needles, source, options.alike)
        made = make_document(tokenizer, options.tokens, needles, source)
        if made is not None:
            break
    else:
        raise SystemExit(f"none of {TRIES} draws gives every needle an answer of its own")
    ids, positions = made
    document = tokenizer.decode(ids)
    if tokenizer.encode(document) != ids:
        raise SystemExit("the text of the document has other tokens than it was made of")
    report = {"tokens": len(ids), "seed": seed, "needles": [
        {"word": word, "number": number, "position": positions[index], "prompt": f" The magic number of {word} is",
         "question": f"The magic number of {word} is"} for index, (word, number) in enumerate(needles)]}
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            file.write(document)
    else:
        report["document"] = document
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
