# Every target sets up what it needs on a machine with Python 3.11 and make.
PYTHON ?= python3
# Two workers of one thread each: the models are too small for two threads to share.
PYTEST_FLAGS ?= -q -n 2
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help demo test test-tl4 test-lowest coverage test-long test-browser architectures format lint docs gallery dist bench bench-peers venv venv-tl4 clean
help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

venv: .venv/.installed  ## .venv: the package and its tools on TransformerLens 3.9
venv-tl4: .venv-tl4/.installed  ## .venv-tl4: the same on TransformerLens 4.3

COMPAT = --config-settings editable_mode=compat
.venv/.installed: CONSTRAINTS = constraints.txt
.venv-tl4/.installed: CONSTRAINTS = constraints-tl4.txt
.venv-lowest/.installed: CONSTRAINTS = constraints-lowest.txt
# compat: this folder is found by its path. By its name alone Python, started from the folder above a clone called tl_backward, would
# take the clone itself for a package without contents.
# torch first and by its pin, or pip may fetch a CUDA build that nothing here needs. Only what is imported is compiled,
# when it is: compiling all took as long as installing it. Without what is compiled written down no process would start fast.
unexport PYTHONDONTWRITEBYTECODE
.venv/.installed .venv-tl4/.installed .venv-lowest/.installed: pyproject.toml constraints.txt constraints-tl4.txt constraints-lowest.txt
	@echo "Making $(@D) with the tested set of packages: torch, TransformerLens and tools, about 2 GB (minutes, once)."
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@echo "1 of 2: torch"
	$(@D)/bin/pip install -q --no-compile --disable-pip-version-check -c $(CONSTRAINTS) torch
	@echo "2 of 2: TransformerLens and the rest"
	$(@D)/bin/pip install -q --no-compile --disable-pip-version-check -c $(CONSTRAINTS) $(COMPAT) -e '.[dev]'
	touch $@

demo: .venv/.installed  ## the main job: one edit-shaped question on the shipped model, read in words, as a page
	@echo "Asking the shipped model of known facts (about half a minute):"
	@.venv/bin/tl-backward demo --out report.html $(DEMO_FLAGS)

# The processes that tests start, notebooks' kernels among them, keep to one thread too: two that wait for cores spin.
test test-tl4 test-lowest coverage test-long architectures: export OMP_NUM_THREADS = 1

test: .venv/.installed  ## all tests on TransformerLens 3.9 (HookedTransformer and TransformerBridge)
	.venv/bin/python -m pytest $(PYTEST_FLAGS) --durations=25

# What runs no model, or is answered before one runs, is the same on every TransformerLens: once is enough.
WITHOUT_MODELS = dissimilarity/test_measures_edges dissimilarity/test_measures_properties \
	dissimilarity/test_measures_reference dissimilarity/test_measures_registry dissimilarity/test_one_definition \
	dissimilarity/test_statistics dissimilarity/test_streamed_properties dissimilarity/test_ties gradients/test_gram \
	render/test_html render/test_pictures support/test_bootstrap support/test_deprecation support/test_storage \
	test_wrong_types training/test_sketch vocabulary/test_extremes vocabulary/test_top_pairs

# Types are checked on 3.9, where all of this runs too: checks at each call are a third of the time.
UNCHECKED = --jaxtyping-packages=nothing,literal_checks.check_types

test-tl4: .venv-tl4/.installed  ## the tests that run models, on TransformerLens 4.3 (TransformerBridge)
	.venv-tl4/bin/python -m pytest $(PYTEST_FLAGS) $(UNCHECKED) --durations=25 $(WITHOUT_MODELS:%=--ignore=tests/%.py)

test-lowest: .venv-lowest/.installed  ## all tests on the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python -m pytest $(PYTEST_FLAGS) --durations=25

coverage: .venv/.installed .venv-tl4/.installed  ## which lines of tl_backward no test of either suite reaches
	COVERAGE_FILE=.coverage.tl3 .venv/bin/python -m pytest $(PYTEST_FLAGS) --cov --cov-report=
	COVERAGE_FILE=.coverage.tl4 .venv-tl4/bin/python -m pytest $(PYTEST_FLAGS) --cov --cov-report=
	.venv/bin/coverage combine -q .coverage.tl3 .coverage.tl4
	.venv/bin/coverage report --show-missing --sort=cover

test-long: .venv/.installed .venv-tl4/.installed  ## the tests that take long, on both (most of an hour)
	.venv/bin/python -m pytest $(PYTEST_FLAGS) -m long -rP
	.venv-tl4/bin/python -m pytest $(PYTEST_FLAGS) -m long -rP

# JupyterLab brings nbconvert, which the other environments lack.
test-browser: .venv/.jupyterlab  ## notebooks run live in JupyterLab and converted, and pages' first screens, in Chromium (minutes)
	.venv/bin/python -m pytest -q -m jupyterlab tests/test_jupyterlab.py
	.venv/bin/python -m pytest -q tests/render/test_first_screen.py tests/test_notebook_pictures.py

.venv/.jupyterlab: .venv/.installed
	.venv/bin/pip install -q --disable-pip-version-check -c constraints.txt $(COMPAT) -e '.[notebooks]'
	touch $@

architectures: .venv/.installed .venv-tl4/.installed  ## what is captured of every architecture, as docs/architectures.md
	.venv/bin/python -m tests.architectures .venv/bin/python .venv-tl4/bin/python

format: .venv/.installed  ## the code as ruff formats it
	.venv/bin/ruff format .

lint: .venv/.installed  ## ruff, the layers of imports, and pyright
	.venv/bin/ruff check .
	.venv/bin/ruff format --check -q .
	.venv/bin/lint-imports --no-logo
	.venv/bin/pyright

gallery: .venv/.installed  ## a picture of every kind of page, and docs/demo-report.png (Chromium; minutes)
	.venv/bin/python docs/gallery.py

docs: .venv/.docs  ## the documentation, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build -q -d site

.venv/.docs: .venv/.installed
	.venv/bin/pip install -q --disable-pip-version-check -c constraints.txt $(COMPAT) -e '.[docs]'
	touch $@

# The wheel is run from where it is unpacked, so that nothing in it is missed thanks to this folder.
dist: .venv/.installed  ## wheel and sdist, checked; the demo runs from the wheel
	rm -rf dist
	.venv/bin/python -m build -q
	.venv/bin/twine check --strict dist/*.whl dist/*.tar.gz
	test "$$(stat -c %s dist/*.whl)" -lt 12000000
	.venv/bin/pip install -q --disable-pip-version-check --no-deps --target dist/unpacked dist/*.whl
	cd dist && PYTHONPATH=unpacked ../.venv/bin/python -m tl_backward.cli demo --out demo.html --no-open

bench: .venv/.installed  ## speed and memory, as ratios within one run, set beside those of the last (tests/benchmarks/history.csv)
	.venv/bin/python -m tests.benchmarks

bench-peers: .venv-peers/.installed  ## the same beside other packages at the same job, which are installed in .venv-peers
	.venv-peers/bin/python -m tests.benchmarks peers

# Of those that ask for torchvision or torchaudio, which break transformers beside a torch for CPUs, what they need is named.
.venv-peers/.installed: pyproject.toml constraints.txt
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(@D)/bin/pip install -q --disable-pip-version-check -c constraints.txt $(COMPAT) -e . opacus einops einconv opt-einsum
	$(@D)/bin/pip install -q --disable-pip-version-check -c constraints.txt --no-deps kronfluence traker
	rm -rf $(@D)/lib/python3*/site-packages/tests  # kronfluence's, which would be taken for ours
	touch $@

clean:  ## remove the environments and caches
	rm -rf .venv .venv-tl4 .venv-lowest .venv-peers .coverage* site build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache report.html
