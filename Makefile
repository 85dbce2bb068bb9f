# Two commands do everything: `make demo` and `make test`. Both set up a virtual environment first.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo test lint unit clean

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "onnxfix needs Python 3.10 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $(READY)

demo: $(READY)
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh fixtures/demo.sh

test: lint unit

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

unit: $(READY)
	$(PY) -m fixtures.fetch_models
	$(PY) -m pytest -n 2 --dist worksteal

clean:
	rm -rf $(VENV) .cache
