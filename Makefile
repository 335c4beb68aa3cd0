# `make lecture` runs the main example, and `make test` checks everything quickly. `make help` lists all targets.
PYTHON ?= python3
VENV   ?= .venv
# Selects a notebook by its number (NB=03), or all notebooks (NB=all).
NB ?=
TITLE ?=
# Several notebooks run two at a time, each on half of the cores, because this is somewhat faster. It needs 4 GB of
# memory. With JOBS=1 they run one after the other, in 2 GB. That is the default on a GPU.
JOBS ?= $(if $(shell command -v nvidia-smi 2>/dev/null),1,2)
# With FULL=1, `make test` runs the notebooks at laptop scale, as they are committed, and not only a few steps of each.
FULL ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python
export PYTHONUTF8 := 1

.PHONY: help lecture test setup models lab check notebooks snapshot slides slides-pdf student site links new record bench budget prove-7b matrix slow audit clean
help:       ## list the targets
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

lecture: setup   ## set up, run the main example and write build/index.html (NB=03 runs another notebook, NB=all runs all)
	$(RUN) tools/lecture.py run $(or $(NB),08) --jobs $(JOBS)

test: setup      ## set up, lint, run the unit tests and a few steps of every notebook (FULL=1 runs whole notebooks)
	$(RUN) tools/verify.py --jobs $(JOBS) $(if $(FULL),--full)

setup: $(VENV)/.installed models   ## create the virtual environment and fetch the models

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN) tools/install.py
	@touch $@

models: $(VENV)/.installed
	$(RUN) -m lecture_utils.models fetch

lab: setup       ## open JupyterLab
	$(BIN)/jupyter lab notebooks

check: $(VENV)/.installed   ## lint, and check the rules for notebooks and the promises of SECURITY.md, in less than a minute
	$(RUN) tools/verify.py --only check

new: $(VENV)/.installed   ## create a notebook that runs and passes `make check` (NB=13_agents TITLE="Agents")
	$(RUN) tools/skeleton.py $(NB) --title "$(TITLE)"

notebooks: setup   ## execute all notebooks in place and clean them before you commit (NB=08 executes one)
	$(RUN) tools/lecture.py refresh $(NB)

snapshot: $(VENV)/.installed   ## renew the copy of the course's text that notebook 09 searches (run 09 and 11 again afterwards)
	$(RUN) tools/snapshot.py

slides: $(VENV)/.installed   ## write one self-contained HTML deck for each notebook to build/slides
	$(RUN) tools/decks.py html $(NB)

# This needs Chromium, either the system's or the one that `.venv/bin/playwright install chromium` installs.
slides-pdf: $(VENV)/.installed   ## write the decks as PDF files with one slide on each page (NOTES=1 adds the speaker notes)
	$(RUN) -m pip install --quiet --editable '.[browser]'
	$(RUN) tools/decks.py pdf $(NB) $(if $(NOTES),--notes)

student: $(VENV)/.installed   ## write copies without solutions and outputs to build/student
	$(RUN) tools/student.py $(NB)

site: $(VENV)/.site   ## build a web site from the committed outputs in build/site, which opens without a network
	$(RUN) tools/build_site.py

$(VENV)/.site: $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable '.[site]'
	@touch $@

links: $(VENV)/.installed    ## update badges, setup cells, citation and the README's table (REPO=owner/name changes the address)
	$(RUN) tools/links.py $(REPO)

# Files that are as committed are deleted and recorded again. Otherwise, an interrupted recording continues. The file of
# 09's adapters is kept, because the registry contains the checksums of these adapters.
RECORDED = lecture_utils/recorded/$(or $(NB),*)_*.csv
record: setup    ## repeat the recorded runs, which takes some hours (NB=06 repeats those of one notebook)
	! git diff --quiet HEAD -- '$(RECORDED)' || rm -rf build/record_$(or $(NB),*) $(filter-out %/09_adapters.csv,$(wildcard $(RECORDED)))
	for tool in experiments/record_$(or $(NB),*).py; do $(RUN) $$tool || exit 1; done

# llms-from-scratch requires an older numpy than ours. It is installed without dependencies, because we need none of them.
bench: setup     ## compare our decoder, finetuning and search with other libraries, in benchmarks/results.md (half an hour)
	$(RUN) -m pip install --quiet --editable '.[bench]'
	$(RUN) -m pip install --quiet --no-deps 'llms-from-scratch==1.0.19'
	$(RUN) benchmarks/measure.py

budget:          ## compare time and memory of the last runs with the budgets (for two cores with fast bf16)
	$(RUN) tools/lecture.py budget $(NB)

prove-7b: setup  ## run 08's code on Llama 2 7B's architecture with random weights (10 minutes, 14 GB of disk)
	$(RUN) tools/prove_7b.py

matrix: setup    ## run the unit tests on the oldest versions (Python 3.11) and the newest (3.13); UV_TORCH_BACKEND=cpu saves 6 GB
	$(RUN) -m pip install --quiet --editable '.[matrix]'
	$(BIN)/nox --noxfile tools/noxfile.py

slow: setup      ## run the tests marked slow, which takes some hours (K=decks selects those with this word in their name)
	$(RUN) -m pip install --quiet --editable '.[site,browser,binder,matrix]'
	$(RUN) -m pytest -m slow $(if $(K),-k $(K)) tests

audit: $(VENV)/.installed   ## look up known vulnerabilities of the installed packages, and list their licences in build/licences.md
	$(RUN) -m pip install --quiet --editable '.[audit]'
	$(RUN) tools/audit.py

clean:           ## delete what was built, but keep the environment and the models
	rm -rf build .pytest_cache .ruff_cache notebooks/runs
