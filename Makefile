# You need Python 3.11 or newer, git and make. Each target sets up .venv if it is missing.
#
#   make test PYTHON=python3.12        with another interpreter (after `make clean`)
#   make test TESTS=tests/modeling     only some tests
#   make test WORKERS=0                in one process, for a debugger

PYTHON  ?= $(shell command -v python3.11 || command -v python3)
TESTS   ?= tests
WORKERS ?= 2
DEMO    ?= demo-out

# The numbers (kernels, model, formats, convert, stages, prune, quantize), then the rules of the tree.
QUICK   ?= tests/kernels/test_ssd.py tests/kernels/test_conv.py tests/kernels/test_linear_kl.py \
  tests/kernels/test_registry.py tests/modeling tests/checkpoints/test_formats.py \
  tests/checkpoints/test_checkpoint_io.py tests/data/test_packing.py tests/data/test_kl.py \
  tests/convert/test_convert.py tests/convert/test_plan.py tests/convert/test_calibration.py \
  tests/compress/distill/test_stages.py tests/compress/prune/test_pruned_tensors.py \
  tests/compress/prune/test_search.py tests/compress/quantize/test_quantize.py \
  tests/cli/test_commands.py tests/test_options.py tests/test_error_names.py \
  tests/test_imports.py tests/test_packaging.py

VENV    := .venv
BIN     := $(VENV)/bin
READY   := $(VENV)/.ready
CHECKED := build/typecheck

.DEFAULT_GOAL := help
.PHONY: help demo quick test fuzz check docs format setup clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## convert, distill and evaluate the bundled checkpoint (CPU, offline, minutes)
	@$(BIN)/hybridize demo -o $(DEMO) --force

quick: $(READY) ## run the tests that find the most faults per second (under 90 s on 2 cores)
	@$(BIN)/pytest -n $(WORKERS) $(QUICK)

test: $(READY) ## run all tests (under 10 minutes on 2 cores)
	@$(BIN)/pytest -n $(WORKERS) $(TESTS)

fuzz: $(READY) ## damage 20,000 inputs, vary 5,000 configurations, kill each writing command 50 times
	@$(BIN)/python tests/robustness/fuzz.py
	@HYBRIDIZE_FUZZ_KILLS=50 HYBRIDIZE_FUZZ_CONFIGS=5000 $(BIN)/pytest -n $(WORKERS) \
	  tests/robustness/test_kills.py tests/checkpoints/test_source_zoo.py

check: $(READY) ## lint, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@# mypy does not find the folders at the root in an editable install: give it a copy.
	@rm -rf build
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --target $(CHECKED) .
	@MYPYPATH=$(CHECKED) $(BIN)/mypy

docs: $(READY) ## build the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html is the documentation; search in it needs a server: $(BIN)/mkdocs serve"

format: $(READY) ## fix what ruff can fix, and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

setup: $(READY) ## make .venv; the other targets do this by themselves

# pip's output goes to a log, which is shown if pip fails.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) with $(PYTHON): takes a few minutes, once" >&2
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -c constraints.txt -e '.[dev]' >$(VENV)/install.log 2>&1 || { \
	  cat $(VENV)/install.log >&2; echo "error: the installation failed, see above" >&2; exit 1; }
	@touch $@

clean: ## remove .venv and all generated files
	@rm -rf $(VENV) build dist site ./*.egg-info $(DEMO)
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
