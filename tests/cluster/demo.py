"""./run cluster-demo: two coordinators, two workers and three attention nodes on this host, streaming long answers while an
attention node is drained and a worker is killed; every stream ends with the tokens of a single process.

usage: demo.py HADAL MODEL_DIR (the needle model)
"""
import os
import random
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import takeover_test  # noqa: E402
from cluster import ETCD, Api, Cluster, Process, free_port  # noqa: E402

HADAL, MODEL = sys.argv[1:3]
STREAMS, PROMPT, TOKENS = 6, 4000, 160


def bodies():
    draw = random.Random(1)
    for i in range(STREAMS):
        yield {"prompt": [draw.randrange(6, 4000) for _ in range(PROMPT)], "max_tokens": TOKENS, "ignore_eos": True,
               "temperature": 0 if i % 2 == 0 else 1, "seed": i}


def say(text):
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def run_alone(directory, requests):
    port = free_port()
    process = Process([HADAL, "serve", MODEL, "--listen", f"127.0.0.1:{port}"], os.path.join(directory, "serve.log"))
    api = Api(port)
    try:
        while True:
            if process.process.poll() is not None:
                raise SystemExit(process.text()[-2000:])
            try:
                if api.request("GET", "/ready", timeout=5)[0] == 200:
                    break
            except OSError:
                time.sleep(0.05)
        streams = takeover_test.Streams(api, requests)
        return streams.join()
    finally:
        process.stop()


def start_all(cluster):
    cluster.start_etcd()
    for i in range(3):
        name = f"attention-{i + 1}"
        cluster.start(name, [HADAL, "attention-node", "--etcd", cluster.etcd_url, "--listen", "127.0.0.1:0", "--node-id", name,
                             "--hot-memory", "512M", "--threads", "1", "--drain-timeout", "30s"])
        cluster.wait(f"{name} joined", lambda: "event=joined" in cluster.processes[name].text())
    for i in range(2):
        cluster.start_worker(f"worker-{i + 1}", MODEL, "--attention", "nodes", "--kv-range", "2048", "--max-batch-tokens", "256")
    apis = [cluster.start_coordinator(f"coordinator-{i + 1}") for i in range(2)]
    for api in apis:
        cluster.wait_ready(api)
        for i in range(2):
            cluster.wait_state(api, f"worker-{i + 1}", "ready")
    return apis


def main(directory):
    requests = list(bodies())
    say(f"one process: {STREAMS} streams of {PROMPT} tokens of prompt and {TOKENS} of answer")
    expected = run_alone(directory, requests)
    say("a cluster: etcd, 2 coordinators, 2 workers, 3 attention nodes")
    with Cluster(HADAL, os.path.join(directory, "cluster")) as cluster:
        apis = start_all(cluster)
        sides = [takeover_test.Streams(api, requests[i::2]) for i, api in enumerate(apis)]
        for side in sides:
            side.wait_tokens(60)
        say("draining attention-1: it takes nothing new, and its sequences go on")
        cluster.run("drain", "attention-1", api=apis[0])
        for side in sides:
            side.wait_tokens(150)
        say("kill -9 worker-1")
        cluster.processes["worker-1"].kill()
        answers = [side.join() for side in sides]
        failures = [failure for side in sides for failure in side.failures]
        for failure in failures:
            say(failure)
        same = sum(answers[i % 2][i // 2] is not None and answers[i % 2][i // 2]["tokens"] == expected[i]["tokens"]
                   for i in range(STREAMS))
        takeovers = sum(cluster.processes[f"coordinator-{i + 1}"].text().count("event=takeover") for i in range(2))
        say(f"{same} of {STREAMS} streams have the tokens of one process; {takeovers} were taken over by another worker")
        cluster.wait("attention-1 is empty", lambda: cluster.nodes(apis[0])["attention-1"]["safe_to_delete"])
        say("attention-1 is empty and safe to delete")
        return 0 if same == STREAMS and not failures else 1


if __name__ == "__main__":
    if not os.access(ETCD, os.X_OK):
        raise SystemExit(f"{ETCD} is not installed (Debian: etcd-server)")
    place = tempfile.mkdtemp(prefix="hadal-cluster-demo-")
    os.makedirs(os.path.join(place, "cluster"))
    try:
        code = main(place)
    finally:
        shutil.rmtree(place)
    sys.exit(code)
