"""Decodes behind a context that is many times larger than memory, and compares each step with what it is made of.

usage: offload.py a|b HADAL MODEL_DIR [--depth 1048576] [--selection NAME] [--directory DIR] [--cold-size SIZE]
                  [--hot-memory SIZE] [--warm-memory SIZE] [--index-memory SIZE]

b, from disk: a step may take 1.3 times the larger of two parts of itself: what it computes, and what the disk takes, in the same run,
for the bytes that the step reads at the size of its reads. It may read 4 times the bytes of the tokens that it found and that were in no
memory, and the process may hold its weights and budgets and a tenth more. Memory for indexes is a budget beside the others, and printed.
a, in memory: a step may take 1.5 times a step of 32,768 tokens that attends to all of them.
"""
import argparse
import json
import os
import shutil
import subprocess
import tempfile

import report

SHORT = 32768
MIB = 1 << 20


def size_of(text):
    return int(float(text.rstrip("KMGT")) * 1024 ** (" KMGT".index(text[-1]) if text[-1] in "KMGT" else 0))


def memory(options):
    """Flags; memory for indexes is a part of the hot memory."""
    hot = size_of(options.hot_memory) + size_of(options.index_memory)
    return ["--hot-memory", f"{hot // MIB}M", "--index-memory", options.index_memory, "--warm-memory", options.warm_memory]


def decode(options, flags, directory, depth, selection):
    figures = os.path.join(directory, "figures.json")
    subprocess.run([options.hadal, "bench", "decode", options.model, "--depth", str(depth), "--steps", "8", "--prefill", "", "--chunk", "0",
                    "--max-requests", "2", "--max-batch-tokens", "256", "--selection", selection, "--json", figures, *flags],
                   check=True, stdout=subprocess.DEVNULL)
    with open(figures) as file:
        return json.load(file)["decode"][-1]


def from_disk(options, directory):
    flags = memory(options) + ["--cold-dir", os.path.join(directory, "kv"), "--cold-size", options.cold_size]
    row = decode(options, flags, directory, options.depth, options.selection)
    tiers, step = row["tiers"], row["step_ms_median"]
    computing = step - tiers["wait_ms"]
    least = max(computing, tiers["disk_ms"])
    report.line("1b", f"{options.depth:,} tokens, {options.selection}: step {step:.0f} ms; computing {computing:.0f} ms, "
                      f"{tiers['read_bytes'] / 1e6:.1f} MB in {tiers['reads']:.0f} reads, for which this disk takes "
                      f"{tiers['disk_ms']:.0f} ms ({tiers['disk_reads_per_s']:.0f} a second); "
                      f"{100 * tiers['row_hit_rate']:.0f} % of the tokens found were in memory",
                f"at most {1.3 * least:.0f} ms", step <= 1.3 * least)
    times = tiers["read_bytes"] / tiers["missed_token_bytes"]
    report.line("1b", f"{times:.2f} times the {tiers['missed_token_bytes'] / 1e6:.2f} MB of tokens found and not in memory are read",
                "at most 4 times", times <= 4)
    budgets = size_of(options.hot_memory) + size_of(options.warm_memory) + size_of(options.index_memory)
    weights = os.path.getsize(os.path.join(options.model, "model.safetensors"))
    report.line("1b", f"resident {tiers['resident_bytes'] / 1e6:.0f} MB: weights {weights / 1e6:.0f}, indexes "
                      f"{size_of(options.index_memory) / 1e6:.0f}, hot and warm {(budgets - size_of(options.index_memory)) / 1e6:.0f} MB",
                f"at most {1.1 * (budgets + weights) / 1e6:.0f} MB", tiers["resident_bytes"] <= 1.1 * (budgets + weights))
    print(f"     output error {row['output_error_median']:.4f} median, {row['output_error_p99']:.4f} p99; a search found "
          f"{row['searches']['tokens']:.0f} tokens; indexes built in {row['searches']['ready_s']:.0f} s")


def in_memory(options, directory):
    long = decode(options, memory(options), directory, options.depth, options.selection)["step_ms_median"]
    short = decode(options, ["--hot-memory", options.hot_memory], directory, SHORT, "full")["step_ms_median"]
    report.line("1a", f"{options.depth:,} tokens in memory, {options.selection}: step {long:.0f} ms; {SHORT:,} tokens, full: {short:.0f} ms",
                f"at most {1.5 * short:.0f} ms", long <= 1.5 * short)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["a", "b"])
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("--depth", type=int, default=1048576)
    parser.add_argument("--hot-memory", default="512M", help="without that of indexes")
    parser.add_argument("--warm-memory", default="1536M")
    parser.add_argument("--index-memory", default="2400M")
    parser.add_argument("--selection", default="retrieval,index=clusters")
    parser.add_argument("--directory")
    parser.add_argument("--cold-size", default="14G")
    options = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="hadal-offload-", dir=options.directory)
    try:
        (in_memory if options.part == "a" else from_disk)(options, directory)
    finally:
        shutil.rmtree(directory)
    report.finish()


if __name__ == "__main__":
    main()
