# Each target does its own set-up. Needs Python >= 3.11, a C compiler and make; no root rights.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= config
TABLES := $(addprefix proxy/tokens/,build.py tables.py vocabulary.py) $(wildcard proxy/tokens/vocab/*.vocab proxy/tokens/vocab/*.txt)
SOURCES := $(wildcard proxy/*.pyx proxy/*.pxd proxy/*.pxi proxy/*.h) $(TABLES) setup.py

.PHONY: help build run test check bench asan soak docs clean

help:
	@echo "make run    start Weir on $(CONFIG)/ with the embedded defaults"
	@echo "make test   check, then every test, with real Redis and PostgreSQL"
	@echo "make build check bench asan soak docs clean"

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "setuptools>=77" "Cython>=3.3,<4" wheel
	WEIR_EXT=none $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[test]"
	@touch $@

$(VENV)/built: $(VENV)/installed $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace --parallel 2
	@touch $@

$(VENV)/bench: $(VENV)/built
	WEIR_EXT=none $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --editable ".[test,bench]"
	@touch $@

build: $(VENV)/built

run: build
	$(BIN)/python -m proxy run --config $(CONFIG)

check: build
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/house
	$(BIN)/python -m proxy.policy.document --check
	$(BIN)/python -m proxy.telemetry.document --check
	$(BIN)/python -m proxy.control.document --check
	$(BIN)/python -m benchmarks.report --check

test: check
	$(BIN)/python -m pytest --ignore=tests/house -m "not soak" -n 3 --dist loadfile

bench: $(VENV)/bench
	$(BIN)/python -m pytest benchmarks/micro_*.py --benchmark-enable --benchmark-only --benchmark-columns=min,median,max --quiet
	$(BIN)/python -m benchmarks.tokens --keep; tokens=$$?; $(BIN)/python -m benchmarks.run; status=$$?; \
	$(BIN)/python -m benchmarks.report && test $$tokens -eq 0 && exit $$status

asan: build
	$(BIN)/python tests/asan/run.py

soak: build
	WEIR_SOAK=1 $(BIN)/python -m pytest -m soak --timeout=0

docs: build
	$(BIN)/python -m proxy.policy.document
	$(BIN)/python -m proxy.telemetry.document
	$(BIN)/python -m proxy.control.document

clean:
	rm -rf build $(VENV) proxy/*.so proxy/*.c proxy/tokens/vocab/*.table proxy/tokens/vocab/tables.sha256 *.egg-info .pytest_cache .mypy_cache .ruff_cache
