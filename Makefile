# Every target does its own set-up: .venv with the versions of constraints.txt. Needs git, make and Python >= 3.11.
#   make quickstart [OUT=quickstart] [ARGS="--fast"]   the main job on the embedded data; ends with the path of a report
#   make test [ARGS="-k spans"]                        ruff and pytest
#   make lint | bench | clean

VENV ?= .venv
OUT ?= quickstart
ARGS ?=
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test lint bench clean
.DELETE_ON_ERROR:

quickstart: $(VENV)/core.stamp
	$(VENV)/bin/plum quickstart --out $(OUT) $(ARGS)

test: lint
	$(VENV)/bin/python -m pytest -q -n auto --maxprocesses 4 $(ARGS)

lint: $(VENV)/test.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: $(VENV)/core.stamp
	for script in tools/bench_*.py; do $(VENV)/bin/python -m tools.$$(basename $$script .py) || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache

# A stamp is newer than what it was installed from. An interrupted installation leaves none and is done again.
$(VENV)/core.stamp: setup.py constraints.txt | $(VENV)/bin/python
	@echo "Installing plum_jax into $(VENV) (about one minute)..."
	$(PIP) --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/core.stamp
	@echo "Installing the test tools into $(VENV) (about one minute; PyTorch is the oracle of the parity tests)..."
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 found; install one, or run make PYTHON=/path/to/python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) has no venv module; on Debian: apt install python3-venv"; exit 2; }
