package producer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kerr"

	"millrace/pipeline"
	"millrace/pipeline/cli"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/harness"
	"millrace/pipeline/kafka"
	"millrace/pipeline/keyring"
)

// fakeWriter gives records the results that a test decides.
type fakeWriter struct {
	// write is called with the number of the record, from 1, and calls done now or
	// later.
	write func(n int, done func(error))
	// flush implements Flush; nil does nothing.
	flush func(ctx context.Context) error

	keys []string // of the written records
}

func (w *fakeWriter) Write(_ context.Context, r *pipeline.Record, done func(error)) {
	w.keys = append(w.keys, string(r.Key))
	w.write(len(w.keys), done)
}

func (w *fakeWriter) Flush(ctx context.Context) error {
	if w.flush == nil {
		return nil
	}
	return w.flush(ctx)
}

func acceptAll(_ int, done func(error)) { done(nil) }

// sending is a sender under test, with its inputs and outputs.
type sending struct {
	*sender
	console bytes.Buffer
	dir     string       // of the rejects files
	clock   atomic.Int64 // nanoseconds since harness.Now
	ticks   chan time.Time
	reg     *prometheus.Registry
}

func newSending(t testing.TB, w keyring.RecordWriter) *sending {
	t.Helper()
	s := &sending{dir: t.TempDir(), ticks: make(chan time.Time), reg: prometheus.NewRegistry()}
	encoder := eventtest.ShopEncoder(t)
	s.sender = &sender{
		encoder:  encoder,
		writer:   w,
		rejects:  &rejects{path: func(input string) string { return filepath.Join(s.dir, filepath.Base(input)+".rejects") }},
		console:  &console{w: &s.console},
		metrics:  newProducerMetrics(s.reg, encoder.Types()),
		now:      func() time.Time { return harness.Now.Add(time.Duration(s.clock.Load())) },
		tick:     s.ticks,
		patience: time.Minute,
	}
	return s
}

// text sends lines from stdin.
func (s *sending) text(ctx context.Context, lines string) *sendOutcome {
	return s.run(ctx, readFiles(ctx, []string{"-"}, strings.NewReader(lines)))
}

// paid returns n lines with an OrderPaid each, for the orders o-1, o-2, and so on.
func paid(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"type":"OrderPaid","data":{"id":"o-%d"}}`+"\n", i+1)
	}
	return b.String()
}

func TestEveryAcknowledgedEventIsCounted(t *testing.T) {
	w := &fakeWriter{write: acceptAll}
	s := newSending(t, w)
	out := s.text(t.Context(), paid(3)+"\n  \r\n"+`{"type":"UserDeleted","data":{"id":"u"}}`)
	if out.err != nil || out.interrupted || out.total != 4 || out.sent["OrderPaid"] != 3 || out.sent["UserDeleted"] != 1 || out.rejected+out.failed+out.unknown != 0 {
		t.Errorf("%+v", out)
	}
	if got := out.through.String(); got != "stdin:6" {
		t.Errorf("complete up to %s", got)
	}
	if want := []string{"o-1", "o-2", "o-3", "u"}; !slices.Equal(w.keys, want) {
		t.Errorf("wrote %v", w.keys)
	}
}

func TestAcknowledgementsInAnyOrder(t *testing.T) {
	const n = 5000 // more lines than the ledger keeps before it drops the done ones
	var held []func(error)
	w := &fakeWriter{write: func(_ int, done func(error)) { held = append(held, done) }}
	s := newSending(t, w)
	w.flush = func(context.Context) error {
		for i, done := range slices.Backward(held) {
			if i == 0 {
				if through := s.ledger.outcome().through; through.line != 0 {
					t.Errorf("complete up to %v, but line 1 is missing", through)
				}
			}
			done(nil)
		}
		return nil
	}
	if out := s.text(t.Context(), paid(n)); out.err != nil || out.total != n || out.through.line != n {
		t.Errorf("%+v", out)
	}
}

// A failed record may have been written; a client cannot know. Both cases have the
// same outcome.
func TestFailedRecordStopsTheSender(t *testing.T) {
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied %v", applied), func(t *testing.T) {
			var log []int // what Kafka has
			w := &fakeWriter{write: func(n int, done func(error)) {
				if n != 3 {
					log = append(log, n)
					done(nil)
					return
				}
				if applied {
					log = append(log, n)
				}
				done(errors.New("the broker is away"))
			}}
			s := newSending(t, w)
			out := s.text(t.Context(), paid(5000))
			if out.err == nil || out.err.Error() != "stdin:3: Kafka did not accept the event: the broker is away" {
				t.Errorf("error %v", out.err)
			}
			if out.failed != 1 || out.total != 2 || out.through.line != 2 {
				t.Errorf("%+v", out)
			}
			if len(w.keys) != 3 {
				t.Errorf("%d were written after the failure", len(w.keys)-3)
			}
			if got := testutil.ToFloat64(s.metrics.events.WithLabelValues("OrderPaid", "failed")); got != 1 {
				t.Errorf("%v records are counted as failed", got)
			}
			if want := 2 + map[bool]int{true: 1}[applied]; len(log) != want {
				t.Errorf("Kafka has %v", log)
			}
		})
	}
}

func TestFirstFailureIsReported(t *testing.T) {
	var held []func(error)
	w := &fakeWriter{write: func(_ int, done func(error)) { held = append(held, done) }}
	w.flush = func(context.Context) error {
		held[3](errors.New("first"))
		held[1](errors.New("second"))
		held[0](nil)
		held[2](nil)
		return nil
	}
	out := newSending(t, w).text(t.Context(), paid(4))
	if out.err == nil || out.err.Error() != "stdin:4: Kafka did not accept the event: first" || out.failed != 2 || out.total != 2 || out.through.line != 1 {
		t.Errorf("%+v", out)
	}
}

// Kafka stops to answer. The writer calls back when its context ends, or never.
func TestSenderGivesUpWhenNothingIsAcknowledged(t *testing.T) {
	for _, answers := range []bool{true, false} {
		t.Run(fmt.Sprintf("called back %v", answers), func(t *testing.T) {
			s, w := silentSending(t, answers)
			out := s.text(t.Context(), paid(3))
			if !errors.Is(out.err, errNoProgress) || out.err.Error() != "no acknowledgement from Kafka in 1m0s, with 2 records in flight" {
				t.Errorf("error %v", out.err)
			}
			if out.total != 1 || out.failed+out.unknown != 2 || (out.failed == 2) != answers || out.through.line != 1 {
				t.Errorf("%+v", out)
			}
			if len(w.keys) != 3 {
				t.Errorf("wrote %v", w.keys)
			}
		})
	}
}

// silentSending returns a sender whose writer acknowledges the first record only. If
// answers is set, it fails the others when its context ends.
func silentSending(t *testing.T, answers bool) (*sending, *fakeWriter) {
	t.Helper()
	var held []func(error)
	w := &fakeWriter{write: func(n int, done func(error)) {
		if n == 1 {
			done(nil)
		} else {
			held = append(held, done)
		}
	}}
	s := newSending(t, w)
	w.flush = func(ctx context.Context) error {
		s.check(ctx) // the first acknowledgement is progress
		s.clock.Add(int64(s.patience) - 1)
		s.check(ctx)
		if ctx.Err() != nil {
			t.Error("the sender gave up too early")
		}
		s.clock.Add(1)
		s.check(ctx)
		<-ctx.Done()
		if answers {
			for _, done := range held {
				done(ctx.Err())
			}
		}
		return ctx.Err()
	}
	return s, w
}

// check returns when the sender has checked its progress at least once.
func (s *sending) check(ctx context.Context) {
	for range 2 {
		select {
		case s.ticks <- harness.Now:
		case <-ctx.Done():
		}
	}
}

func TestInterruptedSenderSendsTheLinesThatItRead(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var held []func(error)
	w := &fakeWriter{write: func(n int, done func(error)) {
		held = append(held, done)
		if n == 2 {
			cancel()
		}
	}}
	w.flush = func(ctx context.Context) error {
		if ctx.Err() != nil {
			t.Error("the written records are abandoned")
		}
		for _, done := range held {
			done(nil)
		}
		return nil
	}
	out := newSending(t, w).text(ctx, paid(5))
	if !out.interrupted || out.err != nil || out.total != 2 || out.through.line != 2 {
		t.Errorf("%+v", out)
	}
}

func TestUnknownResultIsAnError(t *testing.T) {
	w := &fakeWriter{write: func(n int, done func(error)) {
		if n != 2 {
			done(nil)
		}
	}}
	out := newSending(t, w).text(t.Context(), paid(3))
	if out.err == nil || out.err.Error() != "1 records were written, but their result is unknown" || out.unknown != 1 || out.total != 2 || out.through.line != 1 {
		t.Errorf("%+v", out)
	}
}

func TestFailedFlushIsAnError(t *testing.T) {
	w := &fakeWriter{write: acceptAll, flush: func(context.Context) error { return errors.New("closed") }}
	if out := newSending(t, w).text(t.Context(), paid(1)); out.err == nil || out.err.Error() != "closed" {
		t.Errorf("%+v", out)
	}
}

func TestIncompleteInputFailsAfterItsLinesWereSent(t *testing.T) {
	whole := gzipped(t, paid(3))
	s := newSending(t, &fakeWriter{write: acceptAll})
	out := s.text(t.Context(), string(whole[:len(whole)-3]))
	if out.err == nil || out.err.Error() != "stdin: after line 3: unexpected EOF" || out.total != 3 || out.through.line != 3 {
		t.Errorf("%+v", out)
	}
}

func TestBadLinesAreKeptAndTheOthersSent(t *testing.T) {
	w := &fakeWriter{write: acceptAll}
	s := newSending(t, w)
	in := paid(1) + "nonsense\r\n" + paid(1) + `{"type":"OrderPaid","data":{}}` + "\n" + "\xff\x00\n" + `{"type":` // no newline
	out := s.text(t.Context(), in)
	if out.err != nil || out.total != 2 || out.rejected != 4 || out.through.line != 6 {
		t.Errorf("%+v", out)
	}
	const reported = `stdin:2: column 2: invalid character 'o' in literal null (expecting 'u')
stdin:4: data.id: missing; expected string
stdin:5: column 1: not UTF-8: byte 0xff
stdin:6: the JSON ends too early
`
	if got := s.console.String(); got != reported {
		t.Errorf("reported\n%swant\n%s", got, reported)
	}
	kept, err := os.ReadFile(filepath.Join(s.dir, "stdin.rejects"))
	const want = "nonsense\r\n" + `{"type":"OrderPaid","data":{}}` + "\n\xff\x00\n" + `{"type":` + "\n"
	if err != nil || string(kept) != want {
		t.Errorf("kept %q, %v\nwant %q", kept, err, want)
	}
	for typ, n := range map[string]float64{"unknown": 3, "OrderPaid": 1} {
		if got := testutil.ToFloat64(s.metrics.events.WithLabelValues(typ, "rejected")); got != n {
			t.Errorf("%v of %s are counted as rejected, want %v", got, typ, n)
		}
	}
}

// A line whose record Kafka refuses for its content is a bad line, like one that cannot be
// encoded; the others are sent.
func TestRefusedRecordsAreBadLinesAndTheOthersSent(t *testing.T) {
	refused := fmt.Errorf("writing: %w", kerr.InvalidTimestamp)
	var late []func(error)
	w := &fakeWriter{}
	w.write = func(n int, done func(error)) {
		switch n {
		case 2:
			done(refused)
		case 4:
			late = append(late, done)
		default:
			done(nil)
		}
	}
	w.flush = func(context.Context) error {
		for _, done := range late {
			done(refused)
		}
		return nil
	}
	s := newSending(t, w)
	out := s.text(t.Context(), paid(5))
	if out.err != nil || out.total != 3 || out.rejected != 2 || out.failed != 0 || out.unknown != 0 || out.through.line != 5 {
		t.Errorf("%+v", out)
	}
	if got := s.console.String(); strings.Count(got, "Kafka refused the event: writing: INVALID_TIMESTAMP") != 2 || !strings.Contains(got, "stdin:2: ") || !strings.Contains(got, "stdin:4: ") {
		t.Errorf("reported\n%s", got)
	}
	lines := strings.SplitAfter(paid(5), "\n")
	if kept, err := os.ReadFile(filepath.Join(s.dir, "stdin.rejects")); err != nil || string(kept) != lines[1]+lines[3] {
		t.Errorf("kept %q, %v", kept, err)
	}
	if got := testutil.ToFloat64(s.metrics.events.WithLabelValues("OrderPaid", "rejected")); got != 2 {
		t.Errorf("%v are counted as rejected, want 2", got)
	}
}

// A line whose time the topic does not accept is a bad line that says so.
func TestLineWithATimeThatTheTopicDoesNotAcceptIsABadLine(t *testing.T) {
	w := &fakeWriter{write: acceptAll}
	s := newSending(t, w)
	s.encoder.SetLimits(kafka.Limits{"shop.events": {After: time.Hour, Before: 24 * time.Hour}})
	line := func(at time.Time) string {
		return fmt.Sprintf(`{"type":"OrderPaid","timestamp":%q,"data":{"id":"o"}}`+"\n", at.Format(time.RFC3339))
	}
	out := s.text(t.Context(), line(harness.Now)+line(harness.Now.Add(2*time.Hour))+line(harness.Now.Add(time.Hour))+line(harness.Now.Add(-25*time.Hour))+line(time.Date(2600, 1, 1, 0, 0, 0, 0, time.UTC)))
	if out.err != nil || out.total != 2 || out.rejected != 3 {
		t.Errorf("%+v", out)
	}
	got := s.console.String()
	for _, want := range []string{
		"stdin:2: timestamp: the time " + harness.Now.Add(2*time.Hour).UTC().Format(time.RFC3339) + ": shop.events takes at most 1h0m0s ahead of the clock (message.timestamp.after.max.ms)\n",
		"shop.events takes at most 24h0m0s before the clock (message.timestamp.before.max.ms)\n",
		"stdin:5: timestamp: 2600-01-01T00:00:00Z is after 2262-04-11T23:47:16.854Z, the last time that a Kafka record can have\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("reported\n%swant\n%s", got, want)
		}
	}
}

func TestOnlyTheFirstBadLinesAreReported(t *testing.T) {
	s := newSending(t, &fakeWriter{write: acceptAll})
	if out := s.text(t.Context(), strings.Repeat("x\n", maxFaultsShown+7)); out.rejected != maxFaultsShown+7 {
		t.Errorf("%+v", out)
	}
	if got := s.console.String(); strings.Count(got, "\n") != maxFaultsShown+1 || !strings.HasSuffix(got, "... and 7 more bad lines\n") {
		t.Errorf("reported\n%s", got)
	}
}

func TestTooLongLineIsKeptCompletely(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	s := newSending(t, &fakeWriter{write: acceptAll})
	out := s.text(t.Context(), paid(1)+long+"\n"+paid(1)+long)
	if out.err != nil || out.total != 2 || out.rejected != 2 || out.through.line != 4 {
		t.Errorf("%+v", out)
	}
	kept, err := os.ReadFile(filepath.Join(s.dir, "stdin.rejects"))
	if err != nil || string(kept) != long+"\n"+long+"\n" {
		t.Errorf("kept %d bytes, %v", len(kept), err)
	}
}

func TestRejectsFileIsNextToItsInput(t *testing.T) {
	s := newSending(t, &fakeWriter{write: acceptAll})
	var files []string
	for _, name := range []string{"a", "good", "b"} {
		path := filepath.Join(s.dir, name)
		files = append(files, path)
		text := "bad " + name // without a newline: the lines of the next input must not follow on the same line
		if name == "good" {
			text = paid(1)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	out := s.run(t.Context(), readFiles(t.Context(), files, nil))
	if want := []string{files[0] + ".rejects", files[2] + ".rejects"}; out.rejected != 2 || !slices.Equal(out.rejects, want) {
		t.Errorf("%+v", out)
	}
	for _, name := range []string{"a", "b"} {
		if kept, err := os.ReadFile(filepath.Join(s.dir, name+".rejects")); err != nil || string(kept) != "bad "+name+"\n" {
			t.Errorf("%s: kept %q, %v", name, kept, err)
		}
	}
}

func TestRejectsOfAllInputsInOneFile(t *testing.T) {
	r := &rejects{path: func(string) string { return filepath.Join(t.TempDir(), "all") }}
	path := r.path("")
	r.path = func(string) string { return path }
	for _, input := range []string{"a", "b"} {
		if err := r.add(input, []byte("bad "+input), true); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.close(); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(path); err != nil || string(kept) != "bad a\nbad b\n" || len(r.paths) != 1 {
		t.Errorf("kept %q in %v, %v", kept, r.paths, err)
	}
}

func TestRejectsNeverOverwriteTheInput(t *testing.T) {
	s := newSending(t, &fakeWriter{write: acceptAll})
	in := filepath.Join(s.dir, "in")
	if err := os.WriteFile(in, []byte("bad\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(s.dir, "link")
	if err := os.Symlink(in, link); err != nil {
		t.Fatal(err)
	}
	s.rejects = &rejects{path: func(string) string { return link }, inputs: []string{in}}
	out := s.run(t.Context(), readFiles(t.Context(), []string{in}, nil))
	if out.err == nil || !strings.Contains(out.err.Error(), "is also an input; name another file") {
		t.Errorf("%+v", out)
	}
	if text, err := os.ReadFile(in); err != nil || string(text) != "bad\n" {
		t.Errorf("the input is now %q, %v", text, err)
	}
}

func TestUnwritableRejectsFileStopsTheSender(t *testing.T) {
	s := newSending(t, &fakeWriter{write: acceptAll})
	s.rejects.path = func(string) string { return filepath.Join(s.dir, "absent", "rejects") }
	out := s.text(t.Context(), paid(1)+"bad\n"+paid(1))
	if out.err == nil || !strings.Contains(out.err.Error(), "name another file with --rejects") || out.total != 1 {
		t.Errorf("%+v", out)
	}
}

func TestStatusLineStaysBelowMessages(t *testing.T) {
	var b strings.Builder
	c := &console{w: &b, terminal: true}
	c.status("10 sent")
	c.status("10 sent")
	c.printf("in:%d: bad", 3)
	c.status("")
	const clear = "\r\x1b[K"
	if want := clear + "10 sent" + clear + "in:3: bad\n10 sent" + clear; b.String() != want {
		t.Errorf("%q\nwant %q", b.String(), want)
	}
}

// BenchmarkSender measures a line up to the Kafka client.
func BenchmarkSender(b *testing.B) {
	line := []byte(paid(1))
	s := newSending(b, &fakeWriter{})
	s.writer = dryWriter{}
	batch := &lineBatch{input: "in", data: line, ends: []int{len(line)}}
	b.ReportAllocs()
	number := 0
	for b.Loop() {
		number++
		batch.first = number
		if err := s.lines(b.Context(), batch, 0, 1); err != nil {
			b.Fatal(err)
		}
	}
}

func TestDryRunWritesNoFile(t *testing.T) {
	topology, err := filepath.Abs(harness.ShopTopology())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	t.Chdir(dir)
	harness.Write(t, "in.jsonl", []byte(paid(1)+"nonsense\n"+strings.Repeat("x", maxLine+1)+"\n"+paid(1)))
	for _, args := range [][]string{{"in.jsonl"}, {"--rejects", "bad", "in.jsonl"}, {"--json", "in.jsonl"}} {
		var stdout, stderr harness.Buffer
		env := &cli.Env{Stdout: &stdout, Stderr: &stderr, Now: func() time.Time { return harness.Now }}
		code := env.Main(append([]string{"send", "--dry-run", "-t", topology, "-b", "127.0.0.1:1"}, args...), Command)
		if code != cli.ExitFailure {
			t.Errorf("%v: exit code %d", args, code)
		}
		harness.WantLines(t, stderr.String(), "in.jsonl:2: column 2: invalid character", "in.jsonl:3: a line of more than 16 MiB",
			"dry run: checked 2 events for shop.events in ", " and sent none\n", "2 bad lines would be rejected\n")
		if args[0] == "--json" {
			harness.WantLines(t, stdout.String(), `"rejected": 2,`, `"dry_run": true`)
		}
		if strings.Contains(stdout.String(), "rejects") {
			t.Errorf("%v: the summary names a rejects file: %s", args, stdout.String())
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("%v: the directory has %v, %v", args, entries, err)
		}
	}
}

// The error is that of package kafka, without a prefix that hides the address.
func TestUnreachableBrokerIsNamed(t *testing.T) {
	var stderr harness.Buffer
	env := &cli.Env{Stdout: &stderr, Stderr: &stderr, Stdin: strings.NewReader(paid(1)), Now: func() time.Time { return harness.Now }}
	code := env.Main([]string{"send", "-t", harness.ShopTopology(), "-b", "127.0.0.1:1", "-r", harness.Sandbox(t).RegistryURL()}, Command)
	_, err := kafka.EnsureTopics(t.Context(), kafka.Config{Brokers: []string{"127.0.0.1:1"}}, []kafka.TopicSpec{{Name: "t", Partitions: 1}}, true)
	if err == nil || code != cli.ExitFailure || !strings.Contains(stderr.String(), "127.0.0.1:1") || !strings.Contains(stderr.String(), "producer: "+err.Error()+"\n") {
		t.Errorf("exit code %d: %s\nwant %v", code, stderr.String(), err)
	}
}
