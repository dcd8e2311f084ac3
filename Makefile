# `make run` and `make test` start from nothing: they make .venv, install the pinned versions and go on.
# A second run does no set-up work; it is done again when pyproject.toml,
# constraints.txt or the sources of the native core change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTEST_ARGS ?=
RUN_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv run test check sanitize wheel format protos kenlm image check-image clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null \
		|| sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/  make \1  \2/p' $(MAKEFILE_LIST)

# The native core is compiled when the package is installed.
NATIVE := CMakeLists.txt scripts/fetch_kenlm.sh $(wildcard asr_server/native/*.?pp)

$(READY): pyproject.toml constraints.txt $(NATIVE)
	@PYTHON='$(PYTHON)' scripts/setup_venv.sh '$(VENV)'
	@touch $@

venv: $(READY)  ## make .venv with the pinned versions of everything

run: venv  ## start the server on 127.0.0.1:50051, show one transcript and one label, go on serving
	@exec $(BIN)/python -m asr_server.smoke $(RUN_ARGS)

test: venv  ## run the whole test suite
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

check: venv  ## lint, format, types and tests: what every change has to pass
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

sanitize: venv  ## run the beam search's tests under the address and undefined-behaviour sanitizers
	@$(BIN)/python scripts/sanitize.py

wheel: venv  ## build a wheel with the native core into dist/
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

format: venv  ## let ruff sort imports and lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: venv  ## generate the gRPC stubs from protos/
	$(BIN)/python scripts/generate_protos.py

kenlm: venv  ## build KenLM's lmplz and build_binary, for training.language_model
	scripts/build_kenlm.sh

export BASE TORCH PIP_ARGS IMAGE TARGET ENGINE PORT
image:  ## build the container image (BASE=, TORCH=, PIP_ARGS=, IMAGE=: see scripts/build_image.sh)
	scripts/build_image.sh

check-image: image  ## build the image, run it, transcribe inside it, stop it
	scripts/check_image.sh

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .kenlm
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
