"""One line for each figure: item, figure, target, pass or fail. The exit code of finish() is 1 when any failed."""
import json
import os
import sys

failed = 0


def line(item, figure, target, is_right):
    global failed
    failed += not is_right
    print(f"{item:<4} {figure} | target: {target} | {'pass' if is_right else 'FAIL'}", flush=True)


def finish():
    sys.exit(1 if failed else 0)


def load(path):
    with open(path) as file:
        return json.load(file)


def tools():
    """Makes tools/ importable, and returns the root."""
    root = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
    sys.path.insert(0, os.path.join(root, "tools"))
    return root
