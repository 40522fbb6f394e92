# SPDX-License-Identifier: Apache-2.0
# From a fresh machine to a running policy: `make demo`. `make help` lists the rest.

VENV     ?= .venv
PIP_ARGS ?=
DEMO_ARGS ?= --choice coherent --temperature 0.3
TEST_ARGS ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# A sourced ROS installation is used as it is; its python3 is then the one that can import rclpy.
ROS_PYTHON := $(if $(AMENT_PREFIX_PATH),$(shell python3 -c 'import rclpy' 2>/dev/null && echo python3))
SUPPORTED  := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
FOUND      := $(shell for p in python3.11 python3.12 python3.13 python3.10 python3; do \
                $$p -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $$p && break; done)
PYTHON     ?= $(or $(ROS_PYTHON),$(FOUND))

# gym-pusht without its needs: it asks for opencv-python, which overwrites opencv-python-headless (see setup.py).
INSTALL    := $(VENV)/bin/python -m pip install --progress-bar off --quiet $(PIP_ARGS)
SIMULATOR  := gym-pusht==0.1.8
ifdef ROS_PYTHON
  VENV_FLAGS := --system-site-packages
  # The message packages of an installation are compiled against its numpy; stay with that major version.
  PINS       := 'numpy==$(shell python3 -c 'import numpy; print(numpy.__version__.split(".")[0])').*'
  ROS_EXTRA  :=
else
  PINS       := -c constraints.txt
  ROS_EXTRA  := ros,
endif

.PHONY: help setup demo test models check clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 14
	@echo '  PYTHON=python3.11            the interpreter to build $(VENV) with (found: $(or $(PYTHON),none))'
	@echo '  PIP_ARGS="..."               passed to pip, for example an index with CPU builds of torch'
	@echo '  DEMO_ARGS="--episodes 1"     passed to ros-vdd demo'
	@echo '  TEST_ARGS="-k chunk"         passed to pytest'

demo: $(VENV)/.run-time ## real ROS 2, the simulator and the shipped policy, closed loop; draws the result
	@$(VENV)/bin/ros-vdd demo $(DEMO_ARGS)

test: $(VENV)/.everything ## all tests
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 $(TEST_ARGS)

setup: $(VENV)/.everything ## everything into .venv: run time, simulators, training, tests

models: $(VENV)/.everything ## train the shipped policies again; with DATA=/path/to/pusht_cchi_v7_replay.zarr those of PushT too
	PATH="$(abspath $(VENV))/bin:$$PATH" OMP_NUM_THREADS=1 sh config/train/avoiding.sh
	@test -n "$(DATA)" || echo 'PushT is left out; say where its demonstrations are: make models DATA=/path/to/pusht_cchi_v7_replay.zarr'
	test -z "$(DATA)" || PATH="$(abspath $(VENV))/bin:$$PATH" OMP_NUM_THREADS=1 sh config/train/pusht.sh "$(DATA)"

clean: ## remove .venv and what the demo wrote
	rm -rf $(VENV) demo build

$(VENV)/.python: | check
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv --clear $(VENV_FLAGS) $(VENV)
	@touch $@

$(VENV)/.run-time: $(VENV)/.python constraints.txt setup.py
	@echo 'installing the run time: ONNX Runtime, ROS 2, the simulator (one to three minutes)'
	@$(INSTALL) $(PINS) -e '.[$(ROS_EXTRA)sim]'
	@$(INSTALL) --no-deps $(SIMULATOR)
	@touch $@

$(VENV)/.everything: $(VENV)/.run-time
	@echo 'installing training and tests: torch, ONNX, Meta-World, TensorRT for RTX (some minutes)'
	@$(INSTALL) $(PINS) -e '.[$(ROS_EXTRA)sim,metaworld,train,dev]'
	@$(INSTALL) $(PINS) -e '.[tensorrt-rtx]' || echo 'TensorRT for RTX does not install here; the tests that build engines are skipped'
	@touch $@

check:
	@test -n "$(PYTHON)" || { echo 'No Python 3.10 to 3.13 with venv was found. Debian or Ubuntu:' \
	  'apt install python3 python3-venv; or name one: make PYTHON=/path/to/python3.11'; exit 1; } >&2
	@$(PYTHON) -c '$(SUPPORTED)' >/dev/null 2>&1 || test -n '$(ROS_PYTHON)' || { echo \
	  "'$(PYTHON)' is not a Python 3.10 to 3.13 with the venv module (Debian or Ubuntu: apt install python3-venv)"; \
	  exit 1; } >&2
	@test -n '$(ROS_PYTHON)' || test "$$(uname -s) $$(uname -m)" = 'Linux x86_64' || { echo \
	  "ROS 2 wheels exist for Linux x86_64, this is $$(uname -s) $$(uname -m). Install ROS 2, source its" \
	  'setup.bash and type make again; it is used when rclpy can be imported.'; exit 1; } >&2
