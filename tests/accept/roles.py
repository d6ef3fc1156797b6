"""Measures a cluster of real processes on loopback addresses against one process.

usage: roles.py HADAL MODEL_DIR (the needle model) ITEM [FLAGS], where ITEM is
  splits    answers over attention nodes, split by heads, by positions and both  [--size 16000]
  larger    a document of three times the memory of the largest attention node   [--node-memory 32M --nodes 8 --needles 20]
  offload   what a step costs with its keys and values on an attention node; MODEL_DIR has the shape to be measured
            [--depth 8192 --batch 8]
"""
import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile

import report

ROOT = report.tools()
sys.path.insert(0, os.path.join(ROOT, "tests", "cluster"))
import needle_document  # noqa: E402
from cluster import HOST, Cluster  # noqa: E402
from server import Server  # noqa: E402

KV_BYTES_PER_TOKEN = 4 * 2 * 128 * 2 * 2  # of the needle model
# Attention nodes, head ranges, tokens up to which a context stays on one node
SPLITS = ((1, 1, 65536, "one attention node"), (2, 2, 65536, "2, by heads"), (2, 1, 2048, "2, by positions"),
          (4, 1, 2048, "4, by positions"), (4, 2, 2048, "4, by both"))


def begin(cluster, options, nodes, memory, *flags):
    """Attention nodes, one worker over them, and a coordinator."""
    cluster.start_etcd()
    for i in range(nodes):
        name = f"attention-{i + 1}"
        cluster.start(name, [options.hadal, "attention-node", "--etcd", cluster.etcd_url, "--listen", f"{HOST}:0", "--node-id", name,
                             "--hot-memory", memory])
        cluster.wait(f"{name} joined", lambda: "event=joined" in cluster.processes[name].text())
    cluster.start_worker("worker-1", options.model, "--attention", "nodes", "--max-batch-tokens", "512", "--threads", "0", *flags)
    api = cluster.start_coordinator("coordinator-1")
    cluster.wait_ready(api)
    cluster.wait_state(api, "worker-1", "ready")
    return api


def in_cluster(options, work, nodes, memory, *flags):
    directory = tempfile.mkdtemp(prefix="hadal-accept-")
    try:
        with Cluster(options.hadal, directory) as cluster:
            return work(begin(cluster, options, nodes, memory, *flags))
    finally:
        shutil.rmtree(directory)


def splits(options):
    text, [needle] = needle_document.draw(options.model, options.size, seed=1)
    bodies = [{"prompt": text + needle["prompt"], "max_tokens": 64, "ignore_eos": True, "return_token_ids": True, "temperature": heat,
               "seed": 7} for heat in (0, 1)]
    with Server(options.hadal, options.model, ["--hot-memory", "1G"]) as server:
        expected = [server.post("/v1/completions", body)["choices"][0]["token_ids"] for body in bodies]
    for (nodes, lanes, length, name), place in itertools.product(SPLITS, ("nodes", "worker")):
        answers = in_cluster(options, lambda api: [api.stream(body)["tokens"][0] for body in bodies], nodes, "256M", "--kv-lanes",
                             str(lanes), "--kv-range", str(length), "--prefill-at", place, "--hot-memory", "512M")
        same = sum(answer == wanted for answer, wanted in zip(answers, expected))
        report.line("2", f"{name}, prefill at {place}: {same} of 2 answers (greedy, seeded) behind {options.size} tokens are those of "
                    "one process", "2", same == 2)


def larger(options):
    size = 3 * (int(options.node_memory.rstrip("M")) << 20) // KV_BYTES_PER_TOKEN
    text, needles = needle_document.draw(options.model, size, options.needles, seed=1)

    def ask(api):
        right = 0
        for needle in needles:
            status, answer = api.request("POST", "/v1/completions", {"prompt": text + needle["prompt"], "max_tokens": 6,
                                                                     "temperature": 0}, timeout=3600)
            is_right = status == 200 and answer["choices"][0]["text"].strip() == needle["number"]
            right += is_right
            if not is_right:
                print(f"     {needle['prompt']}: {answer} instead of {needle['number']}")
        return right

    # What steps and requests need beside keys and values is of a node's memory as well, so there are few of them.
    right = in_cluster(options, ask, options.nodes, options.node_memory, "--kv-range", "4096", "--max-batch-tokens", "128",
                       "--max-requests", "4")
    report.line("3", f"{right} of {options.needles} needles in {size} tokens over {options.nodes} attention nodes of {options.node_memory}",
                "all, three times the memory of any of them", right == options.needles)


def offload(options):
    command = [options.hadal, "bench", "offload", options.model, "--depth", str(options.depth), "--batch", str(options.batch),
               "--hot-memory", options.node_memory, "--node-memory", options.far_memory, "--log-level", "warn", "--json", "-"]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    answer = json.loads(result.stdout)
    f, turns = answer["figures"], answer["turns"]
    ratio = f["step_offloaded_ms"] / f["step_in_process_ms"]
    added, echo = f["layer_offloaded_us"] - f["layer_in_process_us"], f["echo_us"]
    report.line("4", f"step: in process {f['step_in_process_ms']:.1f} ms, offloaded {f['step_offloaded_ms']:.1f} ms, {ratio:.3f} times",
                "at most 1.08 times", ratio <= 1.08)
    report.line("4", f"a layer's attention takes {added:.0f} us longer, an echo of its bytes between layers {echo:.0f} us: "
                f"{added / echo:.2f} times (alone, in a loop, {f['echo_alone_us']:.0f} us)", "at most 2 times", added <= 2 * echo)
    print(f"     busy: worker {f['worker_busy']:.0%}, attention node {f['node_busy']:.0%}; wire {f['wire_bytes_step'] / 1e6:.2f} MB a step, "
          f"{f['wire_bytes_second'] / 1e9:.3f} GB/s")
    grows = turns["round_delayed_ms"] - turns["round_ms"]
    report.line("4", f"a round of two micro-batches of {options.batch}: {turns['round_ms']:.1f} ms, behind {turns['delay_ms']} ms each way "
                f"{turns['round_delayed_ms']:.1f} ms: grows by {grows:.1f} ms", f"at most 20 of {turns['unhidden_ms']:.0f} ms", grows <= 20)
    print(f"     of a round {turns['round_waited_ms']:.1f} ms are waited for the node, behind the delay "
          f"{turns['round_delayed_waited_ms']:.1f} ms")
    print(f"     one after the other behind the delay {turns['one_after_the_other_delayed_ms']:.1f} ms; without it as one step of "
          f"{2 * options.batch} {turns['one_step_ms']:.1f} ms; every way gave the same bits")


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("hadal")
    parser.add_argument("model")
    parser.add_argument("item", choices=("splits", "larger", "offload"))
    parser.add_argument("--size", type=int, default=16000)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--node-memory", default="32M")
    parser.add_argument("--far-memory", default="6G")
    parser.add_argument("--needles", type=int, default=20)
    parser.add_argument("--depth", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    {"splits": splits, "larger": larger, "offload": offload}[options.item](options)
    report.finish()


if __name__ == "__main__":
    main()
