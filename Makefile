# make demo: drag a picture.  make test: everything that must pass.  Both set up .venv first if needed.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
STAMP   = $(VENV)/.installed
OUT    ?= out/demo
# Tests run side by side, each process on one thread: JOBS=0 for one after the other.
JOBS   ?= auto --maxprocesses 4

.PHONY: setup demo serve test check bench bench-ops figures cuda-resources cuda-build clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# What demo and serve need. torch goes first and without isolation, so that the C++ library is built against the torch
# that will load it.
$(READY): pyproject.toml setup.py constraints.txt $(wildcard csrc/* csrc/*/*)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Fetching torch and compiling the kernels: some minutes, once."
	$(BIN)/python -m pip install -c constraints.txt torch numpy setuptools wheel ninja
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[serve,video]'
	touch $(READY)

# What tests, checks and benchmarks need besides; nothing is compiled again.
$(STAMP): $(READY)
	$(BIN)/python tools/dev_packages.py | xargs -d '\n' $(BIN)/python -m pip install --quiet -c constraints.txt
	touch $(STAMP)

demo: $(READY)
	$(BIN)/draggan-fast drag --seed 33 --handle 64,69 --target 50,77 --out $(OUT)
	@echo "Open $(OUT)/drag.webp (or before.png and after.png)."

# The page on which pictures are dragged: http://127.0.0.1:8765 (SERVE="--port 9000 --model FILE").
serve: $(READY)
	$(BIN)/draggan-fast serve $(SERVE)

test: setup check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup

check: setup
	$(BIN)/python tools/check.py

# `make bench SUITES="step ops" BENCH="--quick"`; without either, everything, in at most a quarter of an hour.
bench: setup
	$(BIN)/draggan-fast bench $(SUITES) $(BENCH)

bench-ops: setup
	$(BIN)/python -m pytest bench/benchmark_ops.py --benchmark-columns=min,median,stddev,rounds

# The README's tables and figure, from the records.
figures: setup
	$(BIN)/python -m draggan_fast.bench.plot bench/results/*_bench_*.json bench/results/*_landmarks_*.json \
	    --figures docs --machine AVX512 --readme README.md

cuda-resources: setup
	$(BIN)/python tools/cuda_compile.py
	$(BIN)/python tools/triton_resources.py

cuda-build: setup
	tools/cuda_build.sh

clean:
	rm -rf build dist out .pytest_cache .mypy_cache .ruff_cache *.egg-info draggan_fast/_C*.so
