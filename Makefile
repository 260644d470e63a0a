# `make run` and `make test` are all a newcomer needs; `make help` lists the rest.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export PATH := $(CURDIR)/.venv/bin:$(PATH)

# What an NVIDIA build of torch brings along; it differs from machine to machine as torch itself does, so it is not locked.
TORCH_FAMILY := torch triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc \
  nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
  nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx
TORCH := torch==2.13.0

.PHONY: help install run test unit lint bench peers study drills lock clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

install: $(INSTALLED) ## Install everything into .venv from requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "resflow needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@echo "Installing into .venv from requirements.lock; the first time this takes minutes."
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	grep -v '^torch==' requirements.lock > .venv/hashed.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off --require-hashes -r .venv/hashed.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	env -u PREFECT_API_DATABASE_CONNECTION_URL PREFECT_HOME=$(CURDIR)/.venv/prefect $(BIN)/prefect server database upgrade --yes > /dev/null
	touch $@

run: $(INSTALLED) ## Run the whole pipeline: from raw MNIST to a registered, published network
	@$(BIN)/resflow run

test: $(INSTALLED) ## Run all tests, on two workers
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

unit: $(INSTALLED) ## Run the fast tests only
	$(BIN)/python -m pytest -m "not integration"

lint: $(INSTALLED) ## Check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: peers ## Measure accuracy, speed, overhead and scaling into docs/ (about an hour; QUICK=1 about 15 minutes)
	$(BIN)/dvc repro prepare
	$(BIN)/python -m benchmarks.training $(if $(QUICK),--epochs 4 --rounds 1)
	$(BIN)/python -m benchmarks.stream --rounds $(if $(QUICK),1,5)
	$(BIN)/python -m benchmarks.accuracy --seeds 0 $(if $(QUICK),,1 2 3 4)
	$(BIN)/python -m benchmarks.keras_article --epochs $(if $(QUICK),1,10)
	$(if $(QUICK),,$(BIN)/python -m benchmarks.accuracy --seeds 0 1 2 3 4 --params experiments/bfloat16.yaml)
	$(if $(QUICK),,$(BIN)/python -m benchmarks.accuracy --seeds 0 1 2 --params experiments/article.yaml)
	$(BIN)/python -m benchmarks.adversarial
	$(BIN)/python -m benchmarks.startup --rounds $(if $(QUICK),1,5)
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.scaling

peers: $(INSTALLED) ## Install what resflow is measured against, leaving all that is locked as it is
	grep -oE '^[A-Za-z0-9._-]+(\[[a-z,]+\])?==[^ ;]+' requirements.lock | sed -E 's/\[[^]]*\]//' > .venv/locked.txt
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]["bench"], sep="\n")' > .venv/peers.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar off -c .venv/locked.txt -r .venv/peers.txt

study: $(INSTALLED) ## Compare structures into docs/study/ (half an hour; QUICK=1 about 3, into docs/study/quick/)
	$(BIN)/dvc repro --quiet prepare
	@$(BIN)/resflow study $(if $(QUICK),--params experiments/study-quick.yaml --to docs/study/quick)

drills: $(INSTALLED) ## Kill training at random moments, N=20 times each way, into docs/reliability.md
	$(BIN)/python -m tests.drills --times $(or $(N),20)

lock: ## Resolve pyproject.toml anew into requirements.lock (torch stands at its end, without a hash)
	[ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-annotate --no-header --group dev pyproject.toml \
	  $(foreach package,$(TORCH_FAMILY),--no-emit-package $(package)) --constraint <(echo $(TORCH)) --output-file requirements.lock
	# pip before 23.3 wants both the bare name and the extra that Prefect asks for
	sed -n '/^sqlalchemy==/,/[^\\]$$/p' requirements.lock | sed 's/^sqlalchemy==/sqlalchemy[asyncio]==/' >> requirements.lock
	echo "$(TORCH)" >> requirements.lock

clean: ## Remove the environment and caches; data, models, the store and versions stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
