"""Looks needles up by retrieval: one document prefilled once, a question for each needle.

usage: retrieval.py HADAL MODEL_DIR [--sizes 32000] [--needles 20] [--selections LIST] [--hot-memory SIZE] [--failing LIST]
                    [--flags FLAGS] [--memory-share X]

LIST is selections with a semicolon between them. Those of --selections have to answer every question, those of --failing not:
the same questions, so that the test shows that it can fail. Each is also asked for eight needles whose numbers begin alike.
With --memory-share, the flags name a cold tier, and no more than that share of the keys and values may lie in memory.
"""
import argparse

import report

report.tools()
import needle_document  # noqa: E402
from needle import complete  # noqa: E402
from server import Server  # noqa: E402

BLOCK = 128
ALIKE = 8


def look_up(server, text, needles, selection):
    """(right answers, tokens computed for each question, selections that the answers name)."""
    right, computed, named = 0, [], set()
    for needle in needles:
        answer, usage = complete(server, {"prompt": text + needle["prompt"], "max_tokens": 6, "temperature": 0,
                                          "hadal": {"selection": selection}}, named)
        right += answer.strip() == needle["number"]
        computed.append(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])
    return right, computed, named


def check(server, document, what, selection, has_to_work):
    text, needles = document
    server.post("/reset_prefix_cache", {})
    right, computed, named = look_up(server, text, needles, selection)
    count = len(needles)
    if has_to_work:
        report.line("3", f"{selection}: {right} of {count} {what}", "all", right == count)
        report.line("3", f"{selection}: at most {max(computed[1:])} tokens computed for each question but the first",
                    f"fewer than {2 * BLOCK}", max(computed[1:]) < 2 * BLOCK)
    else:
        report.line("3", f"{selection}: {right} of {count} {what}", "at most half", 2 * right <= count)
    report.line("3", f"the answers name {', '.join(sorted(named))}", selection, named == {selection})


def check_memory(server, share):
    """Full blocks are on disk, and some of them in memory as well."""
    sizes = server.tiers()
    held, kept = sizes["hot"], max(sizes["hot"], sizes["cold"])
    report.line("3", f"{held / 2**20:.1f} of {kept / 2**20:.1f} MiB of keys and values lie in memory",
                f"at most {share:.0%}", 0 < held <= share * kept)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("--sizes", default="32000")
    parser.add_argument("--needles", type=int, default=20)
    parser.add_argument("--selections", default="retrieval,index=exact,tokens=64;retrieval,index=clusters")
    parser.add_argument("--failing", default="window")
    parser.add_argument("--hot-memory", default="1G")
    parser.add_argument("--flags", default="", help="further flags of the server")
    parser.add_argument("--memory-share", type=float, help="of the keys and values, that may lie in memory")
    options = parser.parse_args()
    flags = ["--model-name", "needle", "--hot-memory", options.hot_memory, "--selection", "auto"] + options.flags.split()
    with Server(options.hadal, options.model, flags) as server:
        for size in map(int, options.sizes.split(",")):
            documents = [(needle_document.draw(options.model, size, options.needles, seed=size), f"needles in {size} tokens"),
                         (needle_document.draw(options.model, size, ALIKE, seed=size + 1, alike=True),
                          f"needles that begin alike in {size} tokens")]
            for document, what in documents:
                for selection in options.selections.split(";"):
                    check(server, document, what, selection, True)
            for selection in filter(None, options.failing.split(";")):
                check(server, *documents[0], selection, False)
            if options.memory_share:
                check_memory(server, options.memory_share)
    report.finish()


if __name__ == "__main__":
    main()
