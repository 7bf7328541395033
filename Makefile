# SPDX-License-Identifier: Apache-2.0
# make emit writes generated/; make test passes the tests; both make the environment in .venv first.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help emit test lint format sanitize bench clean

help:
	@echo "make emit      write the default preset to generated/"
	@echo "make test      run the tests; those that need nvcc or a GPU skip where there is none"
	@echo "make lint      ruff, mypy and clang-format"
	@echo "make format    let ruff and clang-format rewrite what they would complain about"
	@echo "make sanitize  run a subset of the GPU tests under compute-sanitizer"
	@echo "make bench     time emit and the rendering of 10,000 configurations"
	@echo "make clean     remove the environment and the caches"
	@echo "PYTHON=python3.12 chooses the interpreter (3.11 or later)"

emit: $(VENV)/.test
	$(RUN) -m attn_codegen emit

test: $(VENV)/.test
	$(RUN) -m pytest $(ARGS)

lint: $(VENV)/.dev
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(RUN) -m pytest -q tests/unit/test_style.py

format: $(VENV)/.dev
	$(RUN) -m ruff check --fix
	$(RUN) -m ruff format
	find templates examples -name '*.h' -o -name '*.cuh' -o -name '*.cpp' | xargs $(VENV)/bin/clang-format -i

# The tests run compute-sanitizer themselves, over a program that holds nothing but kernels.
sanitize: $(VENV)/.test
	$(RUN) -m pytest tests/gpu -m sanitize $(ARGS)

bench: $(VENV)/.test
	$(RUN) tests/bench_emit.py

clean:
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache

# Made anew whenever the requirements change.
$(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml .ci/environment.py
	@command -v $(PYTHON) >/dev/null || \
	  { echo "needs Python 3.11 or later: $(PYTHON) is not on PATH; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) .ci/environment.py $(VENV) $*
	@touch $@
