# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export OMP_NUM_THREADS ?= 1

.PHONY: demo test chaos lint clean

demo: $(VENV)/.installed
	$(RUN) -m jobs.all jobs/recipes/phantom.yaml --store runs/demo || [ $$? -eq 3 ]  # a package that is withheld is an answer

# A file's tests stay in one of two processes; clusters come alone, as what they take is measured.
test: $(VENV)/.installed-test lint
	$(RUN) -m pytest -n 2 --dist loadfile -m "not chaos and not cluster"
	$(RUN) -m pytest -m cluster

# Kills a process at twenty moments; what each cost is told. About half an hour.
chaos: $(VENV)/.installed-test
	$(RUN) -m pytest tests/test_chaos.py -m slow

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

# torch comes first and alone: a resolver that is free to choose takes a build with gigabytes of CUDA.
$(VENV)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(VENV)/bin/pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
