# `make all`: the whole chain on the embedded default. `make test`: the tests. Both set up .venv first.
SHELL := bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
EXTRAS ?= dev
# What is installed beside the library; `make install EXTRAS=dev,s3,drills` adds what that needs.
INSTALLED := workflow,$(EXTRAS)
SNAKEMAKE := $(BIN)/snakemake --cores 1
# One of these at a time uses the graph; a lock that a killed run left is lifted inside. $(call alone,what to run)
alone = @flock --nonblock --conflict-exit-code 75 .snakemake.lock \
  bash -c '[ -z "$$(ls .snakemake/locks 2>/dev/null)" ] || $(SNAKEMAKE) --unlock >/dev/null 2>&1 || true; exec $(1)' \
  || { status=$$?; [ $$status -ne 75 ] || echo "another make is running the job graph here; wait for it" >&2; exit $$status; }

.PHONY: all models install report gallery test check quick fast drills clean prune touch publish show pull benchmark llama_cpp dvc.yaml rooms
all: $(STAMP)
	$(call alone,$(SNAKEMAKE) all)

install:
	$(MAKE) --always-make $(STAMP)

# The target and its drafter alone, nothing timed: enough for `dynatree generate`.
models: $(STAMP)
	$(call alone,$(SNAKEMAKE) models)
	@echo "built: models/smollm2, models/smollm2-drafter; next: source .venv/bin/activate, dynatree generate --help"

# Every figure with its caption, the numbers, the parameters and the machine in one page that works offline; the
# benchmark's, too, where it was run.
report: all
	$(call alone,$(SNAKEMAKE) --report report.html -- all $(patsubst results/%.parquet,figures/%.svg,$(wildcard results/benchmark.parquet results/llama_cpp.parquet)))

# The figures that are drawn, by section with their captions: figures.html, which works offline.
gallery: $(STAMP)
	$(BIN)/python workflow/scripts/gallery.py --figures figures --out figures.html

# In parallel, whole files at a time, in the order of tests/conftest.py: the job graphs, then the fast tier beside them.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL)

fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakemake --lint
	$(MAKE) test

# What goes wrong on machines, tried out on a tiny pair; each drill leaves its transcript in docs/drills.
drills: $(STAMP)
	$(BIN)/python -m pytest -o python_files='drill_*.py' tests/drills

# The same rules on tiny random models, in a copy of the checkout under build/quick. Its timings mean nothing, so timed
# jobs need not run alone: two at a time, of one thread each.
quick: $(STAMP)
	$(BIN)/python workflow/scripts/sandbox.py --out build/quick
	cd build/quick && "$(CURDIR)/$(BIN)/python" workflow/scripts/stages.py && "$(CURDIR)/$(BIN)/dvc" config --local core.no_scm true
	cd build/quick && "$(CURDIR)/$(BIN)/snakemake" --cores 2 --resources machine=200 -- all
	@echo "figures: build/quick/figures"

# After `dvc checkout` or `dvc pull`: what DVC finds unchanged counts as up to date for Snakemake, too.
touch: $(STAMP)
	$(BIN)/dvc status --quiet || { echo "files differ from dvc.lock: run dvc checkout, or dvc repro" >&2; exit 1; }
	$(call alone,$(SNAKEMAKE) --touch --forceall all)

# What dvc.lock names of results and figures, with the benchmark's records: published/<scale>, the raw records packed.
publish: $(STAMP)
	$(BIN)/python workflow/scripts/publish.py --out published

# What is published of the run that dvc.lock names, in its place here: records, tables and calibration, but no model.
pull: $(STAMP)
	$(BIN)/python workflow/scripts/pull.py

# What is published of a scale, unpacked beside this checkout's own files: `make show SCALE=study`.
show: $(STAMP)
	$(BIN)/python workflow/scripts/show.py --scale "$(SCALE)"

# DVC's view of the job graph, after a change of what there is to run: methods, experiments, figures, rules, imports.
dvc.yaml: $(STAMP)
	$(BIN)/python workflow/scripts/stages.py

# The picture of docs/architecture.md, after a change of what the library's folders import.
rooms: $(STAMP)
	$(BIN)/python workflow/scripts/rooms.py

# All methods side by side in one process, for about two hours at scale laptop; goes on where it stopped.
benchmark: $(STAMP)
	$(call alone,$(SNAKEMAKE) figures/benchmark.svg)

# Beside it, llama.cpp with 4-bit weights on the same prompts: `make EXTRAS=dev,bench install llama_cpp`.
llama_cpp: $(STAMP)
	$(call alone,$(SNAKEMAKE) figures/llama_cpp.svg)

# Remove runs that the parameters no longer ask for.
prune: $(STAMP)
	$(BIN)/python workflow/scripts/prune.py --results results

clean:
	rm -rf $(VENV) build

# The stamp is written last: an interrupted set-up starts again.
$(STAMP): pyproject.toml
	@test -x $(BIN)/python || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --quiet --editable '.[$(INSTALLED)]'
	@touch $(STAMP)
