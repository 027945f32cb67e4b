# Two commands from a fresh clone: `make demo` and `make test`. Choose an interpreter with PYTHON=python3.12.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: .venv/installed
	$(BIN)/diffplan demo

test: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 --dist worksteal

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage*

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'diffplan needs Python 3.11 or newer; "$(PYTHON)" is older or missing. Try: make PYTHON=python3.12 ...'; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e .
	@touch $@

.venv/installed-test: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[test]'
	@touch $@ .venv/installed
