# fitmatch: `make demo`, `make test`, `make lab`. Needs Python 3.11 or newer and make; everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= fitmatch-demo

.PHONY: help demo test bench lab readme map film slides sidebar brand site dist clean
help:
	@echo "make demo   install into $(VENV) and run everything on the bundled wardrobe"
	@echo "make test   install and run every notebook and every test"
	@echo "make bench  install the peers, measure against them, keep benchmarks/RESULTS.md (half an hour; ONLY=topk,pca for some, PHOTOS=folder for pictures)"
	@echo "make lab    install and open JupyterLab on nbs/"
	@echo "make readme write README.md anew from nbs/index.ipynb"
	@echo "make film   record the README's film of the demo anew (needs chromium)"
	@echo "make slides draw the pictures of the slides anew, after figures in the README have changed"
	@echo "make sidebar write nbs/sidebar.yml anew, after a notebook was added"
	@echo "make map    draw the README's map anew"
	@echo "make brand  draw logo, favicon and social card anew"
	@echo "make site   render the site into _docs (needs Quarto: quarto.org/docs/get-started)"
	@echo "make dist   sdist and wheel into dist/, checked"
	@echo "make clean  remove $(VENV) and what was built"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fitmatch needs Python 3.11 or newer, $(PYTHON) is `$(PYTHON) -V 2>&1`: call make PYTHON=python3.13"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: settings.ini setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

$(VENV)/.installed-dev: settings.ini setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-bench: settings.ini setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e ".[bench]"
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/fitmatch demo --out $(OUT)

# two processes at a time: a thread that waits shall sleep, not spin on the processor the other one needs; OpenBLAS knows no such wish, so it gets one thread
test: export OMP_WAIT_POLICY = PASSIVE
test: export OPENBLAS_NUM_THREADS = 1
test: $(VENV)/.installed-dev
	$(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --no-loadscope-reorder

bench: $(VENV)/.installed-bench
	$(BIN)/python benchmarks/run.py $(if $(ONLY),--only $(ONLY)) $(if $(PHOTOS),--photos "$(PHOTOS)")

lab: $(VENV)/.installed-dev
	$(BIN)/jupyter lab --notebook-dir=nbs

readme: $(VENV)/.installed-dev
	$(BIN)/python .ci/readme.py

film: $(VENV)/.installed-dev
	$(BIN)/python .ci/film.py

slides: $(VENV)/.installed-dev
	$(BIN)/python .ci/slides.py

sidebar: $(BIN)/python
	$(BIN)/python .ci/sidebar.py

map: $(VENV)/.installed-dev
	$(BIN)/python .ci/map.py

brand: $(VENV)/.installed-dev
	$(BIN)/python .ci/brand.py

site: $(VENV)/.installed-dev
	@command -v quarto >/dev/null || { echo "Quarto is not installed: https://quarto.org/docs/get-started"; exit 1; }
	touch README.md
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/nbdev_docs

dist: $(VENV)/.installed-dev
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) _docs _proc build dist *.egg-info
