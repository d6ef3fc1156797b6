#!/bin/sh
# demo.sh - serves a small model made on the spot and asks it about a document of 32,000 tokens. Called by ./run demo, which has
# installed and built what is needed.
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
exec "$python" tools/demo.py build/hadal "$model" "$@"
