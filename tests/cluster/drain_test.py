"""Attention nodes that are drained, killed in the middle of that, or made again: the tokens of one process, no stream moved.

usage: drain_test.py HADAL
"""
import json
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from golden import GoldenTest, main  # noqa: E402
from streams import Load, Streams  # noqa: E402

PAUSE_S = 3.0  # between two tokens; the machine may be busy with something else. What a switch takes is the log's and smaller


def bodies():
    """Long enough that an operator can do something meanwhile; whole on a node, and spread over several by positions."""
    draw = random.Random(6)
    for i, length in enumerate((300, 2600, 900, 1900)):
        yield {"prompt": [draw.randrange(3, 500) for _ in range(length)], "max_tokens": 700, "ignore_eos": True,
               "temperature": 0 if i % 2 == 0 else 1, "seed": 80 + i}


class Drain(GoldenTest):
    requests = tuple(bodies())

    def begin(self, cluster, nodes, *flags):
        cluster.start_etcd()
        for i in range(nodes):
            cluster.start_attention_node(f"attention-{i + 1}")
        cluster.start_worker("worker-1", self.model, "--attention", "nodes", "--kv-range", "1024", *flags)
        api = cluster.start_coordinator("coordinator-1")
        cluster.wait_ready(api)
        cluster.wait_state(api, "worker-1", "ready")
        return api

    def moves(self, cluster, event="row_moved"):
        return cluster.processes["worker-1"].text().count(f"event={event}")

    def test_a_drained_node_is_killed_the_moment_that_it_is_safe(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 3)
            streams = Streams(api, self.requests)
            streams.wait_begun()
            code, out, errors = cluster.run("drain", "attention-1", "--wait", "--json", api=api)
            cluster.processes["attention-1"].kill()
            self.assertEqual((code, json.loads(out)), (0, {"safe_to_delete": "attention-1"}), errors)
            self.check(streams)
            self.assertGreaterEqual(self.moves(cluster), 1)
            self.assertEqual(self.takeovers(cluster), 0)
            self.assertLess(streams.longest_pause, PAUSE_S)

    def test_a_drain_that_is_taken_back_and_given_again(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 2)
            with Load(api, self.requests, self.expected, 4) as load:
                load.wait_done(1)
                for _ in range(3):
                    for order in ("drain", "undrain"):
                        self.assertEqual(cluster.run(order, "attention-2", api=api)[0], 0)
                        time.sleep(0.1)
                self.assertFalse(cluster.nodes(api)["attention-2"]["safe_to_delete"])
                self.assertEqual(cluster.run("drain", "attention-2", "--wait", api=api)[0], 0)
                self.assertEqual(cluster.processes["attention-2"].stop(), 0)
                load.wait_done(2)
            self.assertEqual(self.takeovers(cluster), 0)

    def test_a_node_that_is_ended_by_a_signal_hands_over_first(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 2)
            streams = Streams(api, self.requests)
            streams.wait_begun()
            self.assertEqual(cluster.processes["attention-1"].stop(), 0)
            self.check(streams)
            self.assertGreaterEqual(self.moves(cluster), 1)
            self.assertEqual(self.takeovers(cluster), 0)

    def test_a_receiver_is_killed_in_the_middle(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 3)
            with Load(api, self.requests, self.expected, 4) as load:
                load.wait_done(1)
                self.assertEqual(cluster.run("drain", "attention-1", api=api)[0], 0)
                time.sleep(0.05)
                cluster.processes["attention-2"].kill()
                cluster.wait("attention-1 is drained", lambda: cluster.nodes(api)["attention-1"]["safe_to_delete"])
                cluster.processes["attention-1"].kill()
                load.wait_done(2)

    def test_a_replica_is_made_again_before_the_other_one_goes(self):
        with self.new_cluster() as cluster:
            api = self.begin(cluster, 3, "--kv-replicas", "2")
            streams = Streams(api, self.requests)
            streams.wait_begun()
            cluster.processes["attention-1"].kill()
            made = []
            cluster.wait("replicas are made again", lambda: made.append(self.moves(cluster, "row_replicated")) or
                         (made[-1] > 0 and made[-1] == made[-min(len(made), 30)]), lasting=0.5)
            cluster.processes["attention-2"].kill()
            self.check(streams)
            self.assertEqual(self.takeovers(cluster), 0)


if __name__ == "__main__":
    main()
