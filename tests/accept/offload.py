"""Decodes behind a context that is many times larger than memory, and compares each step with what the disk can do.

usage: offload.py HADAL MODEL_DIR [--depth 1048576] [--hot-memory 512M] [--warm-memory 1536M] [--selection NAME]
                  [--directory DIR] [--cold-size SIZE] [--index-memory SIZE]

A step may take 1.3 times the larger of its time with all keys and values in memory and of the time that the disk takes for what it
reads; and the process may hold its weights and budgets and a tenth more.
"""
import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time

import report

PIECE = 512 << 10  # a read of 16 pages of 32 KiB


def disk_rate(path, seconds=5.0):
    """Bytes a second of reads of that size past the page cache, four at once."""
    import mmap
    import threading
    size = os.path.getsize(path)
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    total, end = [0] * 4, time.monotonic() + seconds

    def read(index):
        room, at = mmap.mmap(-1, PIECE), index * (size // 4) // PIECE * PIECE
        while time.monotonic() < end:
            total[index] += os.preadv(file, [room], at)
            at = (at + 7919 * PIECE) % (size - PIECE) // PIECE * PIECE

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(file)
    return sum(total) / seconds


def decode(options, flags, directory):
    figures = os.path.join(directory, "figures.json")
    command = [options.hadal, "bench", "decode", options.model, "--depth", str(options.depth), "--steps", "8", "--prefill", "",
               "--chunk", "0", "--max-requests", "4", "--selection", options.selection, "--json", figures, *flags]
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
        rate = disk_rate(os.path.join(directory, "kv", "pages"))
        shutil.rmtree(os.path.join(directory, "kv"))
        computing = decode(options, options.in_memory.split(), directory)["step_ms_median"] if options.in_memory else \
            cold["other_ms"]
        tiers, step = cold["tiers"], cold["step_ms_median"]
        disk_ms = 1e3 * tiers["read_bytes"] / rate
        least = max(computing, disk_ms)
        report.line("1b", f"{options.depth} tokens, {options.selection}: step {step:.0f} ms; computing {computing:.0f} ms, "
                          f"{tiers['read_bytes'] / 1e6:.0f} MB from a disk of {rate / 1e9:.2f} GB/s {disk_ms:.0f} ms; "
                          f"{100 * tiers['page_hit_rate']:.0f} % of cold pages in memory",
                    f"at most {1.3 * least:.0f} ms", step <= 1.3 * least)
        searches = cold.get("searches")
        if searches:
            print(f"     a search found {searches['tokens']:.0f} tokens")
    finally:
        shutil.rmtree(directory)
    report.finish()


if __name__ == "__main__":
    main()
