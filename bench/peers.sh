#!/usr/bin/env bash
# peers.sh [--json FILE] [ENGINE [PIECE...]] - measures other engines on this machine, with the model shape of Llama-3.2-1B,
# random weights in bf16, and as many threads as there are processors (PEERS_THREADS).
#
#   llama          llama.cpp:    prefill-512 prefill-4096 decode-0 decode-4096 decode-32768 decode-131072 chunk-32768 batch-8 q8-decode-0
#   transformers   HF on torch:  prefill-512 prefill-4096
#   install        installs both and writes the models, measures nothing
#   index          installs FAISS, hnswlib and usearch into build/peers-index, for bench/index_peers.py
#
# Without an engine, everything. Each measurement is one line of JSON on standard output, and --json collects them in FILE.
# The engines come from the package index into build/peers-*, pinned in bench/peers/requirements-*.txt; llama.cpp is compiled
# for this processor. The model for Hadal's own figures is build/models/llama-1b.
set -euo pipefail
cd "$(dirname "$0")/.."
threads=${PEERS_THREADS:-$(nproc)}
models=build/models
model=$models/llama-1b

say() { printf 'peers: %s\n' "$*" >&2; }

# install NAME: bench/peers/requirements-NAME.txt into build/peers-NAME. The stamp is the file as it was installed.
install() {
    local venv=build/peers-$1 requirements=bench/peers/requirements-$1.txt
    cmp -s "$requirements" "$venv/installed" && return
    say "installing $requirements into $venv (llama.cpp: compiles for several minutes; torch: downloads a gigabyte; hnswlib: compiles)"
    rm -rf "$venv"
    python3 -m venv "$venv"
    CMAKE_ARGS='-DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF' \
        "$venv/bin/pip" install -q --disable-pip-version-check --no-deps -r "$requirements" >&2
    if [ "$1" = torch ]; then "$venv/bin/python" bench/peers/stub_cuda.py "$venv"/lib/python3*/site-packages/torch/lib; fi
    cp "$requirements" "$venv/installed"
}

# write_model FILE ARGUMENTS...: models.py, unless FILE is there; under another name until it is whole
write_model() {
    local target=$1
    shift
    [ -e "$target" ] && return
    say "writing $target"
    rm -rf "$target.part"
    build/peers-llama/bin/python bench/peers/models.py "$@"
    mv "$target.part" "$target"
}

prepare() {
    sh tools/setup.sh build needle
    mkdir -p "$models"
    install llama
    write_model "$model" hf "$model.part"
    if [ "$1" != transformers ]; then
        for kind in bf16 q8_0; do write_model "$model-$kind.gguf" gguf "$model" "$model-$kind.gguf.part" $kind; done
    fi
    if [ "$1" != llama ]; then install torch; fi
}

measure_llama() {
    build/peers-llama/bin/python bench/peers/llama.py "$model-bf16.gguf" "$model-q8_0.gguf" "$threads" "$@"
}

measure_transformers() {
    OMP_NUM_THREADS=$threads build/peers-torch/bin/python bench/peers/transformers_peer.py "$model" "$threads" "$@"
}

measure() {
    local engine=$1
    shift
    case $engine in
    llama | transformers)
        prepare "$engine"
        "measure_$engine" "$@"
        ;;
    install) prepare all ;;
    index) install index ;;
    all)
        prepare all
        measure_llama
        measure_transformers
        ;;
    *)
        say "no engine $engine; there are llama, transformers, install and index"
        exit 2
        ;;
    esac
}

json=
if [ "${1:-}" = --json ]; then
    json=${2:?--json needs a file}
    shift 2
fi
[ $# -gt 0 ] || set -- all
if [ -z "$json" ]; then
    measure "$@"
else
    measure "$@" | tee "$json.lines"
    python3 - "$json" <<'END'
import json, sys
with open(sys.argv[1] + ".lines") as lines, open(sys.argv[1], "w") as file:
    json.dump({"benchmark": "peers", "measurements": [json.loads(line) for line in lines]}, file, indent=1)
END
    rm "$json.lines"
fi
