"""Drains an attention node under load: how fast, how much of one gRPC stream or of a shaped link that is, and what streams notice.
Drains a worker under load: what streams notice.

usage: drain.py HADAL MODEL_DIR (the needle model) [--streams 8 --prompt 16400 --rate 2 --worker-prompt 4000]

Each node is on a host of its own (a network namespace); --rate is that of the shaped run's cable to the drained node, in Gbit/s, by
`tc tbf`. Keys and values are f32, so that 8 streams of 16,400 tokens keep 1 GB.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

import report

ROOT = report.tools()
sys.path.insert(0, os.path.join(ROOT, "tests", "cluster"))
import hosts  # noqa: E402
import needle_document  # noqa: E402
from cluster import Cluster  # noqa: E402

KV_BYTES_PER_TOKEN = 4 * 2 * 128 * 2 * 4  # of the needle model, in f32
DRAINED, RECEIVER = "attention-1", "attention-2"


class Gaps(threading.Thread):
    """A stream, and when each of its tokens came."""

    def __init__(self, api, body):
        super().__init__(daemon=True)
        self.api, self.body, self.times, self.failure = api, body, [], None
        self.start()

    def run(self):
        try:
            self.api.stream(self.body, lambda _: self.times.append(time.monotonic()))
        except Exception as failure:
            self.failure = repr(failure)

    def between(self, first, last):
        return [b - a for a, b in zip(self.times, self.times[1:]) if first <= a and b <= last]


def raw_rate(options, cluster):
    """Bytes a second that one gRPC stream carries from the drained node's host to the receiver's."""
    address = cluster.hosts[DRAINED].address + ":7900"
    bench = [options.hadal, "bench", "stream", "--log-level", "error"]
    server = subprocess.Popen(cluster.hosts[DRAINED].inside([*bench, "--listen", address]), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        server.stdout.readline()
        result = subprocess.run(cluster.hosts[RECEIVER].inside([*bench, "--connect", address, "--total", "2G", "--json", "-"]), check=True,
                                stdout=subprocess.PIPE, timeout=150)
        figures = json.loads(result.stdout)["figures"]
        return figures["bytes"] / figures["seconds"]
    finally:
        server.stdin.close()
        server.wait()


def shape(cluster, gigabits):
    """Both ends of the cable."""
    for run, device in ((lambda *command: subprocess.run(command, check=True), cluster.hosts[DRAINED].cable),
                        (cluster.hosts[DRAINED].run, "eth0")):
        run("tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{gigabits}gbit", "burst", "256kb", "latency", "20ms")


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("inf")


def seconds_of(stamp):
    hours, minutes, rest = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest)


def copied(cluster):
    """(bytes, seconds) from the first row's beginning to the last one's end, as the receiver logged them."""
    lines = re.findall(r"time=\S+T([\d:.]+)Z .*event=pulled .* bytes=(\d+) ms=(\d+)", cluster.processes[RECEIVER].text())
    ends = [seconds_of(stamp) for stamp, _, _ in lines]
    begins = [end - int(ms) / 1000 for end, (_, _, ms) in zip(ends, lines)]
    return sum(int(count) for _, count, _ in lines), max(ends) - min(begins)


def drain(options, gigabits):
    directory = tempfile.mkdtemp(prefix="hadal-accept-")
    try:
        with Cluster(options.hadal, directory, {}) as cluster:
            return drain_in(options, cluster, gigabits)
    finally:
        shutil.rmtree(directory)


def drain_in(options, cluster, gigabits):
    cluster.start_etcd()
    flags = ("--hot-memory", "1500M", "--threads", "1", "--drain-timeout", "5s")
    cluster.start_attention_node(DRAINED, *flags)
    cluster.start_worker("worker-1", options.model, "--attention", "nodes", "--kv-dtype", "f32", "--kv-range", "65536",
                         "--max-batch-tokens", "512")
    api = cluster.start_coordinator("coordinator-1")
    cluster.wait_ready(api)
    text, _ = needle_document.draw(options.model, options.prompt, seed=1)
    streams = []
    for i in range(options.streams):  # each text differs from its first word on, or they would share their blocks
        streams.append(Gaps(api, {"prompt": f"{i} " + text, "max_tokens": 12000, "ignore_eos": True, "temperature": 1, "seed": i}))
    cluster.wait("every stream decodes", lambda: all(stream.times for stream in streams), timeout=1200)
    cluster.start_attention_node(RECEIVER, *flags)
    time.sleep(2)
    raw = raw_rate(options, cluster) if gigabits == 0 else 0
    if gigabits:
        shape(cluster, gigabits)
        time.sleep(1)
    before = time.monotonic()
    time.sleep(10)
    begun = time.monotonic()
    code, _, errors = cluster.run("drain", DRAINED, "--wait", api=api)
    ended = time.monotonic()
    cluster.processes[DRAINED].kill()
    time.sleep(2)
    failures = [stream.failure for stream in streams if stream.failure]
    quiet = [gap for stream in streams for gap in stream.between(before, begun)]
    busy = [gap for stream in streams for gap in stream.between(begun, ended)]
    takeovers = cluster.processes["coordinator-1"].text().count("event=takeover")
    moves = cluster.processes["worker-1"].text().count("event=row_moved")
    return {"code": code, "errors": errors, "copied": copied(cluster), "failures": failures, "quiet": quiet, "busy": busy, "raw": raw,
            "takeovers": takeovers, "moves": moves, "seconds": ended - begun}


def drain_worker(options):
    directory = tempfile.mkdtemp(prefix="hadal-accept-")
    try:
        with Cluster(options.hadal, directory, {}) as cluster:
            return drain_worker_in(options, cluster)
    finally:
        shutil.rmtree(directory)


def drain_worker_in(options, cluster):
    cluster.start_etcd()
    cluster.start_attention_node("attention-1", "--hot-memory", "1500M", "--threads", "1")
    for name in ("worker-1", "worker-2"):
        cluster.start_worker(name, options.model, "--attention", "nodes", "--max-batch-tokens", "512")
    api = cluster.start_coordinator("coordinator-1")
    cluster.wait_ready(api)
    for name in ("worker-1", "worker-2"):
        cluster.wait_state(api, name, "ready")
    text, _ = needle_document.draw(options.model, options.worker_prompt, seed=1)
    streams = [Gaps(api, {"prompt": f"{i} " + text, "max_tokens": 12000, "ignore_eos": True, "temperature": 1, "seed": i})
               for i in range(options.streams)]
    cluster.wait("every stream decodes", lambda: all(stream.times for stream in streams), timeout=1200)
    before = time.monotonic()
    time.sleep(10)
    held = cluster.nodes(api)["worker-1"]["sequences"]
    begun = time.monotonic()
    code, _, _ = cluster.run("drain", "worker-1", "--wait", api=api)
    cluster.processes["worker-1"].kill()
    drained = time.monotonic()
    time.sleep(2)
    ended = time.monotonic()
    return {"code": code, "held": held, "failures": [stream.failure for stream in streams if stream.failure], "seconds": drained - begun,
            "takeovers": cluster.processes["coordinator-1"].text().count("event=takeover"),
            "quiet": [gap for stream in streams for gap in stream.between(before, begun)],
            # With what was going on when the order came.
            "busy": [gap for stream in streams for gap in stream.between(begun - 0.5, ended)],
            "going": sum(stream.times[-1] > drained for stream in streams)}


def longest(gaps):
    """In which no gap ended: no stream moved, for as long as one cares to say."""
    return max(gaps, default=float("inf"))


def tell_worker(run, options):
    report.line("6", f"worker: {run['held']} of {options.streams} streams on it, drained in {run['seconds']:.2f} s and killed when "
                f"safe_to_delete; {run['going']} go on, {run['takeovers']} were taken over, streams that failed: {run['failures'] or 'none'}",
                "at least 1, all, none, none", run["code"] == 0 and run["held"] > 0 and run["going"] == options.streams
                and run["takeovers"] == 0 and not run["failures"])
    report.line("6", f"worker: longest pause of a stream {longest(run['busy']) * 1e3:.0f} ms (before: {longest(run['quiet']) * 1e3:.0f} ms)",
                "at most 200 ms", longest(run["busy"]) <= 0.2)


def tell(name, run, options):
    size, seconds = run["copied"]
    report.line("6", f"{name}: {run['moves']} of {options.streams} rows moved, {run['takeovers']} requests moved, streams that failed: "
                f"{run['failures'] or 'none'}, killed when safe_to_delete", "all, none, none",
                run["code"] == 0 and run["moves"] >= options.streams and run["takeovers"] == 0 and not run["failures"])
    report.line("6", f"{name}: {size / 1e9:.2f} GB in {seconds:.2f} s", "at least 1 GB", size >= 1e9)
    report.line("6", f"{name}: longest pause of a stream {longest(run['busy']) * 1e3:.0f} ms (before: {longest(run['quiet']) * 1e3:.0f} ms)",
                "at most 500 ms", longest(run["busy"]) <= 0.5)
    return size / seconds


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=16400)
    parser.add_argument("--rate", type=float, default=2)
    parser.add_argument("--worker-prompt", type=int, default=4000)
    parser.add_argument("--only", choices=("shaped", "unshaped", "worker"))
    options = parser.parse_args()
    if not hosts.enter():
        report.line("6", "network namespaces are not permitted here", "a drain over a shaped link", False)
        report.finish()
    if options.only in (None, "worker"):
        tell_worker(drain_worker(options), options)
    if options.only in (None, "shaped"):
        run = drain(options, options.rate)
        rate, link = tell(f"{options.rate:g} Gbit/s", run, options), options.rate * 1e9 / 8
        report.line("6", f"{options.rate:g} Gbit/s: {rate * 8e-9:.2f} Gbit/s of keys and values, {rate / link:.0%} of the link",
                    "at least 85 %", rate >= 0.85 * link)
        quiet, busy = percentile(run["quiet"], 0.99), percentile(run["busy"], 0.99)
        report.line("6", f"{options.rate:g} Gbit/s: time between tokens p99 {busy * 1e3:.0f} ms, before {quiet * 1e3:.0f} ms: "
                    f"{busy / quiet:.2f} times", "at most 2 times", busy <= 2 * quiet)
    if options.only in (None, "unshaped"):
        run = drain(options, 0)
        rate = tell("unshaped", run, options)
        report.line("6", f"unshaped: {rate / 1e9:.2f} GB/s, one gRPC stream between the same hosts {run['raw'] / 1e9:.2f} GB/s: "
                    f"{rate / run['raw']:.0%}", "at least 70 %", rate >= 0.7 * run["raw"])
    report.finish()


if __name__ == "__main__":
    main()
