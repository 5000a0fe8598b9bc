#!/usr/bin/env bash
# Everything that needs a CUDA GPU, in one command from the repository root: builds the extension, runs the GPU tests
# (ops, captured steps, Triton kernels), the ops under compute-sanitizer (memcheck, racecheck), and the timings. Needs
# torch with CUDA, nvcc and pytest; asks for no network. Writes logs and JSON to $OUT (runs/gpu). Goes on after a failed
# part; the last lines say what failed.
#
#   [OUT=DIR] [PYTHON=python3] [SKIP=build,tests,sanitizer,timing,steps,bench,memory] tools/gpu_run.sh
#
# SKIP leaves parts out, where a machine is lent for minutes: what was built stays. ``steps`` times the captured step
# (tools/gpu_step.py), ``bench`` and ``memory`` run ``draggan-fast bench`` beside the published program.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python3}
SKIP=,${SKIP:-},
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONUNBUFFERED=1
results=()

part() { # part NAME COMMAND…: runs it, logs it, notes how it went
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$OUT/$name.log"
  local status=${PIPESTATUS[0]}
  if ((status == 0)); then
    results+=("$name: ok ($((SECONDS - start)) s)")
  else
    results+=("$name: FAILED, exit code $status ($((SECONDS - start)) s)")
    failed=1
  fi
  return "$status"
}

machine() {
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
  nvcc --version | tail -2
  "$PYTHON" -c 'import sys, torch; print(sys.version, torch.__version__, torch.version.cuda, torch.cuda.get_device_name())'
}

build() { # only for the GPU that is here
  local capability
  capability=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') || return
  DRAGGAN_FAST_CUDA=1 TORCH_CUDA_ARCH_LIST=$capability MAX_JOBS=$(nproc) \
    "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps --no-index --editable . || return
  "$PYTHON" -c '
from draggan_fast import _C, ops
print(_C.build_info())
missing = [op for op in ops.OPS if "cuda" not in ops.available_backends(op, "cuda")]
assert _C.build_info()["cuda"] and not missing, f"built without CUDA, or not served by it: {missing}"'
}

# counted REPORT: fails unless tests ran, and none was skipped, failed or broken.
counted() {
  "$PYTHON" - "$1" <<'PY'
import sys
from xml.etree import ElementTree

suites = list(ElementTree.parse(sys.argv[1]).getroot().iter("testsuite"))
total, skipped, failed, broken = (
    sum(int(s.get(key, 0)) for s in suites) for key in ("tests", "skipped", "failures", "errors")
)
print(f"{total} GPU tests: {skipped} skipped, {failed} failed, {broken} broken")
sys.exit(0 if total and not (skipped or failed or broken) else 1)
PY
}

gpu_tests() {
  "$PYTHON" -m pytest -q -m gpu tests --junitxml "$OUT/tests.xml"
  counted "$OUT/tests.xml"
}

# Without a GPU these run under Triton's interpreter; here they are compiled.
triton_tests() {
  "$PYTHON" -m pytest -q tests/test_triton_numerics.py tests/test_modulated_conv_triton.py --junitxml "$OUT/triton.xml"
  counted "$OUT/triton.xml"
}

bench() { # bench NAME ARGUMENTS…
  "$PYTHON" -m draggan_fast bench "${@:2}" --device cuda --json "$OUT/$1.json"
}

wanted() { [[ $SKIP != *,$1,* ]]; }

# The CUDA kernels alone, on small inputs: the sanitizer slows all kernels down, torch's too.
sanitizer() {
  compute-sanitizer --tool "$1" --error-exitcode 9 --print-limit 20 \
    "$PYTHON" -m pytest -q -p no:cacheprovider -m gpu tests/test_cuda_ops.py -k "matches_the_reference and not triton" \
    --junitxml "$OUT/$1.xml" || return
  counted "$OUT/$1.xml"
}

failed=0
part machine machine
if ! wanted build || part build build; then
  if wanted tests; then
    part tests gpu_tests
    part triton triton_tests
  fi
  if wanted sanitizer; then
    part memcheck sanitizer memcheck
    part racecheck sanitizer racecheck
  fi
  if wanted timing; then part timing "$PYTHON" tools/gpu_ops.py --json "$OUT/gpu_ops.json"; fi
  if wanted steps; then part steps "$PYTHON" tools/gpu_step.py --json "$OUT/gpu_step.json"; fi
  if wanted bench; then
    part bench bench bench_step step --resolution 256,512,1024 --points 1,16 --precision fp32,bf16,fp16
  fi
  if wanted memory; then
    part memory bench bench_memory memory --resolution 1024 --engine fast --precision fp32,bf16,fp16
  fi
fi
echo "== results, in $OUT"
printf '%s\n' "${results[@]}"
exit "$failed"
