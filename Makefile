.DEFAULT_GOAL := help
.PHONY: help setup demo docs test test-long faults fuzz soak privacy-audit sbom audit-packages lock clean

# Options of the demo, for example: make demo ARGS="--epsilon 8 --seed 3"
ARGS ?=
SEED ?= 1
FAULTS ?= 200
MINUTES ?= 30
RUNS ?= 1000000

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1	/p' Makefile | expand -t 22

setup: ## install what is missing and make .venv ready
	@setup/all

demo: setup ## six banks learn together over a private RabbitMQ; options in ARGS="..."
	@.venv/bin/fedqueue demo $(ARGS)

docs: setup ## build the documentation site, build/docs/index.html
	@setup/docs

test: setup ## linters, types, import contracts and all tests but the long ones
	@setup/node
	@setup/chromium
	@setup/axe
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	@setup/test .venv/bin/python -m 'not long' -n 2 --dist loadfile

test-long: docs ## the documentation site, the long tests, then those of the broker again on RabbitMQ 4 (as root)
	@setup/chromium
	@setup/axe
	@setup/prometheus
	@setup/extras
	@setup/extras wandb
	@setup/test .venv/bin/python -m '(long or prometheus) and not compose and not extras and not wandb'
	@setup/test build/extras-env/bin/python -m extras
	@setup/test build/wandb-env/bin/python -m wandb
	setup/test-rabbitmq4

faults: setup ## torment a federation on three broker nodes, then check what it left behind (SEED=1 FAULTS=200)
	@setup/libfaketime
	@.venv/bin/python -m campaigns.faults --seed $(SEED) --faults $(FAULTS)

soak: setup ## let a federation run for long and see that nothing grows (MINUTES=30)
	@.venv/bin/python -m campaigns.soak --minutes $(MINUTES)

fuzz: setup ## a coverage-guided fuzzer on what others write (RUNS=1000000 SEED=1)
	@setup/atheris
	@.venv/bin/python -m campaigns.fuzz --runs $(RUNS) --seed $(SEED)

privacy-audit: setup ## attack what a real institution publishes: does it give away more than it accounts? (SEED=1)
	@.venv/bin/python -m campaigns.privacy_audit --seed $(SEED)

sbom: setup ## write the bill of materials of .venv (CycloneDX) into build/sbom.cdx.json
	@setup/sbom

audit-packages: ## ask osv.dev about known vulnerabilities in what the locks name
	@setup/audit

lock: ## resolve pyproject.toml anew into locks/*.lock (ARGS="--upgrade")
	@setup/lock $(ARGS)

clean: ## end every process and remove every file that these commands made, .venv and runs too
	@setup/clean
