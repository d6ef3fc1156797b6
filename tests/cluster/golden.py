"""What tests of clusters share: a golden model, requests, and the answers of one process that every cluster has to give."""
import os
import shutil
import sys
import tempfile
import unittest

from cluster import ETCD, Cluster, make_model
from streams import run_alone

HADAL = sys.argv[1]


class GoldenTest(unittest.TestCase):
    requests = ()

    @classmethod
    def setUpClass(cls):
        cls.directory = tempfile.mkdtemp(prefix=f"hadal-{cls.__name__.lower()}-")
        cls.addClassCleanup(shutil.rmtree, cls.directory)
        cls.model = make_model(os.path.join(cls.directory, "golden"))
        cls.expected = run_alone(HADAL, cls.model, cls.requests)

    def new_cluster(self, cable=None):
        return Cluster(HADAL, tempfile.mkdtemp(dir=self.directory), cable)

    def check(self, streams, expected=None):
        answers = streams.join()
        self.assertEqual(streams.failures, [])
        for i, (answer, wanted) in enumerate(zip(answers, expected or self.expected)):
            self.assertEqual(answer["tokens"], wanted["tokens"], f"request {i}")
            self.assertEqual(answer["ends"], wanted["ends"], f"request {i}")

    def takeovers(self, cluster):
        return cluster.processes["coordinator-1"].text().count("event=takeover")


def main():
    if not os.access(ETCD, os.X_OK):
        sys.exit(f"{ETCD} is not there: install etcd-server, as ./run test does")
    unittest.main(argv=sys.argv[:1] + sys.argv[2:])
