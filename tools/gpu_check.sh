#!/bin/sh
# gpu_check.sh [check | pack FOLDER CAPABILITY] - everything that needs a GPU, in under ten minutes.
#
#   check (the default)  builds the CUDA back end for the GPU that is here if there is no build in build-cuda; runs the tests of
#                        kernels and of a worker on it, the same under compute-sanitizer where that is installed, the benchmark
#                        of kernels, and decode and prefill of the Llama-3.1-8B shape at 131,072 tokens and of the 1B shape.
#   pack FOLDER 90a      puts what check needs into FOLDER, built here without a GPU, for a machine of that compute capability
#                        that has a driver and nothing else: there, `sh FOLDER/gpu_check.sh`.
#
# Prints one line for each part, PASS, FAIL or LEFT OUT; logs and figures are in $OUT, else in build-cuda/gpu-check. cuBLASLt is
# looked for in HADAL_CUDA_LIBRARIES, in Python's nvidia packages and in /usr/local/cuda; without it products, and with them the
# worker, fail. The models are written on the spot, 16 GB and 2.5 GB, which needs a python3 with numpy and room in $MODELS.
set -u
here=$(cd "$(dirname "$0")" && pwd)
unset CDPATH
tests="kernels_libraries_test kernels_rows_device_test kernels_sample_device_test kernels_attend_device_test worker_device_test"
golden="llama-head-dim qwen3" # the models of worker_device_test
failures=0
deadline=$(($(date +%s) + 585))

say() { printf '%-9s %s\n' "$1" "$2"; }

# part NAME SECONDS COMMAND...: runs it, its output in $out/NAME.log.
part() {
    name=$1 limit=$2
    shift 2
    started=$(date +%s)
    left=$((deadline - started))
    [ "$limit" -le "$left" ] || limit=$left
    if [ "$limit" -lt 5 ]; then
        say "LEFT OUT" "$name: the ten minutes are over"
        return
    fi
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
        cmake --build "$build" --target cuda_tests hadal; } >"$build/pack.log" 2>&1 || { tail "$build/pack.log"; exit 1; }
    for program in "$build/hadal" $(printf "$build/tests/%s " $tests); do
        cp "$program" "$folder/"
        strip "$folder/$(basename "$program")"
        ldd "$program" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p'
    done | sort -u | grep -vE '/(libc|libm|libpthread|libdl|librt|ld-linux[^/]*)\.so' |
        while read -r library; do cp -L "$library" "$folder/lib/"; done
    mkdir -p "$folder/tests/golden/models"
    for model in $golden; do cp -r "tests/golden/models/$model" "$folder/tests/golden/models/"; done
    cp "$here/gpu_check.sh" bench/peers/models.py "$folder/"
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

# decode NAME KIND MODEL FLAGS...: writes the model, where it is not there, and times steps and prompts of it.
decode() {
    title=$1 kind=$2 model=${MODELS:-$out/models}/$3
    shift 3
    [ -f "$model/config.json" ] || part "write-$(basename "$model")" 120 python3 "$writer" "$kind" "$model"
    [ -f "$model/config.json" ] || return
    part "decode-$title" 120 "$hadal" bench decode "$model" --device cuda --json "$out/decode-$title.json" "$@"
    [ ! -f "$out/decode-$title.log" ] || grep -v '^time=' "$out/decode-$title.log"
}

check() {
    if [ -x "$here/hadal" ]; then
        programs=$here hadal=$here/hadal writer=$here/models.py
        cd "$here" || exit 1
        export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
        out=${OUT:-$here/out}
        mkdir -p "$out"
    else
        out=${OUT:-$here/../build-cuda/gpu-check}
        mkdir -p "$out"
        out=$(cd "$out" && pwd)
        build
        hadal=build-cuda/hadal writer=bench/peers/models.py
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
        for test in kernels_rows_device_test kernels_sample_device_test kernels_attend_device_test worker_device_test; do
            part "memcheck-$test" 60 "$sanitizer" --error-exitcode 9 "$programs/$test"
        done
        part racecheck-kernels_attend_device_test 60 "$sanitizer" --tool racecheck --error-exitcode 9 "$programs/kernels_attend_device_test"
    else
        say "LEFT OUT" "compute-sanitizer is not installed here"
    fi
    part bench 100 "$hadal" bench device --json "$out/bench-device.json"
    cat "$out/bench.log"
    if python3 -c 'import numpy' 2>/dev/null; then
        decode 8b 8b llama-8b --max-batch-tokens 2048 --depth 131072 --chunk 2048 --prefill 4096 --steps 20
        decode 8b-keys-in-host-memory 8b llama-8b --depth 131072 --chunk 0 --prefill "" --steps 5 --hot-memory 2G --warm-memory 16G
        decode 1b hf llama-1b --depth 0,131072 --batch 8 --chunk 0 --prefill "" --steps 20
        decode 1b-million hf llama-1b --depth 1048576 --chunk 0 --prefill "" --steps 3 --hot-memory 4G --warm-memory 30G
    else
        say "LEFT OUT" "decode of whole models: there is no python3 with numpy here to write them"
    fi
    [ "$failures" = 0 ] && say PASS "all" || say FAIL "$failures parts"
    [ "$failures" = 0 ]
}

case ${1:-check} in
check) check ;;
pack) [ $# -eq 3 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2; }; cd "$here/.." && pack "$2" "$3" ;;
*) sed -n '2,15s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
