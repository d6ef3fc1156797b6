"""Hadal beside other engines, piece by piece in turns, so that a machine whose speed drifts slows both alike.

usage: speed.py HADAL LOG_DIRECTORY [PIECE...]   (bench/peers.sh install has been run)

Pieces: prefill chunk decode-0 decode-32768 decode-131072 batch int8 kernels memory. Without one, all.
"""
import json
import os
import signal
import subprocess
import sys

import report

ROOT = report.tools()
from server import Server  # noqa: E402

MODEL = os.path.join(ROOT, "build", "models", "llama-1b")
KV_BYTES_PER_TOKEN = 16 * 2 * 8 * 64 * 2


class PeerFailed(Exception):
    pass


def peer(engine, piece):
    """The median of a peer's measurement, in its own unit."""
    command = ["bash", os.path.join(ROOT, "bench", "peers.sh"), engine, piece]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode == 0:
        return json.loads(run.stdout.splitlines()[-1])["median"]
    code = run.returncode if run.returncode >= 0 else 128 - run.returncode
    how = signal.Signals(code - 128).name if code > 128 else f"exit code {code}"
    last = (run.stderr.splitlines() or [""])[-1]
    raise PeerFailed(f"{engine} {piece} failed ({how}): {last}")


def ours(*flags):
    """The report of one `hadal bench decode`, every token attended to as the other engines do."""
    command = [HADAL, "bench", "decode", MODEL, "--selection", "full", "--log-level", "warn", "--json", "-", *flags]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(what, figure, unit, engine, other, factor):
    """Both as speeds: more is better."""
    ratio = figure / other
    report.line("5", f"{what}: {figure:.2f} {unit}, {engine} {other:.2f}, {ratio:.2f} times", f"at least {factor:.1f} times", ratio >= factor)


def prefill():
    for engine, factor in (("llama", 2.0), ("transformers", 1.2)):
        other = peer(engine, "prefill-4096")
        rate = ours("--depth", "", "--prefill", "4096")["prefill"][0]["tokens_per_s"]
        compare("prefill of 4,096 tokens", rate, "tokens/s", engine, other, factor)


def decode(depth, factor):
    other = 1000 / peer("llama", f"decode-{depth}")
    rate = ours("--depth", str(depth), "--prefill", "", "--chunk", "0")["decode"][0]["tokens_per_s"]
    compare(f"decode at depth {depth:,}", rate, "tokens/s", "llama", other, factor)


def chunk():
    other = peer("llama", "chunk-32768")
    rate = ours("--depth", "32768", "--prefill", "", "--chunk", "256", "--steps", "3")["chunks"][0]["tokens_per_s"]
    compare("256 tokens at depth 32,768", rate, "tokens/s", "llama", other, 4.0)


def batch():
    other = peer("llama", "batch-8")
    rate = ours("--depth", "4096", "--batch", "8", "--prefill", "", "--chunk", "0")["decode"][0]["tokens_per_s"]
    compare("batch of 8 at depth 4,096", rate, "tokens/s", "llama", other, 2.5)


def int8():
    other = 1000 / peer("llama", "q8-decode-0")
    rate = ours("--weights", "int8", "--depth", "0", "--prefill", "", "--chunk", "0")["decode"][0]["tokens_per_s"]
    compare("decode at depth 0, int8 beside q8_0", rate, "tokens/s", "llama", other, 1.0)


def kernels():
    path = os.path.join(LOGS, "kernels.json")
    subprocess.run([HADAL, "bench", "kernels", "--json", path], check=True, stdout=subprocess.DEVNULL)
    rows = report.load(path)["rows"]

    def each(prefix, field, what, least):
        chosen = [row for row in rows if row["name"].startswith(prefix) and field in row]
        for row in chosen:
            report.line("5", f"{row['name']}: {100 * row[field]:.0f} % of {what}", f"at least {100 * least:.0f} %", row[field] >= least)
        report.line("5", f"{len(chosen)} kernels '{prefix}'", "at least 1", bool(chosen))

    each("decode attention", "share", "read bandwidth", 0.8)
    each("prefill attention", "share", "bf16 peak", 0.6)
    each("matmul bf16", "speed_against_onednn", "oneDNN", 0.9)


def memory():
    """Peak memory of a server that has loaded the model and answered a long prompt."""
    tokens = 8192
    with Server(HADAL, MODEL, ["--model-name", "m"]) as server:
        server.post("/v1/completions", {"model": "m", "prompt": [1 + index % 200 for index in range(tokens)], "max_tokens": 8,
                                        "ignore_eos": True})
        peak = server.memory("VmHWM")
    needed = os.path.getsize(os.path.join(MODEL, "model.safetensors")) + (tokens + 8) * KV_BYTES_PER_TOKEN
    report.line("5", f"peak memory {peak / 2**20:.0f} MiB, weights and KV {needed / 2**20:.0f} MiB", "at most 15 % more", peak <= 1.15 * needed)


PIECES = {"prefill": prefill, "chunk": chunk, "decode-0": lambda: decode(0, 1.0), "decode-32768": lambda: decode(32768, 2.0),
          "decode-131072": lambda: decode(131072, 3.5), "batch": batch, "int8": int8, "kernels": kernels, "memory": memory}

if __name__ == "__main__":
    HADAL, LOGS = sys.argv[1:3]
    for name in sys.argv[3:] or PIECES:
        try:
            PIECES[name]()
        except PeerFailed as failure:
            report.line("5", str(failure), "a figure to compare with", False)
    report.finish()
