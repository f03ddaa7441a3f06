# make demo | test | lint | bench | aot | test-gpu | bench-gpu: each sets up .venv first, from nothing but Python 3.11+, make and a C++ compiler.
#
# PYTHON=python3.12      another interpreter
# PIP_FLAGS=...          flags for pip, for example: --index-url https://download.pytorch.org/whl/cpu
# GPU_PROCESSES=8        processes of test-gpu, each with half a gigabyte of the GPU's memory
# ORT_HEADERS=DIR        ONNX Runtime's headers, to build its operator library too (default: Debian's, where installed)

PYTHON ?= python3
PIP_FLAGS ?=
ORT_HEADERS ?= $(wildcard /usr/include/onnxruntime)
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
DEMO ?= demo
GPU_PROCESSES ?= 4

.PHONY: setup demo test lint bench aot test-gpu bench-gpu clean

setup: $(VENV)/installed
	@$(RUN) -m ops.build $(if $(ORT_HEADERS),--onnxruntime_headers $(ORT_HEADERS))

$(VENV)/installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt torch setuptools wheel
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

# A small detector from nothing to production: data, training, export, detection, benchmark.
demo: setup
	rm -rf $(DEMO)
	$(RUN) -m rdfa.data.synthetic --output $(DEMO)/data
	$(RUN) train.py --gin_file gin/demo.gin --run_dir $(DEMO)/run
	$(RUN) export.py --run_dir $(DEMO)/run --output $(DEMO)/artifact --formats torchscript,onnx
	$(RUN) -m rdfa.detect --artifact $(DEMO)/artifact --features $(DEMO)/data/features \
	    --annotations $(DEMO)/data/annotations.json --subset Test --output $(DEMO)/detections.json
	$(RUN) -m rdfa.evaluate --ground_truth $(DEMO)/data/annotations.json --predictions $(DEMO)/detections.json \
	    --subset Test --tiou 0.3:0.7:5 --output $(DEMO)/metrics.json --timeline $(DEMO)/timeline.png \
	    --report $(DEMO)/report --run_dir $(DEMO)/run
	$(RUN) serve_bench.py --artifact $(DEMO)/artifact --backends eager,torchscript,onnxruntime --output $(DEMO)/bench

test: setup
	$(RUN) -m pytest -q -n auto --dist worksteal tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: setup
	$(RUN) serve_bench.py --kernels --device cpu --output benchmarks/results/cpu

# GPU kernels for machines without Triton, beside the library; needs no GPU.
aot: setup
	$(RUN) -m ops.aot

# With Triton's kernels, then with those of `make aot`, where it was run; exported files with both in the first run.
test-gpu: setup
	$(RUN) -m pytest -q -n $(GPU_PROCESSES) --dist worksteal -m gpu tests
	RDFA_GPU_KERNELS=aot $(RUN) -m pytest -q -n $(GPU_PROCESSES) --dist worksteal -m gpu tests/ops

bench-gpu: setup
	$(RUN) serve_bench.py --kernels --device cuda --output benchmarks/results/gpu

clean:
	rm -rf $(VENV) $(DEMO) build ops/*.so ops/*.cubins
