# make demo   everything from nothing: environment, installation, one real compression with its report page
# make test   the whole test suite (installs what it needs)
# make data   real data sets in the Hugging Face layout, where a collection to unpack is at hand
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)

.PHONY: demo test data lint slow install

install: $(READY)

# torch first and pinned: a resolver that is free to choose takes a build with gigabytes of CUDA libraries
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	rm -f $(VENV)/.ready-*
	touch $@

demo: install
	$(BIN)/limbeck compress recipes/digits.yaml --out runs/demo

# two processes of one thread each: on two cores that is faster than one process of two
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

include data.mk
