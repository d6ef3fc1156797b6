#!/bin/sh
# run.sh BINARY MODEL_DIR [PYTHON] - the official Python and JavaScript clients of OpenAI against `hadal serve`.
#
# Installs the clients by package name with pinned versions where they are missing (tools/setup.sh api, into build/), serves the
# model on a free port and runs each client's suite against it. Ends with 1 when a suite fails.
set -eu
binary=$1
model=$2
cd "$(dirname "$0")/../.."
sh tools/setup.sh api
python=${3:-build/venv/bin/python3}
exec "$python" tests/api/suite.py "$binary" "$model"
