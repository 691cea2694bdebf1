# Everything a reader or a contributor does, one target each: `make help` lists them.
#
# pip's own settings pass through untouched. So a machine without a GPU can have the much smaller
# CPU build of torch by pointing PIP_EXTRA_INDEX_URL (or PIP_INDEX_URL) at torch's index of CPU builds.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

# What a user may set, as in `make book MODEL=gpt2 CORES=2`. PARAMS is params/laptop.yml by default,
# and params/sweep.yml for `make sweep`.
PYTHON ?= python3
PARAMS ?=
MODEL ?=
RESULTS ?=
CORES ?=
PROFILE ?=
PORT ?= 8000
# How many tests, or notebooks, are run at once.
TEST_JOBS ?= 2

# The same in every run: no warnings about forked tokenizers, one order of sets, UTF-8 everywhere.
export TOKENIZERS_PARALLELISM := false
export PYTHONHASHSEED := 0
export PYTHONUTF8 := 1
# Nor anything of the user's own: other packages, a Snakemake profile, pip installing elsewhere.
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP SNAKEMAKE_PROFILE PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT

# All paths are relative, so that a space in the path of the project does no harm. Programs that a
# run starts by name (papermill, snakemake, jupyter) are those of the environment.
STAMP := .venv/.installed
PY := PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/python
# The tests ask no hub for anything; what they need has been fetched before.
TEST_PY := HF_HUB_OFFLINE=1 $(PY)

# A value as it was given, whatever it holds: make expands no `$` in it, and the shell reads nothing.
quoted = '$(subst ','\'',$(value $(1)))'
option = $(if $(value $(2)),--$(1)=$(call quoted,$(2)))
RUN = $(call option,params,PARAMS) $(call option,model,MODEL) $(call option,cores,CORES) \
  $(call option,profile,PROFILE)

# The stamp is written last and holds the directory it was made in. An environment without it is half
# made; one with another directory was moved or copied, and would import the code of its old place.
SETUP_OK := $(shell [ -x .venv/bin/python ] && [ "$$(cat $(STAMP) 2>/dev/null)" = "$$(pwd -P)" ] && echo yes)

.PHONY: help params setup book release plan models sweep serve pdf notebooks test test-fast bench proof lint format clean distclean FORCE

help: ## List the targets
	@echo 'Usage: make TARGET [MODEL=name] [PARAMS=file] [CORES=n] [PROFILE=dir] [PORT=n] [PYTHON=python3.12]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

params: setup ## List the stages with their parameters, as a PARAMS file sets them
	@$(PY) -m seqcirc_utils --help

setup: $(STAMP) ## Make the environment in .venv (the other targets do it when needed)
	@:

$(STAMP): requirements.lock pyproject.toml $(if $(SETUP_OK),,FORCE)
ifneq ($(SETUP_OK),yes)
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo 'No program named "$(PYTHON)": name a Python, as in: make setup PYTHON=python3.12' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is %s: name another, as in: make setup PYTHON=python3.12" % sys.version.split()[0])'
	@"$(PYTHON)" -m venv --clear .venv
endif
	@rm -f $(STAMP)
	@echo 'Installing requirements.lock into .venv: some minutes the first time (PIP_VERBOSE=1 shows more) ...'
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@pwd -P > $(STAMP)
	@echo 'The environment in .venv is ready.'

book: setup ## Run every analysis and build the book into _build/html (RESULTS=folder: of a release's results)
	@$(PY) -m seqcirc_utils book $(RUN) $(call option,results,RESULTS)

release: setup ## Write a folder to keep and to cite into _build/release: book, results, notebooks, environment
	@$(PY) -m seqcirc_utils release $(call option,params,PARAMS) $(call option,model,MODEL)

plan: setup ## Tell how many jobs the book has, and about how long they take
	@$(PY) -m seqcirc_utils plan $(call option,params,PARAMS) $(call option,model,MODEL)

models: setup ## Make the books of all models that are compared, side by side in _build/models
	@$(PY) -m seqcirc_utils models $(RUN)

sweep: setup ## Run models x tasks x seeds (PARAMS=params/sweep.yml) and write their summary
	@$(PY) -m seqcirc_utils sweep $(RUN)

serve: ## Show the built book at http://127.0.0.1:8000 (PORT=n for another port)
	@[ -e _build/html/index.html ] || { echo 'No book in _build/html yet: run "make book" first.' >&2; exit 1; }
	@echo 'The book is at http://127.0.0.1:$(PORT)/ until you press Ctrl-C.'
	@"$(PYTHON)" -m http.server --bind 127.0.0.1 --directory _build/html "$(PORT)"

pdf: setup ## Print the built book into _build/book.pdf (needs Chromium)
	@$(PY) -m seqcirc_utils pdf

notebooks: setup ## Run the committed notebooks again at their default parameters, in place
	@$(PY) -m seqcirc_utils notebooks

test: setup ## Run the unit tests, then check the committed notebooks' outputs
	@$(PY) -m seqcirc_utils fetch smollm2-135m-instruct
	@OMP_NUM_THREADS=1 $(TEST_PY) -m pytest -n "$(TEST_JOBS)" --dist loadscope tests
	@$(TEST_PY) -m seqcirc_utils run --params params/default.yml \
	  --until 01_task_construction 02_logit_attribution 05_component_roles
	@OMP_NUM_THREADS=1 $(TEST_PY) -m pytest --nbval-lax --nbval-current-env \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg -p no:python \
	  -n "$(TEST_JOBS)" --dist loadscope notebooks

test-fast: setup ## Run only the unit tests that take seconds and need no model
	@$(TEST_PY) -m pytest -m 'not slow and not model' tests

bench: setup ## Time the circuit searches beside the plain procedure (writes benchmarks/results.json)
	@$(PY) benchmarks/bench.py $(if $(QUICK),--quick)

proof: setup ## Which architectures work (ARCH=name for one): writes benchmarks/architectures.json
	@OMP_NUM_THREADS=1 $(TEST_PY) scripts/proof.py $(if $(ARCH),$(call quoted,ARCH))

lint: setup ## Check style and formatting, notebooks included, and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m pyrefly check

format: setup ## Sort imports, fix what can be fixed, and format, notebooks included
	@$(PY) -m ruff check --fix-only .
	@$(PY) -m ruff format .

clean: ## Remove the book and all results (keeps .venv and the fetched models)
	@rm -rf _build book/runs results

distclean: clean ## Remove .venv and the caches in this directory as well
	@rm -rf .venv .snakemake .pytest_cache .ruff_cache seqcirc_utils.egg-info
