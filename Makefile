# One line a task; `make demo` and `make test` need only python3 (3.11 or newer), pip and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help demo test stat attacks faults lowest newest mutants lint protos drift bench jaeger spire ci clean

help:  ## what there is
	@sed -n 's/^\([a-z]*\):.*##/\1\t/p' $(MAKEFILE_LIST) | expand -t 10

# Tests start many processes, and each would compile all of dpmesh again.
unexport PYTHONDONTWRITEBYTECODE

# Without ensurepip, which some distributions leave out: the outer pip fills the environment.
$(VENV)/bin/python:
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet pip

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[otel,tools]'
	@touch $@

$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --group test
	@touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --group lint
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --group bench
	@touch $@

$(VENV)/.mutants: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --group mutants
	@touch $@

demo: $(VENV)/.demo  ## the main job on a real fleet's reports
	$(BIN)/dpmesh demo

# Whole files to each process, because tests of one file share what is slow to make; long files first, so that all
# processes end together. Four processes also on two cores: many tests wait for servers, disks and other processes.
test: $(VENV)/.test  ## unit, contract, small statistical and integration tests
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder \
		tests/integration tests/statistical tests/attacks tests/contract tests/unit

stat: $(VENV)/.test  ## the statistical tests at full size
	$(BIN)/python -m pytest tests/statistical tests/integration/identity/test_linkage.py tests/integration/grpc/test_memoize_epsilon.py \
		tests/integration/grpc/test_hostile_rules.py --full

attacks: $(VENV)/.test  ## what attackers gain, beside what the policy allows and without protection
	$(BIN)/python -m tests.attacks

faults: $(VENV)/.test  ## ledgers while processes are killed, networks stall, disks fill and clocks jump
	$(BIN)/python -m pytest tests/faults

lowest: $(VENV)/.test  ## unit and contract tests on the oldest versions of everything that is declared
	$(BIN)/python -m pip install --quiet --group versions
	$(PYTHON) -m venv --without-pip $(VENV)-lowest
	$(BIN)/uv pip install --quiet --native-tls --python $(VENV)-lowest/bin/python --resolution lowest-direct \
		--editable '.[otel,tools,postgres,spiffe]' --group test
	$(VENV)-lowest/bin/python -m pytest tests/unit tests/contract --numprocesses auto --maxprocesses 4 --dist loadfile

newest:  ## unit and contract tests on the newest Python that Debian has, with eager tasks (needs root)
	.ci/newest

# Takes an hour or two, and keeps what it knows in mutants/. A part: make mutants PART='dpmesh.accounting.*'
mutants: $(VENV)/.mutants  ## change noise, costs and billing in thousands of places: which changes no test notices
	$(BIN)/mutmut run $(if $(PART),'$(PART)')
	$(BIN)/mutmut results | sed '/: not checked$$/d'

lint: $(VENV)/.lint  ## format, lint, types, import contracts, proto lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint

protos: $(VENV)/.lint  ## generate the code of all .proto files
	$(BIN)/python protos/generate.py

drift: $(VENV)/.lint  ## fail if the committed generated code is not what the .proto files give
	$(BIN)/python protos/generate.py --check

bench: $(VENV)/.bench  ## every speed figure of the README, side by side with its peers
	$(BIN)/python -m benchmarks

jaeger:  ## find or build a Jaeger binary (needs Go to build)
	deploy/jaeger/get.sh

spire:  ## find or build SPIRE's binaries (needs Go and a C compiler to build)
	deploy/spire/get.sh

ci:  ## what CI runs
	.ci/run

clean:  ## remove what the other tasks made
	rm -rf $(VENV) $(VENV)-lowest mutants .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
