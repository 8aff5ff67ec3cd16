# What each target does is written once, in bootstrap.py. PYTHON is used to make .venv; ARGS are passed on:
#   make test ARGS="-k smoothing"
PYTHON ?= python3
ARGS =

setup bench test check check-slow check-machines faults benchmark clean:
	@$(PYTHON) bootstrap.py $@ $(ARGS)

.PHONY: setup bench test check check-slow check-machines faults benchmark clean
