"""Decodes behind a context that is many times larger than memory, and compares each step with what the disk can do.

usage: offload.py HADAL MODEL_DIR [--depth 1048576] [--hot-memory 512M] [--warm-memory 1536M] [--selection NAME]
                  [--directory DIR] [--cold-size SIZE] [--index-memory SIZE]

A step may take 1.3 times the larger of its time with all keys and values in memory and of the time that the disk takes for what it
reads, at the size of its reads; it may read 4 times the bytes of the tokens that it found and that were not in memory. With all of
them in memory (--in-memory) it may take 1.5 times a step of 32,768 tokens that attends to all. And the process may hold its weights
and budgets and a tenth more.
"""
import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time

import report

SHORT = 32768
AT_ONCE = 16  # reads


def disk_rate(path, piece, seconds=5.0):
    """Bytes a second of reads of that size past the page cache, scattered, several at once."""
    import mmap
    import threading
    size = os.path.getsize(path)
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    total, end = [0] * AT_ONCE, time.monotonic() + seconds

    def read(index):
        room, at = mmap.mmap(-1, piece), index * (size // AT_ONCE) // piece * piece
        while time.monotonic() < end:
            total[index] += os.preadv(file, [room], at)
            at = (at + 7919 * piece) % (size - piece) // piece * piece

    threads = [threading.Thread(target=read, args=(i,)) for i in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(file)
    return sum(total) / seconds


def size_of(text):
    return int(float(text.rstrip("KMGT")) * 1024 ** (" KMGT".index(text[-1]) if text[-1] in "KMGT" else 0))


def decode(options, flags, directory, depth=None, selection=None):
    figures = os.path.join(directory, "figures.json")
    command = [options.hadal, "bench", "decode", options.model, "--depth", str(depth or options.depth), "--steps", "8", "--prefill", "",
               "--chunk", "0", "--max-requests", "4", "--selection", selection or options.selection, "--json", figures, *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with open(figures) as file:
        return json.load(file)["decode"][-1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("--depth", type=int, default=1048576)
    parser.add_argument("--hot-memory", default="512M")
    parser.add_argument("--warm-memory", default="1536M")
    parser.add_argument("--index-memory", default="128M", help="of the hot memory")
    parser.add_argument("--selection", default="retrieval,index=clusters")
    parser.add_argument("--directory")
    parser.add_argument("--cold-size", default="40G")
    parser.add_argument("--in-memory", default="", help="flags of a run with everything in memory, for the time of computing")
    options = parser.parse_args()
    directory = tempfile.mkdtemp(prefix="hadal-offload-", dir=options.directory)
    try:
        cold = decode(options, ["--hot-memory", options.hot_memory, "--warm-memory", options.warm_memory, "--index-memory",
                                options.index_memory, "--cold-dir", os.path.join(directory, "kv"), "--cold-size",
                                options.cold_size], directory)
        tiers, step = cold["tiers"], cold["step_ms_median"]
        # A page is a read of its own where its neighbours are not wanted, too.
        piece = max(512, round(tiers["read_bytes"] / max(tiers["page_misses"], 1) / 512) * 512)
        rate = disk_rate(os.path.join(directory, "kv", "pages"), piece)
        shutil.rmtree(os.path.join(directory, "kv"))
        computing = decode(options, options.in_memory.split(), directory)["step_ms_median"] if options.in_memory else \
            cold["other_ms"]
        disk_ms = 1e3 * tiers["read_bytes"] / rate
        least = max(computing, disk_ms)
        report.line("1b", f"{options.depth} tokens, {options.selection}: step {step:.0f} ms; computing {computing:.0f} ms, "
                          f"{tiers['read_bytes'] / 1e6:.1f} MB from a disk of {rate / 1e9:.2f} GB/s at {piece} bytes {disk_ms:.0f} ms; "
                          f"{100 * tiers['page_hit_rate']:.0f} % of cold pages in memory",
                    f"at most {1.3 * least:.0f} ms", step <= 1.3 * least)
        if tiers["missed_token_bytes"] > 0:
            times = tiers["read_bytes"] / tiers["missed_token_bytes"]
            report.line("1b", f"{times:.1f} times the {tiers['missed_token_bytes'] / 1e6:.2f} MB of tokens found and not in memory "
                              "are read", "at most 4 times", times <= 4)
        budgets = sum(size_of(text) for text in (options.hot_memory, options.warm_memory)) + os.path.getsize(
            os.path.join(options.model, "model.safetensors"))
        report.line("1b", f"resident {tiers['resident_bytes'] / 1e6:.0f} MB", f"at most {1.1 * budgets / 1e6:.0f} MB",
                    tiers["resident_bytes"] <= 1.1 * budgets)
        if options.in_memory:
            short = decode(options, options.in_memory.split(), directory, SHORT, "full")["step_ms_median"]
            report.line("1a", f"{options.depth} tokens in memory: step {computing:.0f} ms, {SHORT} tokens, full: {short:.0f} ms",
                        f"at most {1.5 * short:.0f} ms", computing <= 1.5 * short)
        searches = cold.get("searches")
        if searches:
            print(f"     a search found {searches['tokens']:.0f} tokens")
    finally:
        shutil.rmtree(directory)
    report.finish()


if __name__ == "__main__":
    main()
