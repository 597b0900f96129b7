# Two commands from a bare clone, with Python 3.11 and nothing else: `make demo` and `make test`.

PYTHON ?= python3.11
BIN := .venv/bin
INSTALLED := .venv/.installed
RECIPES := pipelines/tunegate_pipelines/recipes
SERVING := .venvs/serve/.installed
LEGACY := .venvs/quantize_legacy/.installed
LOCKS := lock-local lock-serve lock-quantize_legacy
# Those of images, with hashes, at the versions of lock-local; torch first, for the others leave out what it holds.
HASHED := lock-build lock-torch lock-control lock-train lock-quantize lock-evaluate lock-vllm lock-autoawq

.PHONY: demo serve test lint e2e e2e-serving e2e-legacy bench torture golden lock $(LOCKS) $(HASHED) smoke install serve-environment quantize-legacy-environment clean
.DEFAULT_GOAL := test

demo: $(INSTALLED) $(SERVING)  ## a small model, trained, served, judged and promoted: 25 minutes on two cores
	$(BIN)/tunegate run $(RECIPES)/demo.yaml

serve: $(INSTALLED) $(SERVING)  ## what the demo promoted, on vLLM at http://127.0.0.1:8000/v1, until Ctrl-C
	$(BIN)/tunegate deploy runs/registry demo

test: lint  ## everything that takes seconds
	$(BIN)/pytest --numprocesses 2 --dist loadfile tests/wiring tests  # the longest first

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

e2e: $(INSTALLED) $(SERVING)  ## the demo, trained once, and what goes on from it: 40 minutes on two cores
	$(BIN)/pytest -m 'e2e and not slow' -s tests/e2e tests/wiring

e2e-serving: $(INSTALLED) $(SERVING)  ## real vLLM as tests: ten minutes on two cores
	$(BIN)/pytest -m serving -s tests/e2e

e2e-legacy: $(INSTALLED) $(LEGACY)  ## AutoAWQ as tests, on a tiny model: two minutes on two cores
	$(BIN)/pytest -m 'legacy and not gpu' -s tests/quantize

bench: $(INSTALLED) $(SERVING)  ## every benchmark, each both sides in one run: an hour on two cores that nothing else uses
	$(BIN)/python tests/benchmarks/bench_speed.py
	$(BIN)/python tests/benchmarks/bench_methods.py
	test -d runs/demo || $(MAKE) demo  # two benchmarks go on from the run that it leaves
	$(BIN)/python tests/benchmarks/bench_quality.py
	$(BIN)/python tests/benchmarks/bench_damage.py runs/demo
	$(BIN)/python tests/benchmarks/bench_memory.py
	$(BIN)/python tests/benchmarks/bench_gate.py gate.html
	$(BIN)/python tests/benchmarks/bench_merge.py
	$(BIN)/python tests/benchmarks/bench_registry.py
	$(BIN)/python tests/benchmarks/bench_serving.py runs/bench/serving.html
	$(BIN)/python tests/benchmarks/bench_fleet.py runs/bench/fleet.html

torture: $(INSTALLED) $(SERVING)  ## full-size kills: training killed at random moments, again and again
	$(BIN)/pytest -m slow -s tests

golden: $(INSTALLED)  ## the compiled pipelines that a test holds against the code
	for name in finetune retrain approve promote deploy; do \
		$(BIN)/tunegate compile --pipeline $$name --output pipelines/tunegate_pipelines/$$name.yaml || exit 1; \
	done

install: $(INSTALLED)

# The lock is complete, so pip has nothing to resolve; the build tools are in it, so the package needs no isolation.
$(INSTALLED): images/local/requirements.lock pyproject.toml
	@echo 'installing the locked environment into .venv (about 2 GB, once)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r images/local/requirements.lock
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

serve-environment: $(SERVING)  ## vLLM in .venvs/serve, which the tests of serving start

quantize-legacy-environment: $(LEGACY)  ## AutoAWQ and AutoGPTQ in .venvs/quantize_legacy, for their backends

# What an image pins clashes with what another one does: each has an environment beside the first. What built.txt names
# has no wheel: it is built when torch is there, without isolation.
.venvs/%/.installed: images/%/requirements.lock
	@echo 'installing the locked environment into .venvs/$* (about 3 GB, once)'
	test -x .venvs/$*/bin/python || $(PYTHON) -m venv .venvs/$*
	grep -v -f $(or $(wildcard images/$*/built.txt),/dev/null) $< > .venvs/$*/wheels.txt
	.venvs/$*/bin/python -m pip install -qq --disable-pip-version-check --no-deps -r .venvs/$*/wheels.txt
	.venvs/$*/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -r $<
	touch $@

lock: $(LOCKS) $(HASHED)  ## resolves every requirements.in anew; `make lock-serve` that of one image

$(LOCKS): lock-%:
	rm -rf .venvs/lock-$*
	$(PYTHON) -m venv .venvs/lock-$*
	.venvs/lock-$*/bin/pip install --quiet -r images/$*/requirements.in
	test ! -f images/$*/no-deps.in || .venvs/lock-$*/bin/pip install --quiet --no-deps --no-build-isolation -r images/$*/no-deps.in
	images/freeze.sh images/$* .venvs/lock-$* > images/$*/requirements.lock
	rm -rf .venvs/lock-$*

$(HASHED): lock-%:
	$(PYTHON) -m venv .venvs/lock-$*
	.venvs/lock-$*/bin/python images/lock.py $* > .venvs/lock-$*/requirements.lock
	mv .venvs/lock-$*/requirements.lock images/$*/requirements.lock
	rm -rf .venvs/lock-$*

smoke: smoke-control smoke-train smoke-quantize smoke-quantize_legacy smoke-evaluate smoke-serve  ## each image's environment, made of its lock and tried: gigabytes

smoke-%:
	images/smoke.sh $*

clean:
	rm -rf .venv .venvs runs .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
