"""A cluster of real processes: an etcd, coordinators, workers, attention nodes; and a small model for them.

They listen on loopback addresses, or each on a host of its own (tools/hosts.py), which can be cut off from others.
"""
import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
sys.path.insert(0, os.path.join(ROOT, "tools"))
import hosts  # noqa: E402

ETCD = "/usr/bin/etcd"
# A loopback address of this process alone: tests that run beside it, whose connections come from 127.0.0.1, cannot take a port
# between the moment when it was found free and the moment when it is listened on, nor while its node is dead.
HOST = "127.{}.{}.{}".format(64 + (os.getpid() >> 16) % 64, os.getpid() >> 8 & 255, os.getpid() & 255)


def free_port():
    return hosts.free_port(HOST)


def make_model(directory, golden="llama", positions=None):
    """A golden model (random weights, so that answers are full of near ties) with a tokenizer of one word a token, used at so
    many positions."""
    source = os.path.join(ROOT, "tests", "golden", "models", golden)
    os.makedirs(directory)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(os.path.join(source, name), directory)
    with open(os.path.join(source, "config.json")) as file:
        config = json.load(file)
    size = config["vocab_size"]
    if positions is not None:
        with open(os.path.join(directory, "config.json"), "w") as file:
            json.dump({**config, "max_position_embeddings": positions}, file)
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

    def __init__(self, port, address=HOST, key=None):
        self.port, self.address, self.key = port, address, key
        self.headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}

    def request(self, method, path, body=None, timeout=120):
        """(status, object)"""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=timeout)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, path, payload, self.headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def metrics(self):
        """Every series of /metrics, by its name with labels."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=10)
        try:
            connection.request("GET", "/metrics", None, self.headers)
            lines = connection.getresponse().read().decode().splitlines()
            return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
        finally:
            connection.close()

    def stream(self, body, on_token=None, on_line=None):
        """The token ids of each choice of a streamed completion, in the order in which they came, and how each ended. on_line gets
        all that comes, comments too."""
        connection = http.client.HTTPConnection(self.address, self.port, timeout=120)
        try:
            connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True, "return_token_ids": True}),
                               self.headers)
            response = connection.getresponse()
            if response.status != 200:
                raise AssertionError(f"HTTP {response.status}: {response.read().decode()[:500]}")
            tokens, ends, is_done = {}, {}, False
            for line in response:
                if on_line:
                    on_line(line)
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
    """cable: of each host, as hosts.Host takes it; None: loopback addresses."""

    def __init__(self, binary, directory, cable=None):
        self.binary, self.directory, self.cable = binary, directory, cable
        self.processes, self.ports, self.hosts = {}, {}, {}
        self.etcd_url = None
        self.membership = None  # flags that say where the nodes find each other
        self.key = secrets.token_hex(16) if cable is not None else None  # hosts can be reached from others

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.go_on()
            process.kill()
        for host in self.hosts.values():
            host.close()

    def place(self, name, port=7000):
        """(address, port) that are the name's for as long as the cluster is there."""
        if self.cable is None:
            return HOST, self.ports.setdefault((name, port), free_port())
        if name not in self.hosts:
            self.hosts[name] = hosts.Host(name, len(self.hosts) + 1, True, **self.cable)
        return self.hosts[name].address, port

    def listen(self, name, port=7000):
        return "{}:{}".format(*self.place(name, port))

    def start(self, name, command):
        command = self.hosts[name].inside(command) if name in self.hosts else command
        self.processes[name] = Process(command, os.path.join(self.directory, name + ".log"))
        return self.processes[name]

    def start_etcd(self, members=("etcd",)):
        self.etcd_url = ",".join("http://" + self.listen(name, 2379) for name in members)
        peers = {name: "http://" + self.listen(name, 2380) for name in members}
        for name in members:
            self.start_member(name, peers)
        self.membership = ["--etcd", self.etcd_url]
        # Nodes that join wait for it a few seconds only.
        self.wait("etcd", lambda: all(self.etcd_health(name) for name in members))

    def start_member(self, name, peers):
        url = "http://" + self.listen(name, 2379)
        self.start(name, [ETCD, "--name", name, "--data-dir", os.path.join(self.directory, name), "--listen-client-urls", url,
                          "--advertise-client-urls", url, "--listen-peer-urls", peers[name],
                          "--initial-advertise-peer-urls", peers[name],
                          "--initial-cluster", ",".join(f"{member}={peer}" for member, peer in peers.items())])

    def etcd_health(self, name="etcd"):
        address, port = self.place(name, 2379)
        return Api(port, address).request("GET", "/health", timeout=5)[1]["health"] == "true"

    def start_attention_node(self, name, *flags):
        self.start(name, [self.binary, "attention-node", *self.membership, "--listen", self.listen(name), "--node-id", name,
                          "--threads", "1", "--hot-memory", "96M", "--drain-timeout", "20s", *flags])
        self.wait(f"{name} joined", lambda: "event=joined" in self.processes[name].text())

    def start_worker(self, name, model, *flags, ranks=1):
        together = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
        return self.start(name, [*together, self.binary, "worker", *self.membership, "--model", model, "--listen", self.listen(name),
                                 "--node-id", name, "--threads", "1", "--hot-memory", "64M", "--max-batch-tokens", "64",
                                 "--drain-timeout", "60s", *flags])

    def start_coordinator(self, name, *flags):
        address, port = self.place(name, 8000)
        if self.key is not None:
            keys = os.path.join(self.directory, "keys")
            with open(keys, "w") as file:
                file.write(f"{self.key} admin\n")
            flags = ("--api-keys", keys, *flags)
        self.start(name, [self.binary, "coordinator", *self.membership, "--listen", f"{address}:{port}",
                          "--node-id", name, "--drain-timeout", "60s", *flags])
        return Api(port, address, self.key)

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
        result = subprocess.run([self.binary, *arguments, "--coordinator", f"http://{api.address}:{api.port}"], capture_output=True,
                                text=True, timeout=120, env={**os.environ, **({"HADAL_API_KEY": api.key} if api.key else {})})
        return result.returncode, result.stdout, result.stderr
