# Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO_STORE := ./demo-store
STAMP := $(VENV)/.installed
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/.installed
VLLM_LOCK := tests/vllm/lock.txt

.PHONY: install demo test test-core test-vllm chaos lint bench-pipeline bench-models bench-llm bench-ranking bench-retention bench-segment bench-sensory bench-serve bench-sleep bench-store screenshots bench-gpu clean

install: $(STAMP)

# torch first, by an exact version. Which build that is, the index says: a plain one gives Linux the
# CUDA build, several gigabytes; with a wheel of the CPU build at hand (PIP_FIND_LINKS) it is that one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lightmem-ray needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	@touch $@

# Backfill the shipped sample, consolidate it, and search it.
demo: $(STAMP)
	@BIN=$(BIN) STORE=$(DEMO_STORE) bash pipelines/samples/demo.sh

test: $(STAMP)
	$(BIN)/python -m pytest -m "not vllm"

# The tests without Ray: seconds.
test-core: $(STAMP)
	$(BIN)/python -m pytest -m "not ray and not vllm"

# vLLM itself, on the CPU: minutes, about 4 GB of disk and 6 of memory.
test-vllm: $(VLLM_STAMP)
	$(VLLM_BIN)/python -m pytest -m vllm tests/vllm

# Nothing is resolved: the lock names every package, and what must not be there is left out.
$(VLLM_STAMP): pyproject.toml $(VLLM_LOCK)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "$(VLLM_LOCK) is for Python 3.11; set PYTHON=")'
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r $(VLLM_LOCK)
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Hundreds of kills at random moments; the tests make twenty.
CHAOS_ROUNDS ?= 300
chaos: $(STAMP)
	CHAOS_ROUNDS=$(CHAOS_ROUNDS) $(BIN)/python -m pytest -q tests/pipelines/test_chaos.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench-pipeline: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_pipeline.py

# LOCOMO=path of locomo10.json (not shipped: CC BY-NC)
bench-models: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_models.py $(LOCOMO)

# LOCOMO=path of locomo10.json
bench-llm: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_llm.py $(LOCOMO)

# LOCOMO as above
bench-ranking: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_ranking.py $(LOCOMO)

# LOCOMO as above; EMBEDDER=folder of one more embedding model
bench-segment: $(STAMP)
	EMBEDDER=$(EMBEDDER) $(BIN)/python tests/benchmarks/bench_segment.py $(LOCOMO)

# About five minutes, and 4 GB of memory; without LOCOMO it reads the shipped samples.
bench-sensory: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_sensory.py $(LOCOMO)

# Needs a GPU, and of packages torch, transformers and pyarrow: any Python that has them will do.
GPU_PYTHON ?= $(PYTHON)
bench-gpu:
	$(GPU_PYTHON) tests/benchmarks/bench_gpu.py $(LOCOMO)

bench-retention: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_retention.py $(LOCOMO)

bench-sleep: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_sleep.py

# About 4 GB of disk, and a quarter of an hour.
bench-serve: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_serve.py

# About 4 GB of disk while it runs.
bench-store: $(STAMP)
	$(BIN)/python tests/benchmarks/bench_store.py

# Needs an installed Chromium. Look at the pictures before they are committed.
screenshots: $(STAMP)
	SCREENSHOTS=docs/explorer $(BIN)/python -m pytest -q tests/serve/explorer/test_screenshots.py

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(DEMO_STORE)
