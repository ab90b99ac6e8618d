# Every target builds what it needs in .venv; only Python 3.11 or newer has to be installed by hand.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: ci-programs demo test test-all lint env clean docs test-docs zoo-check label-env label-server label-test export wheel docker

demo: env
	$(RUN) scripts/demo.py

# Chromium and dicom3tools where apt may install them; the other programs that tests use come with pip
ci-programs:
	.ci/programs

test: env lint
	$(RUN) -m pytest -m "not slow and not label"

test-all: env lint
	$(RUN) -m pytest -m "not label"

# the checks of the MONAI model zoo for a bundle, and more
zoo-check: env
	$(RUN) scripts/zoo_check.py

# TorchScript and ONNX files in exports/, each checked against PyTorch
export: env
	$(RUN) scripts/export.py

# one wheel in dist/, with weights and configs; leftovers of an earlier build would end up in it
wheel: env
	rm -rf build
	$(RUN) -m pip wheel . --no-deps --wheel-dir dist

# the image iconet-sr; DOCKER_ARGS="--build-arg TORCH=... --build-arg PIP_EXTRA_INDEX_URL=..." for another PyTorch
DOCKER_ARGS ?=
docker:
	docker build --tag iconet-sr $(DOCKER_ARGS) .

# the documentation as a site in site/; `python -m http.server -d site` shows it
docs: env
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# every command in the documents, and every link of the site
test-docs: env
	$(RUN) -m pytest tests/test_documented_commands.py tests/test_docs_site.py

lint: env
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

env: $(STAMP)

# torch comes first, pinned exactly: otherwise pip fetches another build of several gigabytes
$(STAMP): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

# MONAI Label in its own environment: it needs older versions of numpy and pydicom
LABEL_VENV := .venv-label
LABEL_RUN := $(LABEL_VENV)/bin/python

label-env: $(LABEL_VENV)/.installed

$(LABEL_VENV)/.installed: constraints-label.txt
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_RUN) -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints-label.txt)
	PIP_CONSTRAINT=$(CURDIR)/constraints-label.txt SAM2_BUILD_CUDA=0 $(LABEL_RUN) -m pip install --quiet \
		--disable-pip-version-check monailabel monai torch "dicomweb-client[gcp]" pytorch-ignite nibabel safetensors
	touch $@

LABEL_STUDIES ?=
label-server: label-env
	PYTHONPATH=. $(LABEL_RUN) scripts/label_server.py $(if $(LABEL_STUDIES),--studies "$(LABEL_STUDIES)")

label-test: env label-env
	$(RUN) -m pytest -n 0 -m label tests/label

clean:
	rm -rf $(VENV) $(LABEL_VENV) build dist demo outputs runs eval site .pytest_cache .mypy_cache .ruff_cache .hypothesis
