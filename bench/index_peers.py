"""`hadal bench index` beside FAISS (IVF, HNSW), hnswlib and usearch: the same data, the same machine, the same run.

    index_peers.py HADAL DIR... [--recall 0.95] [--indexes clusters,graph] [--libraries ivf,hnsw,hnswlib,usearch] [--json FILE]
                           [--svg FILE]

Each DIR is a data set of tools/index_data.py. Every library is tried with several parameters of its making and as much
searching as it takes to reach the recall of the true best 100; a row is the fastest way of one library that does, or the
best recall that it came to. Keys are given with their mean taken away, which leaves every query's order alone and helps
graphs; IVF is also tried as it comes, and with lists that are ranked by inner product of centres made by distance.

Queries a second are of CPU time of one thread. The libraries get all test queries in one call, which costs them less than
one at a time; best of three passes. `read` is the bytes of keys and centres that were scored, in bf16 (theirs are twice
that), over those of all keys; hnswlib does not count. Of an index of ours it is all that a search reads, and the
candidates' keys. Needs numpy and the libraries: bench/peers/requirements-index.txt.
"""
import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
import numpy as np

BEST = 100
EFFORTS = (100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400, 3200)


def read(directory):
    with open(os.path.join(directory, "model.safetensors"), "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header, start = json.loads(file.read(size)), 8 + size
        tensors = {}
        for name in ("keys", "tests"):
            first, end = header[name]["data_offsets"]
            file.seek(start + first)
            bits = np.frombuffer(file.read(end - first), np.uint16).astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(header[name]["shape"])
    return tensors["keys"], tensors["tests"]


class Data:
    def __init__(self, directory):
        self.keys, self.tests = read(directory)
        self.centred = np.ascontiguousarray(self.keys - self.keys.mean(0))
        self.best = np.empty((len(self.tests), BEST), np.int64)
        for i, test in enumerate(self.tests):
            self.best[i] = np.argpartition(-(self.keys @ test), BEST)[:BEST]

    def recall(self, found):
        return float(np.mean([len(np.intersect1d(f, b)) / BEST for f, b in zip(found, self.best)]))


def spent(work):
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


class Way:
    """One index of one library: how it was made, and a search whose effort can be raised."""

    def __init__(self, data, name, build, search):
        self.name, self.data, self.search = name, data, search
        self.build_seconds, self.index = spent(build)

    def reach(self, recall, efforts):
        """The least effort that reaches the recall, or the greatest there is."""
        low, high = 0, len(efforts) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.recall_at(efforts[middle]) >= recall else (middle + 1, high)
        times = [spent(lambda: self.search(self.index, efforts[low])) for _ in range(3)]
        found, scored = times[0][1]
        return {"recall_100": self.data.recall(found), "parameters": f"{self.name}, {efforts[low]}",
                "build_us_per_key": self.build_seconds * 1e6 / len(self.data.keys),
                "scanned": None if scored is None else scored / len(self.data.keys),
                "queries_per_second": len(self.data.tests) / min(seconds for seconds, _ in times)}

    def recall_at(self, effort):
        return self.data.recall(self.search(self.index, effort)[0])


def ivf(data):
    import faiss
    faiss.omp_set_num_threads(1)
    count, dim = data.keys.shape
    usual, held = 1 << round(np.log2(3 * np.sqrt(count))), []

    def search(index, probes):
        index.nprobe = probes
        faiss.cvar.indexIVF_stats.reset()
        found = index.search(data.tests, BEST)[1]
        return found, faiss.cvar.indexIVF_stats.ndis / len(data.tests) + index.nlist

    def stock(lists):
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = 64
        index.train(data.keys)
        index.add(data.keys)
        return index

    def by_distance(lists):
        clusters = faiss.Kmeans(dim, lists, niter=10, max_points_per_centroid=64, seed=1)
        clusters.train(data.centred)
        near, ranked = faiss.IndexFlatL2(dim), faiss.IndexFlatIP(dim)
        near.add(clusters.centroids)
        ranked.add(clusters.centroids)
        index = faiss.IndexIVFFlat(near, dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.is_trained = True
        index.add(data.centred)
        index.quantizer = ranked
        held.append((near, ranked))  # which an index only points to
        return index

    for lists in (usual, 2 * usual):
        probes = [p for p in (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024) if p <= lists]
        yield Way(data, f"{lists} lists", lambda: stock(lists), search), probes
        yield Way(data, f"{lists} lists by distance", lambda: by_distance(lists), search), probes


def hnsw(data):
    import faiss
    faiss.omp_set_num_threads(1)

    def search(index, effort):
        index.hnsw.efSearch = effort
        faiss.cvar.hnsw_stats.reset()
        found = index.search(data.tests, BEST)[1]
        return found, faiss.cvar.hnsw_stats.ndis / len(data.tests)

    def build(links):
        index = faiss.IndexHNSWFlat(data.keys.shape[1], links, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 100
        index.add(data.centred)
        return index

    for links in (16, 32):
        yield Way(data, f"M {links}", lambda: build(links), search), EFFORTS


def hnswlib(data):
    import hnswlib

    def search(index, effort):
        index.set_ef(effort)
        return index.knn_query(data.tests, BEST, num_threads=1)[0].astype(np.int64), None

    def build(links):
        index = hnswlib.Index("ip", data.keys.shape[1])
        index.init_index(len(data.keys), M=links, ef_construction=100)
        index.add_items(data.centred, num_threads=1)
        return index

    for links in (16, 32):
        yield Way(data, f"M {links}", lambda: build(links), search), EFFORTS


def usearch(data):
    from usearch.index import Index

    def search(index, effort):
        index.expansion_search = effort
        matches = index.search(data.tests, BEST, threads=1)
        return matches.keys.astype(np.int64), matches.computed_distances / len(data.tests)

    def build(dtype):
        index = Index(ndim=data.keys.shape[1], metric="ip", dtype=dtype, connectivity=16, expansion_add=100)
        index.add(np.arange(len(data.keys)), data.centred, threads=1)
        return index

    for dtype in ("f32", "bf16"):
        yield Way(data, f"M 16 {dtype}", lambda: build(dtype), search), EFFORTS


LIBRARIES = {"ivf": ("faiss", ivf), "hnsw": ("faiss", hnsw), "hnswlib": ("hnswlib", hnswlib), "usearch": ("usearch", usearch)}


def best_of(rows, recall):
    right = [row for row in rows if row["recall_100"] >= recall]
    return max(right, key=lambda row: row["queries_per_second"]) if right else max(rows, key=lambda row: row["recall_100"])


def ours(hadal, directory, indexes):
    with tempfile.TemporaryDirectory() as room:
        path = os.path.join(room, "index.json")
        subprocess.run([hadal, "bench", "index", "--data", directory, "--index", indexes, "--outputs", "0", "--json", path],
                       check=True, stdout=subprocess.DEVNULL)
        with open(path) as file:
            return json.load(file)["rows"]


def show(name, row):
    scanned = "-" if row["scanned"] is None else f"{100 * row['scanned']:.2f}"
    print(f"{name:10} {row.get('parameters', ''):28} {row['build_us_per_key']:9.1f} {row['recall_100']:8.3f} {scanned:>8} "
          f"{row['queries_per_second']:10.0f}", flush=True)


def compare(arguments, directory):
    data = Data(directory)
    result = {"data": directory, "keys": len(data.keys), "key_dim": data.keys.shape[1], "hadal": [], "libraries": {}}
    print(f"{directory}: {len(data.keys)} keys of {data.keys.shape[1]}, recall of at least {arguments.recall}")
    print(f"{'index':10} {'parameters':28} {'us/key':>9} {'recall':>8} {'read %':>8} {'queries/s':>10}")
    for row in ours(arguments.hadal, directory, arguments.indexes):
        result["hadal"].append(row)
        show(row["index"], row)
    for name in arguments.libraries.split(","):
        rows = [way.reach(arguments.recall, efforts) for way, efforts in LIBRARIES[name][1](data)]
        result["libraries"][name] = best_of(rows, arguments.recall)
        show(name, result["libraries"][name])
    return result


# ---- the rows as points: recall upwards, queries a second to the right ----

LEAST, MOST, WIDTH, HEIGHT = 2, 4.3, 330, 260  # of the axis, as powers of ten; of a panel
COLOURS = {"clusters": "#b03a2e", "graph": "#d98880", "ivf": "#1f618d", "hnsw": "#5499c7", "hnswlib": "#117864", "usearch": "#7d6608"}


def point(rate, recall):
    x = 40 + (np.log10(np.clip(rate, 10**LEAST, 10**MOST)) - LEAST) / (MOST - LEAST) * (WIDTH - 60)
    return x, HEIGHT - 40 - max(recall, 0) * (HEIGHT - 70)


def panel(result):
    yield f'<text x="40" y="18">{result["keys"]} keys of {result["key_dim"]}: {os.path.basename(result["data"])}</text>'
    for recall in (0, 0.5, 0.95):
        y = point(1, recall)[1]
        yield f'<path d="M40 {y:.0f}H{WIDTH - 20}" stroke="#ccc"/><text x="8" y="{y + 4:.0f}">{recall}</text>'
    for rate in (100, 1000, 10000):
        yield f'<text x="{point(rate, 0)[0] - 12:.0f}" y="{HEIGHT - 22}">{rate}</text>'
    yield f'<text x="110" y="{HEIGHT - 6}">queries/s of a thread</text>'
    for name, row in [(row["index"], row) for row in result["hadal"]] + list(result["libraries"].items()):
        x, y = point(row["queries_per_second"], row["recall_100"])
        yield f'<circle cx="{x:.0f}" cy="{y:.0f}" r="5" fill="{COLOURS.get(name, "#555")}"/>'
        yield f'<text x="{x - 14:.0f}" y="{y + (18 if name in COLOURS and name in LIBRARIES else -9):.0f}">{name}</text>'


def draw(results, path):
    with open(path, "w") as file:
        file.write(f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH * len(results)}" height="{HEIGHT}" '
                   'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="#fff"/>\n')
        for i, result in enumerate(results):
            file.write(f'<g transform="translate({i * WIDTH} 0)">' + "\n".join(panel(result)) + "</g>\n")
        file.write("</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hadal")
    parser.add_argument("directories", nargs="+", metavar="DIR")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--indexes", default="clusters,graph")
    parser.add_argument("--libraries", default=",".join(LIBRARIES))
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--svg", metavar="FILE", help="the rows as a chart")
    arguments = parser.parse_args()
    for name in arguments.libraries.split(","):
        if name not in LIBRARIES:
            parser.error(f"--libraries: there is no '{name}'; there are {', '.join(LIBRARIES)}")
        try:
            importlib.import_module(LIBRARIES[name][0])
        except ImportError:
            sys.exit(f"index_peers.py: {LIBRARIES[name][0]} is not installed: pip install -r bench/peers/requirements-index.txt")
    results = [compare(arguments, directory) for directory in arguments.directories]
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(results, file, indent=1)
    if arguments.svg:
        draw(results, arguments.svg)


if __name__ == "__main__":
    main()
