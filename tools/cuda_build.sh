#!/usr/bin/env bash
# Builds and links the whole extension, CUDA part included, on a machine without a GPU (it cannot be loaded there).
#
#   tools/cuda_build.sh [SCRATCH]      SCRATCH: runs/cuda, ignored by git; about 2 GB
#
# It needs `make setup`, nvcc and the network: it fetches the CUDA wheel of the torch in constraints.txt (530 MB) for its
# headers and libraries. No nvidia-* package is needed: csrc/cuda includes only c10's CUDA headers, which want nothing
# but the toolkit's runtime. Not part of CI. TORCH_CUDA_ARCH_LIST chooses other GPUs, MAX_JOBS the processes at a time.
set -euo pipefail
cd "$(dirname "$0")/.."

scratch=${1:-runs/cuda}
python=${PYTHON:-.venv/bin/python}
export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-7.5;8.0;8.6;8.9;9.0}
export MAX_JOBS=${MAX_JOBS:-2}
torch=$(sed -n 's/^torch==//p' constraints.txt)
mkdir -p "$scratch"

cuda_wheel() {
  local wheel
  for wheel in "$scratch"/torch-"$torch"-*.whl "$scratch"/torch-"$torch"+cu*.whl; do
    # The CPU build of the same version has no libtorch_cuda.
    if [[ -f $wheel ]] && unzip -l "$wheel" torch/lib/libtorch_cuda.so >/dev/null; then
      echo "$wheel"
      return
    fi
  done
}

if [[ -z $(cuda_wheel) ]]; then
  # pip is asked without its configured folders and extra indexes: a local "+cpu" wheel counts as newer than the CUDA
  # wheel of the same version, and would win.
  env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u PIP_NO_INDEX PIP_CONFIG_FILE=/dev/null \
    "$python" -m pip download --no-deps --only-binary=:all: --dest "$scratch" "torch==$torch"
fi
wheel=$(cuda_wheel)
if [[ -z $wheel ]]; then
  echo "cuda_build.sh: pip gave no CUDA build of torch $torch; put its wheel into $scratch." >&2
  exit 1
fi
if [[ ! -f $scratch/torch/version.py ]]; then
  unzip -q -o "$wheel" 'torch/include/*' 'torch/lib/*' -d "$scratch"
  unzip -q -o "$wheel" torch/version.py -d "$scratch" # last: it says that all is there
fi
exec "$python" tools/cuda_build_extension.py "$scratch"
