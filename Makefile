# `make run` shows it at work, `make test` proves it.  Each target does all of its own set-up, on a
# machine with nothing but Python 3.11 or newer and pip; stamps make a second call cost nothing.
#
#   make run  ARGS='--help'          make test ARGS='tests/model -k put'     make bench  make torture  make docs
#   make test-3.12                   make test-all     make floors
#   make test-zope6  make test-zope5  make test-pyramid  make test-plone  make test-plone61
#   make test-buildout
#   make lint     make format        make types        make house            make clean
#
# PYTHON=python3.13 chooses the interpreter when .venv is made; `make clean` first to change it.

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
PACKAGING := pyproject.toml setup.py
EVERYTHING := test,dev,docs,postgresql,sqlite,zope,pyramid,cron,cli,tls,metrics,otel
VERSIONS := 3.11 3.12 3.13
# A page and a module of tests stay in one worker: what stands in a page follows from what stood before.
PYTEST := -m pytest -n $(WORKERS) --dist loadfile
SHORT := -m 'not slow and not processes'
LANE_ARGS ?=

# Use the interpreters of the machine, never fetch one.
export UV_PYTHON_DOWNLOADS := never
# What pip was told about where packages come from holds for uv too.
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

.PHONY: run test test-all test-zope6 test-zope5 test-pyramid test-plone test-plone61 test-buildout floors torture bench docs lint format types house clean
.DELETE_ON_ERROR:
.PRECIOUS: .venv-%/.ready

run: $(VENV)/.ready-run
	$(VENV)/bin/zodbjobs demo $(ARGS)

# Without the planted bugs, which take minutes: ARGS='-m slow' runs those.
test: $(VENV)/.ready-dev
	$(PY) $(PYTEST) -m 'not slow' $(ARGS)

# About ten minutes of killed processes and servers: ARGS='--seconds 60' is the short version.
torture: $(VENV)/.ready-dev
	$(PY) -m zodbjobs.testing.torture $(ARGS)

bench: $(VENV)/.ready-dev
	$(PY) -m benchmarks $(ARGS)

# The tables and the picture of docs/performance.rst, from what was measured last with
# ARGS='--json docs/figures/bench.json', in one run or, with --add, in several.
bench-docs: $(VENV)/.ready-bench
	$(PY) -m benchmarks.publish $(ARGS)

# The same work done by other job systems, beside ours; what is not installed is left out.
bench-peers: $(VENV)/.ready-dev .venv-peers/.ready-peers
	$(PY) -m benchmarks.peers $(ARGS)

docs: $(VENV)/.ready-dev
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html

lint: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types: $(VENV)/.ready-dev
	$(VENV)/bin/mypy

house: $(VENV)/.ready-dev
	$(PY) -m pytest -q tests/test_house.py tests/test_tidy.py

# Every Python this machine has; a missing one is named, not an error.
test-all:
	@found=; for version in $(VERSIONS); do \
	    if .ci/find-python $$version >/dev/null; then found="$$found test-$$version"; \
	    else echo "no Python $$version here: its lane is left out"; fi; \
	done; $(MAKE) --no-print-directory $$found floors

test-%: .venv-%/.ready
	.venv-$*/bin/python $(PYTEST) $(LANE_ARGS) $(ARGS)

# The hosts, each with a venv of its own: what is started there is a real server, asked over a socket.
HOST_TESTS := $(PYTEST) tests/hosts
test-zope6: .venv-zope6/.ready
	.venv-zope6/bin/python $(HOST_TESTS) $(ARGS)

test-zope5: .venv-zope5/.ready
	.venv-zope5/bin/python $(HOST_TESTS) $(ARGS)

test-pyramid: .venv-pyramid/.ready
	.venv-pyramid/bin/python $(HOST_TESTS) $(ARGS)

test-plone: .venv-plone/.ready
	.venv-plone/bin/python $(HOST_TESTS)/test_plone.py $(ARGS)

test-plone61: .venv-plone61/.ready
	.venv-plone61/bin/python $(HOST_TESTS)/test_plone.py $(ARGS)

# What buildout makes, at work.
test-buildout: .venv-buildout/.ready
	.venv-buildout/bin/buildout -q
	bin/zodbjobs --version
	bin/py -c 'import zodbjobs.model.hosted, importlib.resources as r; \
	    assert (r.files("zodbjobs.zope") / "configure.zcml").is_file()'
	bin/test -q tests/model/test_job.py tests/doors/zcml docs/zcml.rst $(ARGS)

# The oldest releases that pyproject.toml allows.
floors: .venv-floors/.ready
	.venv-floors/bin/python $(PYTEST) $(SHORT) $(ARGS)

clean:
	rm -rf $(VENV) $(foreach lane,$(VERSIONS) floors zope6 zope5 pyramid plone plone61 buildout,.venv-$(lane)) build dist docs/_build
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
	find src tests docs benchmarks -name __pycache__ -prune -exec rm -rf {} +
	rm -rf src/*.egg-info bin eggs develop-eggs parts .installed.cfg

# ---- set-up ---------------------------------------------------------------------------------

# Debian forbids pip to write into the system's Python and ships venv without the piece that brings
# pip along.  So: an empty environment, and the machine's pip is told to install uv into it.
$(UV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo 'zodbjobs needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.11' >&2; \
	    exit 1; }
	@[ -x $(PY) ] || $(PYTHON) -m venv --without-pip $(VENV) || $(PYTHON) -m virtualenv -q $(VENV) || { \
	    echo 'cannot make $(VENV): on Debian, apt install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m pip --python $(PY) install -q uv \
	    || { $(PYTHON) -m venv $(VENV) && $(PY) -m pip install -q uv; } || { \
	    echo 'cannot install uv into $(VENV): on Debian, apt install python3-pip' >&2; exit 1; }

$(VENV)/.ready-run: $(PACKAGING) | $(UV)
	$(UV) pip install -q --python $(PY) -e '.[cli]'
	@touch $@

$(VENV)/.ready-dev: $(PACKAGING) | $(UV)
	$(UV) pip install -q --python $(PY) -e '.[$(EVERYTHING)]'
	@touch $@ $(VENV)/.ready-run

$(VENV)/.ready-bench: $(VENV)/.ready-dev
	$(UV) pip install -q --python $(PY) -e '.[bench]'
	@touch $@

# Peers have an environment of their own: nothing of theirs gets into ours.
.venv-peers/.ready-peers: benchmarks/peers/requirements.txt | $(UV)
	$(UV) venv -q --clear --python $(PY) .venv-peers
	$(UV) pip install -q --python .venv-peers/bin/python -r benchmarks/peers/requirements.txt
	@touch $@

.venv-floors/.ready: $(PACKAGING) | $(UV)
	@python=$$(.ci/find-python 3.11) || { echo 'the floors need a Python 3.11' >&2; exit 1; }; \
	    set -x; $(UV) venv -q --clear --python $$python .venv-floors
	$(UV) pip install -q --python .venv-floors/bin/python --resolution lowest-direct -e '.[test]'
	@touch $@

# What the tests of hosts need beside the host, whose own needs decide about the releases.
HOST_NEEDS := pytest pytest-timeout pytest-xdist hypothesis sybil zope.testing
HOST_VERSIONS := 3.13 3.12 3.11
.venv-zope6/.ready: HOST := 'Zope[wsgi] >= 6' zope.authentication plone.testing
# Zope 5 cannot run with ZODB 6.3.
.venv-zope5/.ready: HOST := 'Zope[wsgi] < 6' 'ZODB < 6.3' zope.authentication plone.testing
# Pyramid 2.1 imports pkg_resources.
.venv-pyramid/.ready: HOST := pyramid pyramid_retry pyramid_tm pyramid_zodbconn webtest waitress 'setuptools < 82'
.venv-plone/.ready: HOST := 'Products.CMFPlone >= 6.2' plone.restapi
.venv-plone61/.ready: HOST := 'Products.CMFPlone < 6.2' plone.restapi 'Zope < 6' 'ZODB < 6.3'
# Products.CMFEditions, which makes versions of pages, cannot work with Python 3.13.0.
.venv-plone/.ready .venv-plone61/.ready: HOST_VERSIONS := 3.12 3.11
.venv-zope6/.ready .venv-zope5/.ready .venv-pyramid/.ready .venv-plone/.ready \
		.venv-plone61/.ready: $(PACKAGING) | $(UV)
	@for version in $(HOST_VERSIONS); do python=$$(.ci/find-python $$version) && break; done; \
	    set -x; $(UV) venv -q --clear --python $$python $(@D)
	$(UV) pip install -q --python $(@D)/bin/python -e . $(HOST_NEEDS) $(HOST)
	@touch $@

BUILDOUT_VERSIONS := 3.12 3.13 3.11
.venv-buildout/.ready: | $(UV)
	@for version in $(BUILDOUT_VERSIONS); do python=$$(.ci/find-python $$version) && break; done; \
	    set -x; $(UV) venv -q --clear --python $$python $(@D)
	$(UV) pip install -q --python $(@D)/bin/python zc.buildout
	@touch $@

# The lanes have the tests' own needs and no extra: what is optional must be left out without harm.
.venv-%/.ready: $(PACKAGING) | $(UV)
	@python=$$(.ci/find-python $*) || { echo 'there is no Python $* here' >&2; exit 1; }; \
	    set -x; $(UV) venv -q --clear --python $$python .venv-$*
	$(UV) pip install -q --python .venv-$*/bin/python -e '.[test]'
	@touch $@
