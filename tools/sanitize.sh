#!/usr/bin/env bash
# Builds the C++ ops with AddressSanitizer and UndefinedBehaviorSanitizer in a folder of their own and runs the tests of
# the backends on them. Needs GCC. Usage: tools/sanitize.sh [arguments for pytest]
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$PWD/.venv/bin/python}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

mkdir "$scratch/source"
cp -r setup.py pyproject.toml README.md LICENSE draggan_fast kernels bench csrc tests "$scratch/source"
cd "$scratch/source"
rm -f draggan_fast/_C*.so
# One failure is enough, so nothing is recovered from.
export CFLAGS="-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" CC=gcc CXX=g++
export DRAGGAN_FAST_CUDA=0 PATH="$(dirname "$python"):$PATH" PYTHONPATH="$scratch/source"
LDFLAGS="-fsanitize=address,undefined" "$python" setup.py --quiet build_ext --inplace > "$scratch/build.log" 2>&1 ||
  { cat "$scratch/build.log"; exit 1; }
ldd draggan_fast/_C*.so | grep --quiet libasan  # an optional build may fail in silence, and a test without it means nothing

# Python itself leaks by design and is not instrumented: only the ops are looked at.
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1
export LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)" OMP_NUM_THREADS=2
"$python" -c "import torch, draggan_fast._C as library; assert library.__file__.startswith('$scratch')"
"$python" -m pytest -q -p no:cacheprovider tests/test_backends.py tests/test_ops.py tests/test_modulated_conv.py "$@"
