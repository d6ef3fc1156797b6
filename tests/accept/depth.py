"""Decode at depth by the default selection beside `full` and llama.cpp, in turns, and how far its output is from exact.

usage: depth.py HADAL MODEL_DIR INDEX_DATA [--depth 131072]   (bench/peers.sh install has been run)

INDEX_DATA is a data set of tools/index_data.py with heads of the model's size: its oracle's error is the error allowed.
"""
import argparse
import json
import os
import subprocess

import report

ROOT = report.tools()
MEMORY = ["--hot-memory", "10G", "--index-memory", "4400M"]


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def decode(options, selection):
    output = run(options.hadal, "bench", "decode", options.model, "--log-level", "warn", "--json", "-", "--prefill", "", "--chunk", "0",
                 "--steps", "20", "--depth", str(options.depth), "--selection", selection, *MEMORY)
    return json.loads(output)["decode"][0]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--depth", type=int, default=131072)
    options = parser.parse_args()
    llama = json.loads(run("bash", os.path.join(ROOT, "bench", "peers.sh"), "llama", f"decode-{options.depth}").splitlines()[-1])["median"]
    full, auto = decode(options, "full"), decode(options, "auto")
    oracle = json.loads(run(options.hadal, "bench", "index", "--data", options.data, "--index", "oracle", "--json", "-"))["rows"][0]
    searches = auto["searches"] or {"search_ms": 0.0, "fetch_ms": 0.0}
    attention = auto["attention_ms"] - searches["search_ms"] - searches["fetch_ms"]
    step = auto["step_ms_median"]
    split = (f"search {searches['search_ms']:.1f}, fetch {searches['fetch_ms']:.1f}, attention {attention:.1f}, "
             f"other {step - auto['attention_ms']:.1f}")
    for name, other, factor in (("full", full["step_ms_median"], 2.2), ("llama.cpp", llama, 9.0)):
        ratio = other / step
        report.line("5", f"auto at {options.depth:,}: {step:.1f} ms ({split}), {name} {other:.1f} ms, {ratio:.2f} times",
                    f"at least {factor} times", ratio >= factor)
    for key in ("error_median", "error_p99"):
        report.line("5", f"output {key.replace('_', ' ')}: {auto['output_' + key]:.4f}", f"at most the oracle's, {oracle[key]:.4f}",
                    auto["output_" + key] <= oracle[key])
    report.finish()


if __name__ == "__main__":
    main()
