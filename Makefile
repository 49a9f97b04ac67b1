# Needs Python 3.11 and make; everything else goes into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
export HF_HUB_OFFLINE ?= 1

.PHONY: quickstart test test-slow lint format clean

quickstart: $(VENV)/installed  ## train, trim, test and time a small METER on real data; a CPU is enough
	$(BIN)/python tools/quickstart.py $(ARGS)

test: export OMP_NUM_THREADS ?= 1
test: $(VENV)/installed-dev  ## all fast tests, by WORKERS processes of a thread each
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(VENV)/installed-dev  ## full-size models and real trainings
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the pins are exact: the stamps are as old as the last change of what they install
$(VENV)/installed: requirements/core.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/core.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

# LAVIS pins a transformers older than mmpretrain accepts: without its own pins
$(VENV)/installed-dev: $(VENV)/installed requirements/dev.txt requirements/lavis.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements/dev.txt -r requirements/lavis.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps salesforce-lavis==1.0.2
	touch $@

clean:
	rm -rf $(VENV) work_dirs build *.egg-info smarttrim_mm/.mim
