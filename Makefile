# make results: raw data to table, figures and report.   make dialogue: the same of dialogues.
# make train_quick: plain RLHF.   make check: lint and tests.   make help: the rest.
# All set up what they need in .venv; PYTHON names the interpreter it is made from.

PYTHON ?= python3
CORES ?= all
BIN := .venv/bin
RUN := PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m
REPORT := results/report/report.html
DIALOGUE := results/dialogue
# One thread is best for an LM as small as the embedded one.
THREADS ?= 1
# What doctor checks the machine against: one or more config files.
CONFIG ?= config/full.yaml
RLHF := OMP_NUM_THREADS=$(THREADS) $(RUN) shielded_recrl.rl --overwrite True

.PHONY: help results report dialogue gate explain verify pod-setup doctor pack unpack train_smoke train_quick train_full tensorboard env dev check test lint format schema licences lock clean

help: ## show this list
	@grep -hE '^[a-z_-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

results: env ## run the whole pipeline on the embedded data
	$(RUN) snakemake --cores $(CORES) --scheduler greedy --quiet reason host
	@$(MAKE) --no-print-directory report
	@echo
	@echo "report   $(REPORT) (open it in a browser; the success criteria come first)"
	@echo "table    results/aggregate_results.csv"
	@echo "criteria results/success_criteria.csv"
	@echo "figures  results/report/figures/"
	@echo "LaTeX    results/report/tables/"
	@echo "audits   results/audit/audit.pdf"
	@echo "next     make explain, or make gate"

report: $(REPORT) ## one HTML file with everything, of a finished run
$(REPORT): results/manifest.json
	$(RUN) snakemake --cores 1 --report $@ --quiet all

results/manifest.json:
	@echo "$@: no such file; run make results first" >&2 && exit 1

dialogue: env ## dialogues: emotions, recommender, responses, critic and RL on embedded data
	$(RUN) snakemake --cores $(CORES) --scheduler greedy --quiet reason host -- $(DIALOGUE)/report/manifest.json
	@echo
	@echo "report   $(DIALOGUE)/report/comparison.html (open it in a browser; the finding comes first)"
	@echo "samples  $(DIALOGUE)/report/samples.md"
	@echo "films    $(DIALOGUE)/recommender/evaluation.md"
	@echo "critic   $(DIALOGUE)/critic/report.json"
	@echo "emotions $(DIALOGUE)/emotion/report.json"
	@echo "next     make verify, or docs/dialogue.md for the published data"

gate: env ## fail where a gated variant breaks resources/policy.yaml
	$(RUN) snakemake --cores $(CORES) --scheduler greedy --quiet reason host -- results/audit/passed

explain: env ## pages to browse users, recommendations and explanations
	$(RUN) shielded_recrl.explain --serve

verify: env ## check results against their manifests, the study's and the dialogues'
	$(RUN) shielded_recrl.report.verify results

pod-setup: env .venv/quant.stamp ## prepare a bare pod: packages, 4-bit weights, hub cache here
	@mkdir -p .cache/huggingface
	@echo "ready: packages in .venv, the hub's downloads in .cache/huggingface"
	@echo "next   make doctor"
	@echo "then   source .venv/bin/activate && snakemake --profile runpod"

doctor: env ## check this machine against CONFIG (config/full.yaml)
	@$(RUN) shielded_recrl.cluster doctor --config $(CONFIG)

pack: env ## write finished work into packs/, all or DATASET
	$(RUN) shielded_recrl.cluster pack$(if $(DATASET), --dataset $(DATASET))

unpack: env ## restore the archives in packs/, all or DATASET
	$(RUN) shielded_recrl.cluster unpack $(if $(DATASET),$(DATASET:%=packs/%.tar),packs/*.tar)

train_smoke: env ## plain RLHF, 12 steps that show it runs (under 2 minutes)
	$(RLHF) --epochs 2 --steps-per-epoch 6 --batch-size 2 --max-new-tokens 10 --learning-rate 1e-5 --kl-coef 0.1 --seed 42 --device auto --reward sentiment --name smoke

train_quick: env ## plain RLHF that learns to write kind reviews (2 minutes)
	$(RLHF) --reward sentiment --epochs 5 --seed 42 --name quick

train_full: env ## plain RLHF, sentiment and preference, 3 seeds each (10 to 15 minutes)
	for reward in sentiment preference; do \
		for seed in 42 43 44; do \
			$(RLHF) --reward $$reward --epochs 10 --seed $$seed --name full-$$reward-$$seed || exit; \
		done; \
	done

tensorboard: env ## curves of all runs in a browser, also while they go on
	$(BIN)/tensorboard --logdir_spec rlhf:runs,study:results

env: .venv/env.stamp ## make .venv with what a run needs
.venv/env.stamp: pyproject.toml requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 12) else "Python 3.11 or 3.12 is needed; set PYTHON=python3.11")'
	$(PYTHON) -c 'import sys, importlib.util as i; sys.exit(None if i.find_spec("ensurepip") else "this Python has no ensurepip; apt-get install python3-venv, or set PYTHON to another")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements.lock $(TORCH_INDEX:%=--extra-index-url %) torch
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable .
	touch $@

.venv/quant.stamp: .venv/env.stamp
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[quant]'
	touch $@

dev: .venv/dev.stamp ## add what tests and lint need
.venv/dev.stamp: .venv/env.stamp
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@

check: lint test ## lint and the whole test suite

# On two cores: while one worker waits for Slurm, two compute.
test: dev ## run the whole test suite
	OMP_NUM_THREADS=1 $(RUN) pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --durations 12

lint: dev ## formatting, lint and known unsafe patterns
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(BIN)/snakefmt --check Snakefile rules
	$(RUN) snakemake --lint
	$(BIN)/bandit -q -c bandit.yaml -r workflow
	$(BIN)/zizmor --offline --no-progress --persona pedantic .github/workflows

format: dev ## format Python and Snakemake files
	$(RUN) ruff format .
	$(RUN) ruff check --fix .
	$(BIN)/snakefmt Snakefile rules

schema: dev ## rewrite config schema, default config and docs/configuration.md
	$(RUN) shielded_recrl.schema

licences: dev ## rewrite docs/licences.md
	$(RUN) shielded_recrl.licences

lock: ## rewrite requirements.lock from the newest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv/lock
	.venv/lock/bin/python -m pip install --quiet --upgrade pip
	.venv/lock/bin/python -m pip install --quiet torch==2.13.0
	.venv/lock/bin/python -m pip install --quiet --editable ".[dev]"
	.venv/lock/bin/python -m pip freeze --all --exclude-editable | sed "s/+cpu$$//" > requirements.lock
	rm -rf .venv/lock

clean: ## remove results and runs, keep .venv and the study's downloads
	rm -rf results runs .snakemake
