# Two commands do all the set-up: `make demo` (core install, no torch) and `make test` (adds training and test tools).
# A stamp per install makes sure that a second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_FLAGS)
# PyTorch comes as a large CUDA build by default; for the small one:
#   make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_FLAGS ?=

.PHONY: demo test check format bench fuzz physics study-smoke clean

demo: $(VENV)/.core
	$(BIN)/finegrain demo --out demo-output

# One process a core; a file's tests stay together, since they share what was expensive to make.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/projection.py
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/patches.py

fuzz: $(VENV)/.dev
	$(BIN)/python benchmarks/fuzz_dicom.py --n 5000

physics: $(VENV)/.dev
	$(BIN)/python benchmarks/physics.py --out docs/physics.md

study-smoke: $(VENV)/.dev
	$(BIN)/finegrain study configs/study-smoke.yaml --out runs/study-smoke

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make: $(PYTHON) cannot make a virtual environment; on Debian: apt install python3-venv" >&2; exit 1; }

$(VENV)/.core: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) demo-output runs .pytest_cache .mypy_cache .ruff_cache
