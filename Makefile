# Two commands on a fresh machine: `make study` and `make test`. Both build .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
STUDY ?= freeze_depth

.PHONY: study test slow check format docs bench gpu clean

study: .venv/installed
	$(BIN)/python -m harness.study --space studies/$(STUDY).py
	$(BIN)/python -m analysis.report --study $(STUDY)

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist loadfile

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Not --quiet: it hides warnings from --strict too.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml
	@echo "docs/site/index.html"

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.run $(if $(ONLY),--only $(ONLY))

gpu: .venv/installed-dev .venv/installed-bench
	$(BIN)/python -m pytest tests/test_gpu.py
	$(BIN)/python -m benchmarks.gpu

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e .
	touch $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@ .venv/installed

.venv/installed-docs: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[docs]'
	touch $@ .venv/installed

.venv/installed-bench: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[bench]'
	touch $@ .venv/installed

clean:
	rm -rf .venv report docs/site .mypy_cache .ruff_cache .pytest_cache
