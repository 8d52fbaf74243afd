# make demo · make test (test-unit, test-cluster) · make lint · make setup · make clean
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: setup demo test test-unit test-cluster lint clean
setup:
	@PYTHON=$(PYTHON) scripts/setup.sh $(VENV)

demo: setup
	@$(RUN) launch.py stage=full run=demo

test: test-unit test-cluster

test-unit: setup
	@scripts/install_slurm.sh
	$(RUN) -m pytest tests --ignore=tests/cluster

test-cluster: setup
	@scripts/install_slurm.sh
	$(RUN) -m pytest tests/cluster

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

clean:
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
