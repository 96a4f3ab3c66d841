# The study as a graph of stages; `cunet run` decides which are up to date. `make` alone lists targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DEFAULT_GOAL := help
CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
PROFILE ?= demo
## PROFILE   settings: a file of notebooks/profiles (default demo)
## MUSDB     folder of MUSDB18, MUSDB18-HQ or your own music, for profiles that read one
JOBS ?= $(CORES)
## JOBS      notebooks that run at the same time (default: the number of cores; set 1 on a single GPU)
## GPU       1: `make env` installs what TensorFlow needs for NVIDIA cards, too
## CLUSTER   a Dask scheduler, tcp://host:port: its workers run the notebooks (docs/cluster.md)
## SEEDS     trainings of each U-Net, of the four variants and of the shipped network, not the profile's
## STAGE     notebook that `make sweep` runs, 02_train_unet or 03_train_cunet
## GRID      its parameters and settings: "variant=a,b train.learning_rate=1e-3,3e-4"
## CUNET_DATA a folder in place of data; CUNET_RESULTS one in place of results: on a larger disk
# Text goes on through the environment. Without bytecode each stage would compile TensorFlow: 10 s.
text = $(subst :::,,$(subst :::~/,$(HOME)/,:::$(value $1)))
unexport MUSDB STAGE GRID SEEDS PYTHONDONTWRITEBYTECODE
export CUNET_MUSDB := $(or $(call text,MUSDB),$(value CUNET_MUSDB))
override export CUNET_DATA := $(call text,CUNET_DATA)
override export CUNET_RESULTS := $(call text,CUNET_RESULTS)
RESULTS := $${CUNET_RESULTS:-results}/$(PROFILE)
PAGE := $(RESULTS)/report/index.html
# Stages watch the make that was started first, and end with it however it ends.
export CUNET_PARENT := $(if $(filter 0,$(MAKELEVEL)),$(shell echo $$PPID),$(CUNET_PARENT))
PROFILES := $(patsubst notebooks/profiles/%.yaml,%,$(wildcard notebooks/profiles/*.yaml))
ifneq ($(filter-out env test test-fast lint torture lab bench distclean lock help,$(MAKECMDGOALS)),)
  ifneq ($(words $(PROFILE))$(findstring %,$(PROFILE))$(if $(filter $(PROFILE),$(PROFILES)),,?),1)
    $(error No profile '$(PROFILE)' in notebooks/profiles; PROFILE can be: $(PROFILES))
  endif
  ifneq ($(shell [[ '$(subst ','\'',$(JOBS):$(or $(SEEDS),1))' =~ ^0*[1-9][0-9]*:0*[1-9][0-9]*$$ ]] || echo bad),)
    $(error JOBS and SEEDS must be whole numbers above 0; they are '$(JOBS)' and '$(SEEDS)')
  endif
endif

# In order: the user's own interpreter; a conda environment made from environment.yml; .venv.
# The stamp names the folder it was made for: an unfinished, moved or copied .venv is made again.
CONDA := $(if $(CONDA_PREFIX),$(filter $(shell sed -n 's/^name: *//p' environment.yml),$(CONDA_DEFAULT_ENV)))
PYTHON := $(or $(CUNET_PYTHON),$(if $(CONDA),$(CONDA_PREFIX)/bin/python,.venv/bin/python))
STAMP := $(if $(CUNET_PYTHON),,$(if $(CONDA),$(CONDA_PREFIX),.venv)/.cunet-ready)
READY := $(shell [ "$$(cat "$(STAMP)" 2>&1)" != "$(CURDIR)" ] || echo yes)
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))
PIP = "$(PYTHON)" -m pip --disable-pip-version-check --quiet install --no-deps
CUNET = "$(PYTHON)" -m cunet_lib.cli
env:  ## make the Python environment (.venv, or the active conda environment)
	@cards() {
	  [ "$(GPU)" -a "$(STAMP)" -a ! "$(STAMP)-gpu" -nt requirements-gpu.lock ] || return 0
	  echo "Installing the libraries for NVIDIA cards of requirements-gpu.lock: 4.4 GB."
	  $(PIP) --require-hashes -r requirements-gpu.lock && : > "$(STAMP)-gpu" || { echo "The installation failed; mend the cause and run make again." >&2; exit 1; }
	}
	if [ ! "$(STAMP)" ] || [ "$(READY)" -a ! requirements.lock -nt "$(STAMP)" -a ! pyproject.toml -nt "$(STAMP)" ]; then cards; exit 0; fi
	if [ ! "$(CONDA)" ]; then
	  if [ -e .venv -a ! "$(READY)" ]; then echo "Found a .venv that is unfinished or was made elsewhere; making it again."; rm -rf .venv; fi
	  for base in python3 python python3.{12,13,11,10} ""; do ! "$$base" -c '$(USABLE)' >/dev/null 2>&1 || break; done
	  [ -d .venv -o "$$base" ] || { echo "No usable Python: install Python 3.10 to 3.13 with its venv module (python3-venv on Debian and Ubuntu) and run make again." >&2; exit 1; }
	  echo "Installing the packages of requirements.lock into .venv: 3.3 GB; about a minute the first time."
	  [ -d .venv ] || "$$base" -m venv .venv
	  sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.lock
	  { $(PIP) --require-hashes -r .venv/uv.lock && .venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock; } \
	    || { echo "uv could not do it; pip tries, for some minutes."; $(PIP) --require-hashes -r requirements.lock; } \
	    || { echo "The installation failed; mend the cause and run make again." >&2; exit 1; }
	fi
	$(PIP) --no-build-isolation --editable .
	$(CUNET) kernel
	printf '%s\n' "$(CURDIR)" > "$(STAMP)"
	cards
	echo "The environment is ready: $(PYTHON)"
# What the stages are and read, `cunet stages` tells the make that runs them.
STEERED := 07_conditions.dense_complex-seed0
OVERRIDES := $(SEEDS:%=--overrides seeds=%)
ifneq ($(filter page 0%,$(MAKECMDGOALS)),)
  EDGES := $(or $(shell $(CUNET) stages 05_plot $(STEERED) --profile $(PROFILE) $(OVERRIDES)),$(error No stages))
  $(foreach edge,$(EDGES),$(eval $(edge)))
endif
STAGES := 00_corpus $(sort $(foreach edge,$(EDGES),$(firstword $(subst :, ,$(edge)))))
05_plot: private GIVEN := $(OVERRIDES)
# Stages that run beside each other share the cores. On a cluster each worker knows its share.
SHARE := $(shell echo $$(( $(CORES) / $(JOBS) ? $(CORES) / $(JOBS) : 1 )))
THREADS = CUNET_THREADS=$(if $(filter 02_% 03_% 04_%,$@),$(SHARE),$(CORES))
$(STAGES): env
	@$(if $(CLUSTER),,$(THREADS)) $(CUNET) run $@ --profile $(PROFILE) $(GIVEN)
page: 05_plot
	@[ ! -e "$(PAGE)" -o "$$(find "$(RESULTS)/notebooks" -name '*.ipynb' -newer "$(PAGE)" 2>&1)" ] || exit 0
	echo "report | written from the results"
	$(CUNET) report $(PROFILE) >/dev/null
# One run of a profile at a time: the shell, make and its jobs hold the lock through descriptor 9
# until the last has ended. Jobs are as many as `make -j` says, else JOBS, else the cluster's slots.
DRY_RUN = $(findstring n,$(firstword -$(filter-out --no-%,$(MAKEFLAGS))))
LOCK = $(if $(DRY_RUN),,mkdir -p "$(RESULTS)"; exec 9>>"$(RESULTS)/.lock"; { "$(PYTHON)" -c "import fcntl; fcntl.flock(9, 6)" 2>&1 || :; } | { ! grep -q Blocking || \
  { echo "Another run of profile $(PROFILE) is going on with these results; wait until it ends, or stop it." >&2; exit 1; }; })
SLOTS = $(if $(and $(CLUSTER),$(if $(DRY_RUN),,yes)),slots=$$($(CUNET) cluster $(PROFILE));)
SUBMAKE = $(SLOTS) $(MAKE) $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(if $(and $(CLUSTER),$(filter file,$(origin JOBS))),$${slots:-1},$(JOBS)))
reproduce conditions sweep: export CUNET_CLUSTER := $(CLUSTER)
reproduce: env  ## run every stage of PROFILE; stages that are up to date are skipped
	+@$(LOCK)
	$(SUBMAKE) page
	echo "The study, profile $(PROFILE): $(RESULTS)/tables, figures, notebooks; the report: $(PAGE)"
conditions: env  ## measure what the conditions do (trains dense_complex_np if need be)
	+@$(LOCK)
	$(SUBMAKE) $(STEERED)
	echo "What the conditions do, profile $(PROFILE): $(RESULTS)/figures/conditions_*.png"
beyond: env  ## from the paper's network to a better one: profile beyond, hours; then notebook 08
	+@$(MAKE) reproduce PROFILE=beyond
	$(if $(DRY_RUN),:) $(CUNET) run 08_beyond --profile beyond
sweep: export CUNET_SWEEP_STAGE := $(value STAGE)
sweep: export CUNET_SWEEP_GRID := $(value GRID)
sweep: env  ## run the training notebook STAGE for each point of GRID
	+@$(CUNET) sweep --profile $(PROFILE) --grid "$$CUNET_SWEEP_GRID" --dry-run -- "$$CUNET_SWEEP_STAGE"
	$(SUBMAKE) 01_preprocess
	$(if $(DRY_RUN),:) $(CUNET) sweep --profile $(PROFILE) --grid "$$CUNET_SWEEP_GRID" -- "$$CUNET_SWEEP_STAGE"

PYTEST = "$(PYTHON)" -m pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder
test: lint  ## run every test (lint first)
	@$(PYTEST) $(PYTEST_ARGS)
test-fast: lint  ## run the tests that take a moment
	@$(PYTEST) -m "not slow" $(PYTEST_ARGS)
lint: env  ## check the code's style
	@"$(PYTHON)" -m ruff check . && "$(PYTHON)" -m ruff format --check .
check: env  ## check the corpus of PROFILE; lists every problem by file
	@$(CUNET) check $(PROFILE)
plan: env  ## estimate hours, disk and memory of `make reproduce`, before it starts
	@CUNET_THREADS=$(SHARE) $(CUNET) plan $(PROFILE) $(OVERRIDES) --jobs $(JOBS)
torture: env  ## kill the study at random and try bad input; results must stay the same
	@"$(PYTHON)" -m benchmarks.torture --kills $(or $(KILLS),20) --seed $(or $(SEED),0) $(if $(FOLDER),--folder "$(FOLDER)")
lab: env  ## open the control panel and the notebooks in JupyterLab (uploads up to 200 MB)
	@"$(PYTHON)" -m jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/06_explore.ipynb --LabApp.app_settings_dir="$(CURDIR)/notebooks/lab" --ServerApp.tornado_settings='{"websocket_max_message_size": 200000000}' $(LAB_ARGS)
verify: env  ## compare the results with the committed ones, table by table
	@$(CUNET) verify $(PROFILE)
report: env  ## write the report from the results that exist
	@$(CUNET) report $(PROFILE)
bench: env  ## measure time and memory of every part beside its reference (results/bench)
	@"$(PYTHON)" -m benchmarks.bench $(BENCH_ARGS)
MADE := runs notebooks logs report examples sweeps scores/tracks
clean:  ## delete what `make reproduce` made for PROFILE, except what is committed
	rm -rf "$${CUNET_DATA:-data}/$(PROFILE)" $(MADE:%="$(RESULTS)/%")
	@git checkout --quiet -- "$(RESULTS)/runs" 2>/dev/null || :
distclean:  ## delete the same for every profile, and the environment
	rm -rf .venv .cache .*_cache .hypothesis *.egg-info $(PROFILES:%="$${CUNET_DATA:-data}/%") \
	  $(foreach made,$(MADE),$(PROFILES:%="$${CUNET_RESULTS:-results}/%/$(made)")); git checkout --quiet -- "$${CUNET_RESULTS:-results}/*/runs/*" 2>/dev/null || :
COMPILE = uv pip compile --quiet --universal --python-version 3.10 --python-preference only-system --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml --output-file
lock:  ## pin the newest allowed version of every dependency
	$(COMPILE) requirements.lock --extra dev
	$(COMPILE) requirements-gpu.lock --extra gpu --constraints requirements.lock $$(sed -n 's/^\([[:alnum:]_.-]*\)==.*/--no-emit-package \1/p' requirements.lock)
help:
	@awk -F ':.*## ' 'BEGIN { print "make TARGET [VARIABLE=value ...]" } /^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 } /^## / { sub(/^## /, "  "); print }' Makefile
.PHONY: $(STAGES) page env reproduce conditions beyond sweep test test-fast lint check plan torture lab verify report bench clean distclean lock help
