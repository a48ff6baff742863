# One environment for everything: what runs the demo is what runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Each process of the tests computes with one thread: several threads in several processes get into each other's way.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist worksteal

# Tests start many processes: where Python may keep no bytecode, each would compile every module again.
export PYTHONDONTWRITEBYTECODE =

# Tests that need no model, for `make check`, which is to take less than a minute.
QUICK := $(addprefix tests/,recipe/test_loader.py recipe/test_yaml_document.py host/test_discovery.py host/test_tables.py \
	utils project/test_layout.py)

.PHONY: setup demo check lint types quick test test-all board clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}; say which one to use with: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,demo-llm,dev]'
	@touch $@

demo: setup
	$(BIN)/defensekit run recipes/quickstart.yaml

# mypy's first run takes longer than all the rest together, and gets a core of its own.
check: setup
	@$(MAKE) --no-print-directory -j2 types lint quick

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/python -m mypy

quick: setup
	$(BIN)/python -m pytest -m 'not slow' $(QUICK)

test: setup
	$(PYTEST) -m 'not slow'

test-all: setup
	$(PYTEST)

# Rows of every entry for the smallest track, and of every attack on them, from nothing: a store does not know which
# version of the core filled it.
board: setup
	rm -rf build/board
	OMP_NUM_THREADS=1 $(BIN)/defensekit leaderboard run pico-v1 leaderboard/entries/*.yaml leaderboard/entries/pico/*.yaml \
		--workspace build/board --rows leaderboard/rows
	for attack in leaderboard/attacks/pico/*.yaml; do OMP_NUM_THREADS=1 $(BIN)/defensekit leaderboard attack pico-v1 $$attack \
		leaderboard/rows/pico-v1 --workspace build/board --rows leaderboard/rows || exit; done
	$(BIN)/defensekit leaderboard check leaderboard/rows

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache build dist site
