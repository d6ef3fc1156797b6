"""Looks needles up in long documents, and compares streams that run together with the same alone.

usage: needle.py HADAL MODEL_DIR [--sizes 4000,16000,32000] [--needles 20] [--streams 64] [--longest 8000]
"""
import argparse
import concurrent.futures
import random

import report

report.tools()
import needle_document  # noqa: E402
from server import Server  # noqa: E402

BLOCK = 128


def complete(server, body, selections=None):
    """(text, usage) of a streamed completion; adds the selections that made it to a set."""
    text, usage = "", None
    for event in server.stream("/v1/completions", {"model": "needle", "stream_options": {"include_usage": True}, **body}):
        if "error" in event:
            raise RuntimeError(f"the stream ended with {event['error']}")
        usage = event.get("usage") or usage
        text += "".join(choice["text"] for choice in event["choices"])
        if selections is not None and "hadal" in event:
            selections.add(event["hadal"]["selection"])
    return text, usage


def look_up(server, model, size, needle_count):
    """One document is prefilled once; each question reuses it and gets its own answer."""
    server.post("/reset_prefix_cache", {})
    text, needles = needle_document.draw(model, size, needle_count, seed=size)
    right, computed = 0, []
    for needle in needles:
        answer, usage = complete(server, {"prompt": text + needle["prompt"], "max_tokens": 6, "temperature": 0})
        is_right = answer.strip() == needle["number"]
        right += is_right
        computed.append(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
        if not is_right:
            print(f"    {needle['prompt']}: {answer!r} instead of {needle['number']}")
    report.line("4", f"{right} of {needle_count} needles in {size} tokens", "all", right == needle_count)
    # What is not whole blocks of the document, and the question, has to be computed each time.
    most = max(computed[1:])
    report.line("4", f"tokens computed: {computed[0]} for the first question, at most {most} for each other",
                f"{size} or more, then fewer than {2 * BLOCK}", computed[0] >= size and most < 2 * BLOCK)


def make_streams(model, count, longest):
    """Requests of mixed lengths, every other one drawn from a seed; some ask for a needle of their own document."""
    rng = random.Random(count)
    streams = []
    for index in range(count):
        size = int(32 * (longest / 32) ** rng.random())
        text, [needle] = needle_document.draw(model, max(size, 40), seed=1000 + index)
        body = {"prompt": text + needle["prompt"], "max_tokens": rng.randrange(8, 80), "ignore_eos": True}
        body.update({"temperature": 0} if index % 2 == 0 else {"temperature": 2, "seed": index, "top_p": 0.95})
        streams.append(body)
    return streams


def together(server, streams):
    with concurrent.futures.ThreadPoolExecutor(len(streams)) as pool:
        return list(pool.map(lambda body: complete(server, body)[0], streams))


def same_alone(server, model, count, longest):
    streams = make_streams(model, count, longest)
    server.post("/reset_prefix_cache", {})
    crowd = together(server, streams)
    server.post("/reset_prefix_cache", {})
    alone = [complete(server, body)[0] for body in streams]
    for kind, parity in (("greedy", 0), ("seeded", 1)):
        pairs = list(zip(crowd, alone))[parity::2]
        same = sum(a == b for a, b in pairs)
        report.line("4", f"{same} of {len(pairs)} {kind} streams give the same text among {count} as alone", "all", same == len(pairs))
    # Draws that hardly differ would prove nothing.
    different = len(set(alone[1::2]))
    report.line("4", f"{different} different texts of {len(alone[1::2])} seeded streams", "at least nine tenths",
                different >= 0.9 * len(alone[1::2]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("--sizes", default="4000,16000,32000")
    parser.add_argument("--needles", type=int, default=20)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--longest", type=int, default=8000)
    options = parser.parse_args()
    with Server(options.hadal, options.model, ["--model-name", "needle", "--hot-memory", "2G"]) as server:
        for size in options.sizes.split(","):
            look_up(server, options.model, int(size), options.needles)
        same_alone(server, options.model, options.streams, options.longest)
    report.finish()


if __name__ == "__main__":
    main()
