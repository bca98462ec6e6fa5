# One-line commands. Each builds .venv by itself from python3, pip and make alone.
PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
# One thread a process: two test workers then share two cores without a fight.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: demo test lint style types layers words docs docs-check notebooks bench clean
.DELETE_ON_ERROR:

demo: .venv/.ready             ## the main job on real data; pictures in ./modularml-demo
	@$(BIN)/python -m modularml demo

test: .venv/.ready             ## the whole test suite
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint: style types layers words  ## ruff, mypy, import-linter, spelling (`make -k lint` shows all at once)

style: .venv/.ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: .venv/.ready            ## mypy strict on the package
	@$(BIN)/mypy

layers: .venv/.ready           ## who may import whom
	@$(BIN)/lint-imports --no-logo

words: .venv/.ready            ## spelling, and words that docs must not use
	@$(BIN)/codespell docs modularml notebooks benchmarks changelog.d *.md
	@$(BIN)/python docs/terms.py

docs: .venv/.ready-docs        ## docs/_build/html, warnings are errors
	@$(BIN)/sphinx-build -q -W --keep-going docs docs/_build/html
	@echo "docs/_build/html/index.html"

docs-check: docs               ## links, sizes, and a browser's view of each kind of page
	@MML_DOCS=docs/_build/html $(ONE_THREAD) $(BIN)/python -m pytest tests/docs/test_site.py $(ARGS)

notebooks: .venv/.ready        ## run every notebook from top to bottom
	@$(ONE_THREAD) $(BIN)/python -m pytest tests/test_repo.py -k notebook $(ARGS)

bench: .venv/.ready            ## ratios against hand-written loops and other libraries
	@$(BIN)/python -m benchmarks $(ARGS)

clean:                         ## everything that can be made again
	rm -rf .venv .benchenvs .nox build dist modularml-demo docs/_build docs/_thumbnails docs/gallery
	rm -rf docs/howto/*.ipynb docs/tutorials/*.ipynb docs/reference/api
	rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@echo "making .venv (the first time takes some minutes)"
	@$(PYTHON) -m venv .venv

.venv/.ready: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing the versions of constraints.txt, torch and tensorflow among them"
	@$(PIP) -e '.[torch,plot,dev]'
	@touch $@

.venv/.ready-docs: .venv/.ready
	@$(PIP) -e '.[docs]'
	@touch $@
