# What people and machines type. `make help` lists it. Go, make and a shell are enough for build and demo.

# Every build is without cgo; only the race detector, in tools/test.sh, needs it.
export CGO_ENABLED = 0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
BIN = bin/meshnode$(shell go env GOEXE)

.PHONY: help build demo test check bench mutants proto clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

build: ## the binary: bin/meshnode
	go build -trimpath -ldflags '-X main.version=$(VERSION)' -o $(BIN) ./cmd/meshnode

demo: build ## a mesh on this machine: sum_primes on 1, 2 and 3 nodes, and the speed-up
	$(BIN) demo

test: ## all tests, as CI runs them; installs what they need where that is possible
	@tools/test.sh

check: ## the quick part of them, before each commit
	@tools/test.sh format vet imports quick

bench: build ## what users feel, measured beside the goals: docs/benchmarks.md; make bench ROW=reactor ROUNDS=3
	MESHNODE_BIN=$(BIN) go run ./testnet/bench -row '$(ROW)' -rounds $(or $(ROUNDS),5)

mutants: ## each planted defect of the scheduler, and the simulated seed that finds it; some minutes
	MESHNODE_MUTANTS=all go test -count=1 -v -timeout 30m -run '^TestMutants$$' ./testnet/sim | grep -v '^=== \|--- PASS'

proto: ## protocol/*.pb.go from protocol/*.proto, with the generator pinned in tools/go.mod
	go run -C tools ./protogen '$(CURDIR)/protocol'

clean: ## remove what was built here
	rm -rf bin
