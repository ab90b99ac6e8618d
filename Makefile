# Every target builds what it needs in .venv; nothing has to be installed by hand but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test test-all lint env clean

demo: env
	$(RUN) scripts/demo.py

test: env lint
	$(RUN) -m pytest -m "not slow"

test-all: env lint
	$(RUN) -m pytest

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy bundle

env: $(STAMP)

# torch comes first and exactly: anything looser makes pip fetch another build of several gigabytes
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo outputs runs eval .pytest_cache .mypy_cache .ruff_cache .hypothesis
