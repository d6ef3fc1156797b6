"""A cluster of real processes on loopback addresses: an etcd, coordinators, workers; and a small model for them."""
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
ETCD = "/usr/bin/etcd"
# A loopback address of this process alone: tests that run beside it, whose connections come from 127.0.0.1, cannot take a port
# between the moment when it was found free and the moment when it is listened on, nor while its node is dead.
HOST = "127.{}.{}.{}".format(64 + (os.getpid() >> 16) % 64, os.getpid() >> 8 & 255, os.getpid() & 255)


def free_port():
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def make_model(directory, golden="llama"):
    """A golden model (random weights, so that answers are full of near ties) with a tokenizer of one word a token."""
    source = os.path.join(ROOT, "tests", "golden", "models", golden)
    os.makedirs(directory)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(os.path.join(source, name), directory)
    with open(os.path.join(source, "config.json")) as file:
        size = json.load(file)["vocab_size"]
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
                 "model": {"type": "WordLevel", "vocab": {f"t{i}": i for i in range(size)}, "unk_token": "t0"}}
    with open(os.path.join(directory, "tokenizer.json"), "w") as file:
        json.dump(tokenizer, file)
    return directory


class Process:
    """A process whose standard error goes to a file; killed with the test at the latest."""

    def __init__(self, command, log):
        self.log = log
        with open(log, "ab") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=file)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def stop(self, timeout=90):
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=timeout)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def text(self):
        with open(self.log, errors="replace") as file:
            return file.read()


class Api:
    """What a client, or an operator, asks of one HTTP port."""

    def __init__(self, port):
        self.port = port

    def request(self, method, path, body=None, timeout=120):
        """(status, object)"""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=timeout)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def stream(self, body, on_token=None):
        """The token ids of each choice of a streamed completion, in the order in which they came, and how each ended."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=120)
        try:
            connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True, "return_token_ids": True}),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise AssertionError(f"HTTP {response.status}: {response.read().decode()[:500]}")
            tokens, ends, is_done = {}, {}, False
            for line in response:
                if not line.startswith(b"data: "):
                    continue
                if line.strip() == b"data: [DONE]":
                    is_done = True
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise AssertionError(f"the stream failed: {event}")
                for choice in event.get("choices", []):
                    new = choice.get("token_ids") or []
                    tokens.setdefault(choice["index"], []).extend(new)
                    if choice.get("finish_reason"):
                        ends[choice["index"]] = choice["finish_reason"]
                    if on_token and new:
                        on_token(len(new))
            if not is_done:
                raise AssertionError("the stream was cut")
            return {"tokens": tokens, "ends": ends}
        finally:
            connection.close()


class Cluster:
    def __init__(self, binary, directory):
        self.binary, self.directory = binary, directory
        self.processes, self.ports = {}, {}
        self.etcd_port, self.peer_port = free_port(), free_port()
        self.etcd_url = f"http://{HOST}:{self.etcd_port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.go_on()
            process.kill()

    def start(self, name, command):
        self.processes[name] = Process(command, os.path.join(self.directory, name + ".log"))
        return self.processes[name]

    def start_etcd(self):
        peer = f"http://{HOST}:{self.peer_port}"
        self.start("etcd", [ETCD, "--data-dir", os.path.join(self.directory, "etcd"), "--listen-client-urls", self.etcd_url,
                            "--advertise-client-urls", self.etcd_url, "--listen-peer-urls", peer,
                            "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"])
        # Nodes that join wait for it a few seconds only.
        self.wait("etcd", lambda: Api(self.etcd_port).request("GET", "/health", timeout=5)[1]["health"] == "true")

    def start_worker(self, name, model, *flags):
        self.ports.setdefault(name, free_port())
        return self.start(name, [self.binary, "worker", "--etcd", self.etcd_url, "--model", model, "--listen",
                                 f"{HOST}:{self.ports[name]}", "--node-id", name, "--threads", "1", "--hot-memory", "64M",
                                 "--max-batch-tokens", "64", "--drain-timeout", "60s", *flags])

    def start_coordinator(self, name, *flags):
        self.ports.setdefault(name, free_port())
        self.start(name, [self.binary, "coordinator", "--etcd", self.etcd_url, "--listen", f"{HOST}:{self.ports[name]}",
                          "--node-id", name, "--drain-timeout", "60s", *flags])
        return Api(self.ports[name])

    def wait(self, what, condition, timeout=60, lasting=0):
        """Until the condition holds, and has held for so long."""
        deadline, since = time.monotonic() + timeout, None
        while True:
            holds = False
            for name, process in self.processes.items():
                if process.process.poll() not in (None, -signal.SIGKILL, 0):
                    raise AssertionError(f"{name} has ended:\n{process.text()[-2000:]}")
            try:
                holds = condition()
            except OSError:
                pass
            if not holds:
                since = None
            elif since is None:
                since = time.monotonic()
            if holds and time.monotonic() - since >= lasting:
                return
            if time.monotonic() > deadline:
                logs = "\n".join(f"-- {name}\n{process.text()[-1500:]}" for name, process in self.processes.items() if name != "etcd")
                raise AssertionError(f"not within {timeout} s: {what}\n{logs}")
            time.sleep(0.03)

    def wait_ready(self, api):
        self.wait("a coordinator that is ready", lambda: api.request("GET", "/ready", timeout=5)[0] == 200)

    def nodes(self, api):
        return {node["id"]: node for node in api.request("GET", "/operator/nodes", timeout=10)[1]}

    def wait_state(self, api, node, state):
        self.wait(f"{node} {state}", lambda: self.nodes(api).get(node, {}).get("state") == state)

    def run(self, *arguments, api):
        """One of the operator's commands; (exit code, standard output, standard error)."""
        result = subprocess.run([self.binary, *arguments, "--coordinator", f"http://{HOST}:{api.port}"], capture_output=True,
                                text=True, timeout=120)
        return result.returncode, result.stdout, result.stderr
