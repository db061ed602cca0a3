# Two commands do everything on a fresh machine: `make demo` and `make test`; `make test-clients` asks
# the endpoint with real clients.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# cpu or gpu; found by asking for an NVIDIA driver, or say DEVICE=gpu.
DEVICE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
INSTALLED := .venv/.installed-$(DEVICE)
CLIENTS := .venv/clients

export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-cache test test-clients browser setup check clean

demo: setup
	@# Exit code 3 says that some rows are in errors/: the demo brings twelve broken ones along.
	@output=out/demo/$$(date +%Y%m%d-%H%M%S); \
	$(BIN)/nightmill run configs/demo.yaml --output $$output || [ $$? -eq 3 ] || exit 1; \
	$(BIN)/python -m demo.score $$output

demo-cache: setup
	$(BIN)/nightmill calibrate configs/demo-similar.yaml --rows 1500
	$(BIN)/nightmill run configs/demo-similar.yaml --output out/demo-similar/$$(date +%Y%m%d-%H%M%S)

test: setup browser
	$(BIN)/python -m pytest

# One endpoint with real models, asked by clients that are installed beside it: their versions are
# not to be ours.
test-clients: setup $(CLIENTS)/.installed
	$(CLIENTS)/bin/python -m pytest tests/clients --confcutdir=tests/clients --timeout=900

# For the tests of the web page, which say that they are skipped where no Chromium is found. The
# npm package brings a whole one, compressed.
browser: setup
	@for name in chromium chromium-browser chromium-headless-shell google-chrome chrome; do \
		command -v $$name >/dev/null && exit 0; done; \
	test -x .venv/browser/chromium && exit 0; \
	mkdir -p .venv/browser && cd .venv/browser && \
	npm pack --silent @sparticuz/chromium@147.0.0 >/dev/null 2>&1 && \
	tar xzf sparticuz-chromium-*.tgz package/bin/chromium.br && \
	node -e 'process.stdout.write(require("zlib").brotliDecompressSync(require("fs").readFileSync("package/bin/chromium.br")))' > unpacked && \
	chmod +x unpacked && mv unpacked chromium && rm -rf package sparticuz-chromium-*.tgz || \
	echo "no Chromium could be had: the tests of the web page will be skipped"

setup: $(INSTALLED)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Torch first and with what it depends on: the pinned files name none of that for its default
# build, which serves where pip is offered no CPU build. All else is pinned whole.
$(INSTALLED): requirements/$(DEVICE).txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "nightmill needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q $$(grep '^torch==' requirements/$(DEVICE).txt)
	$(BIN)/python -m pip install -q --no-deps -r requirements/$(DEVICE).txt -r requirements/dev.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(CLIENTS)/.installed: requirements/clients.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install -q --no-deps -r requirements/clients.txt
	@touch $@

clean:
	rm -rf .venv out
