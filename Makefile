# make demo: train a small model and look at what it paints. make check: lint, types and the fast tests, in two minutes.
# make test: everything that a change must pass. make docs: the documentation as a site, in site/.
# make test-napari: the plugin of napari, in an environment of its own.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NAPARI := .venv-napari
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo check test test-napari lint types docs fast tests wheel clean

MINUTES ?= 3

demo: $(VENV)/.core
	$(BIN)/morphogen train builtin:tissue --out demo/run --size 48 --downscale 4 --batch-size 8 --precision auto --minutes $(MINUTES)
	$(BIN)/morphogen sample demo/run -n 16 --size 64 --film --out demo/samples
	$(BIN)/morphogen sample demo/run -n 1 --size 512 --sampler dpm++ --out demo/large
	@echo
	@echo "16 samples:       demo/samples/grid.png (each one beside it, named by its seed)"
	@echo "the denoising:    demo/samples/film.webp"
	@echo "512x512 pixels:   demo/large/0.png (trained on patches of 48x48)"
	@echo "Next, with a folder of your own images:"
	@echo "    $(BIN)/morphogen train FOLDER --out run --minutes 30"

check: lint types fast

test: lint types docs tests wheel

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

fast: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto -m "not e2e and not slow and not gpu"

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

tests: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses auto

# napari draws by OpenGL, and pytest's plugins of napari give warnings, which are errors here.
test-napari: $(NAPARI)/.dev
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(if $(shell command -v xvfb-run),xvfb-run --auto-servernum) $(NAPARI)/bin/python -m pytest tests/napari

wheel: $(VENV)/.dev
	$(BIN)/python tests/wheel.py

$(VENV)/.core: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	touch $@

# Everything is pinned, so nothing is left to resolve, which pip takes very long over.
$(VENV)/.dev: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints.txt
	$(INSTALL) --no-deps --editable .
	$(BIN)/python -m pip check
	touch $@

# napari and Qt take 360 MB; all other packages are those of the first environment, shared.
$(NAPARI)/.dev: $(VENV)/.dev constraints-napari.txt
	$(PYTHON) -m venv --without-pip $(NAPARI)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
		> $$($(NAPARI)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/shared.pth
	$(NAPARI)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-napari.txt
	$(NAPARI)/bin/python -m pip check
	touch $@

clean:
	rm -rf $(VENV) $(NAPARI) build dist demo
