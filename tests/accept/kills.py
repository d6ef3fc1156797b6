"""Kills nodes of a cluster under streams of a model whose answers are full of near ties, and says what clients saw of it.

usage: kills.py HADAL [workers|partitions|nodes ...] [--kills 100] [--streams 16] [--prompt 16384]

  workers     kill -9 of the worker that has most streams, half of the times in the prefill of a long prompt
  partitions  the host of that worker is cut off from all others: no reset arrives  [--partitions 3]
  nodes       kill -9 of an attention node, with two replicas and with one  [--node-kills 5]

Every stream has to end with the tokens of one process.
"""
import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import time

import report

ROOT = report.tools()
sys.path.insert(0, os.path.join(ROOT, "tests", "cluster"))
from cluster import Cluster, hosts, make_model  # noqa: E402
from streams import Load, run_alone  # noqa: E402

CHUNK = 256  # rows of a step
WORKERS, NODES = ("worker-1", "worker-2"), ("attention-1", "attention-2")


def bodies(options):
    """Half of them with long prompts and short answers, half the other way round. None finds another one's blocks."""
    draw = random.Random(4)
    for i in range(options.streams):
        length, tokens = (options.prompt + 7 * i, 32) if i % 2 == 0 else (draw.randrange(60, 900), 400)
        yield {"prompt": [draw.randrange(3, 500) for _ in range(length)], "max_tokens": tokens, "ignore_eos": True,
               "temperature": 0 if i % 4 < 2 else 1, "seed": i, "hadal": {"no_cache": True}}


class Killing:
    """A cluster, and what is done to it."""

    def __init__(self, options, directory, replicas):
        self.options, self.replicas = options, replicas
        self.cluster = Cluster(options.hadal, directory, {} if options.has_hosts else None)

    def start_worker(self, name):
        self.cluster.start_worker(name, self.options.model, "--attention", "nodes", "--kv-replicas", str(self.replicas),
                                  "--max-batch-tokens", str(CHUNK))

    def start_node(self, name):
        self.cluster.start_attention_node(name, "--hot-memory", "512M")

    def begin(self):
        self.cluster.start_etcd()
        for name in NODES:
            self.start_node(name)
        for name in WORKERS:
            self.start_worker(name)
        self.api = self.cluster.start_coordinator("coordinator-1")
        self.cluster.wait_ready(self.api)
        for name in WORKERS:
            self.cluster.wait_state(self.api, name, "ready")

    def sequences(self):
        return self.api.request("GET", "/operator/sequences", timeout=20)[1]

    def appended(self):
        return sum(value for name, value in self.api.metrics().items() if name.startswith("hadal:node_appended_tokens_total{"))

    def connections(self, name):
        return self.cluster.processes["coordinator-1"].text().count(f"event=worker_connected node={name} ")

    def choose(self, wants_prefill):
        """The worker with most streams, and these, at a moment that is wanted."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            all_of_them = self.sequences()
            owned = {name: [s for s in all_of_them if s["worker"] == name] for name in WORKERS}
            victim = max(WORKERS, key=lambda name: len(owned[name]))
            prefilling = [s for s in owned[victim] if s["state"] == "prefill" and s["prompt_tokens"] >= self.options.prompt and
                          CHUNK <= s["prompt_done"] <= s["prompt_tokens"] - 2 * CHUNK]
            decoding = [s for s in owned[victim] if s["state"] == "decoding"]
            if 2 * len(owned[victim]) >= self.options.streams and decoding and (prefilling or not wants_prefill):
                return victim, owned[victim]
            time.sleep(0.01)
        raise RuntimeError("no worker has half of the streams")

    def wait_moved(self, victim, owned, began):
        """Until all that had begun have gone on elsewhere; how long those in their prefill took."""
        waiting, pauses = {s["id"]: s for s in owned if s["prompt_done"] > 0}, []
        while waiting and time.monotonic() - began < 60:
            now = {s["id"]: s for s in self.sequences()}
            for name, before in list(waiting.items()):
                s = now.get(name)
                has_moved = s is None or (s["worker"] not in (None, victim) and
                                          (s["prompt_done"] > before["prompt_done"] or
                                           s["generated_tokens"] > before["generated_tokens"]))
                if has_moved:
                    del waiting[name]
                    if before["state"] == "prefill":
                        pauses.append(time.monotonic() - began)
            time.sleep(0.005)
        if waiting:
            raise RuntimeError(f"{len(waiting)} streams of {victim} have not gone on within 60 s")
        return pauses

    def pauses_of(self, load, owned, began):
        """Of clients that were being told tokens: the longest gaps that lie over that moment."""
        decoding = sum(s["state"] == "decoding" for s in owned)
        gaps = [end - max(begin, began) for begin, end in list(load.gaps) if begin <= began + 0.3 and end >= began]
        return sorted(gaps, reverse=True)[:decoding]


@contextlib.contextmanager
def running(options, replicas=1):
    """(killing, load) that are at work."""
    directory = tempfile.mkdtemp(prefix="hadal-accept-")
    killing = Killing(options, directory, replicas)
    try:
        with killing.cluster:
            killing.begin()
            with Load(killing.api, options.requests, options.expected, options.streams) as load:
                yield killing, load
            time.sleep(1)  # nodes are asked four times a second what they have stored
            killing.total = killing.appended()
    finally:
        shutil.rmtree(directory)


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def kill_workers(options):
    pauses, prefilled, owned_least = [], 0, 1.0
    try:
        with running(options) as (killing, load):
            for kill in range(options.kills):
                victim, owned = killing.choose(wants_prefill=kill % 2 == 0)
                prefilled += kill % 2 == 0
                owned_least = min(owned_least, len(owned) / options.streams)
                connections, began = killing.connections(victim), time.monotonic()
                killing.cluster.processes[victim].kill()
                pauses += killing.wait_moved(victim, owned, began)
                killing.start_worker(victim)
                killing.cluster.wait(f"{victim} is back", lambda: killing.connections(victim) > connections)
                pauses += killing.pauses_of(load, owned, began)
        failure = ""
    except AssertionError as lost:
        failure = f": {lost}"
    report.line("5", f"{options.kills} workers killed, {prefilled} in a prefill of at least {options.prompt} tokens, each with at least "
                     f"{owned_least:.0%} of {options.streams} streams: {load.done} streams as in one process, "
                     f"{len(load.failures)} not{failure}", "none lost", not failure and load.done > 0 and owned_least >= 0.5)
    again = killing.total - load.stored if not failure else -1
    report.line("5", f"stored again: {again:.0f} positions, {again / options.kills:.0f} for each kill",
                f"at most the {CHUNK} in flight for each", 0 <= again <= CHUNK * options.kills)
    p50, p99 = percentile(pauses, 0.5), percentile(pauses, 0.99)
    report.line("5", f"pauses of {len(pauses)} streams: p50 {p50:.2f} s, p99 {p99:.2f} s, longest {max(pauses):.2f} s",
                "p50 below 1.5 s, p99 below 4 s", not options.times or (p50 < 1.5 and p99 < 4))


def cut_off_workers(options):
    if not options.has_hosts:
        report.line("5", "not run: network namespaces are not permitted here", "partitions", False)
        return
    pauses = []
    with running(options) as (killing, load):
        for _ in range(options.partitions):
            victim, owned = killing.choose(wants_prefill=False)
            others = [host for name, host in killing.cluster.hosts.items() if name != victim]
            connections, began = killing.connections(victim), time.monotonic()
            for host in others:
                killing.cluster.hosts[victim].cut(host)
            pauses += killing.wait_moved(victim, owned, began)
            for host in others:
                killing.cluster.hosts[victim].mend(host)
            killing.cluster.wait(f"{victim} is back", lambda: killing.connections(victim) > connections)
            pauses += killing.pauses_of(load, owned, began)
    report.line("5", f"{options.partitions} workers cut off, no reset arrives: {load.done} streams as in one process, pauses "
                     f"{min(pauses):.2f} to {max(pauses):.2f} s", "none lost, 2 to 6 s",
                not options.times or max(pauses) < 6)


def kill_nodes(options):
    for replicas in (2, 1):
        pauses = []
        with running(options, replicas) as (killing, load):
            for kill in range(options.node_kills):
                load.wait_done(options.streams)  # whatever is open by now has all its replicas
                victim, began = NODES[kill % len(NODES)], time.monotonic()
                killing.cluster.processes[victim].kill()
                load.wait_done(4)
                pauses.append(max([end - begin for begin, end in load.gaps if end >= began], default=0.0))
                killing.start_node(victim)
                killing.cluster.wait_state(killing.api, victim, "ready")
        name = "two replicas" if replicas == 2 else "one replica: what is lost is computed again"
        report.line("5", f"{options.node_kills} attention nodes killed, {name}: {load.done} streams as in one process, longest pauses "
                         + ", ".join(f"{pause:.2f}" for pause in pauses) + " s", "none lost", load.done > 0)


PARTS = {"workers": kill_workers, "partitions": cut_off_workers, "nodes": kill_nodes}


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("hadal")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--node-kills", type=int, default=5)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=16384)
    parser.add_argument("--untimed", dest="times", action="store_false", help="pauses are printed, and not judged")
    options = parser.parse_args()
    options.has_hosts = hosts.enter()
    directory = tempfile.mkdtemp(prefix="hadal-accept-")
    try:
        options.model = make_model(os.path.join(directory, "golden"), positions=options.prompt + 4096)
        options.requests = list(bodies(options))
        options.expected = run_alone(options.hadal, options.model, options.requests)
        for part in options.parts or PARTS:
            PARTS[part](options)
    finally:
        shutil.rmtree(directory)
    report.finish()


if __name__ == "__main__":
    main()
