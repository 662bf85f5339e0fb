# `make demo` and `make test` are all a newcomer needs: each installs what it uses into .venv first.

# The newest of these that runs, unless PYTHON= names another. A name on the PATH alone may be a stand-in that fails.
PYTHONS := python3.13 python3.12 python3.11
PYTHON ?= $(shell for each in $(PYTHONS); do $$each -c '' 2>/dev/null && echo $$each && break; done)
VENV := .venv
BIN := $(VENV)/bin
# Another build: make install TORCH='torch==2.13.0 --index-url URL'; a torch that is in .venv already is kept.
# Without a GPU the CPU build is taken where its index can be reached; one retry, so that a closed network costs seconds.
TORCH := torch==2.13.0 $(if $(shell command -v nvidia-smi),,--extra-index-url https://download.pytorch.org/whl/cpu --retries 1)
# one thread a process: tests and workers run side by side
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= passive

.PHONY: demo install evidence evidence2 evidence2-stores evidence-open test test-fast pythons faults slurm hosts containers check compiled docs audit bench clean
.DELETE_ON_ERROR:  # a Python without its venv module leaves half an environment

# the first line of a recipe that is about to call $(PYTHON)
define needs-python
@found=$$($(or $(PYTHON),false) -c 'import sys; print(sys.version.split()[0]); sys.exit(sys.version_info < (3, 11))' \
    2>/dev/null) || { \
	if [ -z "$(PYTHON)" ]; then echo "error: none of $(PYTHONS) runs here."; \
	elif [ -z "$$found" ]; then echo "error: PYTHON=$(PYTHON) does not run."; \
	else echo "error: PYTHON=$(PYTHON) is Python $$found; theworld needs 3.11 or newer."; fi; \
	echo "Install one of $(PYTHONS) (apt install python3.12-venv, or conda, pyenv, uv),"; \
	echo "or name one that you have: make PYTHON=/path/to/python3.12"; exit 1; } >&2
endef

demo: $(VENV)/.installed  ## scenes -> rollouts -> trained readers -> a page, in minutes on two cores
	$(BIN)/theworld demo

install: $(VENV)/.installed  ## the command, in .venv/bin/theworld

BENCH ?= bench
ARMS := text,steps0,frozen,shuffled,noise,rollout,last,true,true@0.2,true@0.4,true@0.7

evidence: $(VENV)/.installed  ## the controlled comparison of docs/benchmark.md; hours on two cores, goes on where it stopped
	$(BIN)/theworld scenes $(BENCH) --train 4000 --test 2000 --ood 400 --videos
	$(BIN)/theworld precompute $(BENCH)/images --steps 8 --denoise-steps 10 --cache $(BENCH)/latents
	$(BIN)/theworld precompute $(BENCH)/futures --kind frames --steps 8 --cache $(BENCH)/true
	$(BIN)/theworld study $(BENCH)/latents --arms $(ARMS) --futures $(BENCH)/true \
	    --questions $(BENCH)/questions.jsonl --config configs/benchmark.toml \
	    --labels 250,400,1000,4000 --curve steps0,rollout,true --seeds 5 --out evidence

BENCH2 := bench2
ARMS2 := frozen,noise,shuffled,one,rollout,hidden16,hidden64,draws,doubt,regression,true
ROLL2 = $(BIN)/theworld precompute $(BENCH2)/images --steps 8

evidence2-stores: $(VENV)/.installed  ## the stores of the second study, configs/study2.toml; a second call makes what is missing
	$(BIN)/theworld scenes $(BENCH2) --train 4000 --test 2000 --videos
	$(ROLL2) --denoise-steps 10 --cache $(BENCH2)/rollout
	$(ROLL2) --denoise-steps 2 --cache $(BENCH2)/one
	$(ROLL2) --kind hidden --hidden-width 16 --cache $(BENCH2)/hidden16
	$(ROLL2) --kind hidden --hidden-width 64 --cache $(BENCH2)/hidden64
	$(ROLL2) --denoise-steps 10 --kind samples --draws 8 --cache $(BENCH2)/draws
	$(BIN)/theworld worldlet build $(BENCH2)/mean --regression --world-minutes 18
	$(ROLL2) --denoise-steps 2 --world $(BENCH2)/mean/world --cache $(BENCH2)/regression
	$(BIN)/theworld precompute $(BENCH2)/futures --kind frames --steps 8 --cache $(BENCH2)/true

evidence2: $(VENV)/.installed  ## the second study, docs/hypotheses2.md; a day or more on two cores, goes on where it stopped
	$(BIN)/theworld study $(BENCH2)/rollout --arms $(ARMS2) --futures $(BENCH2)/true \
	    --questions $(BENCH2)/questions.jsonl --config configs/study2.toml \
	    --labels 250,1000,4000 --curve frozen,one,rollout,hidden16,true --seeds 5 --out evidence2

OPEN := open
ARMS_OPEN := frozen,rollout,one,draws,regression,true,true_draws
ROLL_OPEN = $(BIN)/theworld precompute $(OPEN)/bench/images --steps 8

evidence-open: $(VENV)/.installed  ## worlds, stores and readers of the open family, docs/benchmark.md; three CPU hours, goes on where it stopped
	$(BIN)/theworld worldlet build $(OPEN)/diffusion --families push --keep-vae --world-minutes 30
	$(BIN)/theworld worldlet build $(OPEN)/mean --families push --keep-vae --regression --world-minutes 30
	$(BIN)/theworld scenes $(OPEN)/bench --families push --train 1000 --test 1000 --ood 0 --videos
	$(ROLL_OPEN) --world $(OPEN)/diffusion/world --denoise-steps 10 --cache $(OPEN)/bench/rollout
	$(ROLL_OPEN) --world $(OPEN)/diffusion/world --denoise-steps 2 --cache $(OPEN)/bench/one
	$(ROLL_OPEN) --world $(OPEN)/mean/world --denoise-steps 2 --cache $(OPEN)/bench/regression
	$(BIN)/theworld precompute "$(OPEN)/bench/images/test-*.png" --steps 8 --world $(OPEN)/diffusion/world \
	    --denoise-steps 10 --kind samples --draws 8 --cache $(OPEN)/bench/draws
	$(BIN)/theworld precompute $(OPEN)/bench/futures --kind frames --steps 8 --world $(OPEN)/diffusion/world \
	    --cache $(OPEN)/bench/true
	$(BIN)/theworld study $(OPEN)/bench/rollout --arms $(ARMS_OPEN) --futures $(OPEN)/bench/true \
	    --questions $(OPEN)/bench/questions.jsonl --config configs/open_family.toml --labels 1000 --seeds 1 \
	    --out $(OPEN)/evidence

test: $(VENV)/.installed-dev  ## everything CI runs
	@$(MAKE) --no-print-directory --jobs=2 --output-sync check compiled
	$(BIN)/python -m pytest -n 3 --dist loadgroup

test-fast: $(VENV)/.installed-dev  ## without the slow ones
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m "not slow"

# numbers worth publishing, printed with seed and duration; a smaller part: make faults KILLS=100 FLIPS=1000 STATES=1000 FUZZ=20000
KILLS ?= 10000
FLIPS ?= 100000
STATES ?= 30000
IMAGES ?= 50000
FUZZ ?= 1000000
SEED ?= 0

pythons: $(VENV)/bin/python  ## the other Pythons of this machine: pins, syntax, the commands that need no torch
	$(BIN)/python tests/pythons.py $(PYTHONS)

faults: $(VENV)/.installed-dev  ## the fault suite's long part: kills, power cuts, errors, flipped bits, races, mutated files
	FAULT_KILLS=$(KILLS) FAULT_FLIPS=$(FLIPS) FAULT_STATES=$(STATES) FAULT_SEED=$(SEED) FAULT_ERRORS=3 FAULT_RACE=600 \
	FAULT_GC=400 FAULT_RUNS=1000 FAULT_IMAGES=$(IMAGES) FAULT_WORKER_KILLS=60 FAULT_DRIVER_KILLS=20 FAULT_RAYLET_KILLS=5 \
	FAULT_TRAININGS=20 FAULT_JOB_SIGNALS=4 FAULT_CACHE_KILLS=300 FAULT_BUCKET_KILLS=1000 FAULT_CUTS=2 FUZZ_INPUTS=$(FUZZ) \
	$(BIN)/python -m pytest tests/faults tests/fuzz

slurm: $(VENV)/.installed-dev  ## configs/slurm*.sh on a real SLURM of two nodes, made of namespaces: Linux, root, slurm-wlm, munge
	THEWORLD_TEST_SLURM=1 $(BIN)/python -m pytest tests/faults/test_slurm*.py

check: $(VENV)/.installed-dev  ## style, types, import rules, dependencies
	$(BIN)/ruff check .
	@mkdir -p build/house/theworld && cd build/house/theworld && ln -sfn ../../../pipeline/theworld/*.py . && \
	  for room in pipeline precompute train; do ln -sfn ../../../$$room $$room; done
	PYTHONPATH=build/house $(BIN)/lint-imports
	$(BIN)/deptry pipeline precompute train
	$(BIN)/deptry tests benchmarks --ignore DEP002,DEP004
	$(BIN)/pyright

compiled: $(VENV)/.installed-dev  # the tests, once and beside the types, not by each process of the suite
	@mkdir -p build && $(BIN)/python -m pytest --collect-only -qq > build/collected || { cat build/collected; exit 1; }

docs: $(VENV)/.installed-dev  ## the pages of docs/ as a site in build/site; open build/site/index.html
	$(BIN)/mkdocs build --strict --quiet

hosts: $(VENV)/.installed-dev  ## docs/cluster.md by trial: Ray on three hosts made of namespaces: Linux, root, iproute2
	THEWORLD_TEST_HOSTS=1 $(BIN)/python -m pytest tests/behaviour/cluster/test_cluster_page.py

containers: $(VENV)/.installed-dev  ## the steps of containers/, by trial, without a builder: Linux, root, debootstrap, 12 GB
	$(BIN)/python -m tests.container_steps

audit:  ## known advisories about the tested versions; asks PyPI, so `check` cannot
	$(needs-python)
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install -q pip-audit
	build/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

bench: $(VENV)/.installed-dev  ## side-by-side measurements; see benchmarks/README.md
	$(BIN)/python -m benchmarks.precompute
	$(BIN)/python -m benchmarks.job
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.train

$(VENV)/bin/python:
	$(needs-python)
	$(PYTHON) -m venv $(VENV)

# a torch that is there already (a CUDA build, say) is kept
$(VENV)/.torch: $(VENV)/bin/python
	@echo "installing into $(VENV), silently: some minutes; 2 GB of disk, 6 GB with CUDA's libraries"
	$(BIN)/pip show -q torch 2>/dev/null || $(BIN)/pip install -q --no-deps $(TORCH)
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
