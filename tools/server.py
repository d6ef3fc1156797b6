"""A small HTTP client, and a `hadal serve` process that is one, of Python's standard library alone."""
import http.client
import json
import os
import signal
import socket
import subprocess
import time


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Client:
    """What is asked of one address; key is an API key, where there are keys."""

    def __init__(self, host, port, key=None):
        self.host, self.port = host, port
        self.headers = {"Content-Type": "application/json"}
        if key is not None:
            self.headers["Authorization"] = f"Bearer {key}"

    def _request(self, method, path, body=None, timeout=3600):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout)
        payload = None if body is None else json.dumps(body).encode()
        connection.request(method, path, payload, self.headers)
        return connection, connection.getresponse()

    def get(self, path):
        """(status, text)"""
        connection, response = self._request("GET", path, timeout=10)
        try:
            return response.status, response.read().decode()
        finally:
            connection.close()

    def post(self, path, body):
        """The answer as an object; raises on anything but 200."""
        connection, response = self._request("POST", path, body)
        try:
            text = response.read().decode()
            if response.status != 200:
                raise RuntimeError(f"{path}: HTTP {response.status}: {text[:500]}")
            return json.loads(text) if text else None
        finally:
            connection.close()

    def stream(self, path, body):
        """Yields the events of a streamed answer as objects."""
        connection, response = self._request("POST", path, {**body, "stream": True})
        try:
            if response.status != 200:
                raise RuntimeError(f"{path}: HTTP {response.status}: {response.read().decode()[:500]}")
            for line in response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[6:])
        finally:
            connection.close()

    def model(self):
        return json.loads(self.get("/v1/models")[1])["data"][0]["id"]

    def tokens(self, text):
        """Token ids of a text, without special tokens around it."""
        return self.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]

    def metric(self, name):
        """The value of a metric without labels, or with whatever labels it has."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith((name + " ", name + "{")):
                return float(line.rsplit(" ", 1)[1])
        raise KeyError(name)

    def tiers(self):
        """Bytes of keys and values by tier."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith("hadal:kv_tier_bytes{")]
        return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines}


class Server(Client):
    """Runs `hadal serve MODEL_DIR FLAGS` from `with` to its end; log is the path its standard error goes to."""

    def __init__(self, binary, model, flags=(), log=os.devnull):
        super().__init__("127.0.0.1", free_port())
        self.log = log
        self.command = [binary, "serve", model, "--listen", f"127.0.0.1:{self.port}", *flags]
        self.process = None

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command, stderr=log, stdout=log)
        deadline = time.monotonic() + 600
        while True:
            if self.process.poll() is not None:
                with open(self.log, errors="replace") as log:
                    raise RuntimeError(f"{' '.join(self.command)} ended with {self.process.returncode}:\n{log.read()[-2000:]}")
            try:
                if self.get("/ready")[0] == 200:
                    return self
            except OSError:
                pass
            if time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError("the server was not ready within 600 s")
            time.sleep(0.05)

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def memory(self, key):
        """VmRSS or VmHWM of the process, in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith(key + ":"):
                    return int(line.split()[1]) * 1024
        raise KeyError(key)
