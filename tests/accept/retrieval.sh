#!/bin/sh
# retrieval.sh [ITEM...] - measures the targets of contexts beyond memory at their full size and prints for each figure a line
#     item  figure | target: ... | pass or FAIL
# Items: 1 (1a, 1b) a million tokens in memory against few, and from disk   2 indexes, beside other libraries
#        3 needles by retrieval   4 exactness   5 decode at depth   6 faults   7 restart. Without one, all. Called by
#        ./run accept retrieval, which has built.
# Ends with 1 when a line failed. Logs of each item go to build/accept/.
set -u
area=retrieval
. "$(dirname "$0")/shared/lines.sh"

# 12 GiB of keys and values of Qwen2.5-0.5B's shape. In memory they take 17 GiB with weights and indexes.
small_model() { # sets shape
    shape=$root/build/models/qwen-small
    [ -f "$shape/model.safetensors" ] && return
    bash bench/peers.sh install >>"$logs/retrieval-1-install.log" 2>&1 || { line 1 "bench/peers.sh install" "exit code 0" FAIL; return 1; }
    build/peers-torch/bin/python bench/peers/models.py small "$shape" >>"$logs/retrieval-1-install.log"
}

item_1b() { small_model && python_item tests/accept/offload.py b build/hadal "$shape"; }

item_1a() { small_model && python_item tests/accept/offload.py a build/hadal "$shape" --hot-memory 1G --warm-memory 13G; }

# HADAL_TRAINED_MODEL names a trained Llama-like model with heads of 64; without it one is trained, for an hour.
item_2() {
    for what in install index; do
        bash bench/peers.sh $what >>"$logs/retrieval-2-install.log" 2>&1 || { line 2 "bench/peers.sh $what" "exit code 0" FAIL; return; }
    done
    [ -z "${HADAL_TRAINED_MODEL:-}" ] || ln -sfn "$HADAL_TRAINED_MODEL" build/models/trained-64
    python=$root/build/peers-torch/bin/python
    python_item tests/accept/index.py build/hadal build/index-data build/models "$logs" --model build/models/llama-1b \
        --libraries build/peers-index/bin/python
    python=$root/build/venv/bin/python3
}

# A tenth of the keys and values in memory, the others on disk. Hot memory is for the buffers of a step and for indexes as
# well: it is what those need and that tenth, less the warm memory, and has no room for keys as rows.
item_3() {
    needle_model
    needles_from_disk 32000 --hot-memory 262M "--index-memory 164M --cold-size 512M --max-batch-tokens 512 --max-context 34000"
    needles_from_disk 128000 --hot-memory 576M "--index-memory 234M --cold-size 1G --max-batch-tokens 1024 --max-context 130000"
}

needles_from_disk() { # SIZE --hot-memory BYTES FLAGS
    cold=$(mktemp -d "${TMPDIR:-/tmp}/hadal-accept-XXXXXX")
    python_item tests/accept/retrieval.py build/hadal "$model" --sizes "$1" --needles 20 "$2" "$3" --memory-share 0.1 \
        --selections "retrieval,index=clusters;retrieval,index=graph" \
        --flags="$4 --warm-memory 10M --cold-dir $cold/kv --max-requests 2"
    rm -rf "$cold"
}

item_4() { tests 4 "any split of tiers and an index that returns everything, against full" -R '^attention_'; }

# By the default selection, beside full and llama.cpp; weights, keys and values, and indexes take 13 GiB.
item_5() {
    for what in install index; do
        bash bench/peers.sh $what >>"$logs/retrieval-5-install.log" 2>&1 || { line 5 "bench/peers.sh $what" "exit code 0" FAIL; return; }
    done
    data=build/index-data/depth-64
    [ -f $data/model.safetensors ] || build/peers-torch/bin/python tools/index_data.py shifted $data --keys 131072 --dim 64
    python_item tests/accept/depth.py build/hadal build/models/llama-1b $data
}

item_6() {
    tests 6 "full disk, no directory, flipped bits, failing and slow reads, kill -9, a million operations" \
        -R '^attention_(engine_cold_fault|cold_restart|block_tiers_property)_test$'
}

item_7() {
    needle_model
    python_item tests/accept/restart.py build/hadal "$model" --size 32768 --least 20 --hot-memory 128M
}

[ $# -gt 0 ] || set -- 1 2 3 4 5 6 7
for item in "$@"; do
    case $item in
    1) item_1a; item_1b ;;
    1a|1b) "item_$item" ;;
    2|3|4|5|6|7) "item_$item" ;;
    *) printf 'accept retrieval: there is no item %s; there are 1 to 7\n' "$item" >&2; exit 2 ;;
    esac
done
[ "$failures" -eq 0 ] || { printf '%s failed\n' "$failures" >&2; exit 1; }
