"""Requests on their way: side by side once, or one after the other for as long as something is done to the cluster."""
import os
import tempfile
import threading
import time

from cluster import HOST, Api, Process, free_port


GAP_S = 0.05


class Pauses:
    """Times between two tokens of a stream: the longest, and, in gaps, the begin and the end of those that are worth a note."""

    def __init__(self, gaps=None):
        self.longest, self.last, self.gaps = 0.0, None, gaps

    def token(self):
        now = time.monotonic()
        if self.last is not None:
            self.longest = max(self.longest, now - self.last)
            if self.gaps is not None and now - self.last > GAP_S:
                self.gaps.append((self.last, now))
        self.last = now


class Streams:
    """Requests that run side by side, each on a thread. longest_pause is between two tokens of one stream."""

    def __init__(self, api, requests):
        self.answers, self.failures, self.token_count, self.longest_pause = [None] * len(requests), [], 0, 0.0
        self.begun = set()  # which have said something
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(api, i, body)) for i, body in enumerate(requests)]
        for thread in self.threads:
            thread.start()

    def run(self, api, index, body):
        try:
            pauses = Pauses()
            self.answers[index] = api.stream(body, lambda tokens: (pauses.token(), self.count(index, tokens)))
            with self.lock:
                self.longest_pause = max(self.longest_pause, pauses.longest)
        except Exception as failure:  # told by the test's own thread
            self.failures.append(f"request {index}: {failure!r}")

    def count(self, index, tokens):
        with self.lock:
            self.token_count += tokens
            self.begun.add(index)

    def wait_begun(self):
        while len(self.begun) < len(self.threads) and any(thread.is_alive() for thread in self.threads):
            time.sleep(0.005)

    def wait_tokens(self, count):
        while self.token_count < count and any(thread.is_alive() for thread in self.threads):
            time.sleep(0.005)

    def join(self):
        for thread in self.threads:
            thread.join(timeout=120)
        return self.answers


class Load:
    """Streams that begin again when they end, from `with` to its end; every answer has to be the expected one.

    So at any moment some are in the middle, and some begin. gaps: of all of them, as Pauses has it; stored: positions whose keys
    and values a request needs, of those that have ended."""

    def __init__(self, api, requests, expected, count):
        self.api, self.requests, self.expected = api, requests, expected
        self.failures, self.done, self.longest_pause, self.gaps, self.stored = [], 0, 0.0, [], 0
        self.lock = threading.Lock()
        self.is_ending = threading.Event()
        self.threads = [threading.Thread(target=self.run, args=(i,)) for i in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, *_):
        self.is_ending.set()
        for thread in self.threads:
            thread.join()
        if kind is None and self.failures:
            raise AssertionError(f"{len(self.failures)} of {self.done + len(self.failures)} streams: {self.failures[:3]}")

    def run(self, turn):
        while not self.is_ending.is_set():
            which = turn % len(self.requests)
            turn += len(self.threads)
            try:
                pauses, request = Pauses(self.gaps), self.requests[which]
                answer = self.api.stream(request, lambda _: pauses.token())
                if answer["tokens"] != self.expected[which]["tokens"]:
                    raise AssertionError(f"request {which} has other tokens than one process")
                with self.lock:
                    self.done += 1
                    self.longest_pause = max(self.longest_pause, pauses.longest)
                    self.stored += len(request["prompt"]) + sum(len(said) for said in answer["tokens"].values()) - 1
            except Exception as failure:  # told at the end of the load
                self.failures.append(repr(failure))
                time.sleep(0.1)

    def wait_done(self, more):
        """So many more answers, each of which may have begun before."""
        until, deadline = self.done + more, time.monotonic() + 120
        while self.done < until and not self.failures:
            if time.monotonic() > deadline:
                raise AssertionError("no stream ends")
            time.sleep(0.02)


def run_alone(binary, model, requests):
    """The answers of a single process."""
    port = free_port()
    with tempfile.TemporaryDirectory() as directory:
        process = Process([binary, "serve", model, "--listen", f"{HOST}:{port}", "--threads", "1", "--hot-memory", "64M"],
                          os.path.join(directory, "serve.log"))
        api = Api(port)
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                try:
                    if api.request("GET", "/ready", timeout=5)[0] == 200:
                        break
                except OSError:
                    time.sleep(0.03)
            return [api.stream(body) for body in requests]
        finally:
            process.stop()
