# Two commands: `make demo` runs the main job, `make test` the tests. Both prepare .venv first.
PYTHON ?= python3.11
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest
# how the tests are shared out, which mostly wait: over two processes; `make test SHARED=` takes one
SHARED ?= -n 2 --no-loadscope-reorder

.PHONY: setup browser demo test test-long lint clean

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Shoal needs Python 3.11: apt-get install python3.11 python3.11-venv"; exit 1; }
	@echo "setting up .venv: about 2.5 GB of pinned packages, some minutes the first time"
	@$(PYTHON) -m venv .venv || { echo "venv is missing: apt-get install python3.11-venv"; exit 1; }
	@$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m shoal_data.bpe.compile
	@touch $@

# the dashboard's page is looked at by Debian's Chromium; without it those tests fail and say what to install
browser:
	@if ! { command -v chromium && command -v chromedriver; } >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  echo "installing chromium and chromium-driver"; \
	  apt-get update -q && apt-get install -qy --no-install-recommends chromium chromium-driver; fi

demo: setup
	$(BIN)/shoal demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint browser
	$(PYTEST) $(SHARED) -m "not long"

# Triton runs its kernels in its interpreter there; a CPU needs it for nothing else
test-long: setup
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt triton
	$(PYTEST) -m long

clean:
	rm -rf .venv runs
