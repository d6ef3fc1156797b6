"""soak.py BINARY MODEL_DIR [--streams 1000] [--requests 10000] [--clients 64] [--hang-up 0.333] [--growth 0.02] [--seed 1]

Many clients against `hadal serve`: first so many SSE connections held open at once and each served to its end; then so many requests of
every kind, of which a share hangs up at a random moment. Afterwards nothing may be left: no request running, no block held, a
resident set that did not grow. Prints a line for each figure; ends with 1 when one is missed."""
import argparse
import asyncio
import json
import os
import random
import re
import resource
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "tools"), os.path.join(ROOT, "tests", "accept")]

import report  # noqa: E402
from server import Server  # noqa: E402

ITEM = "6"


def post(path, body):
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: soak\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


async def exchange(port, request, hang_up_after_s=None):
    """The whole answer; None where the client hung up before it came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        await writer.drain()
        if hang_up_after_s is None:
            return await asyncio.wait_for(reader.read(-1), 900)
        try:
            return await asyncio.wait_for(reader.read(-1), hang_up_after_s)
        except asyncio.TimeoutError:
            return None
    finally:
        writer.close()


def status_of(answer):
    match = re.match(rb"HTTP/1\.[01] (\d+)", answer or b"")
    return int(match.group(1)) if match else 0


async def hold_streams(port, count):
    """All streams are open before the first may end; returns how many were open at once and how many came to their end."""
    opened, complete, refused = 0, 0, 0
    everyone = asyncio.Event()

    async def one(index):
        nonlocal opened, complete, refused
        request = post("/v1/completions", {"prompt": f"stream {index} says", "max_tokens": 8, "ignore_eos": True, "stream": True})
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            opened += 1
            if opened >= count:
                everyone.set()
            await everyone.wait()
            writer.write(request)
            answer = await asyncio.wait_for(reader.read(-1), 900)
            writer.close()
            if status_of(answer) != 429:
                complete += status_of(answer) == 200 and b"data: [DONE]" in answer
                return
            refused += 1
            await asyncio.sleep(0.2 + random.random())

    await asyncio.gather(*(one(i) for i in range(count)))
    return opened - refused, complete, refused


async def hang_up_at_random(port, count, clients, share, chooser):
    left, tally = count, {"answered": 0, "hung_up": 0, "refused": 0, "wrong": 0}
    usual_s = 0.02  # how long an answer takes, followed as it changes: hanging up after it would be no hanging up

    async def client():
        nonlocal left, usual_s
        while left > 0:
            left -= 1
            body = {"prompt": "word " * chooser.randint(1, 60), "max_tokens": chooser.randint(1, 12), "ignore_eos": True,
                    "stream": chooser.random() < 0.6, "n": chooser.choice([1, 1, 1, 2])}
            path = "/v1/completions"
            if chooser.random() < 0.3:
                body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
                path = "/v1/chat/completions"
            hang_up = chooser.random() * 0.5 * usual_s if chooser.random() < share else None
            start = time.monotonic()
            try:
                answer = await exchange(port, post(path, body), hang_up)
            except OSError:
                tally["wrong"] += 1
                continue
            if answer is None:
                tally["hung_up"] += 1
            elif status_of(answer) == 429:
                tally["refused"] += 1
            else:
                is_right = status_of(answer) == 200 and (not body["stream"] or b"data: [DONE]" in answer)
                tally["answered" if is_right else "wrong"] += 1
                if hang_up is None:
                    usual_s += 0.1 * (time.monotonic() - start - usual_s)

    await asyncio.gather(*(client() for _ in range(clients)))
    return tally


def settle(server):
    """Waits until nothing runs any more, at most a minute, and empties the prefix cache."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if server.metric("hadal:num_requests_running") == 0 and server.metric("hadal:num_requests_waiting") == 0:
            break
        time.sleep(0.1)
    server.post("/reset_prefix_cache", {})
    time.sleep(1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--hang-up", type=float, default=1 / 3)
    parser.add_argument("--growth", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    chooser = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        log = os.path.join(folder, "serve.log")
        with Server(os.path.abspath(arguments.binary), os.path.abspath(arguments.model), [], log) as server:
            opened, complete, refused = asyncio.run(hold_streams(server.port, arguments.streams))
            report.line(ITEM, f"{opened} SSE connections at once, {complete} served to their end ({refused} retries after 429)",
                        f"{arguments.streams} of both", opened == complete == arguments.streams)
            # The first requests of each kind take what the server keeps for ever: buffers, thread stacks, the allocator's arenas.
            warm = max(arguments.requests // 5, 1)
            asyncio.run(hang_up_at_random(server.port, warm, arguments.clients, arguments.hang_up, chooser))
            settle(server)
            before = server.memory("VmRSS")
            start = time.monotonic()
            tally = asyncio.run(hang_up_at_random(server.port, arguments.requests, arguments.clients, arguments.hang_up, chooser))
            seconds = time.monotonic() - start
            settle(server)
            after = server.memory("VmRSS")
            report.line(ITEM, f"{arguments.requests} requests in {seconds:.0f} s (seed {arguments.seed}): {tally}", "none wrong",
                        tally["wrong"] == 0 and sum(tally.values()) == arguments.requests)
            hung_up = tally["hung_up"] / arguments.requests
            report.line(ITEM, f"{hung_up:.0%} of them hung up", f"about {arguments.hang_up:.0%}", abs(hung_up - arguments.hang_up) < 0.1)
            growth = after / before - 1
            report.line(ITEM, f"resident set {before / 2**20:.1f} -> {after / 2**20:.1f} MiB ({growth:+.1%})", f"within {arguments.growth:.0%}",
                        growth <= arguments.growth)
            left = {name: server.metric("hadal:" + name) for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")}
            report.line(ITEM, f"left behind: {left}", "nothing", not any(left.values()))
        with open(log, errors="replace") as text:
            reported = "Sanitizer" in text.read()
        report.line(ITEM, f"the server ended with {server.process.returncode}", "0, no sanitizer's report",
                    server.process.returncode == 0 and not reported)
    report.finish()


if __name__ == "__main__":
    main()
