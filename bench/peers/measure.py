"""What every peer's script shares: pieces by name, timing, and one JSON object a measurement on standard output.

    {"engine", "version", "piece", "weights", "kv", "threads", "unit", "median", "best", "runs": [...]}

`unit` is "tokens/s" (more is better) or "ms/token" (less is).
"""
import json
import statistics
import sys
import time


def timed(function):
    """Seconds that function() took."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def report(engine, version, piece, weights, kv, threads, unit, runs):
    best = min(runs) if unit == "ms/token" else max(runs)
    print(json.dumps({"engine": engine, "version": version, "piece": piece, "weights": weights, "kv": kv, "threads": threads,
                      "unit": unit, "median": round(statistics.median(runs), 3), "best": round(best, 3),
                      "runs": [round(run, 3) for run in runs]}), flush=True)


def choose(pieces, names):
    """The functions of the pieces named, all of them when none is."""
    unknown = [name for name in names if name not in pieces]
    if unknown:
        sys.exit(f"no piece {unknown[0]}; there are {' '.join(pieces)}")
    return [(name, pieces[name]) for name in names or pieces]
