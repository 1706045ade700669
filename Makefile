# Every target makes what it needs and can be called again at any time. `make demo` is the place to start.
PYTHON ?= python3
ENV := .venv
BIN := $(ENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

.PHONY: demo book book-check book-pictures test test-slow oracles docs-check mutants packaging base bench bench-gpu bench-check golden studies labs wheel lint clean

demo: $(ENV)/.installed                   ## the whole pipeline on the embedded base
	$(BIN)/posttrain demo

test: $(ENV)/.installed-dev lint          ## style, all default tests, then the wheel in an empty environment
	$(BIN)/python -m pytest -q
	$(BIN)/python -m pytest -q -m packaging

test-slow: $(ENV)/.installed-dev          ## tests that take minutes
	$(BIN)/python -m pytest -q -m "slow or parity"

oracles: $(ENV)/.installed-dev            ## formulas against golden numbers of other libraries, as a table
	$(BIN)/python tests/oracles/table.py

docs-check: $(ENV)/.installed-dev         ## does every public formula give its equation, reference, shapes and section?
	$(BIN)/python -m pytest -q tests/test_docs.py

mutants: $(ENV)/.installed-dev            ## change every formula in memory, one place at a time: do the tests notice?
	$(BIN)/python tests/mutation.py

base: $(ENV)/.installed-dev               ## pre-train the embedded base again (hours on two cores); resumes
	$(BIN)/python -m posttrain.assets.pretrain runs/base-1

bench: $(ENV)/.installed-dev              ## beside TRL and the floor; resumes; BENCH="--jobs sft --sizes tiny" picks
	$(BIN)/python benchmarks/compare.py $(BENCH)

bench-gpu: $(ENV)/.installed-dev          ## the same on a GPU, a part of it per call: stops after nine minutes
	$(BIN)/python benchmarks/compare.py --device cuda --minutes 9 $(BENCH)

bench-check: $(ENV)/.installed-dev        ## measure times and compare with the recorded ones
	$(BIN)/python benchmarks/check.py

golden: $(ENV)/.installed-dev             ## a short run of every method, three seeds, against what is recorded; resumes
	$(BIN)/posttrain lab golden --fresh $(LAB)

studies: $(ENV)/.installed-dev            ## the larger comparisons (hours); resumes; LAB="beside_trl --seeds 10" picks
	$(BIN)/posttrain lab studies $(LAB)

labs: $(ENV)/.installed-dev               ## the studies that the book's sections show, fresh, against their record (an hour)
	$(BIN)/posttrain lab 02 13 14 15 16 23 --fresh --processes 2 $(LAB)

book: $(ENV)/.installed-dev               ## the book as a site in posttrain/site; read it with `posttrain book`
	rm -rf posttrain/site build/book
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d build/book book posttrain/site

book-check: book                          ## every page in a browser; pictures in build/book-check; PAGES="sections/16" picks
	$(BIN)/python -m book.check posttrain/site $(PAGES)

book-pictures: book                       ## the same for the pages that are written by hand, and no speed is wrong
	$(BIN)/python -m book.check posttrain/site --untimed index sections glossary notation methods bibliography

wheel: book                               ## dist/*.whl, the built book in it
	rm -rf build dist
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

lint: $(ENV)/.installed-dev               ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:                                    ## everything that was made here, except runs
	rm -rf build dist posttrain/site *.egg-info .pytest_cache .ruff_cache .hypothesis $(ENV)

# torch first: its version decides every digit.
$(ENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(ENV)
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

$(ENV)/.installed-dev: $(ENV)/.installed
	$(PIP) -e ".[dev,hf,data,book]"
	touch $@
