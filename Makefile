# Every target with a ## comment is listed by `make help`.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)

# The packages whose tests also run against NATS in a container, where a Docker engine answers.
CONTAINER_TESTS ?= ./internal/bus/... ./internal/e2e

.PHONY: help
help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: dev
dev: ## Run the whole bridge on this machine, with a simulated WeCom; ARGS="--say 你好" sends one text and prints the reply
	@go run ./cmd/bridgectl dev $(ARGS)

.PHONY: test
test: ## Run every test: in one process, and against NATS in a container where a Docker engine answers
	@CONTAINER_TESTS='$(CONTAINER_TESTS)' tools/test

.PHONY: check
check: test verify ## Everything that CI runs: the tests, and `make verify`

.PHONY: verify
verify: format vet tidy generated examples lint vuln race ## What CI runs beside the tests: format, lint, generated files, examples, known vulnerabilities, race detector

.PHONY: bench
bench: ## Print the benchmark table; ARGS are passed on
	@go run ./cmd/bridgectl bench $(ARGS)

.PHONY: build
build: ## Build bin/gateway, bin/worker and bin/bridgectl, static and stripped
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/gateway ./cmd/worker ./cmd/bridgectl

.PHONY: image
image: ## Build the container images wecom-bridge/gateway, worker, bridgectl and nats, from scratch and without a registry
	@VERSION='$(VERSION)' deploy/build-images gateway worker bridgectl nats

# The parts of verify. Each can be called alone.

.PHONY: race
race:
	@tools/needs browser
	go test -race -timeout 20m ./...

.PHONY: format
format:
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs gofmt -l); \
	if [ -n "$$unformatted" ]; then echo "gofmt would change:"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet:
	go vet ./...

.PHONY: tidy
tidy:
	go mod tidy -diff

.PHONY: generated
generated:
	@tools/fresh go generate ./...

.PHONY: examples
examples:
	go build -o bin/examples/ ./examples/...

.PHONY: lint
lint: bin/golangci-lint
	bin/golangci-lint run --allow-serial-runners ./...

.PHONY: vuln
vuln: bin/govulncheck
	@tools/vuln

bin/golangci-lint: tools/go.mod tools/go.sum
	go -C tools build -o ../bin/ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

bin/govulncheck: tools/go.mod tools/go.sum
	go -C tools build -o ../bin/ golang.org/x/vuln/cmd/govulncheck
