"""What networks and etcd do to a cluster while streams run: no stream is lost, and every token is that of one process.

usage: network_test.py HADAL

Each process is on a host of its own (a network namespace). Where those are not permitted the test says so and ends with 77.
HADAL_ETCD_STOP_S (5): for how long etcd is stopped; longer than any lease.
"""
import os
import random
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import hosts  # noqa: E402
from golden import GoldenTest, main  # noqa: E402
from streams import Load, Streams  # noqa: E402

STOP_S = float(os.environ.get("HADAL_ETCD_STOP_S", "5"))
LEASE_S = 3
WORKERS, NODES = ("worker-1", "worker-2"), ("attention-1", "attention-2")
MEMBERS = ("etcd-1", "etcd-2", "etcd-3")


def bodies():
    """Contexts on one attention node and over both of them, greedy and seeded."""
    draw = random.Random(9)
    for i, length in enumerate((300, 1400, 60, 2200)):
        yield {"prompt": [draw.randrange(3, 500) for _ in range(length)], "max_tokens": 150, "ignore_eos": True,
               "temperature": 0 if i % 2 == 0 else 1, "seed": 30 + i}


class Network(GoldenTest):
    requests = tuple(bodies())

    def begin(self, members=("etcd",), **cable):
        """A cluster, and its one coordinator."""
        self.cluster = self.new_cluster(cable)
        self.enterContext(self.cluster)
        self.cluster.start_etcd(members)
        for name in NODES:
            self.cluster.start_attention_node(name)
        for name in WORKERS:
            self.cluster.start_worker(name, self.model, "--attention", "nodes", "--kv-range", "1024")
        self.api = self.cluster.start_coordinator("coordinator-1")
        self.cluster.wait_ready(self.api)
        for name in WORKERS:
            self.cluster.wait_state(self.api, name, "ready")

    def log(self, name):
        return self.cluster.processes[name].text()

    def wait_log(self, name, text, more=1):
        """Until the text is there once more than now."""
        before = self.log(name).count(text)
        return lambda: self.cluster.wait(f"{text} in the log of {name}", lambda: self.log(name).count(text) >= before + more)

    def wait_all_ready(self):
        def all_ready():
            states = {name: node["state"] for name, node in self.cluster.nodes(self.api).items()}
            return all(states.get(name) == "ready" for name in (*WORKERS, *NODES))
        self.cluster.wait("everybody ready", all_ready, lasting=0.5)

    def busiest_worker(self):
        nodes = self.cluster.nodes(self.api)
        return max(WORKERS, key=lambda name: nodes[name]["sequences"])

    def cut(self, *pairs):
        for a, b in pairs:
            self.cluster.hosts[a].cut(self.cluster.hosts[b])

    def mend(self, *pairs):
        for a, b in pairs:
            self.cluster.hosts[a].mend(self.cluster.hosts[b])

    def etcdctl(self, *arguments):
        return subprocess.run(["etcdctl", "--endpoints", self.cluster.etcd_url, *arguments], check=True, capture_output=True,
                              text=True, env={**os.environ, "ETCDCTL_API": "3"}).stdout

    def test_partitions_between_every_pair_of_roles(self):
        self.begin()
        with Load(self.api, self.requests, self.expected, 4) as load:
            load.wait_done(2)

            # No reset arrives: pings decide.
            lost = self.wait_log("coordinator-1", "event=worker_lost node=worker-1 ")
            back = self.wait_log("coordinator-1", "event=worker_connected node=worker-1 ")
            self.cut(("coordinator-1", "worker-1"))
            lost()
            load.wait_done(2)
            self.mend(("coordinator-1", "worker-1"))
            back()

            # Its sequences go on at the worker that still reaches both nodes.
            taken = self.wait_log("coordinator-1", "event=takeover ")
            busiest = self.busiest_worker()
            self.cut((busiest, "attention-1"))
            taken()
            load.wait_done(2)
            self.mend((busiest, "attention-1"))

            self.cut(("coordinator-1", "attention-1"))
            load.wait_done(4)
            self.mend(("coordinator-1", "attention-1"))
            self.wait_all_ready()

            # Their leases run out, and what they do goes on.
            gone = self.wait_log("coordinator-1", "event=node_gone node=worker-2 ")
            self.cut(("worker-2", "etcd"), ("attention-2", "etcd"))
            gone()
            load.wait_done(4)
            self.mend(("worker-2", "etcd"), ("attention-2", "etcd"))
            self.wait_all_ready()

            # What is said meanwhile is compacted away, so that the watch cannot go on where it was.
            self.cut(("coordinator-1", "etcd"))
            began = time.monotonic()
            self.cluster.processes["worker-2"].kill()
            while time.monotonic() - began < LEASE_S + 2:
                self.etcdctl("put", "something", "else")
                time.sleep(0.2)
            revision = self.etcdctl("get", "something", "-w", "fields").split('"Revision" : ')[1].split()[0]
            self.etcdctl("compaction", revision)
            load.wait_done(2)
            self.assertIn("worker-2", self.cluster.nodes(self.api))
            self.mend(("coordinator-1", "etcd"))
            self.cluster.wait("worker-2 is gone", lambda: "worker-2" not in self.cluster.nodes(self.api))
            self.cluster.start_worker("worker-2", self.model, "--attention", "nodes", "--kv-range", "1024")
            self.wait_all_ready()
            load.wait_done(4)

    def leader(self):
        for name in MEMBERS:
            address, port = self.cluster.place(name, 2379)
            if " true" in self.etcdctl_at(f"http://{address}:{port}"):
                return name
        raise AssertionError("etcd has no leader")

    def etcdctl_at(self, url):
        """id, version and so on of one member; ' true' where it leads."""
        lines = subprocess.run(["etcdctl", "--endpoints", url, "endpoint", "status", "-w", "simple"], check=True, capture_output=True,
                               text=True, env={**os.environ, "ETCDCTL_API": "3"}).stdout
        return lines.replace(",", "")

    def restart_members(self, names):
        peers = {name: "http://" + self.cluster.listen(name, 2380) for name in MEMBERS}
        for name in names:
            self.cluster.processes[name].kill()
            self.cluster.start_member(name, peers)

    def test_etcd_changes_its_leader_stalls_and_stops(self):
        self.begin(MEMBERS)
        with Load(self.api, self.requests, self.expected, 4) as load:
            load.wait_done(2)
            leader = self.leader()
            self.cluster.processes[leader].kill()
            load.wait_done(4)
            # The others have elected one: who is new is found by everybody.
            self.cluster.start_worker("worker-3", self.model, "--attention", "nodes", "--kv-range", "1024")
            self.cluster.wait_state(self.api, "worker-3", "ready")
            self.restart_members([leader])

            # Every lease runs out at once.
            for name in MEMBERS:
                self.cluster.processes[name].pause()
            time.sleep(LEASE_S + 1.5)
            for name in MEMBERS:
                self.cluster.processes[name].go_on()
            load.wait_done(4)
            self.wait_all_ready()

            for name in MEMBERS:
                self.cluster.processes[name].kill()
            time.sleep(STOP_S)
            load.wait_done(4)
            self.cluster.processes["worker-3"].kill()
            load.wait_done(4)
            self.restart_members(MEMBERS)
            self.wait_all_ready()
            self.cluster.start_worker("worker-3", self.model, "--attention", "nodes", "--kv-range", "1024")
            self.cluster.wait_state(self.api, "worker-3", "ready")

    def test_slow_and_lossy_cables(self):
        self.begin(delay_ms=3, loss=0.003)
        count = 24
        streams = Streams(self.api, [{**body, "max_tokens": count} for body in self.requests[:3]])
        streams.wait_tokens(count)
        self.cluster.processes[self.busiest_worker()].kill()
        answers = streams.join()
        self.assertEqual(streams.failures, [])
        self.assertEqual([answer["tokens"][0] for answer in answers], [answer["tokens"][0][:count] for answer in self.expected[:3]])


if __name__ == "__main__":
    if not hosts.enter():
        print("network namespaces are not permitted here: nothing was tested")
        sys.exit(77)
    main()
