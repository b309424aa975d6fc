# The verbs of this project. `make test` and `make demo` do all the set-up on a fresh Debian machine,
# as root or as a user who may use sudo. Everything they install beside Debian packages lies in .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SUDO   := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
PYTEST := $(BIN)/python -m pytest --cov=actplane --cov-report=

# Debian packages: what a fresh machine lacks is installed, what is there is left alone.
DEBS_RUN := git
DEBS_VM  := qemu-system-x86 busybox-static kmod cpio xz-utils

.PHONY: help venv demo test lint types test-unit test-kernel test-vm coverage bench clean debs debs-vm
.DEFAULT_GOAL := help

help: ## list the verbs
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

venv: $(VENV)/dev.stamp ## create .venv with everything the tests need

demo: $(VENV)/run.stamp ## run a shell under a policy that kills `git push`, on this machine's kernel
	./demo.sh $(SUDO) $(abspath $(BIN))/actplane

test: lint types ## everything: lint, types, doctests, unit, kernel (here) and kernel (guests)
	rm -rf build/test && mkdir -p build/test
	$(MAKE) --no-print-directory test-unit test-kernel test-vm coverage

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev.stamp
	$(BIN)/mypy

test-unit: $(VENV)/dev.stamp ## doctests and the pure tests
	COVERAGE_FILE=build/test/.coverage.unit $(PYTEST) actplane tests --ignore=tests/kernel

test-kernel: $(VENV)/dev.stamp ## the kernel tests on the running kernel (needs root)
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 COVERAGE_FILE=build/test/.coverage.kernel $(PYTEST) -p no:cacheprovider tests/kernel

test-vm: $(VENV)/dev.stamp debs-vm ## the kernel tests in guests: Linux 5.10, 6.1, 6.12 and 7.2
	$(BIN)/python -m tests.vm test --results build/test

coverage: $(VENV)/dev.stamp ## combine what unit, kernel and guest runs covered, and print it
	$(BIN)/coverage combine -q --data-file=build/test/.coverage build/test
	$(BIN)/coverage report --data-file=build/test/.coverage --skip-covered --skip-empty

bench: $(VENV)/dev.stamp ## benchmarks: compile, assemble, mirror, load, cold start
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 $(BIN)/python -m pytest -p no:cacheprovider --benchmark-only -q bench

clean: ## remove the virtual environment and everything built
	rm -rf $(VENV) build .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(MAKE) --no-print-directory install DEBS="python3 python3-venv"
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: $(VENV)/bin/python pyproject.toml | debs
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/bin/python pyproject.toml | debs
	$(BIN)/pip install -q -e '.[dev]'
	touch $@ $(VENV)/run.stamp

debs:
	@$(MAKE) --no-print-directory install DEBS="$(DEBS_RUN)"

debs-vm:
	@$(MAKE) --no-print-directory install DEBS="$(DEBS_VM)"

# install DEBS="a b": the Debian packages among these that are missing, without a question asked.
.PHONY: install
install:
	@missing=; for deb in $(DEBS); do \
	    dpkg-query -W -f '$${Status}\n' $$deb 2>/dev/null | grep -q '^install ok installed$$' || missing="$$missing $$deb"; \
	done; \
	[ -z "$$missing" ] || { set -x; \
	    $(SUDO) apt-get -q update && \
	    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $$missing </dev/null; }
