# make results: raw data to table, figures and report.   make test: the test suite.
# Both set up all they need in .venv; PYTHON names the interpreter it is made from.

PYTHON ?= python3
CORES ?= all
BIN := .venv/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m
REPORT := results/report/report.html

.PHONY: help results env dev test lint format schema lock clean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

results: env ## run the whole pipeline on the embedded data
	$(RUN) snakemake --cores $(CORES) --scheduler greedy --quiet reason host -- results/aggregate_results.csv
	@$(MAKE) --no-print-directory $(REPORT)
	@echo
	@echo "table    results/aggregate_results.csv"
	@echo "figures  results/report/figures/"
	@echo "LaTeX    results/report/tables/"
	@echo "report   $(REPORT) (open it in a browser)"
	@echo "texts    results/report/explanations.md"

$(REPORT): results/aggregate_results.csv
	$(RUN) snakemake --cores 1 --report $@ --quiet all

env: .venv/env.stamp ## make .venv with what a run needs
.venv/env.stamp: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 12) else "Python 3.11 or 3.12 is needed; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock torch
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable .
	touch $@

dev: .venv/dev.stamp ## add what tests and lint need
.venv/dev.stamp: .venv/env.stamp
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

test: dev ## run the whole test suite
	$(RUN) pytest

lint: dev ## formatting and lint of Python and Snakemake files
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(BIN)/snakefmt --check Snakefile rules
	$(RUN) snakemake --lint

format: dev ## format Python and Snakemake files
	$(RUN) ruff format .
	$(RUN) ruff check --fix .
	$(BIN)/snakefmt Snakefile rules

schema: dev ## rewrite config schema, default config and docs/configuration.md
	$(RUN) shielded_recrl.schema

lock: ## rewrite requirements.lock from the newest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --upgrade pip
	.venv/lock/bin/python -m pip install --quiet torch==2.13.0
	.venv/lock/bin/python -m pip install --quiet --editable ".[dev]"
	.venv/lock/bin/python -m pip freeze --all --exclude-editable | sed "s/+cpu$$//" > requirements.lock
	rm -rf .venv/lock

clean: ## remove results, keep .venv and downloads
	rm -rf results .snakemake
