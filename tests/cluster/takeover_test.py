"""Workers that are killed, drained and started again under running streams: no token lost, repeated or changed.

usage: takeover_test.py HADAL
"""
import json
import os
import random
import shutil
import signal
import sys
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import make_model  # noqa: E402
from golden import HADAL, GoldenTest, main  # noqa: E402
from streams import Streams, run_alone  # noqa: E402

STREAMS, TOKENS = 8, 160
PAUSE_MAX_S = 15  # that a client sees when a worker is killed, on the slowest of machines


def bodies(seed, count=STREAMS, tokens=TOKENS):
    """Requests of every kind: greedy and seeded, with penalties, several choices, log-probabilities."""
    draw = random.Random(seed)
    for i in range(count):
        body = {"prompt": [draw.randrange(3, 500) for _ in range(draw.randrange(20, 700))], "max_tokens": tokens, "ignore_eos": True,
                "temperature": 0 if i % 2 == 0 else 1, "seed": 1000 + i}
        if i % 4 == 1:
            body.update(frequency_penalty=0.4, repetition_penalty=1.2)
        if i % 4 == 2:
            body.update(n=2, temperature=0.8)
        if i % 4 == 3:
            body.update(top_p=0.9, logprobs=2)
        yield body


class Takeover(GoldenTest):
    requests = tuple(bodies(7))

    def begin(self, cluster, workers=2):
        cluster.start_etcd()
        for i in range(workers):
            cluster.start_worker(f"worker-{i + 1}", self.model)
        api = cluster.start_coordinator("coordinator-1")
        cluster.wait_ready(api)
        for i in range(workers):
            cluster.wait_state(api, f"worker-{i + 1}", "ready")
        return api

    def test_killed_workers_lose_no_token(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster)
            coordinator = cluster.processes["coordinator-1"]
            for turn in range(4):
                streams = Streams(api, self.requests)
                # Sometimes in the prefill, sometimes late.
                streams.wait_tokens((0, 40, 300, 800)[turn])
                victim = f"worker-{turn % 2 + 1}"
                if turn == 0:
                    cluster.wait("something running", lambda: cluster.nodes(api)[victim]["sequences"] > 0)
                connected = f"event=worker_connected node={victim} "
                connections = coordinator.text().count(connected)
                cluster.processes[victim].kill()
                self.check(streams)
                self.assertLess(streams.longest_pause, PAUSE_MAX_S)
                # Its connection told at once: nobody waited for pings, or for a lease to run out.
                self.assertNotIn("keepalive", self.last_loss(cluster, victim))
                cluster.start_worker(victim, self.model)
                cluster.wait("it has joined again", lambda: coordinator.text().count(connected) > connections)
            self.assertGreaterEqual(coordinator.text().count("event=takeover"), 4)

    def last_loss(self, cluster, worker):
        """What the coordinator logged of it."""
        lines = cluster.processes["coordinator-1"].text().splitlines()
        return [line for line in lines if f"event=worker_lost node={worker} " in line][-1]

    def test_a_worker_that_hangs_is_left_and_is_not_heard_when_it_wakes(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster)
            streams = Streams(api, self.requests)
            streams.wait_tokens(100)
            cluster.processes["worker-1"].pause()  # no reset arrives, as in a partition: pings decide
            self.check(streams)
            self.assertIn("keepalive", self.last_loss(cluster, "worker-1"))
            cluster.processes["worker-1"].go_on()
            cluster.wait_state(api, "worker-1", "ready")
            self.check(Streams(api, self.requests))

    def test_the_only_worker_may_come_back(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, workers=1)
            streams = Streams(api, self.requests[:4])
            streams.wait_tokens(60)
            cluster.processes["worker-1"].kill()
            cluster.start_worker("worker-1", self.model)
            self.check(streams, self.expected[:4])

    def test_a_drained_worker_hands_over_between_two_tokens(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster)
            streams = Streams(api, self.requests)
            streams.wait_tokens(100)
            code, out, err = cluster.run("drain", "worker-1", "--wait", "--json", api=api)
            self.assertEqual((code, err), (0, ""))
            self.assertEqual(json.loads(out), {"safe_to_delete": "worker-1"})
            node = cluster.nodes(api)["worker-1"]
            self.assertEqual((node["state"], node["sequences"], node["safe_to_delete"]), ("draining", 0, True))
            cluster.processes["worker-1"].kill()  # it said that this is safe
            self.check(streams)
            self.assertNotIn("event=takeover", cluster.processes["coordinator-1"].text())

    def test_an_undrained_worker_takes_work_again(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, workers=1)
            self.assertEqual(cluster.run("drain", "worker-1", api=api)[0], 0)
            cluster.wait_state(api, "worker-1", "draining")
            streams = Streams(api, self.requests[:1])
            time.sleep(0.3)
            self.assertEqual(streams.token_count, 0)
            self.assertEqual(cluster.run("undrain", "worker-1", api=api)[0], 0)
            self.check(streams, self.expected[:1])

    def test_sigterm_drains_and_leaves(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster)
            streams = Streams(api, self.requests)
            streams.wait_tokens(100)
            self.assertEqual(cluster.processes["worker-2"].stop(), 0)
            self.check(streams)
            cluster.wait("worker-2 has left", lambda: "worker-2" not in cluster.nodes(api))
            self.assertNotIn("drain_timeout", cluster.processes["worker-2"].text())
            # A coordinator as well: what it answers is finished first.
            streams = Streams(api, self.requests)
            streams.wait_begun()
            self.assertEqual(cluster.processes["coordinator-1"].stop(), 0)
            self.check(streams)

    def test_streams_go_on_without_etcd_and_with_a_stalled_one(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster)
            streams = Streams(api, self.requests)
            streams.wait_tokens(50)
            cluster.processes["etcd"].pause()
            time.sleep(5)  # longer than every lease
            cluster.processes["etcd"].go_on()
            self.check(streams)
            # When it wakes it may end the leases that ran out meanwhile: the view to be kept is the one after that.
            cluster.wait("both workers, for good", lambda: all(cluster.nodes(api).get(f"worker-{i + 1}", {}).get("state") == "ready"
                                                               for i in range(2)), lasting=2)
            cluster.processes["etcd"].kill()
            self.check(Streams(api, self.requests))  # the last view is good for new ones as well
            cluster.start_etcd()
            cluster.processes["worker-1"].kill()
            self.check(Streams(api, self.requests))

    def test_two_coordinators_and_two_models(self):
        with self.new_cluster() as cluster:
            first = self.begin(cluster, workers=1)
            other = make_model(os.path.join(self.directory, "other"), "qwen2")
            requests = [{**body, "model": "other", "prompt": body["prompt"][:50]} for body in bodies(3, 2, 20)]
            wanted = run_alone(HADAL, other, requests)
            cluster.start_worker("worker-other", other)
            second = cluster.start_coordinator("coordinator-2")
            for api in (first, second):
                cluster.wait("both models", lambda: len(api.request("GET", "/v1/models", timeout=5)[1]["data"]) == 2)
            golden = [{**body, "model": "golden"} for body in self.requests]
            both = [Streams(first, golden[:4]), Streams(second, golden[:4]), Streams(second, requests), Streams(first, requests)]
            for streams, expected in zip(both, (self.expected[:4], self.expected[:4], wanted, wanted)):
                self.check(streams, expected)
            self.assertEqual(first.request("POST", "/v1/completions", {"model": "none", "prompt": "t5"})[0], 404)

    def test_the_operator_sees_and_cancels(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, workers=1)
            code, out, _ = cluster.run("nodes", "--json", api=api)
            nodes = {node["id"]: node for node in json.loads(out)}
            self.assertEqual(code, 0)
            self.assertEqual(nodes["worker-1"]["role"], "worker")
            self.assertEqual(nodes["worker-1"]["model"], "golden")
            self.assertEqual(nodes["coordinator-1"]["role"], "coordinator")
            self.assertFalse(nodes["worker-1"]["safe_to_delete"])
            self.assertEqual(set(nodes["worker-1"]), {"id", "role", "state", "address", "model", "kv_bytes", "kv_capacity",
                                                      "sequences", "safe_to_delete"})
            self.assertIn("worker-1", cluster.run("nodes", api=api)[1])
            streams = Streams(api, [{**self.requests[0], "max_tokens": 3000}])
            streams.wait_tokens(20)
            sequences = json.loads(cluster.run("sequences", "--json", api=api)[1])
            self.assertEqual((len(sequences), sequences[0]["worker"], sequences[0]["state"]), (1, "worker-1", "decoding"))
            self.assertEqual(cluster.run("cancel", sequences[0]["id"], api=api)[0], 0)
            streams.join()
            self.assertIn("cancelled", streams.failures[0])
            code, out, err = cluster.run("cancel", "12345", api=api)
            self.assertEqual((code, out), (1, ""))
            self.assertIn("there is no sequence '12345'", err)
            self.assertIn("there is no node 'nobody'", cluster.run("drain", "nobody", api=api)[2])

    @unittest.skipUnless(shutil.which("mpirun"), "mpirun is not there: install openmpi-bin, as ./run test does")
    def test_a_worker_of_two_ranks_answers_as_one_process_does_and_is_lost_as_one(self):
        with self.new_cluster() as cluster:
            cluster.start_etcd()
            cluster.start_worker("worker-1", self.model, ranks=2)
            api = cluster.start_coordinator("coordinator-1")
            cluster.wait_ready(api)
            cluster.wait_state(api, "worker-1", "ready")
            self.check(Streams(api, self.requests))
            cluster.start_worker("worker-2", self.model)
            cluster.wait_state(api, "worker-2", "ready")
            streams = Streams(api, self.requests)
            streams.wait_tokens(60)
            together = cluster.processes.pop("worker-1")
            os.kill(self.children(together.process.pid)[-1], signal.SIGKILL)
            self.check(streams)
            self.assertNotEqual(together.process.wait(timeout=60), 0)

    def children(self, pid):
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return [int(child) for child in file.read().split()]

    def test_a_node_that_does_not_fit_is_refused_by_name(self):
        with self.new_cluster() as cluster:
            self.begin(cluster, workers=1)
            other = make_model(os.path.join(cluster.directory, "golden"), "mistral")
            stranger = cluster.start_worker("stranger", other)
            self.assertEqual(stranger.process.wait(timeout=60), 1)
            self.assertIn("node worker-1 serves other weights under the name 'golden'", stranger.text())
            del cluster.processes["stranger"]


if __name__ == "__main__":
    main()
