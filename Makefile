# make demo · make demo-outcomes · make test (test-unit, test-whole, test-cluster) · make lint · make audit · make setup · make clean
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# Tests start hundreds of processes, which read compiled modules where they may write them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-outcomes test test-unit test-whole test-cluster lint audit clean
setup:
	@PYTHON=$(PYTHON) scripts/setup.sh $(VENV)

audit: setup
	$(RUN) scripts/audit.py requirements/cpu.lock

demo: setup
	@$(RUN) launch.py stage=full run=demo

demo-outcomes: setup
	@$(RUN) launch.py stage=full recipe=demo-outcomes run=demo-outcomes

test: test-unit test-whole test-cluster

# A process a core, each with a test cluster of its own, and the tests of a file in one: they share what they set up.
# tests/conftest.py says in which order.
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-unit: setup
	@scripts/install_slurm.sh
	$(RUN) -m pytest tests --ignore=tests/whole -m "not cluster" $(SIDE_BY_SIDE)

test-whole: setup
	$(RUN) -m pytest tests/whole $(SIDE_BY_SIDE)

test-cluster: setup
	@scripts/install_slurm.sh
	$(RUN) -m pytest tests/cluster -m cluster $(SIDE_BY_SIDE)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
