#!/bin/sh
# fuzz.sh [SECONDS [TARGET]] - runs each fuzz target of build-fuzz/ for SECONDS (60), starting from the kept corpus in
# tests/fuzz/corpus/TARGET, and prints how many lines of the parsers that it is for the kept corpus reaches. A finding is left in
# build-fuzz/findings and ends the run with 1, as does a parser of which less than 90 % of the lines are reached.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-60}
only=${2:-}
mkdir -p build-fuzz/findings
failed=0
ran=0

for program in build-fuzz/fuzz/*; do
    [ -f "$program" ] && [ -x "$program" ] || continue
    target=$(basename "$program")
    [ -z "$only" ] || [ "$only" = "$target" ] || continue
    ran=$((ran + 1))
    corpus=tests/fuzz/corpus/$target
    found=build-fuzz/corpus/$target
    mkdir -p "$corpus" "$found"

    # The kept corpus alone first: that is what a test run replays, so that is what has to reach the lines.
    LLVM_PROFILE_FILE=build-fuzz/$target.profraw "$program" -runs=0 "$corpus" >build-fuzz/$target.log 2>&1 || {
        failed=1
        printf '%s: the kept corpus fails; see build-fuzz/%s.log\n' "$target" "$target"
        continue
    }
    llvm-profdata-14 merge -sparse "build-fuzz/$target.profraw" -o "build-fuzz/$target.profdata"
    while read -r parser; do
        # Chosen here by the end of its name: a compiler cache may have made paths relative, and llvm-cov's own filter, where it
        # matches nothing, shows the sum of all files.
        lines=$(llvm-cov-14 export "$program" -instr-profile="build-fuzz/$target.profdata" -summary-only |
            python3 -c 'import json, sys
files = json.load(sys.stdin)["data"][0]["files"]
print("%.1f" % next(f["summary"]["lines"]["percent"] for f in files if f["filename"].endswith("/" + sys.argv[1])))' "$parser")
        verdict=ok
        [ "${lines%.*}" -ge 90 ] || { verdict='below 90 %'; failed=1; }
        printf '%-28s %-32s %5s %% of lines  %s\n' "$target" "$parser" "$lines" "$verdict"
    done <"build-fuzz/fuzz/$target.covers"

    if [ "$seconds" -gt 0 ]; then
        if LLVM_PROFILE_FILE=/dev/null "$program" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -print_final_stats=1 \
            -artifact_prefix="build-fuzz/findings/$target-" "$found" "$corpus" >>build-fuzz/$target.log 2>&1; then
            printf '%-28s %s s, %s inputs, nothing found\n' "$target" "$seconds" \
                "$(sed -n 's/^stat::number_of_executed_units: *//p' build-fuzz/"$target".log | tail -n 1)"
        else
            failed=1
            printf '%-28s FOUND something: build-fuzz/findings/%s-*, build-fuzz/%s.log\n' "$target" "$target" "$target"
        fi
    fi
done

[ "$ran" -gt 0 ] || { printf 'fuzz: no target %s\n' "$only" >&2; exit 2; }
exit "$failed"
