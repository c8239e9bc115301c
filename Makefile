# The one task runner. `make demo` and `make test` set everything up themselves.

PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
BIN    := .venv/bin
READY  := .venv/.ready

PROMPT ?= The President of the United States
TOKENS ?= 48
CONFIG ?=
PYTEST ?=
JOBS   ?= $(shell nproc)

# A file of tests at a time on each core, cheapest first: what its tests share is made once, and builds are in the
# cache of all.
RUN_TESTS = $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help setup demo test test-all verilog registers fpga boards bench model lint clean

help:            ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: $(READY)  ## .venv with pinned packages, and the system packages they need

$(READY): pyproject.toml constraints.txt tools/system_packages.sh
	@tools/system_packages.sh "$(PYTHON)"
	@tools/make_venv.sh "$(PYTHON)"
	@touch $@

demo: $(READY)   ## text from the shipped model, its MoE layers on Verilated RTL
	@$(BIN)/expertile demo --prompt "$(PROMPT)" --tokens $(TOKENS)

test: $(READY)   ## everything but the slow tests, JOBS files at a time (all cores, at most 4)
	@$(RUN_TESTS) $(PYTEST)

test-all: $(READY)  ## the slow tests too
	@$(RUN_TESTS) -m "" $(PYTEST)

verilog: $(READY)  ## build/verilog/expertile.v and its description
	@mkdir -p build/verilog
	@$(BIN)/expertile verilog $(if $(CONFIG),--config $(CONFIG)) -o build/verilog/expertile.v

registers: $(READY)  ## docs/registers.md, after a change of hw/host/registers.py
	@mkdir -p build
	@$(BIN)/python -m hw.host.register_files > build/registers.md && mv build/registers.md docs/registers.md

fpga: $(READY)   ## bitstream and report for the ULX3S-85F
	@$(BIN)/expertile fpga --board ulx3s_85f $(if $(CONFIG),--config $(CONFIG)) -o build/fpga

boards: $(READY)  ## docs/boards.md, after a build that was recorded
	@$(BIN)/expertile boards --markdown docs/boards.md

bench: $(READY)   ## speed of the shipped model's layers (PRESET=base): build/bench.json and .md
	@$(BIN)/expertile bench $(if $(or $(PRESET),$(CONFIG)),--config $(or $(PRESET),$(CONFIG))) -o build

model: $(READY)  ## corpus, teacher, model, gate and metrics in build/train (PRESET=base, tiny or small; installs torch)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[train]'
	@$(BIN)/python -m sw_model.training.pipeline $(or $(PRESET),base) $(TRAIN)

lint: $(READY)   ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/mypy

clean:           ## all that is built; .venv stays
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
