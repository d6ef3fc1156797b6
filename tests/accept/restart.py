"""Serves a long prompt, ends the server, starts it again with the same cold directory, and asks again.

usage: restart.py HADAL MODEL_DIR [--size 32768] [--least 20] [--hot-memory SIZE] [--warm-memory SIZE] [--cold-size SIZE]

The time to the first token of the same prompt has to be --least times shorter after the restart, and the answer the same. Then
the server is killed while it writes another prompt's blocks; what it finds after that has to be right.
"""
import argparse
import os
import shutil
import signal
import tempfile
import threading
import time

import report

report.tools()
import needle_document  # noqa: E402
from server import Server  # noqa: E402

BLOCK = 128


def ask(server, text, needle):
    """(answer, seconds to the first token, cached tokens, prompt tokens)"""
    start, first, answer, usage = time.monotonic(), None, "", None
    body = {"model": "needle", "prompt": text + needle["prompt"], "max_tokens": 6, "temperature": 0,
            "stream_options": {"include_usage": True}}
    for event in server.stream("/v1/completions", body):
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            if choice["text"] and first is None:
                first = time.monotonic() - start
            answer += choice["text"]
    return answer.strip(), first, usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def kill_while_writing(server, text, needle):
    """Returns how many bytes it had written of that prompt when it was killed."""
    before = server.metric("hadal:cold_written_bytes_total")

    def ask_in_vain():
        try:
            ask(server, text, needle)
        except (OSError, RuntimeError, TypeError, ValueError):
            pass  # it was killed, which is the point

    asking = threading.Thread(target=ask_in_vain)
    asking.start()
    written = before
    deadline = time.monotonic() + 600
    while written == before and time.monotonic() < deadline:
        time.sleep(0.002)
        written = server.metric("hadal:cold_written_bytes_total")
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    asking.join()
    return written - before


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("--size", type=int, default=32768)
    parser.add_argument("--least", type=float, default=20.0)
    parser.add_argument("--hot-memory", default="64M")
    parser.add_argument("--warm-memory", default="1G")
    parser.add_argument("--cold-size", default="2G")
    parser.add_argument("--flags", default="", help="further flags of the server")
    options = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="hadal-restart-")
    flags = ["--model-name", "needle", "--hot-memory", options.hot_memory, "--warm-memory", options.warm_memory,
             "--cold-dir", os.path.join(directory, "kv"), "--cold-size", options.cold_size] + options.flags.split()
    text, [needle] = needle_document.draw(options.model, options.size, 1, seed=options.size)
    other, [other_needle] = needle_document.draw(options.model, options.size, 1, seed=options.size + 1)
    try:
        with Server(options.hadal, options.model, flags) as server:
            answer, cold, cached, tokens = ask(server, text, needle)
            report.line("7", f"{tokens} tokens: answer {answer!r}, {cached} cached", f"{needle['number']}, 0",
                        answer == needle["number"] and cached == 0)
        with Server(options.hadal, options.model, flags) as server:
            answer, warm, cached, _ = ask(server, text, needle)
            report.line("7", f"after a restart: answer {answer!r}, {cached} cached", f"{needle['number']}, all full blocks",
                        answer == needle["number"] and cached >= tokens - 2 * BLOCK)
            report.line("7", f"time to first token {cold:.2f} s, after a restart {warm:.2f} s: {cold / warm:.1f}x",
                        f"at least {options.least:g}x", cold >= options.least * warm)
            written = kill_while_writing(server, other, other_needle)
        with Server(options.hadal, options.model, flags) as server:
            answers = [ask(server, text, needle), ask(server, other, other_needle)]
            right = answers[0][0] == needle["number"] and answers[1][0] == other_needle["number"]
            failures = server.metric("hadal:cold_verify_failures_total")
            report.line("6", f"killed {written / 1e6:.1f} MB into another prompt: answers {[a[0] for a in answers]}, "
                             f"{answers[0][2]} and {answers[1][2]} cached, {failures:.0f} bad pages",
                        "both right, the first prompt cached, no bad pages",
                        right and answers[0][2] >= tokens - 2 * BLOCK and failures == 0)
    finally:
        shutil.rmtree(directory)
    report.finish()


if __name__ == "__main__":
    main()
