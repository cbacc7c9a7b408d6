# Everything runs in .venv, which the first target that needs it makes.

# The first Python that starts, is new enough and can make a virtual environment.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
  $$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' \
  >/dev/null 2>&1 && { echo $$p; break; }; done)
PY := .venv/bin/python
PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check
# LOCKED=1: the exact versions of requirements/, each checked by its hash.
LOCKED ?=
DEMO := runs/demo

export NO_ALBUMENTATIONS_UPDATE := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help setup demo test test-browser faults lint format lock audit clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

setup: .venv/.dev ## make .venv with covjax and the tools of a developer; LOCKED=1 for exact versions
	@echo "covjax stands in .venv: source .venv/bin/activate"

demo: .venv/.core ## train both stages on phantoms and print their tables (minutes)
	@rm -rf $(DEMO)
	@echo "== 1/4  stage 1: lungs"
	@$(PY) -m covjax.main --config=configs/lung.py:phantom --workdir=$(DEMO)/lung
	@echo "== 2/4  stage 2: infection, from the weights of the lungs"
	@$(PY) -m covjax.main --config=configs/infection.py:phantom \
	  --init_from=$(DEMO)/lung --workdir=$(DEMO)/infection
	@echo "== 3/4  stage 2 again, from random weights"
	@$(PY) -m covjax.main --config=configs/infection.py:phantom \
	  --config.data.lung_run=$(DEMO)/lung --workdir=$(DEMO)/infection-scratch
	@echo "== 4/4  the tables, side by side"
	@$(PY) -m covjax.report.tables $(DEMO)/lung $(DEMO)/infection \
	  $(DEMO)/infection-scratch

test: .venv/.dev ## run the tests; ARGS="-k losses" goes to pytest
	@$(PY) -m pytest -n auto --dist loadfile $(ARGS)

test-browser: .venv/.dev ## look at both pages in Chromium (CHROMIUM= names another)
	@$(PY) -m pytest -m browser $(ARGS)

faults: .venv/.dev ## break runs on purpose, for over an hour; ARGS="kills" runs a part
	@$(PIP_INSTALL) -e '.[dev,faults]'
	@$(PY) -m experiments.faults $(ARGS)

lint: .venv/.dev ## check style, types and who imports whom
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m pyright --pythonpath $(PY)
	@$(dir $(PY))lint-imports

format: .venv/.dev ## mend what ruff can mend
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

lock: .venv/.dev ## update the exact versions in requirements/ within pyproject.toml's ranges
	@$(UV_COMPILE) --extra dev -o requirements/dev.txt
	@$(UV_COMPILE) --constraint requirements/dev.txt -o requirements/core.txt

audit: .venv/.dev ## look for known vulnerabilities in the locked versions
	@$(PY) .ci/audit.py requirements/dev.txt

clean: ## remove .venv, caches and the demo's runs; other runs stay
	rm -rf .venv $(DEMO) .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# For every platform and for Python 3.11 and newer; PyPI's own index, whatever pip uses.
UV_COMPILE := $(PY) -m uv pip compile --quiet --upgrade --universal \
  --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
  --custom-compile-command 'make lock' pyproject.toml requirements/build.in

# Installs covjax from this folder: $(1) is its extra, $(2) the list of exact versions.
define install
@$(if $(LOCKED),$(PIP_INSTALL) --require-hashes -r requirements/$(2).txt)
@$(PIP_INSTALL) $(if $(LOCKED),--no-deps --no-build-isolation) -e '.$(1)'
endef

# A stamp is written last and taken away first: an install that broke off leaves none,
# and the next one starts from an empty .venv.
.venv/.core: pyproject.toml requirements/core.txt requirements/dev.txt
	@test -n "$(PYTHON)" || { echo "covjax needs Python 3.11 or newer, with its venv\
	 module; none was found. Name one: make PYTHON=/path/to/python3" >&2; exit 2; }
	@test -f $@ && $(PY) -c '' || $(PYTHON) -m venv --clear .venv
	@rm -f .venv/.core .venv/.dev
	@echo "Installing covjax into .venv (a minute or two, about 1 GB) ..."
	$(call install,,core)
	@touch $@

.venv/.dev: .venv/.core
	@echo "Installing the tools of a developer into .venv (about 1 GB more) ..."
	$(call install,[dev],dev)
	@touch $@
