"""Other libraries on the data sets of `hadal bench index`: recall@100 and queries a second of one thread.

    index_peers.py DIR [--faiss] [--hnswlib] [--usearch]       default: each that is installed

One query a call, three passes, the best counts; thread CPU time, as in `hadal bench index`. Keys are given twice, as
they are and with their mean taken away, which leaves every query's order alone and helps graphs. Rows are printed for
each parameter, so that the fastest one at a recall can be read off.
"""
import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np

BEST = 100


def read(directory):
    with open(os.path.join(directory, "model.safetensors"), "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header, start = json.loads(file.read(size)), 8 + size
        tensors = {}
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            file.seek(start + first)
            bits = np.frombuffer(file.read(end - first), np.uint16).astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(entry["shape"])
    return tensors


def measure(name, parameters, search, tests, best, build):
    seconds = []
    for _ in range(3):
        start = time.thread_time()
        found = [search(test) for test in tests]
        seconds.append(time.thread_time() - start)
    recall = np.mean([len(np.intersect1d(f, b)) / BEST for f, b in zip(found, best)])
    print(f"{name:28} {parameters:14} {build:9.1f} {recall:8.3f} {len(tests) / min(seconds):10.0f}", flush=True)


def faiss_rows(label, keys, tests, best):
    import faiss

    faiss.omp_set_num_threads(1)
    dim = keys.shape[1]
    lists = 1024 if len(keys) < 500000 else 4096
    start = time.process_time()
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(keys)
    index.add(keys)
    build = time.process_time() - start
    for probes in (16, 32, 64, 128, 256, 512):
        index.nprobe = probes
        search = lambda q: index.search(q[None], BEST)[1][0]
        measure(f"faiss IVFFlat {lists} {label}", f"nprobe {probes}", search, tests, best, build)
    start = time.process_time()
    graph = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    graph.add(keys)
    build = time.process_time() - start
    for ef in (100, 200, 400, 800):
        graph.hnsw.efSearch = ef
        measure(f"faiss HNSW16 {label}", f"ef {ef}", lambda q: graph.search(q[None], BEST)[1][0], tests, best, build)


def hnswlib_rows(label, keys, tests, best):
    import hnswlib

    start = time.process_time()
    index = hnswlib.Index("ip", keys.shape[1])
    index.init_index(len(keys), M=16, ef_construction=100)
    index.set_num_threads(1)
    index.add_items(keys)
    build = time.process_time() - start
    for ef in (100, 200, 400, 800):
        index.set_ef(ef)
        search = lambda q: index.knn_query(q, BEST, num_threads=1)[0][0]
        measure(f"hnswlib M16 {label}", f"ef {ef}", search, tests, best, build)


def usearch_rows(label, keys, tests, best):
    from usearch.index import Index

    start = time.process_time()
    index = Index(ndim=keys.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    index.add(np.arange(len(keys)), keys, threads=1)
    build = time.process_time() - start
    for ef in (100, 200, 400, 800):
        index.expansion_search = ef
        measure(f"usearch M16 {label}", f"ef {ef}", lambda q: index.search(q, BEST, threads=1).keys, tests, best, build)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory")
    peers = {"faiss": faiss_rows, "hnswlib": hnswlib_rows, "usearch": usearch_rows}
    for name in peers:
        parser.add_argument(f"--{name}", action="store_true")
    arguments = parser.parse_args()
    named = [name for name in peers if getattr(arguments, name)]
    data = read(arguments.directory)
    keys, tests = np.ascontiguousarray(data["keys"]), np.ascontiguousarray(data["tests"])
    best = np.argsort(-(tests @ keys.T), axis=1)[:, :BEST]
    print(f"{arguments.directory}: {keys.shape[0]} keys of {keys.shape[1]}")
    print(f"{'index':28} {'':14} {'build s':>9} {'recall':>8} {'queries/s':>10}")
    for name in named or peers:
        for label, rows in (("", keys), ("centred", np.ascontiguousarray(keys - keys.mean(0)))):
            try:
                peers[name](label, rows, tests, best)
            except ImportError:
                if named:
                    raise SystemExit(f"index_peers.py: {name} is not installed: pip install {name}")
                break


if __name__ == "__main__":
    main()
