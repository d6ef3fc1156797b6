#!/bin/sh
# retrieval.sh [ITEM...] - measures the targets of contexts beyond memory at their full size and prints for each figure a line
#     item  figure | target: ... | pass or FAIL
# Items: 1b a million tokens from disk   3 needles by retrieval   4 exactness   6 faults   7 restart. Without one, all. Called by ./run accept retrieval, which has built.
# Ends with 1 when a line failed. Logs of each item go to build/accept/.
set -u
cd "$(dirname "$0")/../.."
root=$PWD
logs=$root/build/accept
mkdir -p "$logs"
python=$root/build/venv/bin/python3
failures=0

line() { # ITEM FIGURE TARGET pass|FAIL
    printf '%-4s %s | target: %s | %s\n' "$1" "$2" "$3" "$4"
    [ "$4" = pass ] || failures=$((failures + 1))
}

# tests ITEM WHAT CTEST_ARGUMENTS...: passes when the tests named are there and pass; the figure is how many
tests() {
    item=$1 what=$2 log=$logs/retrieval-$1-tests.log
    shift 2
    if ctest --preset default --no-tests=error "$@" >"$log" 2>&1; then result=pass; else result=FAIL; fi
    figure=$(sed -n 's/^\([0-9]*% tests passed.*\)$/\1/p' "$log")
    line "$item" "$what: ${figure:-no tests}" "all pass" "$result"
}

python_item() { # SCRIPT ARGUMENTS...: prints its own lines
    "$python" "$@" || failures=$((failures + 1))
}

needle_model() {
    model=$root/build/models/needle
    [ -f "$model/config.json" ] || "$python" tools/needle/make_needle_model.py "$model" --ood 2.0 >/dev/null
}

# 4 GiB of keys and values, the hot and warm sixth of them in memory.
item_1b() {
    needle_model
    python_item tests/accept/offload.py build/hadal "$model" --depth 1048576 --hot-memory 384M --warm-memory 384M \
        --cold-size 6G --in-memory "--hot-memory 6G"
}

item_3() {
    needle_model
    python_item tests/accept/retrieval.py build/hadal "$model" --sizes 32000,128000 --needles 20 --hot-memory 4G \
        --selections "retrieval,index=clusters"
}

item_4() { tests 4 "any split of tiers and an index that returns everything, against full" -R '^attention_'; }

item_6() {
    tests 6 "full disk, no directory, flipped bits, failing and slow reads, kill -9, a million operations" \
        -R '^attention_(engine_cold_fault|cold_restart|block_tiers_property)_test$'
}

item_7() {
    needle_model
    python_item tests/accept/restart.py build/hadal "$model" --size 32768 --least 20 --hot-memory 128M
}

[ $# -gt 0 ] || set -- 1b 3 4 6 7
for item in "$@"; do
    case $item in
    1b|3|4|6|7) "item_$item" ;;
    *) printf 'accept retrieval: there is no item %s; there are 1b, 3, 4, 6 and 7\n' "$item" >&2; exit 2 ;;
    esac
done
[ "$failures" -eq 0 ] || { printf '%s failed\n' "$failures" >&2; exit 1; }
