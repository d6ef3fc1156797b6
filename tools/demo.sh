#!/bin/sh
# demo.sh [TOKENS] - serves a small model made on the spot and asks it about a document of 32,000 tokens.
# demo.sh cluster [FLAGS] - the same model in a cluster that loses nodes (cluster_demo.py).
# Called by ./run demo and ./run cluster-demo, which have installed and built what is needed.
set -eu
cd "$(dirname "$0")/.."

model=build/models/needle
python=build/venv/bin/python
[ -x "$python" ] || python=python3
if [ ! -f "$model/config.json" ]; then
    printf 'Writing a model that looks things up in long texts into %s\n' "$model"
    mkdir -p "$model"
    "$python" tools/needle/make_needle_model.py "$model"
fi
script=tools/demo.py
if [ "${1:-}" = cluster ]; then
    script=tools/cluster_demo.py
    shift
fi
exec "$python" "$script" build/hadal "$model" "$@"
