# Everything runs in .venv, which is made when it is missing:
#   make train    train on CartPole-v1 with RL Zoo, evaluate, and plot the learning curve
#   make test     all checks: ruff, mypy, the layer contract, docs, quick tests
#   make slow     the tests that train for minutes, install packages into new environments, or kill processes
#   make docs     the documentation, in docs/_build/html
#   make tables   the tables of the results pages and the README's picture, from the CSV files in benchmarks/
#   make mutants  mutation testing of the algorithm (half an hour)
# Variables: PYTHON (interpreter to build .venv with), TORCH (what to install as PyTorch), ENV (environment to train on)

PYTHON ?= python3
TORCH ?= torch==2.13.0
ENV ?= CartPole-v1

BIN := .venv/bin
READY := .venv/ready

# Small networks are slower with several threads
export OMP_NUM_THREADS ?= 1

.PHONY: train test quick slow lint type layers docs tables mutants format clean

train: $(READY)
	$(BIN)/python -m rl_zoo3.train --algo aac --env $(ENV) --eval-freq 5000 --progress
	$(BIN)/python examples/plot_training.py --env $(ENV)

test: lint type layers docs quick

quick: $(READY)
	$(BIN)/python -m pytest -m "not slow" --durations=10

slow: $(READY)
	$(BIN)/python -m pytest -m slow --durations=10

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

tables: $(READY)
	$(BIN)/python benchmarks/last_returns.py
	$(BIN)/python benchmarks/pictures.py
	$(BIN)/python benchmarks/tables.py docs/results/suites

mutants: $(READY)
	$(BIN)/python -m pip install -q -e ".[mutants]"
	$(BIN)/mutmut run
	$(BIN)/python tests/mutants.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The start-up files are copied into the environment, hence it depends on them.
# --no-compile: most of the installed Python files are never imported, and those that are get compiled then
$(READY): setup.cfg pyproject.toml $(wildcard startup/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile $(TORCH)
	$(BIN)/python -m pip install --no-compile -e ".[compare,docs,envs,onnx,tests,video,zoo-plots]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
