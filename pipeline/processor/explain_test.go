package processor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/codec"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/kafka/auth"
	"millrace/pipeline/processor"
	"millrace/pipeline/programs"
	"millrace/pipeline/sandbox"
)

const permitted = `
name: t
topics:
  in: {partitions: 1, types: [Click], envelope: none}
  pages: {partitions: 1, types: [Page], envelope: none, config: {cleanup.policy: compact}}
  out: {partitions: 1}
  other: {partitions: 1}
  dead: {partitions: 1}
  receipts: {partitions: 1}
tables: {pages: {topic: pages}}
pipelines:
  p:
    from: in
    stages:
      - dedupe: {by: id, within: 1ms}
      - assert: {that: n != 13, message: "'thirteen'"}
      - lookup: {table: pages, key: id, missing: keep, add: {title: {type: string, value: row.title}}}
      - route: {cases: [{when: n < 7, to: other}]}
    to: out
    dead_letter: dead
    receipts: receipts
    guarantee: %s
`

// With the permissions that explain lists, a worker can do all of its work. If one of them
// is missing, it cannot. If an optional one is missing, it logs a warning.
func TestExplainedACLsAreWhatAWorkerNeeds(t *testing.T) {
	for _, guarantee := range []string{"exactly_once", "at_least_once"} {
		t.Run(guarantee, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "schemas"), 0o700); err != nil {
				t.Fatal(err)
			}
			for name, file := range harness.ClickSchemas {
				harness.Write(t, filepath.Join(dir, "schemas", name), file.Data)
			}
			harness.Write(t, filepath.Join(dir, "topology.yaml"), fmt.Appendf(nil, permitted, guarantee))
			acls := explained(t, dir)
			if len(acls) < 14 {
				t.Fatalf("only %d permissions", len(acls))
			}
			t.Run("all", func(t *testing.T) {
				t.Parallel()
				if denied := work(t, dir, acls); denied != "" {
					t.Errorf("a permission was missing: %s", denied)
				}
			})
			if guarantee == "at_least_once" {
				return // the list of exactly_once without transactions
			}
			for i, without := range acls {
				t.Run("without "+without.Operation+" "+without.Resource+" "+without.Name, func(t *testing.T) {
					t.Parallel()
					fewer := append(append([]processor.ACL{}, acls[:i]...), acls[i+1:]...)
					switch denied := work(t, dir, fewer); {
					case denied == "":
						t.Error("the worker did its work without this permission and logged nothing")
					case without.Optional != strings.Contains(denied, "the default limit applies"):
						t.Errorf("optional is %v, but the worker logged: %s", without.Optional, denied)
					}
				})
			}
		})
	}
}

// explained returns the permissions that explain lists for the pipeline.
func explained(t *testing.T, dir string) []processor.ACL {
	t.Helper()
	var out, errs bytes.Buffer
	env := &cli.Env{Stdout: &out, Stderr: &errs, Now: time.Now}
	if code := env.Main([]string{"explain", "--json", "-t", filepath.Join(dir, "topology.yaml")}, programs.Processor); code != cli.ExitOK {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	var plan processor.Explanation
	if err := json.Unmarshal(out.Bytes(), &plan); err != nil {
		t.Fatal(err)
	}
	return plan.Pipelines[0].ACLs
}

// work runs a worker with these permissions until it did all kinds of work. Then it starts
// the worker again, so it must restore its state, and waits until it did more work. If a
// permission is missing, work returns the log line immediately.
func work(t *testing.T, dir string, acls []processor.ACL) (denied string) {
	t.Helper()
	broker, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "admin", "admin"), kfake.User("PLAIN", "worker", "secret", permissions(acls)...))
	if err != nil {
		t.Fatal(err)
	}
	defer broker.Close()
	side, err := sandbox.New(sandbox.Config{NoBroker: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = side.Close() }()
	f := feeder{broker: broker, registry: side.RegistryURL(), at: time.Now().Add(-24 * time.Hour)}
	for range 2 {
		if denied = workOnce(t, dir, &f); denied != "" {
			return denied
		}
	}
	return ""
}

func workOnce(t *testing.T, dir string, f *feeder) (denied string) {
	t.Helper()
	var minutes atomic.Int64 // the clock of the worker runs fast, so it trims its state after each batch
	log := &deniedLog{found: make(chan string, 1)}
	stop := make(chan os.Signal, 1)
	env := &cli.Env{
		Stdout: log, Stderr: log,
		LookupEnv: func(name string) (string, bool) {
			v, ok := map[string]string{"MILLRACE_SASL_USERNAME": "worker", "MILLRACE_SASL_PASSWORD": "secret"}[name]
			return v, ok
		},
		Now:    func() time.Time { return time.Now().Add(time.Duration(minutes.Add(2)) * time.Minute) },
		Notify: func() (<-chan os.Signal, func()) { return stop, func() {} },
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done, worked := make(chan int, 1), make(chan error, 1)
	go func() {
		done <- env.Main([]string{
			"run", "-t", filepath.Join(dir, "topology.yaml"), "-b", strings.Join(f.broker.ListenAddrs(), ","), "-r", f.registry,
			"-X", "sasl.mechanism=PLAIN", "-X", "security.protocol=SASL_PLAINTEXT", "--listen", "127.0.0.1:0",
			"--instance", "a", "--sessions", "1", "--commit-interval", "5ms", "--log-level", "debug", "--log-format", "text",
		}, programs.Processor)
	}()
	go func() { worked <- f.feed(ctx) }()
	select {
	case denied = <-log.found:
		cancel()
		if err := <-worked; err != nil {
			t.Logf("feeder: %v", err)
		}
	case err := <-worked:
		if err != nil {
			t.Errorf("the worker did not do its work: %v\n%s", err, log.text())
		}
	case code := <-done:
		t.Fatalf("exit code %d\n%s", code, log.text())
	}
	stop <- syscall.SIGTERM
	<-done
	return denied
}

func permissions(acls []processor.ACL) (out []kfake.ACL) {
	resources := map[string]kmsg.ACLResourceType{"topic": kmsg.ACLResourceTypeTopic, "group": kmsg.ACLResourceTypeGroup, "transactional-id": kmsg.ACLResourceTypeTransactionalId}
	patterns := map[string]kmsg.ACLResourcePatternType{"literal": kmsg.ACLResourcePatternTypeLiteral, "prefixed": kmsg.ACLResourcePatternTypePrefixed}
	operations := map[string]kmsg.ACLOperation{"Read": kmsg.ACLOperationRead, "Write": kmsg.ACLOperationWrite, "Create": kmsg.ACLOperationCreate, "Delete": kmsg.ACLOperationDelete, "DescribeConfigs": kmsg.ACLOperationDescribeConfigs}
	for _, a := range acls {
		out = append(out, kfake.ACL{Resource: resources[a.Resource], Name: a.Name, Pattern: patterns[a.Pattern], Operation: operations[a.Operation], Allow: true})
	}
	return out
}

// feeder writes events, one per batch.
type feeder struct {
	broker   *kfake.Cluster
	registry string    // its URL
	n        int64     // number of the next event
	at       time.Time // time of the last event
}

// feed writes events until the worker wrote to all of its topics and deleted records of
// its state topic. It writes at least one.
func (f *feeder) feed(ctx context.Context) error {
	broker := f.broker
	registry, err := codec.NewRegistry(codec.RegistryConfig{URLs: []string{f.registry}})
	if err != nil {
		return err
	}
	schema, err := codec.ParseSchema(string(harness.ClickSchemas["Click.avsc"].Data))
	if err != nil {
		return err
	}
	id, err := registry.Register(ctx, codec.TopicRecordName.Value("in", schema), schema)
	if err != nil {
		return err
	}
	cfg := kafka.Config{Brokers: broker.ListenAddrs(), SASL: auth.SASL{Mechanism: "PLAIN", Username: "admin", Password: auth.NewSecret("admin")}}
	// The worker creates its topics. Wait for them.
	for broker.TopicInfo("in") == nil || broker.TopicInfo("t-p-dedupe-state") == nil {
		if ctx.Err() != nil {
			return fmt.Errorf("wait for the topics: %w", ctx.Err())
		}
	}
	w, err := kafka.NewWriter(cfg)
	if err != nil {
		return err
	}
	defer w.Close()
	for {
		n := f.n
		f.n++
		f.at = f.at.Add(time.Minute)
		key := fmt.Sprint("c-", n)
		value := codec.AppendLong(codec.AppendString(codec.AppendFrame(nil, id), key), n)
		w.Write(ctx, &pipeline.Record{Topic: "in", Partition: pipeline.KeyPartition, Key: []byte(key), Value: value, Time: f.at}, func(error) {})
		if err := w.Flush(ctx); err != nil {
			return err
		}
		for {
			lag, err := kafka.Lag(ctx, cfg, "t-p", "in")
			if ctx.Err() != nil {
				return fmt.Errorf("after %d events: %w", n, ctx.Err())
			}
			if err == nil && lag == 0 {
				break
			}
		}
		state := broker.PartitionInfo("t-p-dedupe-state", 0)
		if n > 13 && state.LogStartOffset > 0 {
			break
		}
	}
	for _, topic := range []string{"out", "other", "dead"} {
		if broker.PartitionInfo(topic, 0).HighWatermark == 0 {
			return fmt.Errorf("topic %s is empty", topic)
		}
	}
	return nil
}

// deniedLog is a log that detects missing permissions.
type deniedLog struct {
	mu    sync.Mutex // guards buf
	buf   bytes.Buffer
	found chan string // the first line about a missing permission
}

func (l *deniedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bytes.Contains(p, []byte("AUTHORIZATION_FAILED")) {
		select {
		case l.found <- string(p):
		default:
		}
	}
	return l.buf.Write(p)
}

func (l *deniedLog) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
