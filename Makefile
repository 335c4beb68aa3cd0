# `make lecture` runs the main example, `make test` checks everything quickly. `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
# Which notebook: a number (NB=03), or all of them (NB=all).
NB ?=
TITLE ?=
# Several notebooks run two at a time, each on half of the cores, in 4 GB: somewhat faster than one after the
# other. On a GPU each has it alone. JOBS=1: one after the other, in 2 GB.
JOBS ?= $(if $(shell command -v nvidia-smi 2>/dev/null),1,2)
# The notebooks at laptop scale, as they are committed, instead of a few steps of everything: FULL=1
FULL ?=

BIN := $(VENV)/bin
RUN := $(BIN)/python
export PYTHONUTF8 := 1

.PHONY: help lecture test setup models lab check notebooks snapshot slides slides-pdf student site links new record bench budget prove-7b matrix slow audit clean
help:       ## list the targets
	@grep -E '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

lecture: setup   ## set up, run the main example, write build/index.html (NB=03 runs another, NB=all all)
	$(RUN) tools/lecture.py run $(or $(NB),08) --jobs $(JOBS)

test: setup      ## set up, lint, run the unit tests and a few steps of every notebook (FULL=1: whole notebooks)
	$(RUN) tools/verify.py --jobs $(JOBS) $(if $(FULL),--full)

setup: $(VENV)/.installed models   ## only set up: the virtual environment and the models

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(RUN) tools/install.py
	@touch $@

models: $(VENV)/.installed
	$(RUN) -m lecture_utils.models fetch

lab: setup       ## open JupyterLab
	$(BIN)/jupyter lab notebooks

check: $(VENV)/.installed   ## lint, the notebooks' contract and what SECURITY.md promises, in seconds
	$(RUN) tools/verify.py --only check

new: $(VENV)/.installed   ## a new notebook that runs and passes `make check` (NB=13_agents TITLE="Agents")
	$(RUN) tools/skeleton.py $(NB) --title "$(TITLE)"

notebooks: setup   ## execute in place and clean: what is committed is as run
	$(RUN) tools/lecture.py refresh $(NB)

snapshot: $(VENV)/.installed   ## renew the text that 09 searches from the notebooks; then run 09 and 11 again
	$(RUN) tools/snapshot.py

slides: $(VENV)/.installed   ## one self-contained HTML deck a notebook, under build/slides
	$(RUN) tools/decks.py html $(NB)

# Chromium: the system's, or the one of `.venv/bin/playwright install chromium`.
slides-pdf: $(VENV)/.installed   ## the decks as PDF, a slide a page (NOTES=1: with the speaker notes)
	$(RUN) -m pip install --quiet --editable '.[browser]'
	$(RUN) tools/decks.py pdf $(NB) $(if $(NOTES),--notes)

student: $(VENV)/.installed   ## copies without solutions and outputs, under build/student
	$(RUN) tools/student.py $(NB)

site: $(VENV)/.site   ## the committed outputs as a web site under build/site, opening without a network
	$(RUN) tools/build_site.py

$(VENV)/.site: $(VENV)/.installed
	$(RUN) -m pip install --quiet --editable '.[site]'
	@touch $@

links: $(VENV)/.installed    ## rewrite badges, setup cells and citation (REPO=owner/name)
	$(RUN) tools/links.py $(REPO)

# As committed, they are made anew; else an interrupted recording goes on. 09's adapters are registered by checksum: kept.
RECORDED = lecture_utils/recorded/$(or $(NB),*)_*.csv
record: setup    ## reproduce the recorded runs, some hours (NB=06: of one notebook)
	! git diff --quiet HEAD -- '$(RECORDED)' || rm -rf build/record_$(or $(NB),*) $(filter-out %/09_adapters.csv,$(wildcard $(RECORDED)))
	for tool in tools/record_$(or $(NB),*).py; do $(RUN) $$tool || exit 1; done

# llms-from-scratch asks for an older numpy than ours and needs none of its dependencies here.
bench: setup     ## our decoder, finetuning and search beside others, as ratios, into benchmarks/results.md (half an hour)
	$(RUN) -m pip install --quiet --editable '.[bench]'
	$(RUN) -m pip install --quiet --no-deps 'llms-from-scratch==1.0.19'
	$(RUN) benchmarks/measure.py

budget:          ## hold the last runs' seconds and memory against the budgets (two cores with fast bf16)
	$(RUN) tools/lecture.py budget $(NB)

prove-7b: setup  ## Llama 2 7B's architecture with random weights through 08's code (10 minutes, 14 GB of disk)
	$(RUN) tools/prove_7b.py

matrix: setup    ## the unit tests on the oldest versions (Python 3.11) and the newest (3.13); UV_TORCH_BACKEND=cpu spares 6 GB
	$(RUN) -m pip install --quiet --editable '.[matrix]'
	$(BIN)/nox --noxfile tools/noxfile.py

slow: setup      ## the tests marked slow, some hours (K=decks: those whose name holds a word)
	$(RUN) -m pip install --quiet --editable '.[site,browser,binder,matrix]'
	$(RUN) -m pytest -m slow $(if $(K),-k $(K)) tests

audit: $(VENV)/.installed   ## known vulnerabilities of the installed packages, their licences into build/licences.md
	$(RUN) -m pip install --quiet --editable '.[audit]'
	$(RUN) tools/audit.py

clean:           ## remove what was built (the environment and the models stay)
	rm -rf build .pytest_cache .ruff_cache notebooks/runs
