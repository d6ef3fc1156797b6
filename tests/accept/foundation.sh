#!/bin/sh
# foundation.sh [ITEM...] - measures the foundation's targets at their full size and prints for each figure a line
#     item  figure | target: ... | pass or FAIL
# Items: 1 demo and tests from a fresh clone   2 logits   3 OpenAI clients   4 needles   5 speed beside peers
#        6 many clients, sanitizers, fuzzing   7 bad input. Without one, all. Called by ./run accept foundation, which has built.
# Ends with 1 when a line failed. Logs of each item go to build/accept/.
set -u
area=foundation
. "$(dirname "$0")/shared/lines.sh"

item_1() {
    clone=$(mktemp -d)
    trap 'rm -rf "$clone"' EXIT
    git clone -q "$root" "$clone/hadal" || return
    for task in demo test; do
        start=$(date +%s)
        (cd "$clone/hadal" && ./run $task) >"$logs/item-1-$task.log" 2>&1
        code=$?
        seconds=$(($(date +%s) - start))
        judge 1 "./run $task in a fresh clone: $seconds s, exit code $code" "0, under 480 s" [ $code -eq 0 -a $seconds -lt 480 ]
    done
    sed -n '/Right\./,$d; s/^/     /p' "$logs/item-1-demo.log" | tail -n 14
}

item_2() {
    build/tests/worker_golden_test >"$logs/item-2-golden.log" 2>&1
    code=$?
    grep -v '^\[' "$logs/item-2-golden.log" | sed 's/^/     /'
    judge 2 "logits against HF transformers, and their bits: exit code $code" 0 [ $code -eq 0 ]
}

item_3() { tests 3 "OpenAI clients" -R '^api_'; }

item_4() {
    needle_model
    python_item tests/accept/needle.py build/hadal "$model"
}

item_5() {
    bash bench/peers.sh install >"$logs/item-5-install.log" 2>&1 || { judge 5 "bench/peers.sh install" "exit code 0" false; return; }
    python_item tests/accept/speed.py build/hadal "$logs"
}

item_6() {
    needle_model
    python_item tests/api/soak.py build/hadal "$model"
    for sanitizer in asan tsan; do
        ./run $sanitizer >"$logs/item-6-$sanitizer.log" 2>&1
        judge 6 "./run $sanitizer" "clean" [ $? -eq 0 ]
    done
    ./run fuzz "${HADAL_FUZZ_SECONDS:-600}" >"$logs/item-6-fuzz.log" 2>&1
    judge 6 "./run fuzz" "finds nothing, 90 % of each parser's lines" [ $? -eq 0 ]
    sed 's/^/     /' "$logs/item-6-fuzz.log" | tail -n 20
}

item_7() {
    missing=0 rows=0
    while IFS='|' read -r what file function; do
        case $what in '#'*) continue ;; esac
        file=$(echo $file) function=$(echo $function) rows=$((rows + 1))
        grep -q "^ *\(static void\|def\) $function(" "$file" 2>/dev/null || {
            missing=$((missing + 1))
            printf '     no test: %s\n' "$what"
        }
    done <tests/accept/bad_input.txt
    judge 7 "$rows kinds of bad input, $missing without a test" "none without" [ $missing -eq 0 ]
    tests 7 "bad input, by its message" -R '^(cli_|model_|api_suite|text_|coordinator_|worker_batcher_test)'
}

[ $# -gt 0 ] || set -- 1 2 3 4 5 6 7
for item in "$@"; do
    case $item in
    [1-7]) "item_$item" ;;
    *) printf 'accept foundation: there is no item %s; there are 1 to 7\n' "$item" >&2; exit 2 ;;
    esac
done
[ "$failures" -eq 0 ] || { printf '%s failed\n' "$failures" >&2; exit 1; }
