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

.PHONY: help build test unit lint lint-selftest demo bench fuzz deps clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

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

bench: deps build ## Benchmarks; docs/benchmarks.md has results to compare with
	$(GO) test -run '^$$' -bench . -benchmem -timeout 60m ./...

fuzz: ## Fuzz every parser for FUZZTIME (30s) each
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p; \
	  done; \
	done

deps: ## Install the packages that are missing (Debian and Ubuntu)
	@test/deps.sh

clean: ## Remove bin/
	rm -rf bin
