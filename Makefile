# Two commands for a fresh machine: `make demo` and `make test`. Both need only CPython 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ONCE ?=
# tests at once, a file each; many of them wait for a peer
JOBS ?= $(shell echo $$(( $$(nproc 2>/dev/null || echo 2) + 1 )))

.PHONY: demo test test-compiled check check-static docs bench bench-guard bench-scale fuzz attack fmt clean

$(VENV)/.demo: pyproject.toml constraints.txt hatch_build.py $(wildcard src/quillon/*/*.c)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quillon needs CPython 3.11 or later; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.demo
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/quillon demo $(if $(ONCE),--once)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# The wheel as it is installed where there is a compiler, beside the environment; a minute or two.
$(VENV)/.compiled: $(VENV)/.demo $(shell find src -name '*.py' -o -name '*.toml' -o -name '*.lua')
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps --upgrade --target $(VENV)/compiled .
	touch $@

# The same tests over what mypyc has compiled.
test-compiled: $(VENV)/.dev $(VENV)/.compiled
	PYTHONPATH=$(abspath $(VENV)/compiled) QUILLON_COMPILED=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

# What reads the code without running it.
check-static: $(VENV)/.dev
	$(BIN)/ruff format --check src tests bench docs hatch_build.py
	$(BIN)/ruff check src tests bench docs hatch_build.py
	$(BIN)/mypy
	$(BIN)/lint-imports

check: check-static test

fmt: $(VENV)/.dev
	$(BIN)/ruff format src tests bench docs hatch_build.py
	$(BIN)/ruff check --fix src tests bench docs hatch_build.py

docs: $(VENV)/.docs
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.compiled
	PYTHONPATH=$(abspath $(VENV)/compiled) $(BIN)/python bench/run.py

# What a queue of a million messages costs; some ten minutes.
bench-scale: $(VENV)/.demo
	$(BIN)/python bench/scale.py

# Instructions per message against those recorded in bench/guard.json, of the files and compiled; four minutes.
bench-guard: $(VENV)/.compiled
	$(BIN)/python bench/guard.py
	PYTHONPATH=$(abspath $(VENV)/compiled) $(BIN)/python bench/guard.py

# A minute of hostile octets against the TLS engines; SECONDS=3600 for more.
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzz_tls --seconds $(or $(SECONDS),60)

# What attacks of one client cost the others; some two minutes.
attack: $(VENV)/.dev
	$(BIN)/python -m tests.attack

clean:
	rm -rf $(VENV) demo site
