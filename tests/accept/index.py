"""What an index has to find, and at what cost, on generated keys and on those of trained models.

usage: index.py HADAL DATA_DIR MODEL_DIR LOGS [--kinds shifted-64,shifted-128,trained-64,trained-128] [--sizes 131072,1048576]
                [--indexes clusters,graph] [--libraries PYTHON] [--model SHAPE]

DATA_DIR keeps the data sets (tools/index_data.py), MODEL_DIR the trained models (tools/train_model.py) trained-64 and trained-128:
what is not there is made, which takes an hour and a half of training; a directory or a link to another model is used as it is.
--libraries is an interpreter that has the other libraries (bench/index_peers.py); this one has torch and transformers.
--model is the one whose prefill of 32,768 tokens the building of its indexes is compared with.
"""
import argparse
import glob
import os
import subprocess
import sys

import report

ROOT = report.tools()
SCANNED = {131072: 0.02, 1048576: 0.007}  # of the keys, by how many there are
ESTIMATE = 0.07
RECALL = 0.95
BUILD_US = 14
PEERS_SIZE = 131072  # the other libraries take minutes to build a graph of a million keys
MINUTES = {"trained-64": 60, "trained-128": 20}


def run(*command, log):
    with open(log, "ab") as file:
        subprocess.run(command, check=True, stdout=file, stderr=file)


def text():
    """Sources and manuals of this machine: every other file to train on, the others to read."""
    files = sorted(glob.glob("/usr/lib/python3*/**/*.py", recursive=True))
    return files[::2], files[1::2]


def trained_model(name, options):
    directory = os.path.join(options.models, name)
    if not os.path.exists(os.path.join(directory, "config.json")):
        source = ["--head-dim", "64"] if name == "trained-64" else ["--from", trained_model("trained-64", options)]
        run(sys.executable, os.path.join(ROOT, "tools", "train_model.py"), directory, *source, "--minutes", str(MINUTES[name]),
            "--text", *text()[0], log=os.path.join(options.logs, "index-train.log"))
    return directory


def data_set(kind, size, options):
    directory = os.path.join(options.data, f"{kind}-{size}")
    if not os.path.exists(os.path.join(directory, "model.safetensors")):
        how = ["shifted", directory, "--dim", kind.split("-")[1]]
        if kind.startswith("trained"):
            how = ["model", directory, "--model", trained_model(kind, options), "--layer", "4", "--text", *text()[1]]
        run(sys.executable, os.path.join(ROOT, "tools", "index_data.py"), *how, "--keys", str(size),
            log=os.path.join(options.logs, "index-data.log"))
    return directory


def bench(options, directory, indexes, *flags):
    path = os.path.join(options.logs, "index.json")
    run(options.hadal, "bench", "index", "--data", directory, "--index", indexes, "--json", path, *flags,
        log=os.path.join(options.logs, "index-bench.log"))
    return {row["index"]: row for row in report.load(path)["rows"]}


def check_search(what, row, size):
    report.line("2", f"{what}: recall@100 {row['recall_100']:.3f}, reads {row['scanned']:.2%}, "
                     f"{row['queries_per_second']:.0f} queries/s",
                f"{RECALL}, {SCANNED[size]:.1%}", row["recall_100"] >= RECALL and row["scanned"] <= SCANNED[size])
    report.line("2", f"{what}: built in {row['build_us_per_key']:.1f} core-us a key", f"{BUILD_US}",
                row["build_us_per_key"] <= BUILD_US)


def check_output(what, row, oracle, size):
    report.line("2", f"{what}: error of attention {row['error_median']:.4f} median, {row['error_p99']:.4f} p99; reads "
                     f"{row['read_for_attention']:.2%}",
                f"the oracle's {oracle['error_median']:.4f}, {oracle['error_p99']:.4f}; {SCANNED[size] + ESTIMATE:.1%}",
                row["error_median"] <= oracle["error_median"] and row["error_p99"] <= oracle["error_p99"]
                and row["read_for_attention"] <= SCANNED[size] + ESTIMATE)


def check_data(kind, size, options):
    directory = data_set(kind, size, options)
    rows = bench(options, directory, options.indexes + ",oracle")
    for index in options.indexes.split(","):
        check_search(f"{kind} {size} {index}", rows[index], size)
    check_output(f"{kind} {size} clusters", rows["clusters"], rows["oracle"], size)
    drawn = bench(options, directory, "clusters,oracle", "--drawn-values")
    print("     values that their keys do not tell: " + ", ".join(
        f"{name} {drawn[name]['error_median']:.4f} and {drawn[name]['error_p99']:.4f}" for name in ("clusters", "oracle")), flush=True)
    return rows["clusters"]["build_us_per_key"]


def check_peers(kinds, options):
    path = os.path.join(options.logs, "index-peers.json")
    directories = [data_set(kind, PEERS_SIZE, options) for kind in kinds]
    run(options.libraries, os.path.join(ROOT, "bench", "index_peers.py"), options.hadal, *directories, "--indexes", options.indexes,
        "--json", path, log=os.path.join(options.logs, "index-peers.log"))
    for kind, compared in zip(kinds, report.load(path)):
        for name, row in compared["libraries"].items():
            read = "reads what it does not count" if row["scanned"] is None else f"scores {row['scanned']:.1%}"
            print(f"     {kind} {name} ({row['parameters']}): recall {row['recall_100']:.3f}, {read}, "
                  f"{row['queries_per_second']:.0f} queries/s, {row['build_us_per_key']:.1f} core-us a key", flush=True)
        rates = [row["queries_per_second"] for row in compared["libraries"].values() if row["recall_100"] >= RECALL]
        fastest = max(rates, default=0)
        for row in compared["hadal"]:
            report.line("2", f"{kind} {row['index']}: {row['queries_per_second']:.0f} queries/s at {row['recall_100']:.3f}",
                        f"twice {fastest:.0f}, the fastest library's at {RECALL}" if rates else "no library comes to that recall",
                        row["recall_100"] >= RECALL and row["queries_per_second"] >= 2 * fastest)


def check_prefill(build_us, options):
    """Indexes of all layers and KV heads of 32,768 tokens, as a share of the CPU time that their prefill takes."""
    tokens, path = 32768, os.path.join(options.logs, "index-prefill.json")
    run(options.hadal, "bench", "decode", options.model, "--selection", "full", "--depth", "", "--prefill", str(tokens), "--json",
        path, log=os.path.join(options.logs, "index-bench.log"))
    figures, config = report.load(path), report.load(os.path.join(options.model, "config.json"))
    seconds = figures["prefill"][-1]["ms"] / 1e3
    indexes = config["num_hidden_layers"] * config["num_key_value_heads"]
    building = indexes * tokens * build_us / 1e6
    share = building / (seconds * figures["threads"])
    report.line("2", f"{indexes} indexes of {tokens} tokens: {building:.0f} core-seconds, of a prefill's "
                     f"{seconds * figures['threads']:.0f} {share:.1%}", "8 %", share <= 0.08)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("hadal")
    parser.add_argument("data")
    parser.add_argument("models")
    parser.add_argument("logs")
    parser.add_argument("--kinds", default="shifted-64,shifted-128,trained-64,trained-128")
    parser.add_argument("--sizes", default="131072,1048576")
    parser.add_argument("--indexes", default="clusters,graph")
    parser.add_argument("--libraries")
    parser.add_argument("--model")
    options = parser.parse_args()
    kinds, build_us = options.kinds.split(","), {}
    for size in map(int, options.sizes.split(",")):
        for kind in kinds:
            build_us[kind] = check_data(kind, size, options)
    if options.libraries:
        check_peers(kinds, options)
    if options.model:
        check_prefill(max(us for kind, us in build_us.items() if kind.endswith("64")), options)
    report.finish()


if __name__ == "__main__":
    main()
