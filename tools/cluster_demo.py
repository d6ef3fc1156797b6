"""cluster_demo.py HADAL MODEL_DIR [--streams 6] [--prompt 6000] [--tokens 300] - a cluster on this machine that loses nodes
while it answers.

An etcd, two coordinators, two workers and three attention nodes, each in a network namespace of its own (tools/hosts.py), stream
long requests of the needle model. In the middle an attention node is drained and the worker that runs most is killed with -9.
Every stream has to end with the tokens that one process (`hadal serve`) says. Ends with 1 when anything is not as it should be.
"""
import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import hosts
import needle_document
from server import Client, Server

ETCD = "/usr/bin/etcd"
ATTENTION_NODES, WORKERS, COORDINATORS = 3, 2, 2
WAIT_S = 120
begun = time.monotonic()


def say(text=""):
    print(text, flush=True)


def tell(text):
    say(f"{time.monotonic() - begun:7.1f} s  {text}")


class Stream(threading.Thread):
    """A request on its way; what has come so far may be read at any time."""

    def __init__(self, client, body):
        super().__init__(daemon=True)
        self.client, self.body = client, body
        self.tokens, self.text, self.end, self.failure = [], "", None, None
        self.pause, self.last = 0.0, None
        self.start()

    def run(self):
        try:
            for event in self.client.stream("/v1/completions", self.body):
                if "error" in event:
                    raise RuntimeError(event["error"].get("message", event))
                for choice in event["choices"]:
                    self.take(choice)
            if self.end is None:
                raise RuntimeError("the stream was cut")
        except Exception as failure:  # the main thread tells it
            self.failure = str(failure) or repr(failure)

    def take(self, choice):
        new = choice.get("token_ids") or []
        now = time.monotonic()
        if new and self.last is not None:
            self.pause = max(self.pause, now - self.last)
        if new:
            self.last = now
        self.tokens += new
        self.text += choice["text"]
        self.end = choice.get("finish_reason") or self.end


def wait_for(what, condition, processes=(), patience=WAIT_S):
    deadline = time.monotonic() + patience
    while True:
        for process in processes:
            if process.process is not None and process.has_ended():
                raise RuntimeError(f"{process.name} has ended:\n{process.text()[-1500:]}")
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {patience} s: {what}")
        time.sleep(0.05)


class Cluster:
    def __init__(self, hadal, model, directory, is_namespace):
        self.hadal, self.model, self.directory, self.is_namespace = hadal, model, directory, is_namespace
        self.key = secrets.token_hex(16)
        self.hosts, self.clients, self.urls = {}, [], []
        self.threads = str(max(1, len(os.sched_getaffinity(0)) // (ATTENTION_NODES + WORKERS)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for host in self.hosts.values():
            host.close()

    def host(self, name):
        self.hosts[name] = hosts.Host(name, len(self.hosts) + 1, self.is_namespace, os.path.join(self.directory, name + ".log"))
        return self.hosts[name]

    def start_etcd(self):
        host = self.host("etcd")
        self.etcd = f"http://{host.address}:{host.port(2379)}"
        peer = f"http://{host.address}:{host.port(2380)}"
        host.start([ETCD, "--data-dir", os.path.join(self.directory, "etcd"), "--listen-client-urls", self.etcd,
                    "--advertise-client-urls", self.etcd, "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                    "--initial-cluster", f"default={peer}"])

    def start_node(self, role, name, port, *flags):
        host = self.host(name)
        host.start([self.hadal, role, "--etcd", self.etcd, "--listen", f"{host.address}:{host.port(port)}", "--node-id", name,
                    "--threads", self.threads, *flags])

    def start_coordinator(self, name):
        host = self.host(name)
        port = host.port(8000)
        keys = os.path.join(self.directory, "keys")
        with open(keys, "w") as file:
            file.write(f"{self.key} admin\n")
        host.start([self.hadal, "coordinator", "--etcd", self.etcd, "--listen", f"{host.address}:{port}", "--node-id", name,
                    "--api-keys", keys])
        self.clients.append(Client(host.address, port, self.key))
        self.urls.append(f"http://{host.address}:{port}")

    def start(self):
        self.start_etcd()
        for i in range(ATTENTION_NODES):
            self.start_node("attention-node", f"attention-{i + 1}", 7001, "--hot-memory", "512M")
        everybody = self.hosts.values()
        # A worker takes the attention nodes that are there: so they come first.
        for i in range(ATTENTION_NODES):
            wait_for("attention nodes", lambda: "event=joined" in self.hosts[f"attention-{i + 1}"].text(), everybody)
        for i in range(WORKERS):
            self.start_node("worker", f"worker-{i + 1}", 7000, "--model", self.model, "--attention", "nodes", "--kv-range", "2048",
                            "--max-batch-tokens", "256")
        for i in range(COORDINATORS):
            self.start_coordinator(f"coordinator-{i + 1}")
        for client in self.clients:
            wait_for("a coordinator that is ready", lambda: client.get("/ready")[0] == 200, everybody)
        wait_for("all nodes", lambda: sum(node["state"] == "ready" and node["role"] == "worker" for node in self.nodes()) == WORKERS,
                 everybody)

    def operate(self, *arguments):
        """One of the operator's commands; its standard output. It raises with what the command says."""
        command = [self.hadal, *arguments, "--coordinator", self.urls[0]]
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HADAL_API_KEY": self.key})
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def nodes(self):
        return json.loads(self.operate("nodes", "--json"))

    def busiest(self, role):
        node = max((node for node in self.nodes() if node["role"] == role), key=lambda node: (node["sequences"], node["kv_bytes"]))
        return node["id"], node["sequences"]

    def takeovers(self):
        return sum(host.text().count("event=takeover ") for host in self.hosts.values() if host.name.startswith("coordinator"))


class Drain(threading.Thread):
    """hadal drain NODE --wait; what it has let go is then killed, for it said that nobody would miss it."""

    def __init__(self, cluster, node):
        super().__init__(daemon=True)
        self.cluster, self.node, self.failure = cluster, node, None
        self.start()

    def run(self):
        try:
            self.cluster.operate("drain", self.node, "--wait")
            self.cluster.hosts[self.node].kill()
            tell(f"{self.node} is safe to delete, and killed")
        except Exception as failure:
            self.failure = str(failure)


def make_requests(options):
    """Every other one is drawn from a seed; the others look a number up in their document first. (bodies, numbers)"""
    bodies, numbers = [], []
    for i in range(options.streams):
        text, [needle] = needle_document.draw(options.model, options.prompt, seed=i + 1)
        bodies.append({"prompt": text + needle["prompt"], "max_tokens": options.tokens, "ignore_eos": True, "return_token_ids": True,
                       "temperature": 0 if i % 2 == 0 else 1, "seed": i})
        numbers.append(needle["number"] if i % 2 == 0 else None)
    return bodies, numbers


def run_alone(options, bodies):
    with Server(options.hadal, options.model, ["--hot-memory", "1G"]) as server:
        streams = [Stream(server, body) for body in bodies]
        for stream in streams:
            stream.join()
    for stream in streams:
        if stream.failure:
            raise RuntimeError(f"hadal serve: {stream.failure}")
    return [stream.tokens for stream in streams]


def run_cluster(cluster, options, bodies):
    """(streams, problems)"""
    streams = [Stream(cluster.clients[i % COORDINATORS], body) for i, body in enumerate(bodies)]

    def said():
        return sum(len(stream.tokens) for stream in streams)

    def reach(share):
        wait_for(f"{share:.0%} of the tokens", lambda: said() >= share * options.streams * options.tokens or
                 not any(stream.is_alive() for stream in streams), patience=1800)

    reach(0.2)
    node, sequences = cluster.busiest("attention-node")
    tell(f"{said()} tokens are out: draining {node}, which keeps {sequences} sequences")
    drain = Drain(cluster, node)
    reach(0.5)
    worker, sequences = cluster.busiest("worker")
    tell(f"{said()} tokens are out: kill -9 {worker}, which runs {sequences} requests")
    cluster.hosts[worker].kill()
    for stream in streams:
        stream.join()
    tell(f"{said()} tokens are out: all streams have ended")
    drain.join(WAIT_S)
    problems = []
    if drain.is_alive() or drain.failure:
        problems.append(f"{node} was not drained: {drain.failure or 'no answer'}")
    if cluster.takeovers() == 0:
        problems.append(f"{worker} ran nothing when it was killed, so nothing was shown")
    return streams, problems


def judge(streams, expected, numbers):
    """Prints the table; what is wrong."""
    problems = []
    say()
    say("stream  coordinator    drawn    tokens  longest pause  number in the document  as one process")
    for i, stream in enumerate(streams):
        is_same = stream.tokens == expected[i] and stream.failure is None
        number = "-"
        if numbers[i] is not None:
            number = "found" if stream.text.strip().startswith(numbers[i]) else "WRONG"
        say(f"{i + 1:>6}  coordinator-{i % COORDINATORS + 1}  {'greedy' if numbers[i] else 'seeded':<8} {len(stream.tokens):>6}  "
            f"{stream.pause:>11.2f} s  {number:<22}  {'yes' if is_same else 'NO'}")
        if stream.failure:
            problems.append(f"stream {i + 1}: {stream.failure}")
        elif not is_same:
            problems.append(f"stream {i + 1} has other tokens than one process")
        if number == "WRONG":
            problems.append(f"stream {i + 1} answers {stream.text[:20]!r} instead of {numbers[i]}")
    say()
    return problems


def show(options, is_namespace, directory):
    bodies, numbers = make_requests(options)
    tell(f"one process, for comparison: {options.streams} streams, {options.prompt} tokens of prompt and {options.tokens} of answer each")
    expected = run_alone(options, bodies)
    place = "each in a network namespace" if is_namespace else "on loopback addresses: network namespaces are not permitted here"
    tell(f"a cluster: etcd, {COORDINATORS} coordinators, {WORKERS} workers, {ATTENTION_NODES} attention nodes, {place}")
    with Cluster(options.hadal, options.model, directory, is_namespace) as cluster:
        cluster.start()
        tell("it is ready; the same streams")
        streams, problems = run_cluster(cluster, options, bodies)
        problems += judge(streams, expected, numbers)
        say(f"{cluster.takeovers()} requests were taken over by the other worker.")
    for problem in problems:
        say(f"  {problem}")
    say("FAIL" if problems else "PASS: every stream has ended with the tokens of one process.")
    return 1 if problems else 0


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=300)
    options = parser.parse_args()
    if not os.access(ETCD, os.X_OK):
        raise SystemExit(f"cluster demo: {ETCD} is not installed (Debian: etcd-server)")
    is_namespace = hosts.enter()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = tempfile.mkdtemp(prefix="hadal-cluster-demo-")
    try:
        return show(options, is_namespace, directory)
    except RuntimeError as problem:
        say(f"FAIL: {problem}")
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    sys.exit(main())
