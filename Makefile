# Two commands for a fresh clone: `make demo` and `make test`. Both set everything up first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := $(VENV)/.installed

# Without a cache: that of one torch and its CUDA packages takes gigabytes of a small disk.
PIP_INSTALL := pip install --quiet --disable-pip-version-check --no-cache-dir

.PHONY: demo fast test check docs docs-blocks kernels wheel imports oldest newest lock fuzz audit release-check clean
demo: $(STAMP)
	$(BIN)/longvit demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# About a minute: quick tests of every package.
fast: $(STAMP)
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup -m 'not slow' @tests/fast.txt

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

# The documentation site: docs/_build/index.html, readable and searchable from the folder. A warning is an error.
docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W -n docs docs/_build
	$(BIN)/python .ci/check_site.py docs/_build

$(VENV)/.docs: $(STAMP)
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	touch $@

# Every shell and Python block of every page, page by page, on small slides; some minutes. No block is left out silently.
docs-blocks: $(STAMP)
	$(BIN)/python -m tests.docs.blocks
	$(BIN)/python -m pytest -q -n 2 tests/docs

# The GPU kernels without a card: in Triton's interpreter, and compiled. NumPy 2.4 breaks loops of Triton 3.6's interpreter.
kernels: $(VENV)/kernels/.installed
	PYTHONPATH=$(abspath $(VENV)/kernels) $(BIN)/python -m pytest -n 2 -q tests/attention/test_triton.py tests/attention/test_padded.py \
	  tests/attention/test_compiled.py tests/model/test_fused_norms.py

$(VENV)/kernels/.installed: $(STAMP)
	$(BIN)/$(PIP_INSTALL) --target $(VENV)/kernels triton==3.6.0 'numpy<2.4'
	touch $@

# The wheel in an empty environment with the newest dependencies: `pip check`, and `longvit doctor` from an empty folder.
wheel: $(STAMP)
	rm -rf dist $(VENV)/wheel
	$(BIN)/python .ci/wheel.py build dist
	$(PYTHON) -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/$(PIP_INSTALL) -c constraints.txt dist/longvit-*.whl
	$(VENV)/wheel/bin/pip check
	$(BIN)/python .ci/wheel.py doctor $(VENV)/wheel/bin/python
	rm -rf $(VENV)/wheel

# The lowest release of every dependency that pyproject.toml allows; `make oldest PYTHON=python3.11` takes that Python.
# PyPI's torch brings its CUDA packages along: some 8 GB. TESTS='-m "not slow" @tests/fast.txt' runs the quick tests.
oldest: $(VENV)/oldest/.installed
	$(VENV)/oldest/bin/python -m pytest -n 2 --dist loadgroup $(TESTS)

$(VENV)/oldest/.installed: $(STAMP) .ci/oldest.py
	$(PYTHON) -m venv --clear $(VENV)/oldest
	$(BIN)/python .ci/oldest.py > $(VENV)/oldest/constraints.txt
	$(VENV)/oldest/bin/$(PIP_INSTALL) -c $(VENV)/oldest/constraints.txt -e '.[dev]'
	touch $@

# The newest releases of everything, torch too, which constraints.txt holds elsewhere.
newest: $(VENV)/newest/.installed
	$(VENV)/newest/bin/python -m pytest -n 2 --dist loadgroup $(TESTS)

$(VENV)/newest/.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(VENV)/newest
	$(VENV)/newest/bin/$(PIP_INSTALL) -e '.[dev]'
	touch $@

# Every module on this system; the doctor's self-test. Also on macOS and Windows.
imports: $(STAMP)
	$(BIN)/python .ci/import_all.py
	$(BIN)/longvit doctor

# requirements.lock: what the tests used. Commit it after a green run.
lock: $(STAMP)
	$(BIN)/python .ci/lock.py > requirements.new
	mv requirements.new requirements.lock

# Some hours: damaged slides, faults while a run goes on, hostile files, and Hypothesis with new examples.
fuzz: $(STAMP)
	@failed=0; for script in damaged_slides ends_of_runs signals damaged_checkpoints hostile_files; do \
	  test -f tests/faults/$$script.py || continue; \
	  echo "== $$script"; $(BIN)/python tests/faults/$$script.py --all || failed=1; done; \
	echo "== hypothesis"; HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest -q -n 2 --timeout 3600 tests/faults/test_fuzz_*.py || failed=1; \
	exit $$failed

# Exit code 1: a known fault; 3: no database of faults can be asked from here.
audit: $(STAMP)
	$(BIN)/$(PIP_INSTALL) pip-audit
	$(BIN)/python .ci/audit.py

# Before a release: version, changelog, tag, the recorded interface, the wheel. It changes and publishes nothing.
release-check: $(STAMP)
	$(BIN)/python .ci/release.py

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info .pytest_cache .hypothesis .ruff_cache .mypy_cache docs/_build docs/api docs/commands docs/project
