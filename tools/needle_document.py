"""Long documents with needles in them, for the needle model (needle/make_needle_model.py).

A needle is a sentence "The magic number of WORD is DDDDD."; asked "The magic number of WORD is", the model goes on as the document
did behind the same last four tokens. So that this is one place and no other, a word is a single token, and the numbers of one
document have no four tokens in a row in common.
"""
import os
import random
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "needle"))
import prose  # noqa: E402

def question(word):
    return f"The magic number of {word} is"


def needle(word, number):
    return f" {question(word)} {number}."


def draw_numbers(rng, count):
    """Five-digit numbers that share no four digits in a row, and no first two."""
    numbers, starts, windows = [], set(), set()
    while len(numbers) < count:
        number = str(rng.randrange(10000, 100000))
        own = {number[:4], number[1:]}
        if number[:2] in starts or own & windows or (count > 1 and len(set(number)) < 3):
            continue
        numbers.append(number)
        starts.add(number[:2])
        windows |= own
    return numbers


def draw_words(rng, count, is_single_token):
    words = [word for word in prose.NOUNS if is_single_token(" " + word)]
    if len(words) < count:
        raise RuntimeError(f"only {len(words)} of the nouns are single tokens, and {count} are needed")
    return rng.sample(words, count)


def build(rng, token_count, needles, count_tokens):
    """A text of `token_count` tokens or up to a sentence more, with the needles (word, number) at random places."""
    source = prose.Prose(rng.getrandbits(32))
    sentences = []
    have = sum(count_tokens(needle(*each)) for each in needles)
    while have < token_count:
        # Each sentence begins with its space, where the tokenizer splits, so lengths add up.
        batch = [" " + source.sentence() for _ in range(max(1, (token_count - have) // 60))]
        sentences += batch
        have += count_tokens("".join(batch))
    for each in needles:
        sentences.insert(rng.randrange(len(sentences) + 1), needle(*each))
    return "".join(sentences)


def make(seed, token_count, needle_count, tokens):
    """(text, [(word, number), ...]); tokens(text) gives a text's token ids."""
    rng = random.Random(seed)
    known = {}

    def is_single_token(text):
        if text not in known:
            known[text] = len(tokens(text)) == 1
        return known[text]

    needles = list(zip(draw_words(rng, needle_count, is_single_token), draw_numbers(rng, needle_count)))
    return build(rng, token_count, needles, lambda text: len(tokens(text))), needles
