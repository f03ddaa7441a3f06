#!/usr/bin/env bash
# Runs the operator tests under other versions of torch, on the one ops/librdfa_ops.so that `make setup` built.
#
#   .ci/environments.sh 2.11.0 2.12.1
#
# Each version gets a virtual environment, build/torch-VERSION. PYTHON and PIP_FLAGS mean what they mean in the Makefile;
# where the index has only CUDA builds, what CUDA would bring is replaced by stubs.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."
PACKAGES=(filelock fsspec hypothesis jinja2 networkx numpy pytest setuptools sympy typing_extensions)
# Without those that need Triton, ONNX or a GPU; of kernels for several instruction sets, the widest alone.
TESTS=(tests/ops/test_library.py tests/ops/nms/test_*.py tests/ops/*/test_{op,reference,kernel,kernels,bidirectional}.py)

constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -vE '^(torch|triton)==' constraints.txt > "$constraints"
digest=$(sha256sum ops/librdfa_ops.so)
for version in "$@"; do
    folder=build/torch-$version
    "${PYTHON:-python3}" -m venv --clear "$folder"
    python=$folder/bin/python
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet ${PIP_FLAGS:-} -c "$constraints" "${PACKAGES[@]}"
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet ${PIP_FLAGS:-} --no-deps "torch==$version"
    "$python" .ci/cuda_stubs.py
    echo "librdfa_ops.so, unchanged, under $("$python" -c 'import torch; print("torch", torch.__version__)')"
    "$python" -m pytest -q -p no:cacheprovider --durations=3 -k "not portable and not avx2" "${TESTS[@]}"
    [ "$digest" = "$(sha256sum ops/librdfa_ops.so)" ]
done
