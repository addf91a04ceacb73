# `make` shows the targets. Go and make are enough to build and run; test needs a C compiler,
# for -race; test-kafka needs a JDK and Maven, test-openapi Python 3 with venv and pip, docker a container engine.

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BIN      := build/bin
LINT     := build/tools/golangci-lint-v2.15.0
SCHEMATHESIS := build/tools/schemathesis-4.32.5/bin/schemathesis
FUZZTIME := 30s
# The same build flags everywhere except for the race detector, to share the build cache.
PLAIN    := CGO_ENABLED=0 GOFLAGS=-trimpath
# With a CPU profile for the compiler, the processor takes about 5 % less CPU, and compiling takes twice as long.
# The images and make bench use it.
PROFILE  := off
CDNOW    := $(wildcard ../shared/data/cdnow-events.jsonl.gz)

.PHONY: help build demo run test test-kafka test-openapi hostile release-test upgrade-test lint fmt fuzz bench bench-projector profile docker clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

build: ## build static binaries of the four programs in build/bin
	$(PLAIN) go build -pgo=$(PROFILE) -ldflags '-s -w -X millrace/pipeline/cli.version=$(VERSION)' -o $(BIN)/ ./cmd/...

demo: build ## run 10,000 events (or EVENTS=FILE) through everything and check every state; report in build/demo.json
	$(BIN)/sandbox demo --bin $(BIN) --out build/demo.json $(if $(EVENTS),--events '$(EVENTS)')

run: build ## run everything until Ctrl-C
	$(BIN)/sandbox up --bin $(BIN)

test: lint ## check formatting, vet, lint, and run all tests with the race detector
	go test -race -timeout 40m ./...

# A test on a real broker has Kafka in its name. Each package must have one that passed, and none that was skipped.
# CDNOW is a file of a real shop's purchases as JSON lines; without it, the tests use synthetic events. Two tests on the
# sandbox that need them run here, too, because so many events take long with the race detector.
test-kafka: build ## run the end-to-end tests on a real Apache Kafka, started here or at KAFKA_BROKERS
	@for pkg in ./pipeline/e2e/kafkatest ./pipeline/codec/resolve ./pipeline/e2e; do \
		{ $(PLAIN) MILLRACE_TEST_KAFKA=1 MILLRACE_CDNOW='$(abspath $(CDNOW))' go test -count=1 -timeout 20m -v -run 'Kafka|OfThePast|OrdersPerUser' $$pkg; echo $$? >build/test-kafka.exit; } 2>&1 | tee build/test-kafka.log; \
		test "$$(cat build/test-kafka.exit)" = 0 || exit 1; \
		if grep '^ *--- SKIP' build/test-kafka.log; then echo 'make test-kafka: skipped is not passed'; exit 1; fi; \
		grep -q '^ *--- PASS: [^ ]*Kafka' build/test-kafka.log || { echo "make test-kafka: no test of $$pkg ran on a real Kafka"; exit 1; }; \
	done

# The version of schemathesis is pinned: another one has other checks. A run that tests nothing is a failure.
test-openapi: build $(SCHEMATHESIS) ## drive both OpenAPI documents with schemathesis
	@{ $(PLAIN) MILLRACE_SCHEMATHESIS='$(CURDIR)/$(SCHEMATHESIS)' go test -count=1 -timeout 15m -v -run 'Schemathesis' ./pipeline/e2e; echo $$? >build/test-openapi.exit; } 2>&1 | tee build/test-openapi.log
	@test "$$(cat build/test-openapi.exit)" = 0
	@! grep 'NOT run' build/test-openapi.log
	@grep -q '^ *--- PASS: [^ ]*Schemathesis' build/test-openapi.log || { echo 'make test-openapi: schemathesis did not run'; exit 1; }

$(SCHEMATHESIS):
	rm -rf $(SCHEMATHESIS:/bin/schemathesis=)
	python3 -m venv $(SCHEMATHESIS:/bin/schemathesis=)
	$(SCHEMATHESIS:schemathesis=pip) install --quiet --disable-pip-version-check schemathesis==$(SCHEMATHESIS:build/tools/schemathesis-%/bin/schemathesis=%)

hostile: ## attack each program with 13,000 hostile HTTP clients; it needs a quiet machine and ulimit -n 16000
	$(PLAIN) MILLRACE_HOSTILE=1 go test -count=1 -timeout 10m -v -run TestHostile ./pipeline/e2e

# OLD is a commit of an earlier release, whose projector has ./cmd/projector.
upgrade-test: ## replace projectors of the commit OLD by those of this tree, one by one, under load
	@rm -rf build/old && mkdir -p build && git worktree add --force --detach build/old '$(OLD)' >/dev/null
	cd build/old && $(PLAIN) go build -o ../old-projector ./cmd/projector
	@git worktree remove --force build/old
	$(PLAIN) MILLRACE_OLD='$(CURDIR)/build/old-projector' go test -count=1 -v -run 'TestAnUpgrade' ./pipeline/e2e

lint: $(LINT) ## check formatting and run golangci-lint, which includes go vet
	@files=$$(gofmt -l .) && if [ -n "$$files" ]; then echo 'not formatted; run make fmt:'; echo "$$files"; exit 1; fi
	$(PLAIN) $(LINT) run ./...

$(LINT):
	$(PLAIN) GOBIN='$(CURDIR)/build/tools' go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(@:build/tools/golangci-lint-%=%)
	mv build/tools/golangci-lint $@

fmt: ## format the Go files
	gofmt -w .

# The property tests of CI make 100 checks each (rapid's default), and CI runs no fuzz target.
CHECKS := 2000
RAPID = $$(grep -rl --include='*_test.go' 'pgregory.net/rapid' pipeline | xargs -n 1 dirname | sort -u | sed 's|^|./|')
release-test: test ## before a release: tests, property tests with more CHECKS, fuzz targets, real Kafka (hours)
	go test -race -timeout 6h $(RAPID) -rapid.checks=$(CHECKS)
	@$(MAKE) --no-print-directory fuzz test-kafka

fuzz: ## run every fuzz target for half a minute (FUZZTIME)
	@grep -rEo '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sed 's|/[^/]*:func | |' | while read -r dir target; do \
		echo "$$dir $$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$dir </dev/null || exit 1; \
	done

# EVENTS=n sets the number of events, BROKERS=host:port an external Kafka, ROUNDS=n the number of rounds, OUT=FILE
# the file for the results. Single parts have Go benchmarks: go test -bench . -benchmem ./...
bench: PROFILE := cmd/processor/processor.pgo
bench: build ## measure the cost of an event against loops on the client alone; results in docs/benchmarks.md
	go build -o build/bench ./pipeline/e2e/bench
	build/bench -bin $(BIN) -events $(or $(EVENTS),2000000) -rounds $(or $(ROUNDS),12) -b '$(BROKERS)' -out $(or $(OUT),docs/benchmarks.md)
	@$(MAKE) --no-print-directory bench-projector

# SIZE=n sets fewer events or aggregates than the goals name, for a quick run.
bench-projector: ## measure fold, restart, restore and queries; results in docs/benchmarks.md
	go build -o build/bench ./pipeline/e2e/bench
	go test -c -o build/projection.bench ./pipeline/projector/projection
	build/bench projector -test build/projection.bench -size $(or $(SIZE),0) -out $(or $(OUT),docs/benchmarks.md)

# Each profile covers five seconds at full load; EVENTS must be large enough for that.
profile: build ## renew the CPU profile for compiling processor
	go build -o build/bench ./pipeline/e2e/bench
	build/bench -bin $(BIN) -events $(or $(EVENTS),8000000) -only b,b2 -profile build/profiles
	go tool pprof -proto build/profiles/b.pprof build/profiles/b2.pprof >build/profiles/both.pprof
	build/bench profile -out cmd/processor/processor.pgo build/profiles/both.pprof

docker: ## build the images of the services; `docker compose up` runs them
	@docker info >/dev/null 2>&1 || { echo 'make docker: no container engine answers (docker info); make run needs none'; exit 1; }
	VERSION=$(VERSION) docker compose --profile inject build

clean: ## remove build, including its tools and jars
	rm -rf build
