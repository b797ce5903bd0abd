# Every target works right after git clone: what is missing is installed first, or named.
# All paths are relative, so a clone may lie under a path with spaces.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .venv/bin
PYTEST_ARGS ?=
DEMO_ARGS ?=
PREFIX ?= /opt/refgenfs
LINKS ?= /usr/local/bin
SERVICE_PYTHON ?= /usr/bin/python3
SERVICE_ARGS ?=
STRESS_SECONDS ?= 180
BENCH_ARGS ?=
DEB_VERSION ?=

.PHONY: help install install-service deb runtime dev peers packaging demo docs test stress bench check lint format clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

install: runtime ## install what refgenfs needs to run, and refgenfs into .venv

install-service: runtime ## install refgenfs into /opt/refgenfs, its systemd units and mount helper (SERVICE_ARGS="--yes")
	@sudo=; if [[ $$EUID -ne 0 ]]; then sudo=sudo; fi; \
	  $$sudo $(SERVICE_PYTHON) -m venv "$(PREFIX)"; \
	  $$sudo "$(PREFIX)/bin/pip" install --quiet --disable-pip-version-check --upgrade .; \
	  $$sudo ln -sfn "$(PREFIX)/bin/refgenfs" "$(LINKS)/refgenfs"; \
	  $$sudo "$(PREFIX)/bin/refgenfs" service install $(SERVICE_ARGS)

deb: packaging ## build dist/refgenfs_VERSION_ARCH.deb, for the distribution of this machine
	@DEB_VERSION="$(DEB_VERSION)" bash scripts/deb.sh

runtime:
	@bash scripts/bootstrap.sh runtime

dev:
	@bash scripts/bootstrap.sh dev

peers:
	@bash scripts/bootstrap.sh bench

packaging:
	@bash scripts/bootstrap.sh deb

demo: runtime ## build a small genome, serve it, mount it, align reads against the mount
	@$(BIN)/refgenfs demo $(DEMO_ARGS)

test: dev ## run every test (PYTEST_ARGS="tests/unit -k tar" runs some)
	@bash scripts/test.sh $(PYTEST_ARGS)

stress: dev ## minutes of 16 readers on a failing origin, and of random stories on real mounts (STRESS_SECONDS=180)
	@REFGENFS_STRESS_SECONDS=$(STRESS_SECONDS) REFGENFS_MODEL_EXAMPLES=60 REFGENFS_MODEL_STEPS=40 \
	  $(BIN)/python -m pytest -q -rP --show-capture=no tests/faults/test_stress.py tests/model

bench: peers ## measure beside peers (BENCH_ARGS="warm cold --quick" measures some, in small)
	@$(BIN)/python -m benchmarks $(BENCH_ARGS)

docs: dev ## build the documentation into site/ (python3 -m http.server -d site; search needs a server)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: lint ## lint, formatting, types, layers, unit tests
	$(BIN)/python -m pytest -q tests/unit

lint: dev ## what make check does, without the unit tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: dev ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the virtual environment and every file made by tools
	rm -rf .venv build dist site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
