package pipeline_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "millrace"

// imports is the table of allowed imports: package -> what it may import in
// addition to the standard library. An entry with a dot is a module and covers all
// of its packages; one without is a package of Millrace. A package that is not in
// the table is a fault: adding it is a decision about the design.
//
// Tests may import more, because they look at several parts together.
var imports = map[string][]string{
	// The vocabulary. Every package may import it, so it imports none.
	"pipeline": {},
	"schemas":  {}, // the embedded .avsc files

	"pipeline/private": {}, // files that only their owner can read
	"pipeline/nearest": {}, // what a misspelled name means
	"pipeline/decimal": {}, // exact decimals: the standard library's math/big

	// The language: bytes, expressions, stages, folds, the checked plan. None of
	// these packages performs I/O, but for codec's client of the registry.
	"pipeline/codec":         {"pipeline", "pipeline/decimal", "pipeline/nearest", avro, goavro, registry},
	"pipeline/codec/resolve": {"pipeline", "pipeline/codec", "pipeline/decimal"}, // bodies of a writer's schema, read with another
	"pipeline/expr": {
		"pipeline", "pipeline/codec", "pipeline/decimal",
		"pipeline/expr/escape", "pipeline/expr/library", "pipeline/expr/metadata", "pipeline/expr/nulls", "pipeline/expr/within", "pipeline/expr/raw", "pipeline/expr/wording", "pipeline/expr/zone", cel,
	},
	// Parts of expr that need nothing of it: names that CEL refuses, functions over values
	// of CEL, the key and the headers of records, the analysis of nulls, the places of fields, values in their encoding, the
	// words of messages, time zones.
	"pipeline/expr/escape":     {cel},
	"pipeline/expr/library":    {"pipeline/decimal", cel, uuid, xxhash},
	"pipeline/expr/metadata":   {"pipeline", "pipeline/codec", "pipeline/expr/raw", "pipeline/keyformat", cel},
	"pipeline/expr/nulls":      {"pipeline/codec", cel},
	"pipeline/expr/within":     {"pipeline/codec", "pipeline/expr/raw", "pipeline/expr/wording"},
	"pipeline/expr/raw":        {"pipeline/codec"},
	"pipeline/expr/wording":    {"pipeline/nearest", cel},
	"pipeline/expr/zone":       {"pipeline/expr/wording", cel},
	"pipeline/stage":           {"pipeline", "pipeline/codec", "pipeline/codec/resolve", "pipeline/expr", "pipeline/expr/raw", "pipeline/expr/within", "pipeline/identity", "pipeline/stage/access", "pipeline/stage/hide", "pipeline/stage/reshape", "pipeline/stage/responses", "pipeline/stage/uuids"},
	"pipeline/stage/access":    {"pipeline/codec", "pipeline/stage/uuids"},                                                                             // values as Go types
	"pipeline/stage/hide":      {"pipeline/codec", "pipeline/stage/uuids"},                                                                             // values that a mask hides
	"pipeline/stage/reshape":   {"pipeline", "pipeline/codec", "pipeline/codec/resolve", "pipeline/expr", "pipeline/expr/raw", "pipeline/expr/within"}, // the paths of the stage select
	"pipeline/stage/responses": {},
	"pipeline/stage/uuids":     {},
	"pipeline/fold":            {"pipeline", "pipeline/codec", "pipeline/expr", "pipeline/expr/metadata", "pipeline/expr/within", "pipeline/identity", "pipeline/keyformat"},
	"pipeline/topology/avsc":   {"pipeline/codec", "pipeline/expr"}, // schema files; expr for the nearest name
	"pipeline/topology/align":  {yaml},                              // places of characters in a YAML file
	"pipeline/topology":        {"pipeline", "pipeline/topology/align", "pipeline/topology/avsc", "pipeline/codec", "pipeline/codec/resolve", "pipeline/expr", "pipeline/expr/metadata", "pipeline/expr/within", "pipeline/keyformat", "pipeline/identity", "pipeline/stage", "pipeline/fold", yaml},

	// What identifies a record and its key, below everything that compares events.
	"pipeline/keyformat": {"pipeline", "pipeline/codec", "pipeline/codec/resolve", "pipeline/expr/within"},
	"pipeline/identity":  {"pipeline", "pipeline/codec", "pipeline/expr", "pipeline/expr/within"}, // the id is an expression where events have no envelope

	// The ground: the client loop, the disk, compact memory, encryption.
	"pipeline/kafka":            {"pipeline", "pipeline/kafka/auth", "pipeline/kafka/gauges", "pipeline/kafka/pool", franz, prometheus, sync}, // never Avro: it moves bytes
	"pipeline/kafka/auth":       {franz + "/pkg/sasl"},                                                                                        // TLS, SASL and secrets: no client
	"pipeline/kafka/pool":       {franz},
	"pipeline/kafka/gauges":     {franz, prometheus},
	"pipeline/kafka/admin":      {"pipeline/kafka", franz},
	"pipeline/kafka/recent":     {"pipeline", "pipeline/kafka", franz},
	"pipeline/kafka/properties": {"pipeline/kafka", "pipeline/kafka/auth", "pipeline/nearest"}, // settings with the names of other clients
	"pipeline/store":            {"pipeline", "pipeline/private", pebble, prometheus},          // never what it stores
	"pipeline/rows":             {},                                                            // memory for tables and states, never what a row is
	"pipeline/seal":             {"pipeline/rows"},                                             // never Avro nor Kafka: the standard library's crypto

	// What both programs know of a record.
	"pipeline/event": { // a record as an event, and back
		"pipeline", "pipeline/codec", "pipeline/codec/resolve", "pipeline/expr", "pipeline/keyformat", "pipeline/topology",
		sync,                                                  // a decoder looks up schemas at the same time
		"pipeline/expr/wording",                               // the snake case of a type's name
		"pipeline/kafka", "pipeline/keyring", "pipeline/seal", // an encoder seals fields, and keeps to the topic's limits
	},
	"pipeline/deadletter": {"pipeline", "pipeline/event"}, // the headers of dead letters
	"pipeline/receipt": { // what became of events that were not written
		"pipeline", "pipeline/codec", "pipeline/expr", "pipeline/stage", "pipeline/topology", "pipeline/kafka", "pipeline/kafka/gauges", "pipeline/rows",
		"pipeline/event", "pipeline/deadletter", "pipeline/identity",
		"pipeline/projector/query", // an outcome as the projector's API says it
		prometheus, sync,
	},
	"pipeline/keyring": { // data keys of subjects on their topic
		"pipeline", "pipeline/codec", "pipeline/expr/within", "pipeline/keyformat", "pipeline/topology", "pipeline/kafka", "pipeline/kafka/gauges", "pipeline/seal",
		"pipeline/cli",             // its flags
		"pipeline/projector/query", // how an encrypted field is shown
		pflag, prometheus,
	},
	"pipeline/keyring/kms": {"pipeline/seal", tink, tinkAWS, tinkGCP, tinkVault, aws, smithy, vault, googleAPI, grpc}, // clients of key management services; large, so only programs link it

	// What the commands of all programs share.
	"pipeline/cli": {
		"schemas", "pipeline/seal", "pipeline/codec", "pipeline/expr", "pipeline/stage", "pipeline/topology", "pipeline/kafka", "pipeline/kafka/auth", "pipeline/kafka/properties", "pipeline/private", // flags become their configurations
		cobra, pflag, prometheus, term,
	},
	"pipeline/worker": { // the life of a long-running program
		"pipeline", "pipeline/cli", "pipeline/codec", "pipeline/kafka", "pipeline/topology", "pipeline/server", "pipeline/server/dial", cobra, pflag, prometheus, sync,
	},

	// HTTP between the programs and their callers. None of these packages knows Kafka or events.
	"pipeline/reload":      {},                              // values from files, read again
	"pipeline/access":      {yaml},                          // callers, roles, routes: no I/O
	"pipeline/openapi":     {"pipeline", "pipeline/access"}, // documents of the APIs
	"pipeline/server":      {"pipeline/access", "pipeline/cli", "pipeline/private", "pipeline/reload", prometheus, sync},
	"pipeline/server/dial": {"pipeline/reload", sync}, // the client side

	// The processor. Its tools are siblings that do not know each other.
	"pipeline/processor/trace": {"pipeline", "pipeline/codec", "pipeline/topology", "pipeline/cli"}, // events at stages, for people
	"pipeline/processor/chain": { // one pipeline; expr for the keys of rows
		"pipeline", "pipeline/codec", "pipeline/expr", "pipeline/fold", "pipeline/stage", "pipeline/topology", "pipeline/kafka", "pipeline/kafka/gauges", "pipeline/rows",
		"pipeline/event", "pipeline/keyformat", "pipeline/deadletter", "pipeline/receipt", "pipeline/cli", "pipeline/server", "pipeline/worker", "pipeline/processor/trace", prometheus, sync,
	},
	"pipeline/processor": { // run, lint, explain, tap, the catalogue
		"pipeline", "pipeline/codec", "pipeline/codec/resolve", "pipeline/expr", "pipeline/stage", "pipeline/topology", "pipeline/kafka", "pipeline/kafka/properties",
		"pipeline/cli", "pipeline/server/dial", "pipeline/worker", "pipeline/processor/chain", "pipeline/processor/trace", cobra, pflag, prometheus,
	},
	"pipeline/processor/cases": { // test
		"pipeline", "pipeline/codec", "pipeline/expr", "pipeline/stage", "pipeline/fold", "pipeline/topology", "pipeline/topology/avsc", "pipeline/rows",
		"pipeline/event", "pipeline/deadletter", "pipeline/cli", "pipeline/processor/chain", "pipeline/processor/trace", cobra,
		yaml, // case files, which --update rewrites in place
	},
	"pipeline/processor/deploy": { // plan, apply, dry-run
		"pipeline", "pipeline/codec", "pipeline/stage", "pipeline/topology", "pipeline/kafka",
		"pipeline/event", "pipeline/cli", "pipeline/worker", "pipeline/processor/chain", cobra, pflag,
		"pipeline/projector/control", // the record of what was applied is on the control topic
	},
	"pipeline/processor/graph":    {"pipeline/cli", "pipeline/stage", "pipeline/topology", cobra},
	"pipeline/processor/scaffold": {"pipeline/cli", "pipeline/private", cobra}, // init: it writes embedded files and interprets none of them
	"pipeline/processor/verify": { // verify
		"pipeline", "pipeline/codec", "pipeline/expr/raw", "pipeline/expr/within", "pipeline/stage", "pipeline/topology", "pipeline/kafka",
		"pipeline/deadletter", "pipeline/cli", "pipeline/worker", "pipeline/processor/chain", "pipeline/processor/trace", cobra,
	},

	// The projector.
	"pipeline/projector/query":          {"pipeline", "pipeline/codec", "pipeline/decimal", "pipeline/expr", "pipeline/expr/within", "pipeline/access", "pipeline/openapi"}, // HTTP; expr for filters, access for the roles in OpenAPI
	"pipeline/projector/control":        {"pipeline", "pipeline/codec", "pipeline/identity", "pipeline/topology", "pipeline/kafka", "pipeline/cli", yaml},
	"pipeline/projector/states":         {"pipeline", "pipeline/codec", "pipeline/fold", "pipeline/store", "pipeline/rows"},                                                      // the store of a partition's aggregates and history, never why they change
	"pipeline/projector/changes":        {"pipeline/projector/query"},                                                                                                            // queues of changes for feeds
	"pipeline/projector/fill":           {"pipeline", "pipeline/event", "pipeline/fold", "pipeline/deadletter", "pipeline/kafka", "pipeline/store", "pipeline/projector/states"}, // filling a history, never what it indexes
	"pipeline/projector/home":           {"pipeline", "pipeline/fold", "pipeline/kafka", "pipeline/keyformat"},                                                                   // where an aggregate belongs
	"pipeline/projector/measure":        {prometheus},
	"pipeline/projector/internalrecord": {"pipeline", "pipeline/fold", "pipeline/projector/query"},                                                                                                                                               // what a projection publishes beside its snapshots, as bytes; query for the ranges that answers show too
	"pipeline/projector/handover":       {"pipeline/projector/internalrecord"},                                                                                                                                                                   // no I/O
	"pipeline/projector/missed":         {"pipeline", "pipeline/deadletter", "pipeline/event", "pipeline/fold", "pipeline/projector/internalrecord"},                                                                                             // reading the log for releases
	"pipeline/projector/pending":        {"pipeline", "pipeline/codec", "pipeline/event", "pipeline/fold", "pipeline/keyformat", "pipeline/store", "pipeline/projector/internalrecord", "pipeline/projector/query", "pipeline/projector/states"}, // what is due beside the states
	"pipeline/projector/projection": { // folding partitions; query for the positions and aggregates that readers and feeds get
		"pipeline", "pipeline/codec", "pipeline/fold", "pipeline/topology", "pipeline/kafka", "pipeline/store", "pipeline/rows",
		"pipeline/event", "pipeline/keyformat", "pipeline/deadletter", "pipeline/projector/query", "pipeline/projector/control", "pipeline/projector/internalrecord", "pipeline/projector/states", prometheus,
		"pipeline/projector/changes", "pipeline/projector/fill", "pipeline/projector/home", "pipeline/projector/handover", "pipeline/projector/measure", "pipeline/projector/missed", "pipeline/projector/pending",
	},
	"pipeline/projector/reader": { // answers from this worker's partitions; kafka only for the partitioner, never the store
		"pipeline", "pipeline/codec", "pipeline/fold", "pipeline/kafka", "pipeline/event", "pipeline/receipt",
		"pipeline/projector/query", "pipeline/projector/projection", "pipeline/projector/states", "pipeline/projector/changes",
	},
	"pipeline/projector": { // run, and the answers of all workers together
		"pipeline", "pipeline/codec", "pipeline/topology", "pipeline/kafka", "pipeline/kafka/admin", "pipeline/kafka/recent", "pipeline/store",
		"pipeline/event", "pipeline/keyring", "pipeline/seal", "pipeline/receipt", "pipeline/access", "pipeline/cli", "pipeline/server", "pipeline/server/dial", "pipeline/worker",
		"pipeline/projector/query", "pipeline/projector/control", "pipeline/projector/measure", "pipeline/projector/projection", "pipeline/projector/reader", cobra, pflag, prometheus, sync,
	},
	"pipeline/projector/client": {"pipeline", "pipeline/cli", "pipeline/worker", "pipeline/projector/query", cobra, pflag}, // HTTP only: never Kafka
	"pipeline/projector/rebuild": { // versions of projections
		"pipeline", "pipeline/topology", "pipeline/kafka", "pipeline/kafka/admin", "pipeline/keyring", "pipeline/seal", "pipeline/cli", "pipeline/server/dial", "pipeline/worker",
		"pipeline/projector", "pipeline/projector/control", "pipeline/projector/reader", cobra, pflag,
	},

	// The producer.
	"pipeline/producer/shop": {}, // example events, as JSON
	"pipeline/producer": {
		"pipeline", "pipeline/codec", "pipeline/keyformat", "pipeline/topology", "pipeline/kafka", "pipeline/event", "pipeline/deadletter", "pipeline/keyring", "pipeline/seal",
		"pipeline/expr", "pipeline/stage", // the names that redrive's filters can have, and hints for them
		"pipeline/access", "pipeline/cli", "pipeline/openapi", "pipeline/private", "pipeline/server", "pipeline/worker", "pipeline/producer/shop", cobra, prometheus, uuid, sync, // serve watches its topics meanwhile
	},

	// The sandbox.
	"pipeline/sandbox":      {"pipeline", "pipeline/private", franz, avro, registry, sync},
	"pipeline/sandbox/demo": {"pipeline", "pipeline/codec", "pipeline/topology", "pipeline/kafka", "pipeline/kafka/admin", "pipeline/kafka/properties", "pipeline/cli", "pipeline/private", "pipeline/server", "pipeline/server/dial", "pipeline/worker", "pipeline/sandbox", cobra},

	// The programs, put together.
	"pipeline/programs": {
		"pipeline/cli", "pipeline/seal", "pipeline/stage", "pipeline/worker",
		"pipeline/processor", "pipeline/processor/cases", "pipeline/processor/deploy", "pipeline/processor/graph",
		"pipeline/processor/scaffold", "pipeline/processor/verify",
		"pipeline/projector", "pipeline/projector/client", "pipeline/projector/rebuild",
		"pipeline/producer", "pipeline/sandbox/demo", cobra,
	},
	"cmd/producer":  {"pipeline/programs", "pipeline/keyring/kms"},
	"cmd/processor": {"pipeline/programs"},
	"cmd/projector": {"pipeline/programs", "pipeline/keyring/kms"},
	"cmd/sandbox":   {"pipeline/programs"},

	// An example of a program with stages written in Go.
	"examples/go-stage": {"pipeline", "pipeline/stage", "pipeline/programs"},

	// What tests of several packages share.
	"pipeline/harness":             {"pipeline", "pipeline/cli", "pipeline/sandbox", cobra},
	"pipeline/openapi/openapitest": {"pipeline/access", "pipeline/harness", jsonschema},
	"pipeline/event/eventtest":     {"schemas", "pipeline", "pipeline/codec", "pipeline/topology", "pipeline/event", "pipeline/harness"},
	"pipeline/keyring/keyringtest": {"pipeline", "pipeline/codec", "pipeline/topology", "pipeline/kafka", "pipeline/seal", "pipeline/event", "pipeline/event/eventtest", "pipeline/keyring", "pipeline/harness", prometheus},
	"pipeline/keyring/kms/kmstest": {googleKMS, grpc, protowire}, // services of key management, imitated
	"pipeline/processor/processortest": {
		"pipeline", "pipeline/codec", "pipeline/topology", "pipeline/kafka", "pipeline/cli", "pipeline/worker", "pipeline/processor/chain",
		"pipeline/programs", "pipeline/sandbox", "pipeline/harness", franz, prometheus,
	},
	"pipeline/projector/projectiontest": {"schemas", "pipeline/codec", "pipeline/expr", "pipeline/fold"},
	"pipeline/e2e":                      {"pipeline", "pipeline/codec", "pipeline/sandbox", "pipeline/e2e/kafkatest", franz},
	"pipeline/e2e/kafkatest":            {franz},
	"pipeline/e2e/bench": { // the loops that Millrace is compared with
		"schemas", "pipeline/sandbox", franz, goavro,
		protowire, // to take paths out of a profile
	},
}

const (
	avro       = "github.com/twmb/avro"
	aws        = "github.com/aws/aws-sdk-go-v2"
	cel        = "cel.dev/cel-go"
	cobra      = "github.com/spf13/cobra"
	franz      = "github.com/twmb/franz-go"
	googleAPI  = "google.golang.org/api"
	googleKMS  = "cloud.google.com/go/kms"
	grpc       = "google.golang.org/grpc"
	jsonschema = "github.com/santhosh-tekuri/jsonschema/v6"
	goavro     = "github.com/linkedin/goavro/v2"
	pebble     = "github.com/cockroachdb/pebble/v2"
	protowire  = "google.golang.org/protobuf"
	pflag      = "github.com/spf13/pflag"
	prometheus = "github.com/prometheus"
	registry   = "github.com/twmb/franz-go/pkg/sr"
	smithy     = "github.com/aws/smithy-go"
	sync       = "golang.org/x/sync"
	term       = "golang.org/x/term"
	tink       = "github.com/tink-crypto/tink-go/v2"
	tinkAWS    = "github.com/tink-crypto/tink-go-awskms/v3"
	tinkGCP    = "github.com/tink-crypto/tink-go-gcpkms/v2"
	tinkVault  = "github.com/tink-crypto/tink-go-hcvault/v2"
	uuid       = "github.com/google/uuid"
	vault      = "github.com/hashicorp/vault/api"
	xxhash     = "github.com/cespare/xxhash/v2"
	yaml       = "go.yaml.in/yaml/v4"
)

// franzKafka are the packages of franz-go that speak to Kafka, which is all but
// the registry's.
var franzKafka = []string{franz + "/pkg/kgo", franz + "/pkg/kadm", franz + "/pkg/kfake", franz + "/pkg/kmsg", franz + "/pkg/kerr"}

// file is a Go file of this module that is not a test.
type file struct {
	path string // from the module's root
	fset *token.FileSet
	*ast.File
}

func (f file) pkg() string { return path.Dir(f.path) }

// sources parses the module's Go files.
func sources(t *testing.T) (files []file) {
	t.Helper()
	fset := token.NewFileSet()
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("..", name)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel == "build" || d.Name() == "testdata" || rel != "." && strings.HasPrefix(d.Name(), ".") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") || strings.HasSuffix(rel, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, file{rel, fset, parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found %d Go files: is the test run in its directory?", len(files))
	}
	return files
}

// imported calls f with each import that is not of the standard library, without
// the module's own name in front.
func (f file) imported(do func(string)) {
	for _, spec := range f.Imports {
		name := strings.Trim(spec.Path.Value, "`\"")
		first, _, _ := strings.Cut(name, "/")
		if own, ok := strings.CutPrefix(name, module+"/"); ok {
			do(own)
		} else if strings.Contains(first, ".") {
			do(name)
		}
	}
}

func allowed(pkg, name string) bool {
	return slices.ContainsFunc(imports[pkg], func(entry string) bool {
		return name == entry || strings.Contains(entry, ".") && strings.HasPrefix(name, entry+"/")
	})
}

func TestImportsPointOneWay(t *testing.T) {
	for _, f := range sources(t) {
		if _, ok := imports[f.pkg()]; !ok {
			t.Errorf("%s: package %s is not in the table of imports; say there what it may know", f.path, f.pkg())
			continue
		}
		f.imported(func(name string) {
			if !allowed(f.pkg(), name) {
				t.Errorf("%s imports %s, which is not for %s to know; it may import %v", f.path, name, f.pkg(), imports[f.pkg()])
			}
		})
	}
}

// The table is itself to say what the design says.
func TestTableOfImportsKeepsTheDesign(t *testing.T) {
	clients := []string{"pipeline/kafka", "pipeline/kafka/admin", "pipeline/kafka/gauges", "pipeline/kafka/pool", "pipeline/kafka/recent", "pipeline/sandbox", "pipeline/e2e", "pipeline/e2e/kafkatest", "pipeline/e2e/bench", "pipeline/processor/processortest"}
	for pkg := range imports {
		for _, client := range franzKafka {
			if allowed(pkg, client) && !slices.Contains(clients, pkg) {
				t.Errorf("the table lets %s import the Kafka client", pkg)
			}
		}
		if allowed(pkg, "pipeline/programs") && !strings.HasPrefix(pkg, "cmd/") && pkg != "examples/go-stage" && pkg != "pipeline/processor/processortest" {
			t.Errorf("the table lets %s import pipeline/programs, which is above it", pkg)
		}
	}
	for _, pkg := range slices.Sorted(maps.Keys(imports)) {
		if cycle := reaches(pkg, pkg, nil); cycle != nil {
			t.Errorf("the table has a circle: %s", strings.Join(cycle, " -> "))
		}
	}
}

// reaches returns the way by which from, through the table, imports to.
func reaches(from, to string, way []string) []string {
	way = append(way, from)
	for _, next := range imports[from] {
		if next == to {
			return append(way, to)
		}
		if slices.Contains(way, next) {
			continue
		}
		if found := reaches(next, to, way); found != nil {
			return found
		}
	}
	return nil
}

func TestNothingRunsBeforeMain(t *testing.T) {
	for _, f := range sources(t) {
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s has an init function: construct it where it is needed, and pass it on", f.path)
			}
		}
		for _, spec := range f.Imports {
			if spec.Name != nil && spec.Name.Name == "_" && spec.Path.Value != `"embed"` {
				t.Errorf("%s imports %s for what it does at init", f.path, spec.Path.Value)
			}
		}
	}
}

func TestPackagesAreNamedForWhatTheyAre(t *testing.T) {
	bad := []string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "base", "lib", "types"}
	for _, f := range sources(t) {
		if slices.Contains(bad, f.Name.Name) {
			t.Errorf("%s: %q says nothing of what is in the package", f.path, f.Name.Name)
		}
	}
}
