"""Keys and values on attention nodes: the tokens of one process, whoever of the cluster is killed or drained meanwhile.

usage: offload_test.py HADAL
"""
import os
import random
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import make_model  # noqa: E402
from golden import HADAL, GoldenTest, main  # noqa: E402
from streams import Streams, run_alone  # noqa: E402


def bodies():
    """Contexts that lie whole on a node, and some that are spread over several by positions."""
    draw = random.Random(5)
    for i, length in enumerate((300, 2600, 900, 1900)):
        yield {"prompt": [draw.randrange(3, 500) for _ in range(length)], "max_tokens": 120, "ignore_eos": True,
               "temperature": 0 if i % 2 == 0 else 1, "seed": 70 + i}


class Heard:
    """A stream, and what came of it in its order: "token", "progress" and "keep-alive"."""

    def __init__(self, api, body):
        self.events, self.answer = [], None
        self.thread = threading.Thread(target=self.run, args=(api, body))
        self.thread.start()

    def run(self, api, body):
        self.answer = api.stream(body, lambda _: self.events.append("token"), self.line)

    def line(self, line):
        if line.startswith(b": keep-alive"):
            self.events.append("keep-alive")
        elif b'"prompt_progress"' in line:
            self.events.append("progress")

    def after_first_token(self):
        return self.events[self.events.index("token"):]

    def join(self):
        self.thread.join(timeout=120)
        return self.answer


class Offload(GoldenTest):
    requests = tuple(bodies())

    def begin(self, cluster, nodes, workers, *flags, model=None, coordinator=()):
        cluster.start_etcd()
        for i in range(nodes):
            cluster.start_attention_node(f"attention-{i + 1}")
        for i in range(workers):
            cluster.start_worker(f"worker-{i + 1}", model or self.model, "--attention", "nodes", "--kv-range", "1024", *flags)
        api = cluster.start_coordinator("coordinator-1", *coordinator)
        cluster.wait_ready(api)
        for i in range(workers):
            cluster.wait_state(api, f"worker-{i + 1}", "ready")
        return api

    def test_a_killed_worker_and_a_killed_attention_node(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 3, 2)
            streams = Streams(api, self.requests)
            streams.wait_tokens(60)
            cluster.processes["worker-1"].kill()
            self.check(streams)
            streams = Streams(api, self.requests)
            streams.wait_tokens(60)
            cluster.processes["attention-2"].kill()
            self.check(streams)
            self.check(Streams(api, self.requests[:2]), self.expected[:2])
            self.assertGreaterEqual(self.takeovers(cluster), 2)

    def test_prompts_staged_in_workers_and_micro_batches_bear_the_same(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 3, 2, "--prefill-at", "worker", "--micro-batches", "2")
            streams = Streams(api, self.requests)
            streams.wait_tokens(1)  # some prompts are still being made
            cluster.processes["worker-1"].kill()
            self.check(streams)
            streams = Streams(api, self.requests[::-1])
            streams.wait_tokens(60)
            cluster.processes["attention-2"].kill()
            self.check(streams, self.expected[::-1])

    def test_with_replicas_a_killed_attention_node_moves_nothing(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 2, 1, "--kv-replicas", "2")
            streams = Streams(api, self.requests)
            streams.wait_tokens(60)
            cluster.processes["attention-1"].kill()
            self.check(streams)
            self.assertEqual(self.takeovers(cluster), 0)

    def test_a_replica_that_stands_still_is_done_without(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 2, 1, "--kv-replicas", "2", "--replica-timeout", "300ms")
            streams = Streams(api, self.requests)
            streams.wait_tokens(60)
            cluster.processes["attention-1"].pause()
            self.check(streams)
            self.assertIn("event=attention_node_late node=attention-1", cluster.processes["worker-1"].text())
            self.assertEqual(self.takeovers(cluster), 0)

    def test_with_one_replica_a_client_hears_that_its_prompt_is_made_again(self):
        model = make_model(os.path.join(self.directory, "long"), positions=16384)
        draw = random.Random(9)
        body = {"prompt": [draw.randrange(3, 500) for _ in range(8000)], "max_tokens": 200, "ignore_eos": True, "temperature": 1, "seed": 3}
        [expected] = run_alone(HADAL, model, [body])
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 2, 1, model=model, coordinator=("--keep-alive", "100ms"))
            heard = Heard(api, body), Heard(api, {**body, "return_progress": True})
            cluster.wait("both streams decode", lambda: all("token" in stream.events for stream in heard))
            cluster.processes["attention-1"].kill()
            for stream in heard:
                self.assertEqual(stream.join()["tokens"], expected["tokens"])
            quiet, told = (stream.after_first_token() for stream in heard)
            self.assertIn("keep-alive", quiet)
            self.assertIn("progress", told)
            # Of both, the rest of the answer came behind that.
            self.assertIn("token", quiet[quiet.index("keep-alive"):])
            self.assertIn("token", told[told.index("progress"):])
            self.assertGreaterEqual(self.takeovers(cluster), 1)

    def test_contexts_grow_with_the_nodes_that_join(self):
        with self.new_cluster() as cluster:
            small = ("--hot-memory", "3M")  # too little for indexes: it is all for keys and values
            cluster.start_etcd()
            cluster.start_attention_node("attention-1", *small)
            cluster.start_worker("worker-1", self.model, "--attention", "nodes", "--kv-range", "1024", "--max-requests", "4")
            api = cluster.start_coordinator("coordinator-1")
            cluster.wait_ready(api)
            longest, request = self.expected[1], self.requests[1]

            def context():
                return api.request("GET", "/v1/models")[1]["data"][0]["max_model_len"]

            needed = len(request["prompt"]) + request["max_tokens"]
            self.assertLess(context(), needed)
            status, answer = api.request("POST", "/v1/completions", request)
            self.assertEqual((status, answer["error"]["code"]), (400, "context_length_exceeded"))
            # Nothing runs: the worker looks around all the same.
            cluster.start_attention_node("attention-2", *small)
            cluster.wait("a larger context", lambda: context() >= needed)
            self.assertEqual(api.stream(request)["tokens"], longest["tokens"])

    def test_operators_see_where_the_time_of_steps_goes(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 2, 1)
            self.check(Streams(api, self.requests))
            tokens = sum(len(body["prompt"]) + body["max_tokens"] - 1 for body in self.requests)  # the last one is not stored
            cluster.wait("its totals", lambda: api.request("GET", "/operator/steps")[1][0]["rows"] == tokens)
            [steps] = api.request("GET", "/operator/steps")[1]
            self.assertEqual(steps["node"], "worker-1")
            for part in ("dense_us", "wire_us", "attention_us"):
                self.assertGreater(steps[part], 0)
                name = part.removesuffix("_us")
                self.assertEqual(api.metrics()[f'hadal:node_step_microseconds_total{{node="worker-1",part="{name}"}}'], steps[part])
            cluster.wait("the nodes' totals", lambda: self.appended(api) == tokens)

    def test_without_etcd_a_list_says_who_is_there(self):
        with self.new_cluster() as cluster:
            roles = {"attention-1": "attention-node", "worker-1": "worker", "worker-2": "worker"}
            members = ",".join(f"{name}={role}@{cluster.listen(name)}" for name, role in roles.items())
            cluster.membership = ["--nodes", members]
            for name in ("attention-1", "worker-1", "worker-2"):
                if name.startswith("worker"):
                    cluster.start_worker(name, self.model, "--attention", "nodes", "--kv-range", "1024")
                else:
                    cluster.start_attention_node(name)
            api = cluster.start_coordinator("coordinator-1")
            cluster.wait_ready(api)
            cluster.wait("both workers", lambda: all(cluster.nodes(api)[name]["model"] == "golden" for name in ("worker-1", "worker-2")))
            streams = Streams(api, self.requests)
            streams.wait_tokens(60)
            cluster.processes["worker-1"].kill()
            self.check(streams)
            cluster.start_worker("worker-1", self.model, "--attention", "nodes", "--kv-range", "1024")
            connected = "event=worker_connected node=worker-1 "
            cluster.wait("it is back", lambda: cluster.processes["coordinator-1"].text().count(connected) == 2)
            # A drain is told by the worker itself.
            streams = Streams(api, self.requests)
            streams.wait_tokens(60)
            code, _, err = cluster.run("drain", "worker-2", "--wait", api=api)
            self.assertEqual((code, err), (0, ""))
            cluster.processes["worker-2"].kill()
            self.check(streams)

    def test_a_trace_is_named_in_the_logs_of_all_roles(self):
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 1, 1)
            api.headers["traceparent"] = f"00-{trace}-00f067aa0ba902b7-01"
            self.assertEqual(api.stream(self.requests[0])["tokens"], self.expected[0]["tokens"])
            for name, event in (("coordinator-1", "request_given"), ("coordinator-1", "request_ended"), ("worker-1", "request_started"),
                                ("attention-1", "sequence_opened")):
                [line] = [line for line in cluster.processes[name].text().splitlines() if f" event={event} " in line]
                self.assertIn(f"trace_id={trace}", line)
                self.assertIn(f"origin={name} ", line)

    def appended(self, api):
        """Positions that all attention nodes together have stored."""
        return sum(value for name, value in api.metrics().items() if name.startswith("hadal:node_appended_tokens_total{"))

    def test_a_drained_attention_node_takes_nothing_new_and_goes_when_it_is_empty(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 2, 1, "--kv-lanes", "1")
            streams = Streams(api, self.requests)
            streams.wait_tokens(20)
            self.assertEqual(cluster.run("drain", "attention-1", api=api)[0], 0)
            cluster.wait_state(api, "attention-1", "draining")
            self.check(streams)
            cluster.wait("it is empty", lambda: cluster.nodes(api)["attention-1"]["sequences"] == 0)
            self.check(Streams(api, self.requests))
            self.assertTrue(cluster.nodes(api)["attention-1"]["safe_to_delete"])
            cluster.processes["attention-1"].kill()
            self.check(Streams(api, self.requests[:2]), self.expected[:2])
            self.assertEqual(self.takeovers(cluster), 0)


if __name__ == "__main__":
    main()
