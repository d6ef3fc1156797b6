# lines.sh - what the scripts of tests/accept share. Each sets `area` and then reads this file, which goes to the root of the
# tree; logs of each item go to build/accept/.
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

# judge ITEM FIGURE TARGET COMMAND...: passes when the command succeeds
judge() {
    item=$1 figure=$2 target=$3
    shift 3
    if "$@"; then line "$item" "$figure" "$target" pass; else line "$item" "$figure" "$target" FAIL; fi
}

# tests ITEM WHAT CTEST_ARGUMENTS...: passes when the tests named are there and pass; the figure is how many
tests() {
    item=$1 what=$2 log=$logs/$area-$1-tests.log
    shift 2
    ctest --preset default --no-tests=error "$@" >"$log" 2>&1
    code=$?
    figure=$(sed -n 's/^\([0-9]*% tests passed.*\)$/\1/p' "$log")
    judge "$item" "$what: ${figure:-no tests}" "all pass" [ $code -eq 0 ]
}

python_item() { # SCRIPT ARGUMENTS...: prints its own lines
    "$python" "$@" || failures=$((failures + 1))
}

needle_model() { # sets model; its keys have a part that no query uses, as --ood 2.0 makes it
    model=$root/build/models/needle
    [ -f "$model/config.json" ] || "$python" tools/needle/make_needle_model.py "$model" --ood 2.0 >/dev/null
}
