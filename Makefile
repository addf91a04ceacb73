# `make` shows the targets. Go and make are enough (-race wants a C compiler too);
# test-kafka needs Java and Maven, docker an engine.

VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
BIN      := build/bin
LINT     := build/tools/golangci-lint-v2.15.0
FUZZTIME := 30s
# One way to compile for all but the race detector: what one step has compiled serves the next.
PLAIN    := CGO_ENABLED=0 GOFLAGS=-trimpath
# A profile tells the compiler what is hot: a processor built by it takes some 5 % less CPU, and compiling twice as long.
# The images have it, and what make bench measures.
PROFILE  := off
CDNOW    := $(wildcard ../shared/data/cdnow-events.jsonl.gz)

.PHONY: help build demo run test test-kafka lint fmt fuzz bench bench-projector profile docker clean

help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

build: ## static binaries of the four programs in build/bin
	$(PLAIN) go build -pgo=$(PROFILE) -ldflags '-s -w -X millrace/pipeline/cli.version=$(VERSION)' -o $(BIN)/ ./cmd/...

demo: build ## one checked run from events to states, 10,000 of them or EVENTS=FILE; report in build/demo.json
	$(BIN)/sandbox demo --bin $(BIN) --out build/demo.json $(if $(EVENTS),--events '$(EVENTS)')

run: build ## everything, kept running until Ctrl-C
	$(BIN)/sandbox up --bin $(BIN)

test: lint ## formatting, vet, lint, and all tests with the race detector
	go test -race -timeout 40m ./...

# A test on a real broker has Kafka in its name. Each package has to have one that passed, and none skipped.
# CDNOW names the purchases of a real shop, as JSON lines; without it, made-up events are used. Two tests on the
# sandbox that need them run here, too: with the race detector, so many events take long.
test-kafka: build ## the end-to-end tests on a real Apache Kafka, started here or that of KAFKA_BROKERS
	@for pkg in ./pipeline/e2e/kafkatest ./pipeline/e2e; do \
		{ $(PLAIN) MILLRACE_TEST_KAFKA=1 MILLRACE_CDNOW='$(abspath $(CDNOW))' go test -count=1 -timeout 20m -v -run 'Kafka|OfThePast|OrdersPerUser' $$pkg; echo $$? >build/test-kafka.exit; } 2>&1 | tee build/test-kafka.log; \
		test "$$(cat build/test-kafka.exit)" = 0 || exit 1; \
		if grep '^ *--- SKIP' build/test-kafka.log; then echo 'make test-kafka: skipped is not passed'; exit 1; fi; \
		grep -q '^ *--- PASS: [^ ]*Kafka' build/test-kafka.log || { echo "make test-kafka: no test of $$pkg ran on a real Kafka"; exit 1; }; \
	done

lint: $(LINT) ## formatting and golangci-lint, which has go vet among its linters
	@files=$$(gofmt -l .) && if [ -n "$$files" ]; then echo 'not formatted (make fmt does it):'; echo "$$files"; exit 1; fi
	$(PLAIN) $(LINT) run ./...

$(LINT):
	$(PLAIN) GOBIN='$(CURDIR)/build/tools' go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(@:build/tools/golangci-lint-%=%)
	mv build/tools/golangci-lint $@

fmt: ## format the Go files
	gofmt -w .

fuzz: ## half a minute (FUZZTIME) of every fuzz target
	@grep -rEo '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sed 's|/[^/]*:func | |' | while read -r dir target; do \
		echo "$$dir $$target"; go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$dir </dev/null || exit 1; \
	done

# EVENTS=n takes another number of events, BROKERS=host:port an outside Kafka, ROUNDS=n the mean of n rounds;
# the results stand in docs/benchmarks.md, or in OUT=FILE. The benchmarks of single parts are Go's: go test -bench . -benchmem ./...
bench: PROFILE := cmd/processor/processor.pgo
bench: build ## what an event costs, beside loops on the client alone; results in docs/benchmarks.md
	go build -o build/bench ./pipeline/e2e/bench
	build/bench -bin $(BIN) -events $(or $(EVENTS),2000000) -rounds $(or $(ROUNDS),12) -b '$(BROKERS)' -out $(or $(OUT),docs/benchmarks.md)
	@$(MAKE) --no-print-directory bench-projector

# SIZE=n lets fewer events or aggregates be behind than the goals say, for a machine with little time.
bench-projector: ## what folding, restarting, restoring and asking cost; results in docs/benchmarks.md, too
	go build -o build/bench ./pipeline/e2e/bench
	go test -c -o build/projection.bench ./pipeline/projector/projection
	build/bench projector -test build/projection.bench -size $(or $(SIZE),0) -out $(or $(OUT),docs/benchmarks.md)

# Each profile is of five seconds at full load; EVENTS has to be enough for that.
profile: build ## renew the CPU profile that the compiler gets for processor
	go build -o build/bench ./pipeline/e2e/bench
	build/bench -bin $(BIN) -events $(or $(EVENTS),8000000) -only b,b2 -profile build/profiles
	go tool pprof -proto build/profiles/b.pprof build/profiles/b2.pprof >build/profiles/both.pprof
	build/bench profile -out cmd/processor/processor.pgo build/profiles/both.pprof

docker: ## images of the services; `docker compose up` runs them
	@docker info >/dev/null 2>&1 || { echo 'make docker: no container engine answers (docker info); make run needs none'; exit 1; }
	VERSION=$(VERSION) docker compose --profile inject build

clean: ## remove build, with the tools and the jars in it
	rm -rf build
