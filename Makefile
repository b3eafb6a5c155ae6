# `make` lists what there is. Each target sets up .venv first where it has to.
SHELL := bash
# The environment is ours: its modules are compiled once, and not at each start, of which that is half.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
EXTRAS ?= dev
# What is installed beside the library; `make install EXTRAS=dev,s3,drills` adds what that needs.
INSTALLED := workflow,$(EXTRAS)
# The site's builder is apart from it, since only `docs` and `check` need it.
SITE := $(VENV)/.site
SNAKEMAKE := $(BIN)/snakemake --cores 1
# One of these at a time uses the graph; a lock that a killed run left is lifted inside. $(call alone,what to run)
alone = @flock --nonblock --conflict-exit-code 75 .snakemake.lock \
  bash -c '[ -z "$$(ls .snakemake/locks 2>/dev/null)" ] || $(SNAKEMAKE) --unlock >/dev/null 2>&1 || true; exec $(1)' \
  || { status=$$?; [ $$status -ne 75 ] || echo "another make is running the job graph here; wait for it" >&2; exit $$status; }

# The targets below their headings, ##@, with what is said of them behind ##.
help:
	@sed -nE -e 's/^##@ (.*)/\n\1/p' -e 's/^([a-z_.]+):[^#]*## (.*)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

.PHONY: help all demo models install report gallery test check quick fast docs drills clean prune touch publish show pull benchmark llama_cpp dvc.yaml rooms rule_graph params_schema

##@ Begin

# The first time, costs are measured; they are kept.
demo: models ## see it work, in minutes: two texts with DynaTree and without drafting, and a tree
	$(BIN)/dynatree demo --target smollm2 --drafter smollm2-drafter --dtype int4

models: $(STAMP) ## the target and its drafters alone, nothing timed: enough for `dynatree generate`
	$(call alone,$(SNAKEMAKE) --quiet rules host reason -- models)
	@echo "built: those of params.yaml's pair, in models/; next: source .venv/bin/activate, dynatree generate --help"

install: ## .venv with the library and the workflow, anew; EXTRAS=dev,s3,... adds to it
	$(MAKE) --always-make $(STAMP)

##@ Measure

all: $(STAMP) ## models, text, calibration, runs, tables, figures: the whole chain, as params.yaml says
	@echo "What is missing or out of date of the whole chain is made; snakemake --dry-run lists it. From nothing, the runs take:"
	@$(BIN)/dynatree estimate || true
	@echo "Models, text, calibration, passes, tables and figures come on top."
	$(call alone,$(SNAKEMAKE) all)

benchmark: $(STAMP) ## all methods side by side in one process, an hour or more; goes on where it stopped
	$(call alone,$(SNAKEMAKE) figures/benchmark.svg)

llama_cpp: $(STAMP) ## llama.cpp with 4-bit weights on the benchmark's prompts; first: make install EXTRAS=dev,bench
	$(call alone,$(SNAKEMAKE) figures/llama_cpp.svg)

# The benchmark's figures, too, where it was run.
report: all ## every figure with its caption, the numbers, parameters and machine in one page that works offline
	$(call alone,$(SNAKEMAKE) --report report.html -- all $(patsubst results/%.parquet,figures/%.svg,$(wildcard results/benchmark.parquet results/llama_cpp.parquet)))

gallery: $(STAMP) ## figures.html: the figures that are drawn, by section with their captions; it works offline
	$(BIN)/python workflow/scripts/gallery.py --figures figures --out figures.html

# Its timings mean nothing, so timed jobs need not run alone: two at a time, of one thread each. Trainings have all cores:
# their threads wait asleep, where spinning they would take the core from each other.
quick: $(STAMP) ## the same rules on tiny random models, in a copy of the checkout under build/quick
	$(BIN)/python workflow/scripts/sandbox.py --out build/quick
	cd build/quick && "$(CURDIR)/$(BIN)/python" workflow/scripts/stages.py && "$(CURDIR)/$(BIN)/dvc" config --local core.no_scm true
	cd build/quick && OMP_WAIT_POLICY=passive "$(CURDIR)/$(BIN)/snakemake" --cores 2 --resources exclusive=200 -- all
	@echo "figures: build/quick/figures"

prune: $(STAMP) ## remove runs that the parameters no longer ask for, records of earlier benchmarks, and stamps of a month ago
	$(BIN)/python workflow/scripts/prune.py --results results

##@ Keep and publish

show: $(STAMP) ## what is published of a scale, unpacked beside this checkout's own files: make show SCALE=study
	$(BIN)/python workflow/scripts/show.py --scale "$(SCALE)"

pull: $(STAMP) ## what is published of the run that dvc.lock names, in its place here: records, tables, calibration, no model
	$(BIN)/python workflow/scripts/pull.py

touch: $(STAMP) ## after dvc checkout or pull: what DVC finds unchanged counts as up to date for Snakemake, too
	$(BIN)/dvc status --quiet || { echo "files differ from dvc.lock: run dvc checkout, or dvc repro" >&2; exit 1; }
	$(call alone,$(SNAKEMAKE) --touch --forceall all)

publish: $(STAMP) ## what dvc.lock names of results and figures, with the benchmark's records, into published/SCALE
	$(BIN)/python workflow/scripts/publish.py --out published

##@ Develop

# In parallel, whole files at a time, in the order of tests/conftest.py: the job graphs, then the fast tier beside them.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(STAMP) ## all tests
	$(BIN)/python -m pytest $(PARALLEL)

fast: $(STAMP) ## the tests that run no job graph
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

check: $(STAMP) ## linters, spelling, types, import rules, links of the documents, then all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/codespell *.md docs drafters/*.md dynatree workflow/rules workflow/scripts tests examples params.yaml Makefile Snakefile
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakemake --lint
	$(MAKE) docs
	$(MAKE) test

docs: $(SITE) ## the documents as a site that works offline: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "built: build/site/index.html"

# Each drill leaves its transcript in docs/drills.
drills: $(STAMP) ## what goes wrong on machines, tried out on a tiny pair
	$(BIN)/python -m pytest -o python_files='drill_*.py' tests/drills

dvc.yaml: $(STAMP) ## DVC's view of the job graph, after a change of methods, experiments, figures, rules, imports
	$(BIN)/python workflow/scripts/stages.py

rooms: $(STAMP) ## docs/architecture.md's picture of the library, after a change of what its folders import
	$(BIN)/python workflow/scripts/rooms.py

rule_graph: $(STAMP) ## docs/architecture.md's picture of the job graph, after a change of which rule needs what another makes
	$(BIN)/python workflow/scripts/rule_graph.py

params_schema: $(STAMP) ## what an editor knows of params.yaml, after a change of its keys
	$(BIN)/dynatree report --params-schema > workflow/schemas/.part && mv workflow/schemas/.part workflow/schemas/params.schema.json

clean: ## remove .venv and build
	rm -rf $(VENV) build

# The stamp is written last: an interrupted set-up starts again. Of thousands of modules few are ever imported, and compiled.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "setting up $(VENV): some two minutes, and 2 GB"
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[$(INSTALLED)]'
	@touch $(STAMP)

$(SITE): $(STAMP)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[docs]'
	@touch $(SITE)
