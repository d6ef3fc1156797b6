#!/bin/sh
# gpu_check.sh [check | pack FOLDER CAPABILITY] - everything that needs a GPU, in under ten minutes.
#
#   check (the default)  builds the CUDA back end for the GPU that is here if there is no build in build-cuda, runs the tests of
#                        kernels on it, the same under compute-sanitizer where that is installed, and the benchmark.
#   pack FOLDER 90a      puts what check needs into FOLDER, built here without a GPU, for a machine of that compute capability
#                        that has a driver and nothing else: there, `sh FOLDER/gpu_check.sh`.
#
# Prints one line for each part, PASS, FAIL or LEFT OUT; logs and figures are in $OUT, else in build-cuda/gpu-check. cuBLASLt is
# looked for in HADAL_CUDA_LIBRARIES, in Python's nvidia packages and in /usr/local/cuda; without it products are left out.
set -u
here=$(cd "$(dirname "$0")" && pwd)
unset CDPATH
tests="kernels_libraries_test kernels_rows_device_test kernels_sample_device_test kernels_attend_device_test"
failures=0

say() { printf '%-9s %s\n' "$1" "$2"; }

# part NAME SECONDS COMMAND...: runs it, its output in $out/NAME.log.
part() {
    name=$1 limit=$2
    shift 2
    started=$(date +%s)
    if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
        say PASS "$name, $(($(date +%s) - started)) s"
    else
        say FAIL "$name, exit code $?: the end of $out/$name.log:"
        tail -n 15 "$out/$name.log" | sed 's/^/          /'
        failures=$((failures + 1))
    fi
}

pack() {
    folder=$1 build=build-cuda-$2
    mkdir -p "$folder/lib" "$build"
    sh tools/setup.sh build cuda || exit 1
    { cmake -S . -B "$build" -G Ninja -DHADAL_CUDA=ON -DHADAL_CUDA_ARCHITECTURES="$2" &&
        cmake --build "$build" --target cuda_tests device_bench; } >"$build/pack.log" 2>&1 || { tail "$build/pack.log"; exit 1; }
    for program in "$build/device_bench" $(printf "$build/tests/%s " $tests); do
        cp "$program" "$folder/"
        strip "$folder/$(basename "$program")"
        ldd "$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p'
    done | sort -u | grep -vE '/(libc|libm|libpthread|libdl|librt|ld-linux[^/]*)\.so' |
        while read -r library; do cp -L "$library" "$folder/lib/"; done
    cp "$here/gpu_check.sh" "$folder/"
    say packed "$(du -sm "$folder" | cut -f1) MiB in $folder"
}

# Folders of cuBLASLt and NCCL that Python packages brought.
find_libraries() {
    python3 - <<'END' 2>/dev/null
import glob, os, site, sys
places = site.getsitepackages() + [site.getusersitepackages()] + sys.path
found = {os.path.dirname(f) for p in places for f in glob.glob(os.path.join(p, "nvidia", "*", "lib", "lib[cn]*.so.*"))}
print(":".join(sorted(found)))
END
}

build() {
    cd "$here/.." || exit 1
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    [ "$capability" = 90 ] && capability=90a
    # Only for the GPU that is here: a third of the time.
    if ! [ -x build-cuda/hadal ]; then
        part build 280 sh -c "sh tools/setup.sh build && { [ -n '${HADAL_CUDA_HOME:-}' ] || command -v nvcc || sh tools/setup.sh cuda; } &&
            cmake --preset cuda -DHADAL_CUDA_ARCHITECTURES=$capability -DHADAL_CUDA_HOME='${HADAL_CUDA_HOME:-}' &&
            cmake --build --preset cuda --target hadal cuda_tests"
    fi
    programs=build-cuda/tests
}

check() {
    if [ -x "$here/device_bench" ]; then
        programs=$here
        export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        out=${OUT:-$here/out}
        mkdir -p "$out"
    else
        out=${OUT:-$here/../build-cuda/gpu-check}
        mkdir -p "$out"
        out=$(cd "$out" && pwd)
        build
    fi
    nvidia-smi >"$out/nvidia-smi.txt" 2>&1 || { say FAIL "nvidia-smi: no driver or no GPU here"; exit 1; }
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    libraries=$(find_libraries)
    export HADAL_CUDA_LIBRARIES="${HADAL_CUDA_LIBRARIES:-$libraries}"
    export HADAL_DEVICE_TESTS=cuda
    for test in $tests; do part "$test" 120 "$programs/$test"; done
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    if [ -n "$sanitizer" ]; then
        # Every access of every thread is checked, so a selection: memory of all, races of shared memory of attention.
        export HADAL_DEVICE_TESTS=cuda-quick
        for test in kernels_rows_device_test kernels_sample_device_test kernels_attend_device_test; do
            part "memcheck-$test" 100 "$sanitizer" --error-exitcode 9 "$programs/$test"
        done
        part racecheck-kernels_attend_device_test 100 "$sanitizer" --tool racecheck --error-exitcode 9 "$programs/kernels_attend_device_test"
    else
        say "LEFT OUT" "compute-sanitizer is not installed here"
    fi
    if [ -x "$here/device_bench" ]; then part bench 200 "$here/device_bench" "$out/bench-device.json"
    else part bench 200 build-cuda/hadal bench device --json "$out/bench-device.json"; fi
    cat "$out/bench.log"
    [ "$failures" = 0 ] && say PASS "all" || say FAIL "$failures parts"
    [ "$failures" = 0 ]
}

case ${1:-check} in
check) check ;;
pack) [ $# -eq 3 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2; }; cd "$here/.." && pack "$2" "$3" ;;
*) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
