# make demo · make demo-outcomes · make test (test-unit, test-whole, test-cluster) · make lint · make audit · make setup · make clean
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# .venv holds all that is used; a cluster's modules put packages of another Python before it.
unexport PYTHONPATH PYTHONHOME
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

# The tests of a file are in one process: they share what they set up. tests/conftest.py says in which order.
SIDE_BY_SIDE := --maxprocesses 4 --dist loadfile --no-loadscope-reorder
A_CORE := -n logical
# Each process has a test cluster of its own, which often waits for Slurm's clocks alone.
ONE_MORE := -n $$(($$(getconf _NPROCESSORS_ONLN) + 1))

test-unit: setup
	@scripts/install_slurm.sh
	$(RUN) -m pytest tests --ignore=tests/whole -m "not cluster" $(A_CORE) $(SIDE_BY_SIDE)

test-whole: setup
	$(RUN) -m pytest tests/whole $(A_CORE) $(SIDE_BY_SIDE)

test-cluster: setup
	@scripts/install_slurm.sh
	$(RUN) -m pytest tests/cluster -m cluster $(ONE_MORE) $(SIDE_BY_SIDE)

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
