#!/bin/sh
# cuda_toolkit.sh FOLDER - assembles a CUDA toolkit at FOLDER/toolkit from wheels of the Python package index: compiler, headers,
# the static runtime, cuBLAS and NCCL. Needs no GPU and no driver. Replaces what is there.
#
# pip's --target puts all of it under one real directory, which matters: nvcc finds its parts from its own real path.
set -eu
folder=$1
wheels="nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96
nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.1.0.3 nvidia-nccl-cu13==2.28.9"

rm -rf "$folder.new"
mkdir -p "$folder.new"
# shellcheck disable=SC2086 # a list of words
/usr/bin/python3 -m pip install -q --no-deps --disable-pip-version-check --root-user-action=ignore --target "$folder.new/py" $wheels
root=$folder.new/py/nvidia/cu13
ln -sfn lib "$root/lib64"
ln -sf ../../nccl/include/nccl.h "$root/include/nccl.h"
ln -sf ../../nccl/lib/libnccl.so.2 "$root/lib/libnccl.so.2"
ln -sfn py/nvidia/cu13 "$folder.new/toolkit"
"$folder.new/toolkit/bin/nvcc" --version >/dev/null
rm -rf "$folder"
mv "$folder.new" "$folder"
