# Twill. `make help` lists the targets. Everything that makes network namespaces needs root.
SHELL       := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO       ?= go
LDFLAGS  := -s -w -X main.version=$(VERSION)
PROGRAMS := twill twill-cni twill-lab
FUZZTIME ?= 30s
# A package may use a whole core and a lab of its own; two at a time suit a small machine.
TEST      = CI=true $(GO) test -count=1 -p 2 -timeout 15m

.PHONY: help build test unit lint lint-selftest demo bench kernel kernel-smoke fuzz deps clean image chart cluster cluster-deps e2e-smoke e2e e2e-faults

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build twill, twill-cni and twill-lab into bin/
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(PROGRAMS:%=./cmd/%)
	ln -sf twill bin/kubectl-twill

test: deps lint build ## Everything: lint, unit, Open vSwitch and lab tests, after installing what they need
	$(TEST) ./...

unit: ## The tests that need neither root nor Open vSwitch; others skip with their reason
	$(GO) test ./...

lint: ## Formatting, go vet, staticcheck, who may import what, file sizes
	@test/lint/lint.sh

lint-selftest: ## Show that every rule of the linters refuses what it is for
	$(TEST) ./test/lint

demo: ## Three nodes, pods and pings on this machine, from nothing; KEEP=1 leaves them up
	@KEEP='$(KEEP)' test/demo.sh

bench: deps build ## Benchmarks, each beside a baseline; docs/benchmarks.md has results to compare with
	$(GO) test -run '^$$' -bench . -benchmem -p 1 -timeout 60m ./...
	$(GO) run ./test/bench

kernel: build ## Lab tests on the kernel datapath, in a virtual machine with a stock kernel; RUN=regexp selects, PKG='packets services policies' says which
	@test/kernel/run.sh '$(PKG)' '$(RUN)'

kernel-smoke: cluster-deps ## The smoke test of a real Kubernetes there; the first time builds Kubernetes; RUN=regexp selects steps
	@test/kernel/smoke.sh '$(RUN)'

fuzz: ## Fuzz every parser for FUZZTIME (30s) each
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p; \
	  done; \
	done

image: build ## The container image as an OCI archive, bin/twill.tar, without a container engine; ARCH=arm64 for others
	$(GO) run ./test/image/build -version '$(VERSION)' $(if $(ARCH),-arch '$(ARCH)')

chart: cluster-deps ## Renew what is made from the chart: its README and the one-file manifest
	$(GO) run ./test/chart/make

cluster: cluster-deps ## A real Kubernetes with Twill on this machine, to look at, until Ctrl-C
	$(GO) run ./test/cluster/run

e2e-smoke: cluster-deps ## Install the chart on a real Kubernetes of two nodes and try it; the first time builds Kubernetes
	CI=true $(GO) test -tags e2e -count=1 -v -run 'TestSmoke|TestTheChart' -timeout 80m ./test/cluster

e2e: cluster-deps ## Kubernetes' own network tests; FOCUS is a regular expression of their names, KUBE_PROXY=1 runs kube-proxy, NODES=6 has 6 nodes in 3 zones
	CI=true FOCUS='$(FOCUS)' SKIP='$(SKIP)' NODES='$(NODES)' KUBE_PROXY='$(KUBE_PROXY)' $(GO) test -tags e2e -count=1 -v -run 'TestConformance|TestSkips' -timeout 5h ./test/cluster

e2e-faults: cluster-deps ## Break daemons, nodes, the API server and etcd under traffic; upgrade and back; a hundred pods; Open vSwitch in pods; Helm 3
	CI=true $(GO) test -tags e2e -count=1 -v -run 'TestFaults|TestPods|TestHelm3|TestUpgrade|TestOpenVSwitchInPods' -timeout 2h ./test/cluster

cluster-deps:
	@test/deps.sh cluster

deps: ## Install the packages that are missing (Debian and Ubuntu)
	@test/deps.sh

clean: ## Remove bin/
	rm -rf bin
