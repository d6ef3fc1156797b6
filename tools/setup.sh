#!/bin/sh
# setup.sh GROUP... - installs what a task of ./run needs on Debian 12, by package name, and nothing that is there already.
#
#   build   compilers, CMake and libraries         needle   Python packages that write the needle model
#   lint    clang-tidy, clang-format               api      the official OpenAI clients for Python and Node
#   fuzz    clang with libFuzzer                   cluster  etcd, and ip for network namespaces
#   cuda    a CUDA toolkit in var/cuda, where HADAL_CUDA_HOME names none
# fuzz and lint include build's packages.
#
# What dpkg and the stamps beside the Python and npm packages say is believed, so a second call changes nothing and takes a
# few hundredths of a second. HADAL_SETUP=skip trusts that everything is there (a system that is not Debian).
set -eu
cd "$(dirname "$0")/.."
unset CDPATH

say() { printf 'set-up: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

crate_packages="build-essential ca-certificates cargo-web rustc-web"
build_packages="build-essential cmake ninja-build pkg-config git ca-certificates libmicrohttpd-dev libcmocka-dev
libjansson-dev libsodium-dev libxxhash-dev liburing-dev libdnnl-dev libgrpc-dev protobuf-c-compiler libprotobuf-c-dev etcd-server
etcd-client openmpi-bin openssl curl iproute2 cargo-web rustc-web python3"
lint_packages="$build_packages clang-tidy clang-format"
fuzz_packages="$build_packages clang llvm-14 libclang-rt-14-dev"
cluster_packages="etcd-server iproute2 util-linux python3"
python_packages="python3 python3-venv python3-pip"
log=build/setup.log
node_version=6.49.0 # of the npm package openai; the newest that runs on Debian 12's Node 18

# Prints those of its arguments that are not installed.
missing_packages() {
    # dpkg-query's exit code only says that some are unknown to it, which is an answer too.
    installed=$(dpkg-query -W -f '${Package} ${db:Status-Abbrev}\n' "$@" 2>/dev/null | sed -n 's/ ii *$//p' || true)
    for package in "$@"; do
        printf '%s\n' "$installed" | grep -qx "$package" || printf '%s ' "$package"
    done
}

# What apt prints is of interest only when it fails.
apt() {
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 "$@" >>"$log" 2>&1
}

install_packages() {
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    command -v apt-get >/dev/null || fail "no apt-get here. Install the like of these, then set HADAL_SETUP=skip: $missing"
    sudo=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "no root and no sudo here. As root: apt-get install $missing"
        sudo=sudo
    fi
    say "apt-get install $missing(log: $log)"
    # One source of several that does not answer is no reason to stop: the installation will tell.
    apt update || say "apt-get update failed; going on with the lists that are there"
    # shellcheck disable=SC2086 # a list of words
    apt install -y --no-install-recommends $missing || {
        tail -n 20 "$log" >&2
        fail "apt-get could not install: $missing"
    }
}

# The crate takes longer than anything else of a first build, and needs but a few of the packages: it is begun while the others are being
# fetched. CMake calls cargo with the same words, which waits for this one by cargo's own lock and tells what went wrong.
begin_crate() {
    [ -n "$(missing_packages $build_packages)" ] || return 0
    # shellcheck disable=SC2086
    install_packages $crate_packages
    PATH=/usr/bin:/bin /usr/bin/cargo build --release --locked --lib --manifest-path model/text/Cargo.toml \
        --target-dir "$PWD/var/cargo-target" >build/cargo.log 2>&1 &
}

# install_python FILE: the packages pinned in tools/FILE, into build/venv. The stamp holds the file as it was installed.
install_python() {
    requirements=tools/$1
    stamp=build/venv/$1
    cmp -s "$requirements" "$stamp" && return 0
    # shellcheck disable=SC2086
    install_packages $python_packages
    say "installing $requirements into build/venv"
    [ -x build/venv/bin/pip ] || /usr/bin/python3 -m venv build/venv || fail "no virtual environment could be made in build/venv"
    build/venv/bin/pip install -q --disable-pip-version-check --no-deps -r "$requirements" || fail "pip could not install $requirements"
    cp "$requirements" "$stamp"
}

install_node() {
    command -v node >/dev/null && command -v npm >/dev/null || install_packages nodejs npm
    stamp=build/node/openai.version
    [ "$(cat "$stamp" 2>/dev/null)" = "$node_version" ] && return 0
    say "installing the npm package openai $node_version into build/node"
    mkdir -p build/node
    [ -f build/node/package.json ] || printf '{"private": true}\n' >build/node/package.json
    npm install --prefix build/node --silent --no-audit --no-fund --ignore-scripts "openai@$node_version" >&2 ||
        fail "npm could not install openai $node_version"
    printf '%s\n' "$node_version" >"$stamp"
}

# The toolkit's versions are in the script that assembles it, so the stamp is that script.
install_cuda() {
    [ -z "${HADAL_CUDA_HOME:-}" ] || return 0
    stamp=var/cuda/cuda_toolkit.sh
    cmp -s tools/cuda_toolkit.sh "$stamp" && return 0
    # shellcheck disable=SC2086
    install_packages $python_packages
    say "assembling a CUDA toolkit in var/cuda (1.1 GB)"
    mkdir -p var
    sh tools/cuda_toolkit.sh "$PWD/var/cuda" || fail "no CUDA toolkit could be assembled; HADAL_CUDA_HOME=DIR names one that is there"
    cp tools/cuda_toolkit.sh "$stamp"
}

[ "${HADAL_SETUP:-}" = skip ] && exit 0
[ $# -gt 0 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
mkdir -p build
for group in "$@"; do
    # shellcheck disable=SC2086
    case $group in
    build) begin_crate; install_packages $build_packages ;;
    lint) install_packages $lint_packages ;;
    fuzz) install_packages $fuzz_packages ;;
    cluster) install_packages $cluster_packages ;;
    needle) install_python requirements-needle.txt ;;
    api) install_python requirements-api.txt; install_node ;;
    cuda) install_cuda ;;
    *) fail "no group '$group'; there are: build lint fuzz cluster needle api cuda" ;;
    esac
done
