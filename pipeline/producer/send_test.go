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

	"millrace/pipeline"
	"millrace/pipeline/event/eventtest"
	"millrace/pipeline/harness"
	"millrace/pipeline/keyring"
)

// fakeWriter is a Kafka that does with each record what a test says.
type fakeWriter struct {
	// write is called with the number of the record, from 1. It, or whoever it
	// hands done to, acknowledges.
	write func(n int, done func(error))
	// flush is what Flush does; nothing if nil.
	flush func(ctx context.Context) error

	keys []string // of what was written
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

func takeAll(_ int, done func(error)) { done(nil) }

// sending is a sender under test with what it is given and what it gives.
type sending struct {
	*sender
	console bytes.Buffer
	dir     string       // where the rejects go
	clock   atomic.Int64 // nanoseconds since testNow
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
		metrics:  newProducerMetrics(s.reg, encoder.Types),
		now:      func() time.Time { return harness.Now.Add(time.Duration(s.clock.Load())) },
		tick:     s.ticks,
		patience: time.Minute,
	}
	return s
}

// text sends the lines as those of stdin.
func (s *sending) text(ctx context.Context, lines string) *sendOutcome {
	return s.run(ctx, readFiles(ctx, []string{"-"}, strings.NewReader(lines)))
}

// paid returns n lines with an OrderPaid each, of orders o-1, o-2, ...
func paid(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"type":"OrderPaid","data":{"id":"o-%d"}}`+"\n", i+1)
	}
	return b.String()
}

func TestEveryAcknowledgedEventIsCounted(t *testing.T) {
	w := &fakeWriter{write: takeAll}
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
	const n = 5000 // more than the ledger keeps before it moves up
	var held []func(error)
	w := &fakeWriter{write: func(_ int, done func(error)) { held = append(held, done) }}
	s := newSending(t, w)
	w.flush = func(context.Context) error {
		for i, done := range slices.Backward(held) {
			if i == 0 {
				if through := s.ledger.outcome().through; through.line != 0 {
					t.Errorf("without line 1, it is complete up to %v", through)
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

// A record that fails may all the same have been written: a client cannot see
// which it was, so both must end alike.
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
			if out.err == nil || out.err.Error() != "stdin:3: Kafka did not take the event: the broker is away" {
				t.Errorf("error %v", out.err)
			}
			if out.failed != 1 || out.total != 2 || out.through.line != 2 {
				t.Errorf("%+v", out)
			}
			if len(w.keys) != 3 {
				t.Errorf("%d were written after the failure", len(w.keys)-3)
			}
			if got := testutil.ToFloat64(s.metrics.events.WithLabelValues("OrderPaid", "failed")); got != 1 {
				t.Errorf("%v are counted as failed", got)
			}
			if want := 2 + map[bool]int{true: 1}[applied]; len(log) != want {
				t.Errorf("Kafka has %v", log)
			}
		})
	}
}

func TestFirstFailureIsTheOneThatIsTold(t *testing.T) {
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
	if out.err == nil || out.err.Error() != "stdin:4: Kafka did not take the event: first" || out.failed != 2 || out.total != 2 || out.through.line != 1 {
		t.Errorf("%+v", out)
	}
}

// Kafka falls silent. The writer either calls back when its context ends, or
// never does.
func TestSenderGivesUpWhenNothingIsAcknowledged(t *testing.T) {
	for _, told := range []bool{true, false} {
		t.Run(fmt.Sprintf("called back %v", told), func(t *testing.T) {
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
				look := func() { // returns when the watch has looked at least once
					for range 2 {
						select {
						case s.ticks <- harness.Now:
						case <-ctx.Done():
						}
					}
				}
				look() // one is acknowledged: progress
				s.clock.Add(int64(s.patience) - 1)
				look()
				if ctx.Err() != nil {
					t.Error("it gave up too early")
				}
				s.clock.Add(1)
				look()
				<-ctx.Done()
				for _, done := range held {
					if told {
						done(ctx.Err())
					}
				}
				return ctx.Err()
			}
			out := s.text(t.Context(), paid(3))
			if !errors.Is(out.err, errNoProgress) || out.err.Error() != "no acknowledgement from Kafka in 1m0s, with 2 records under way" {
				t.Errorf("error %v", out.err)
			}
			if out.total != 1 || out.failed+out.unknown != 2 || (out.failed == 2) != told || out.through.line != 1 {
				t.Errorf("%+v", out)
			}
		})
	}
}

func TestInterruptedSenderFinishesWhatItRead(t *testing.T) {
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
			t.Error("what was written is abandoned")
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

func TestUnknownFateIsAnError(t *testing.T) {
	w := &fakeWriter{write: func(n int, done func(error)) {
		if n != 2 {
			done(nil)
		}
	}}
	out := newSending(t, w).text(t.Context(), paid(3))
	if out.err == nil || out.err.Error() != "1 records were written, but nothing is known of them" || out.unknown != 1 || out.total != 2 || out.through.line != 1 {
		t.Errorf("%+v", out)
	}
}

func TestFailedFlushIsAnError(t *testing.T) {
	w := &fakeWriter{write: takeAll, flush: func(context.Context) error { return errors.New("closed") }}
	if out := newSending(t, w).text(t.Context(), paid(1)); out.err == nil || out.err.Error() != "closed" {
		t.Errorf("%+v", out)
	}
}

func TestInputThatBreaksOffFailsAfterItsLinesWereSent(t *testing.T) {
	whole := gzipped(t, paid(3))
	s := newSending(t, &fakeWriter{write: takeAll})
	out := s.text(t.Context(), string(whole[:len(whole)-3]))
	if out.err == nil || out.err.Error() != "stdin: after line 3: unexpected EOF" || out.total != 3 || out.through.line != 3 {
		t.Errorf("%+v", out)
	}
}

func TestBadLinesAreKeptAndTheOthersSent(t *testing.T) {
	w := &fakeWriter{write: takeAll}
	s := newSending(t, w)
	in := paid(1) + "nonsense\r\n" + paid(1) + `{"type":"OrderPaid","data":{}}` + "\n" + "\xff\x00\n" + `{"type":` // no newline
	out := s.text(t.Context(), in)
	if out.err != nil || out.total != 2 || out.rejected != 4 || out.through.line != 6 {
		t.Errorf("%+v", out)
	}
	const told = `stdin:2: column 2: invalid character 'o' in literal null (expecting 'u')
stdin:4: data.id: missing; expected string
stdin:5: not UTF-8
stdin:6: the JSON ends too early
`
	if got := s.console.String(); got != told {
		t.Errorf("told\n%swant\n%s", got, told)
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

func TestManyBadLinesAreNotToldWithoutEnd(t *testing.T) {
	s := newSending(t, &fakeWriter{write: takeAll})
	if out := s.text(t.Context(), strings.Repeat("x\n", maxFaultsShown+7)); out.rejected != maxFaultsShown+7 {
		t.Errorf("%+v", out)
	}
	if got := s.console.String(); strings.Count(got, "\n") != maxFaultsShown+1 || !strings.HasSuffix(got, "... and 7 more bad lines\n") {
		t.Errorf("told\n%s", got)
	}
}

func TestTooLongLineIsKeptWhole(t *testing.T) {
	long := strings.Repeat("x", maxLine+10)
	s := newSending(t, &fakeWriter{write: takeAll})
	out := s.text(t.Context(), paid(1)+long+"\n"+paid(1)+long)
	if out.err != nil || out.total != 2 || out.rejected != 2 || out.through.line != 4 {
		t.Errorf("%+v", out)
	}
	kept, err := os.ReadFile(filepath.Join(s.dir, "stdin.rejects"))
	if err != nil || string(kept) != long+"\n"+long+"\n" {
		t.Errorf("kept %d bytes, %v", len(kept), err)
	}
}

func TestRejectsStandBesideTheirInput(t *testing.T) {
	s := newSending(t, &fakeWriter{write: takeAll})
	var files []string
	for _, name := range []string{"a", "good", "b"} {
		path := filepath.Join(s.dir, name)
		files = append(files, path)
		text := "bad " + name // no newline: the next input's lines must not run into it
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
	s := newSending(t, &fakeWriter{write: takeAll})
	in := filepath.Join(s.dir, "in")
	if err := os.WriteFile(in, []byte("bad\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(s.dir, "link")
	if err := os.Symlink(in, link); err != nil {
		t.Fatal(err)
	}
	s.rejects = &rejects{path: func(string) string { return link }, keep: []string{in}}
	out := s.run(t.Context(), readFiles(t.Context(), []string{in}, nil))
	if out.err == nil || !strings.Contains(out.err.Error(), "is read at the same time; name another file") {
		t.Errorf("%+v", out)
	}
	if text, err := os.ReadFile(in); err != nil || string(text) != "bad\n" {
		t.Errorf("the input is %q now, %v", text, err)
	}
}

func TestRejectsThatCannotBeKeptStopTheSender(t *testing.T) {
	s := newSending(t, &fakeWriter{write: takeAll})
	s.rejects.path = func(string) string { return filepath.Join(s.dir, "absent", "rejects") }
	out := s.text(t.Context(), paid(1)+"bad\n"+paid(1))
	if out.err == nil || !strings.Contains(out.err.Error(), "--rejects names another file") || out.total != 1 {
		t.Errorf("%+v", out)
	}
}

func TestStatusLineGivesWayToMessages(t *testing.T) {
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

// BenchmarkSender is everything that a line costs before the Kafka client.
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
