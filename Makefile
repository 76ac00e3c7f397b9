# `make demo` and `make test` need nothing but Python 3.10+ and make; a second call re-uses .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test bench lint types readme docs clean
help:
	@echo "make demo    score a real model, fine-tune it on real text, score it again (a few minutes)"
	@echo "make test    run all tests"
	@echo "make bench   speed and memory beside other programs, on equal work (hours; see benchmarks/speed.py for less)"
	@echo "make lint    ruff and mypy"
	@echo "make readme  write the option tables into docs/options.md; say which translations are missing or old"
	@echo "make docs    build the site of docs/ and docstrings into site/"
	@echo "make clean   remove .venv and outputs"

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --no-compile -e '.[dev,demo]'
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # pip compiles one file after the other; some are templates
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m embedrag demo --output_dir demo_output

test: $(VENV)/.installed
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

bench: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.memory
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.largest
	HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.speed

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

readme: $(VENV)/.installed
	$(BIN)/python tests/repository/test_readme.py

docs: $(VENV)/.installed
	$(PIP) -e '.[docs]'
	$(BIN)/mkdocs build --strict  # --quiet would hide warnings from --strict too

clean:
	rm -rf $(VENV) demo_output site
