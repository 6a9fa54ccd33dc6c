# Two commands on a fresh machine: `make train` and `make test`. Each makes .venv first.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup train test test-slow check rlhf clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "distrl wants Python 3.11: make setup PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt pip setuptools torch
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[atari,box2d,data,mujoco,video,test]'
	@touch $@

train: setup
	$(BIN)/distrl train --env CartPole-v1 --algo ppo --workers 2

test: setup
	scripts/check

test-slow: setup
	$(BIN)/python -m pytest -m slow tests

check: setup
	scripts/check --fast

# a whole RLHF run, offline, on two cores; its report is runs/rlhf/report.html
rlhf: setup
	$(BIN)/python -m benchmarks.rlhf.pipeline --folder runs/rlhf

clean:
	rm -rf $(VENV) build *.egg-info
