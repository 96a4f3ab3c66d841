# The study as a graph: executed notebooks are the targets. `make` alone lists what can be asked for.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CORES := $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)

# The variables a user sets, on the command line or in the environment.
PROFILE ?= demo
## PROFILE   settings: a file of notebooks/profiles (default demo)
MUSDB ?=
## MUSDB     folder of MUSDB18 or MUSDB18-HQ, for profiles that read it
JOBS ?= $(CORES)
## JOBS      notebooks that run at the same time (default: the number of cores; 1 on a single GPU)
CLUSTER ?=
## CLUSTER   a Dask scheduler, tcp://host:port: its workers run the notebooks (docs/cluster.md)
SEEDS ?= 0
## SEEDS     the models are trained once for each (default 0)
## STAGE     notebook that `make sweep` runs, 02_train_unet or 03_train_cunet
## GRID      its parameters and settings: "variant=a,b train.learning_rate=1e-3,3e-4"
# Kept as text, never expanded, and handed to the program through the environment, not the shell.
# (Below, STAGE is the name of a rule.)
SWEPT := $(value STAGE)
unexport STAGE GRID

# ---------------------------------------------------------------------------------------- checks

# Text as one word of the shell.
quoted = '$(subst ','\'',$(1))'

NEEDS_PROFILE := reproduce stages page conditions steering sweep check plan verify tolerances report clean
PROFILES := $(patsubst notebooks/profiles/%.yaml,%,$(wildcard notebooks/profiles/*.yaml))
ifneq ($(filter $(NEEDS_PROFILE),$(MAKECMDGOALS)),)
  # One word, and no pattern of make's.
  ifneq ($(words $(PROFILE))$(findstring %,$(PROFILE))$(if $(filter $(PROFILE),$(PROFILES)),,?),1)
    $(error No profile '$(PROFILE)' in notebooks/profiles; PROFILE can be: $(PROFILES))
  endif
  ifneq ($(shell set -f; j=$(call quoted,$(JOBS)); s=$(call quoted,$(SEEDS)); for n in "$$j" $$s 1; do [[ $$n =~ ^[0-9]+$$ ]] || echo bad; done; [ "$$j" != 0 ] || echo bad),)
    $(error JOBS must be a whole number above 0 and SEEDS whole numbers with spaces between; they are '$(JOBS)' and '$(SEEDS)')
  endif
  ifeq ($(strip $(SEEDS)),)
    $(error SEEDS is empty; give at least one whole number, such as SEEDS=0)
  endif
endif
# Only notebooks of the study are sent to a cluster. Some clusters set a variable of this name
# themselves, to their own.
HERE := env test lint check plan torture tolerances lab verify report bench clean distclean lock help
ifeq ($(filter-out $(HERE),$(MAKECMDGOALS)),)
  override CLUSTER :=
endif
ifneq ($(CLUSTER),)
  ifeq ($(findstring ://,$(CLUSTER)),)
    $(error CLUSTER=$(CLUSTER) is no address of a Dask scheduler, such as tcp://host:8786; unset it to run on this machine)
  endif
  export CUNET_CLUSTER := $(CLUSTER)
endif
# Make's own functions would split a path at its spaces; its shell gets it as text, never as a
# command, whatever the folder's name.
ifneq ($(value MUSDB),)
  export CUNET_MUSDB := $(shell d=$(call quoted,$(value MUSDB)); [ "$${d:0:2}" != "~/" ] || d="$$HOME/$${d:2}"; cd -- "$$d" 2>/dev/null && pwd)
  ifeq ($(CUNET_MUSDB),)
    $(error MUSDB=$(value MUSDB) is no folder; give the one that holds train and test)
  endif
endif

# ----------------------------------------------------------------------------------- environment

# In order: an interpreter that the user vouches for; an active conda environment made from
# environment.yml; else .venv, made here. The stamp names the folder it was made for, so that a
# half-made environment, or one that was moved or copied, is seen and made again.
CONDA_NAME := $(shell sed -n 's/^name: *//p' environment.yml)
ifneq ($(CUNET_PYTHON),)
  PYTHON := $(CUNET_PYTHON)
  STAMP :=
else ifeq ($(if $(CONDA_PREFIX),$(CONDA_DEFAULT_ENV)),$(CONDA_NAME))
  PYTHON := $(CONDA_PREFIX)/bin/python
  STAMP := $(CONDA_PREFIX)/.cunet-ready
else
  PYTHON := .venv/bin/python
  STAMP := .venv/.cunet-ready
endif
READY := $(shell [ -x "$(PYTHON)" ] && [ "$$(cat "$(STAMP)" 2>/dev/null)" = "$(CURDIR)" ] && echo yes)

env: $(STAMP)  ## make the Python environment (.venv, or the active conda environment)
	@:

ifneq ($(STAMP),)
$(STAMP): requirements.lock pyproject.toml $(if $(READY),,FORCE)
ifeq ($(PYTHON),.venv/bin/python)
	@$(INSTALL)
else
	@"$(PYTHON)" -m pip install --quiet --no-deps --no-build-isolation --editable .
endif
	@"$(PYTHON)" -m cunet_lib.cli kernel
	@"$(PYTHON)" -c "import matplotlib.font_manager"  # builds its font list once, here
	@printf '%s\n' "$(CURDIR)" > "$(STAMP)"
	@echo "The environment is ready: $(PYTHON)"
endif

USABLE := import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))
WITH_PIP := import ensurepip, venv
UV_INSTALL = uv pip install --quiet --python .venv/bin/python
PIP_INSTALL = .venv/bin/python -m pip --disable-pip-version-check install

# uv where there is one. Should it fail, for instance because only pip knows the package index of
# this network, pip has a try.
define INSTALL
if [ -e .venv ] && [ "$(READY)" != yes ]; then \
  echo "Found a .venv that is unfinished or was made elsewhere; making it again."; rm -rf .venv; \
fi; \
has_uv=$$(command -v uv || true); base=; \
for name in python3 python python3.12 python3.13 python3.11 python3.10; do \
  if "$$name" -c '$(USABLE)' >/dev/null 2>&1 \
     && { [ -n "$$has_uv" ] || "$$name" -c '$(WITH_PIP)' >/dev/null 2>&1; }; then \
    base=$$("$$name" -c 'import sys; print(sys.executable)'); break; \
  fi; \
done; \
if [ -n "$$has_uv" ]; then \
  echo "Installing the packages of requirements.lock into .venv with uv; a few minutes the first time."; \
  if { [ -d .venv ] || uv venv --quiet --python "$${base:->=3.10,<3.14}" .venv; } \
     && $(UV_INSTALL) --require-hashes --requirement requirements.lock \
     && $(UV_INSTALL) --no-deps --no-build-isolation --editable .; then exit 0; fi; \
  echo "uv could not do it; trying pip."; \
  if [ "$(READY)" != yes ]; then rm -rf .venv; fi; \
fi; \
if [ -d .venv ] && ! .venv/bin/python -m pip --version >/dev/null 2>&1; then rm -rf .venv; fi; \
if [ ! -d .venv ]; then \
  if [ -z "$$base" ] || ! "$$base" -c '$(WITH_PIP)' 2>/dev/null; then \
    echo "No usable Python: install Python 3.10 to 3.13 with its venv module (python3-venv on Debian and Ubuntu), or uv, and run make again." >&2; exit 1; \
  fi; \
  "$$base" -m venv .venv; \
fi; \
echo "Installing the packages of requirements.lock into .venv with pip; a few minutes the first time."; \
log=.venv/install.log; count=0; unpacking=; \
if { $(PIP_INSTALL) --require-hashes --no-deps --requirement requirements.lock \
     && $(PIP_INSTALL) --no-deps --no-build-isolation --editable .; } 2>&1 | tee "$$log" | \
   while read -r word _; do \
     case "$$word" in \
       Collecting|Processing) count=$$((count + 1)); [ $$((count % 25)) != 0 ] || echo "  $$count fetched";; \
       Installing) [ "$$unpacking" ] || echo "  unpacking"; unpacking=yes;; \
     esac; \
   done; then :; else \
  tail -n 12 "$$log" >&2; \
  echo "The installation failed; all of its output is in $$log. Mend the cause and run make again." >&2; exit 1; \
fi
endef

# ---------------------------------------------------------------------------------------- stages

# Elsewhere, for example on a larger disk: the environment variables CUNET_DATA and CUNET_RESULTS.
ifneq ($(CUNET_DATA),)
  export CUNET_DATA := $(abspath $(CUNET_DATA))
endif
ifneq ($(CUNET_RESULTS),)
  export CUNET_RESULTS := $(abspath $(CUNET_RESULTS))
endif
DATA := $(or $(CUNET_DATA),data)/$(PROFILE)
RESULTS := $(or $(CUNET_RESULTS),results)/$(PROFILE)
EXECUTED := $(RESULTS)/notebooks
LOGS := $(RESULTS)/logs

# The library modules that each notebook uses, directly or through others: a change to one of them
# makes the stage again. tests/test_imports.py compares these lists with the imports.
LIBRARY := $(wildcard cunet_lib/*.py cunet_lib/*/*.py)
MODULES_00_corpus := $(LIBRARY) $(wildcard rendered_corpus/*.py rendered_corpus/*.yaml)
MODULES_01_preprocess := $(LIBRARY)
MODULES_02_train_unet := $(LIBRARY)
MODULES_03_train_cunet := $(LIBRARY)
MODULES_04_evaluate := $(LIBRARY)
MODULES_05_plot := $(LIBRARY)
MODULES_07_conditions := $(LIBRARY)

INSTRUMENTS := bass drums other vocals
VARIANTS := dense_simple dense_complex cnn_simple cnn_complex

CUNETS := $(foreach seed,$(SEEDS),$(VARIANTS:%=%-seed$(seed)))
UNETS := $(foreach seed,$(SEEDS),$(INSTRUMENTS:%=%-seed$(seed)))
SCORED := $(foreach seed,$(SEEDS),unet-seed$(seed))

# In the order in which free jobs take them: the longest first.
TRAININGS := $(CUNETS:%=03_train_cunet.%) $(UNETS:%=02_train_unet.%)
EVALUATIONS := $(CUNETS:%=04_evaluate.%) $(SCORED:%=04_evaluate.%) 04_evaluate.oracles-seed0

# A stage that runs alone has every core; those that run beside each other share them. On a cluster
# each worker knows its share.
BESIDE := $(shell n=$(words $(TRAININGS)); echo $$(( $(JOBS) < n ? $(JOBS) : n )))
SHARE := $(shell n=$$(( $(CORES) / $(BESIDE) )); echo $$(( n > 0 ? n : 1 )))

# $(1) stage, $(2) its notebook, $(3) stages before it, $(4) its main result, $(5) threads,
# $(6) further arguments.
# A missing main result, deleted for instance, makes the stage again. An executed notebook is put in
# place as a whole: make, when it is interrupted, has no reason to delete one.
override define STAGE
.PRECIOUS: $(EXECUTED)/$(1).ipynb
$(EXECUTED)/$(1).ipynb: notebooks/$(2).ipynb notebooks/profiles/$(PROFILE).yaml \
  $(MODULES_$(2)) $(3:%=$(EXECUTED)/%.ipynb) $(if $(wildcard $(4)),,FORCE)
	@$(if $(CLUSTER),,CUNET_THREADS=$(5)) "$(PYTHON)" -m cunet_lib.cli run $(1) --profile $(PROFILE) $(6)

endef

$(eval $(call STAGE,00_corpus,00_corpus,,$(DATA)/corpus/corpus.json,$(CORES)))
$(eval $(call STAGE,01_preprocess,01_preprocess,00_corpus,$(DATA)/store/index.json,$(CORES)))
$(foreach it,$(UNETS),$(eval $(call STAGE,02_train_unet.$(it),02_train_unet,01_preprocess,$(RESULTS)/runs/unet_$(it)/model.keras,$(SHARE))))
$(foreach it,$(CUNETS),$(eval $(call STAGE,03_train_cunet.$(it),03_train_cunet,01_preprocess,$(RESULTS)/runs/$(it)/model.keras,$(SHARE))))
$(foreach it,$(CUNETS),$(eval $(call STAGE,04_evaluate.$(it),04_evaluate,03_train_cunet.$(it),$(RESULTS)/scores/$(it).csv,$(SHARE))))
$(foreach seed,$(SEEDS),$(eval $(call STAGE,04_evaluate.unet-seed$(seed),04_evaluate,$(INSTRUMENTS:%=02_train_unet.%-seed$(seed)),$(RESULTS)/scores/unet-seed$(seed).csv,$(SHARE))))
$(eval $(call STAGE,04_evaluate.oracles-seed0,04_evaluate,01_preprocess,$(RESULTS)/scores/ideal_ratio_mask-seed0.csv,$(SHARE)))
$(eval $(call STAGE,05_plot,05_plot,$(TRAININGS) $(EVALUATIONS),$(RESULTS)/scores/scores.csv,$(CORES),-p seeds "$(SEEDS)"))

# Its data, beside the code that it belongs to.
$(EXECUTED)/05_plot.ipynb: $(wildcard cunet_lib/evaluation/published_scores.csv)

# Beside the study: what conditions do in one C-U-Net, and in the same trained without progressive
# ones. Its run folder has a suffix, which keeps it apart from the study's models.
STEERED := dense_complex-seed$(firstword $(SEEDS))
STEADY := $(STEERED)-steady
$(eval $(call STAGE,03_train_cunet.$(STEADY),03_train_cunet,01_preprocess,$(RESULTS)/runs/$(STEADY)/model.keras,$(SHARE),--overrides train.progressive=0))
$(eval $(call STAGE,07_conditions.$(STEERED),07_conditions,$(STEERED:%=03_train_cunet.%) $(STEADY:%=03_train_cunet.%),$(RESULTS)/tables/conditions_uncontrolled.csv,$(CORES)))

steering: $(EXECUTED)/07_conditions.$(STEERED).ipynb
	@:

stages: $(TRAININGS:%=$(EXECUTED)/%.ipynb) $(EVALUATIONS:%=$(EXECUTED)/%.ipynb) $(EXECUTED)/05_plot.ipynb
	@:

# The report: the study's story as web pages. Notebooks that stand beside the study make it again,
# but it does not make them.
PAGE := $(RESULTS)/report/index.html
PAGE_MODULES := $(LIBRARY)
BESIDE_IT := $(shell [ ! -e "$(PAGE)" ] || find "$(EXECUTED)" -name '*.ipynb' -newer "$(PAGE)" 2>/dev/null)
$(PAGE): $(EXECUTED)/05_plot.ipynb $(PAGE_MODULES) $(wildcard cunet_lib/report/templates/*) \
  $(wildcard docs/fidelity.md) $(if $(BESIDE_IT),FORCE)
	@echo "report | web pages from the results"
	@"$(PYTHON)" -m cunet_lib.cli report $(PROFILE) > /dev/null

page: $(PAGE)
	@:

# Under `make -j` the jobs are already given; else JOBS gives them, or, where nobody set it, the
# slots of the cluster's workers. The cluster is looked at before anything is sent to it.
SLOTS = $(if $(CLUSTER),$(if $(DRY_RUN),slots=1,slots=$$("$(PYTHON)" -m cunet_lib.cli cluster $(PROFILE))),:)
WIDTH = $(if $(CLUSTER),$(if $(filter file,$(origin JOBS)),$$slots,$(JOBS)),$(JOBS))
GIVEN_JOBS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(WIDTH))

# One run of a profile at a time. The shell, make and its jobs hold the lock through descriptor 9 until
# the last of them has ended, however it ends; notebook kernels do not inherit it. A dry run writes
# nothing, not even a lock file.
define TAKE_LOCK
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit("Another run of profile $(PROFILE) is going on with these results; wait until it ends, or stop it.")
except OSError:
    pass  # a file system without locks
endef
export TAKE_LOCK
DRY_RUN = $(findstring n,$(firstword -$(filter-out --no-%,$(MAKEFLAGS))))
LOCK = $(if $(DRY_RUN),:,mkdir -p "$(RESULTS)"; exec 9>>"$(RESULTS)/.lock"; "$(PYTHON)" -c "$$TAKE_LOCK")

reproduce: env  ## run the whole study; what is up to date stays
	+@$(LOCK); $(SLOTS); if $(MAKE) $(GIVEN_JOBS) stages page; then \
	  echo "The study, profile $(PROFILE):"; \
	  echo "  tables              $(RESULTS)/tables"; \
	  echo "  figures             $(RESULTS)/figures"; \
	  echo "  executed notebooks  $(EXECUTED)"; \
	  echo "  the report          $(PAGE)"; \
	else \
	  for copy in $(LOGS)/*.failed.ipynb; do \
	    if [ -e "$$copy" ]; then echo "Failed, and kept to look at: $$copy" >&2; fi; \
	  done; \
	  exit 1; \
	fi

conditions: env  ## show what conditions do; trains one more C-U-Net
	+@$(LOCK); $(SLOTS); $(MAKE) $(GIVEN_JOBS) steering
	@echo "What conditions do, profile $(PROFILE): $(RESULTS)/figures/conditions_*.png"

sweep: export CUNET_SWEEP_STAGE = $(SWEPT)
sweep: export CUNET_SWEEP_GRID = $(value GRID)
SWEEP = "$(PYTHON)" -m cunet_lib.cli sweep --profile $(PROFILE) --grid "$$CUNET_SWEEP_GRID" $(1) -- "$$CUNET_SWEEP_STAGE"
sweep: env  ## train over the grid GRID of the notebook STAGE
	@$(call SWEEP,--dry-run)
	+@$(SLOTS); $(MAKE) $(GIVEN_JOBS) $(EXECUTED)/01_preprocess.ipynb
	@$(call SWEEP)

# ----------------------------------------------------------------------------------- other tasks

test: lint  ## run every test (lint first)
	@"$(PYTHON)" -m pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: env  ## check the code's style
	@"$(PYTHON)" -m ruff check .
	@"$(PYTHON)" -m ruff format --check .

check: env  ## check the corpus of PROFILE: every problem, by file
	@"$(PYTHON)" -m cunet_lib.cli check $(PROFILE)

plan: env  ## estimate hours, disk and memory of a run of PROFILE, before it starts
	@"$(PYTHON)" -m cunet_lib.cli plan $(PROFILE) --seeds "$(SEEDS)"

# KILLS and SEED decide how often, and when, a run is killed; results/reliability has the outcome.
# In a FOLDER the work is kept, and goes on there when it was stopped itself.
torture: env  ## kill the whole study again and again, show bad input; nothing may change or break
	@"$(PYTHON)" tests/torture.py --kills $(or $(KILLS),20) --seed $(or $(SEED),0) $(if $(FOLDER),--folder "$(FOLDER)") $(TORTURE_ARGS)

tolerances: env  ## measure by how much results of PROFILE differ with threads and precision
	@"$(PYTHON)" tests/tolerances.py $(PROFILE) $(if $(MODELS),--models $(MODELS)) $(if $(FOLDER),--folder "$(FOLDER)") $(TOLERANCES_ARGS)

# Uploads arrive in one message, of which the server takes 10 MB if it is not told otherwise.
lab: env  ## explore a trained model, and the notebooks, in Jupyter Lab
	@"$(PYTHON)" -m jupyter lab --ServerApp.tornado_settings='{"websocket_max_message_size": 200000000}' notebooks/06_explore.ipynb $(LAB_ARGS)

verify: env  ## compare the results with the committed ones, table by table
	@"$(PYTHON)" -m cunet_lib.cli verify $(PROFILE)

report: env  ## write the study's story as web pages, from the results there are
	@"$(PYTHON)" -m cunet_lib.cli report $(PROFILE)

# Alone on the machine, if figures shall mean something. BENCH_ARGS: --quick, --only PART ...,
# --torch PYTHON.
bench: env  ## time and weigh every part beside its reference (results/bench)
	@"$(PYTHON)" -m benchmarks.bench $(BENCH_ARGS)

# Neither touches the committed tables, figures, scores and models.
MADE := runs notebooks logs report examples sweeps scores/museval

clean:  ## delete what `make reproduce` made for PROFILE, save the committed results
	rm -rf "$(DATA)" $(MADE:%="$(RESULTS)/%")

distclean:  ## delete the same for every profile, and the environment
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	rm -rf $(PROFILES:%="$(or $(CUNET_DATA),data)/%")
	rm -rf $(foreach made,$(MADE),$(PROFILES:%="$(or $(CUNET_RESULTS),results)/%/$(made)"))

lock:  ## pin every dependency anew (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv on PATH." >&2; exit 1; }
	uv pip compile --quiet --universal --python-version 3.10 --python-preference only-system \
	  --extra dev --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	  --no-annotate pyproject.toml --output-file requirements.lock

help:
	@echo "make TARGET [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile
	@awk '/^## / { sub(/^## /, "  "); print }' Makefile

FORCE:
.PHONY: env reproduce stages page conditions steering sweep check plan test lint torture tolerances lab verify report bench clean distclean lock help FORCE
